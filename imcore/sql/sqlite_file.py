"""What every SQLite file of ours shares: the library, the write-ahead log, locks, and whether the file is still there.

The local database of a client uses this too, without SQLAlchemy.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")

OLDEST_LIBRARY = (3, 37, 0)
"""Local databases have STRICT tables, which SQLite knows since then."""

LOG_BYTES = 4 * 1024 * 1024
"""SQLite cuts its log back to this size when it begins anew: the usual one, as 1000 pages are written back at once."""

EMPTY_AGAIN_S = 2.0
"""How long after a vain attempt to empty a log it is tried again: others cannot write meanwhile."""

_SLICE_MS = 100
"""SQLite waits this long in one call. Python handles a signal only between two calls."""

# All of these belong to the connection: the file remembers none.
_SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS: a sync that reaches the disk
    "PRAGMA secure_delete = ON",  # a text that is taken away is overwritten
    f"PRAGMA journal_size_limit = {LOG_BYTES}",
)


class Identity(NamedTuple):
    """Which file a path leads to."""

    device: int
    inode: int


class FileConnection(sqlite3.Connection):
    """A connection that knows which files it has open. Make it with `connect`.

    SQLite goes on with a file that somebody has removed: what it stores then, nobody finds.
    """

    path: str
    database: Identity | None
    log: Identity | None = None

    def note_files(self) -> None:
        """Remember the log: it stays the same for as long as this connection is open."""
        self.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # the first transaction opens the log
        self.log = _identity(_log_of(self.path))

    def lost(self) -> str | None:
        """Return which file that this connection has open is in its place no more, and what to do; None if none is."""
        now = _identity(self.path)
        if now != self.database:
            return lost_file(self.path, "replaced" if now else "removed")
        if self.log is not None and _identity(_log_of(self.path)) != self.log:
            return (
                f"{_log_of(self.path)} was removed while it was in use, and nothing was stored just now: leave it "
                "alone while a program runs, and see with im check whether anything is missing"
            )
        return None


class Withdrawn:
    """Whether a log may hold texts that were taken away, until it was emptied since."""

    def __init__(self) -> None:
        self._is_there = True  # whoever wrote the log before may have died before emptying it
        self._again_at = 0.0

    def note(self) -> None:
        """Know that a text was taken away."""
        self._is_there = True

    def empty(self, log_of: sqlite3.Connection) -> bool:
        """Empty the log; return whether that was done: if not, whatever was in the way, it is due again in a moment."""
        try:
            is_done = empty_log(log_of)
        except sqlite3.OperationalError:  # such as a full disk: what was to be stored is stored all the same
            is_done = False
        self._is_there = not is_done
        self._again_at = 0.0 if is_done else time.monotonic() + EMPTY_AGAIN_S
        return is_done

    @property
    def is_due(self) -> bool:
        """Whether it is time to empty the log."""
        return self._is_there and time.monotonic() >= self._again_at


def lost_file(path: str, what: str) -> str:
    """Return the line that says that a file in use was removed or replaced."""
    return (
        f"{path} was {what} while it was in use, and nothing is stored: put the file back; if it is lost, end all "
        "programs of imcore, run im db upgrade, start them, and run im check --repair"
    )


def library_problem() -> str | None:
    """Return why the SQLite of this Python cannot be used; None if it can."""
    if sqlite3.sqlite_version_info >= OLDEST_LIBRARY:
        return None
    oldest = ".".join(map(str, OLDEST_LIBRARY[:2]))
    return f"this Python has SQLite {sqlite3.sqlite_version}, and imcore needs {oldest} or newer: use a newer Python"


def connect(path: str, uri: str, *, timeout_s: float, same_thread: bool = True) -> FileConnection:
    """Open the file at `path`, which `uri` names. Raise sqlite3.Error."""
    database = _identity(path)  # before it is opened: one that replaces it meanwhile is noticed
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=timeout_s,
        isolation_level=None,  # the driver begins no transaction of its own: we begin ours
        check_same_thread=same_thread,
        factory=FileConnection,
    )
    try:
        connection.path, connection.database = path, database
        for setting in _SETTINGS:
            connection.execute(setting).fetchall()
        connection.note_files()
    except BaseException:
        connection.close()
        raise
    return connection


def use_log(connection: sqlite3.Connection, timeout_s: float) -> str | None:
    """Turn the write-ahead log on, which the file remembers; return what SQLite uses where that does not work.

    Raise sqlite3.Error.
    """
    # For this change alone SQLite does not wait for others by itself.
    mode: tuple[str] = _patient(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone(), timeout_s)
    return None if mode == ("wal",) else str(mode[0])


def begin_writing(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Begin a transaction as the only writer. Raise sqlite3.OperationalError if another one goes on for too long."""
    (usual_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_SLICE_MS}")
    try:
        _patient(lambda: connection.execute("BEGIN IMMEDIATE"), timeout_s)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {usual_ms}")


def empty_log(connection: sqlite3.Connection) -> bool:
    """Write the log back into the file and empty it; return whether that was done.

    It is not done while somebody reads an older state, or writes. Raise sqlite3.Error.
    """
    (usual_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    # Others cannot write while this waits.
    connection.execute(f"PRAGMA busy_timeout = {_SLICE_MS}")
    try:
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {usual_ms}")
    return not is_busy


def error_code(error: BaseException) -> int:
    """Return SQLite's primary code of an error; 0 for an error of something else."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the rest is detail


def _patient(attempt: Callable[[], T], timeout_s: float) -> T:
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                raise
            time.sleep(0.01)


def _log_of(path: str) -> str:
    return f"{path}-wal"


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino)
