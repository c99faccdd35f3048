"""SQLite files: the library, the write-ahead log, locks, and lost files.

The local database of a device uses this module too, without SQLAlchemy.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from imcore.files.folders import Identity, identity
from imcore.util.deadlines import attempts

T = TypeVar("T")

OLDEST_LIBRARY = (3, 37, 0)
"""This version brought STRICT tables, which local databases have."""

LOG_BYTES = 4 * 1024 * 1024
"""SQLite truncates the log to this size when it reuses it: the usual size, that of 1000 pages."""

EMPTY_AGAIN_S = 2.0
"""The pause after a failed attempt to empty a log, which keeps writers out."""

_PAUSE_S = 0.01

_SLICE_MS = 100
"""The wait of SQLite in one call. Python handles a signal only between two calls."""

# Settings of the connection: the file keeps none of them.
_SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS: a sync that reaches the disk
    "PRAGMA secure_delete = ON",  # overwrites deleted texts
    f"PRAGMA journal_size_limit = {LOG_BYTES}",
)


class FileConnection(sqlite3.Connection):
    """A connection that notices if its files are lost: SQLite goes on writing to a removed file. See `connect`."""

    path: str
    database: Identity | None
    log: Identity | None = None

    def note_files(self) -> None:
        """Remember the log, which stays the same while this connection is open."""
        self.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # the first transaction opens the log
        self.log = identity(_log_of(self.path))

    def lost(self) -> str | None:
        """Return which open file was removed or replaced, and what to do; None if all are in place."""
        now = identity(self.path)
        if now != self.database:
            return lost_file(self.path, "replaced" if now else "removed")
        if self.log is not None and identity(_log_of(self.path)) != self.log:
            return (
                f"{_log_of(self.path)} was removed while it was in use, and nothing was stored just now: leave it "
                "alone while a program runs, and see with im check whether anything is missing"
            )
        return None


class RecalledTexts:
    """Whether a log may hold recalled texts, and when to empty it."""

    def __init__(self) -> None:
        self._may_hold_text = True  # the last writer may have died before it emptied the log
        self._again_at = 0.0

    def note(self) -> None:
        self._may_hold_text = True

    def empty(self, connection: sqlite3.Connection) -> bool:
        """Empty the log; return False if that failed. Then it is due again in a moment."""
        try:
            is_empty = empty_log(connection)
        except sqlite3.OperationalError:  # for example a full disk: the transaction before is stored all the same
            is_empty = False
        self._may_hold_text = not is_empty
        self._again_at = 0.0 if is_empty else time.monotonic() + EMPTY_AGAIN_S
        return is_empty

    @property
    def is_due(self) -> bool:
        return self._may_hold_text and time.monotonic() >= self._again_at


def lost_file(path: str, change: str) -> str:
    """Return the message for a file in use that was `removed` or `replaced`."""
    return (
        f"{path} was {change} while it was in use, and nothing is stored: put the file back; if it is lost, end all "
        "programs of imcore, run im db upgrade, start them, and run im check --repair"
    )


def library_problem() -> str | None:
    """Return why the SQLite library of this Python cannot be used; None if it can."""
    if sqlite3.sqlite_version_info >= OLDEST_LIBRARY:
        return None
    oldest = ".".join(map(str, OLDEST_LIBRARY[:2]))
    return f"this Python has SQLite {sqlite3.sqlite_version}, and imcore needs {oldest} or newer: use a newer Python"


def connect(path: str, uri: str, *, timeout_s: float, same_thread: bool = True) -> FileConnection:
    """Open the file at `path`, which `uri` names. Raise sqlite3.Error."""
    database = identity(path)  # before it is opened, to notice a replacement meanwhile
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=timeout_s,
        isolation_level=None,  # the driver begins no transactions
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
    """Turn the write-ahead log on, for good; return the mode that SQLite uses if that fails. Raise sqlite3.Error."""
    # This is the only statement for which SQLite itself does not wait for others.
    mode: tuple[str] = _patient(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone(), timeout_s)
    return None if mode == ("wal",) else str(mode[0])


def begin_writing(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Begin a transaction as the only writer. Raise sqlite3.OperationalError if another writer does not end in time."""
    with _short_waits(connection):
        _patient(lambda: connection.execute("BEGIN IMMEDIATE"), timeout_s)


def empty_log(connection: sqlite3.Connection) -> bool:
    """Write the log back into the file and empty it; return False if somebody prevents it. Raise sqlite3.Error."""
    with _short_waits(connection):  # nobody else can write meanwhile
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy


def error_code(error: BaseException) -> int:
    """Return SQLite's primary code of an error; 0 for any other error."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the other bits are details


@contextmanager
def _short_waits(connection: sqlite3.Connection) -> Iterator[None]:
    (usual_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_SLICE_MS}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {usual_ms}")


def _patient(attempt: Callable[[], T], timeout_s: float) -> T:
    for _ in attempts(timeout_s, longest_pause_s=_PAUSE_S):
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_BUSY:
                raise
            busy = error
    raise busy


def _log_of(path: str) -> str:
    return f"{path}-wal"
