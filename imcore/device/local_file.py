"""The SQLite file of a local database: its lock, transactions, checked rows, and one line for whatever is wrong.

A disk, an editor or another program may break the file. So every row is checked before it is used.
"""

import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.files.folders import make_private
from imcore.sql import sqlite_file
from imcore.sql.sqlite_file import FileConnection
from imcore.util.backoff import ThrottledLog

SCHEMA_VERSION = 6

# Every message of the owner has a row in `tallies`: `unread` is NULL until this device has asked, and 0 at the end.
# `erasures` names the latest erasure in a group when this device last removed names and texts.
_SCHEMA = """
CREATE TABLE owner (uid TEXT NOT NULL, dataset TEXT, begun INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE messages (
    gid TEXT NOT NULL, msgid INTEGER NOT NULL, seq INTEGER NOT NULL, sender_uid TEXT NOT NULL, content TEXT NOT NULL,
    client_msgid TEXT, sent_at_ms INTEGER, recalls INTEGER, meta TEXT, PRIMARY KEY (gid, msgid)
) STRICT, WITHOUT ROWID;
CREATE INDEX chat ON messages (msgid, gid) WHERE recalls IS NULL;
CREATE INDEX tombstones ON messages (gid, recalls) WHERE recalls IS NOT NULL;
CREATE TABLE tallies (
    gid TEXT NOT NULL, msgid INTEGER NOT NULL, read INTEGER NOT NULL, unread INTEGER, PRIMARY KEY (gid, msgid)
) STRICT, WITHOUT ROWID;
CREATE INDEX perhaps_unread ON tallies (msgid, gid) WHERE unread IS NOT 0;
CREATE TABLE resume_points (gid TEXT PRIMARY KEY, msgid INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE erasures (gid TEXT PRIMARY KEY, erasure TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE peers (gid TEXT PRIMARY KEY, uid TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, gid TEXT NOT NULL, to_uid TEXT, content TEXT NOT NULL,
    client_msgid TEXT NOT NULL UNIQUE, written_ms INTEGER NOT NULL, tried INTEGER NOT NULL DEFAULT 0, refused TEXT,
    meta TEXT
) STRICT;
"""

BUSY_TIMEOUT_S = 10.0

_APPLICATION_ID = 0x696D6372
_ROWS_AT_ONCE = 500
_PASSING = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL),
}
"""Errors that are no fault of the file."""
_OF_THE_VALUE = (
    *(UnicodeEncodeError, OverflowError),
    *(sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError),
)
"""Errors for a value that SQLite cannot keep: of another type, too long, too large."""
_WAYS_OUT = "free it, set IM_DATA_DIR to another folder, or leave it out (--no-local)"

Values = Mapping[str, object] | Sequence[object]
Types = tuple[Any, ...]
"""Of the columns of a row, as `isinstance` takes them."""


def check_room(size: int, folder: Path, *, called: Path) -> None:
    """Raise LocalDatabaseError, about the database `called`, unless a folder has room: for a file that is removed."""
    try:
        path = folder / f"{uuid.uuid4().hex}.try"
        with open(path, "xb", buffering=0) as file:
            path.unlink()
            rest = os.urandom(size)  # a file system may compress
            while rest:
                rest = rest[file.write(rest) :]
    except OSError as error:
        raise _unusable(called, error.strerror or str(error)) from error


def _unusable(called: Path, why: str) -> LocalDatabaseError:
    return LocalDatabaseError(f"the local database {called} cannot be used now: {why}; {_WAYS_OUT}")


class LocalFile:
    """One connection to the file of one user's local database. It raises what LocalDatabase raises."""

    def __init__(
        self, path: Path, uid: str, *, exclusive: bool = False, read_only: bool = False, called: Path | None = None
    ) -> None:
        """Open it, or make it unless `read_only`. Errors name its path, or `called`.

        Raise LocalDatabaseError if another session holds it, or if it is damaged or not this user's.
        """
        self.path = path
        self._called = called or path
        self.uid = uid
        self._lock: int | None = None
        self.recalled_texts = sqlite_file.RecalledTexts()
        self.warnings = ThrottledLog(time.monotonic)
        self._is_read_only = read_only
        if problem := sqlite_file.library_problem():
            raise LocalDatabaseError(problem)
        try:
            if not read_only:
                make_private(path.parent, path.parent.parent)  # in the data directory
            if exclusive:
                self._hold()
            self._connection = self._open()
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise _unusable(self._called, error.strerror or str(error)) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(LocalDatabaseError):
            self.empty_log()
        self._connection.close()
        self._release()

    def empty_log(self) -> None:
        """Remove recalled texts from the log. If another program reads it, a later call does so."""
        if self.recalled_texts.is_due and not self._is_read_only:
            with self.guard():
                self.recalled_texts.empty(self._connection)

    def rows(self, sql: str, types: Types, values: Values = ()) -> Iterator[Any]:
        """Yield the rows of a query, page by page, after a check of the type of every value."""
        with self.guard():
            cursor = self._connection.execute(sql, values)
        while True:
            with self.guard():
                page = [self._sound(row, types) for row in cursor.fetchmany(_ROWS_AT_ONCE)]
            if not page:
                return
            yield from page

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what is done in the `with`, or roll it back if anything is raised."""
        self._refuse_lost()
        with self.guard():
            sqlite_file.begin_writing(self._connection, BUSY_TIMEOUT_S)
            try:
                yield self._connection
                self._connection.execute("COMMIT")  # which fails where the disk is full
            except BaseException:
                if self._connection.in_transaction:  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise
        self._refuse_lost()

    @contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:  # of SQLite's own words, which quote the file
            raise self.damaged() from error
        except _OF_THE_VALUE as error:
            raise InvalidInput(f"the local database cannot keep this: {error}") from error
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _PASSING:
                raise _unusable(self._called, str(error)) from error
            raise self.damaged() from error

    def _refuse_lost(self) -> None:
        """Raise LocalDatabaseError if the path names another file now: nobody would find the rows of this one."""
        if self._connection.lost() or not self._has_lock():
            raise LocalDatabaseError(
                f"the local database {self.path} or its lock was removed or replaced while it was in use, and it keeps "
                "nothing: begin anew, and what is not acked will be pulled again"
            )

    def damaged(self) -> LocalDatabaseError:
        return LocalDatabaseError(
            f"the local database {self._called} is damaged: move it away, and what is not acked will be pulled again"
        )

    def _missing(self) -> LocalDatabaseError:
        return LocalDatabaseError(f"{self.uid!r} has no local database here: `im listen` or `im pull` makes it")

    def _sound(self, row: Sequence[object], types: Types) -> Sequence[object]:
        if not all(map(isinstance, row, types)):
            raise self.damaged()
        return row

    def _open(self) -> FileConnection:
        if not self.path.exists():
            if self._is_read_only:
                raise self._missing()
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        uri = f"file:{quote(os.fsencode(self.path))}?mode={'ro' if self._is_read_only else 'rw'}"
        with self.guard():
            connection = sqlite_file.connect(str(self.path), uri, timeout_s=BUSY_TIMEOUT_S)
            try:
                self._check(connection) if self._is_read_only else self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _prepare(self, connection: FileConnection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            self._create(connection)
        self._check(connection)
        connection.execute("COMMIT")
        # Not before the check: a file that is not ours stays as it was.
        if mode := sqlite_file.use_log(connection, BUSY_TIMEOUT_S):
            why = f"its file system cannot keep SQLite's write-ahead log (journal mode {mode})"
            raise _unusable(self._called, why)
        connection.note_files()

    def _check(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise self._missing()
        if connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            raise self._foreign()
        if version > SCHEMA_VERSION:
            raise LocalDatabaseError(f"the local database {self._called} is of a newer imcore: upgrade imcore")
        if version < 0:
            raise self.damaged()
        if version < SCHEMA_VERSION:
            raise LocalDatabaseError(
                f"the local database {self._called} is of an older imcore: move it away, and what is not acked will be "
                "pulled again"
            )
        self._check_owner(connection.execute("SELECT uid FROM owner").fetchall())

    def _check_owner(self, owners: Sequence[tuple[object]]) -> None:
        if len(owners) != 1 or not isinstance(owners[0][0], str):
            raise self.damaged()
        if owners[0][0] != self.uid:
            raise LocalDatabaseError(
                f"the local database {self._called} belongs to {owners[0][0]!r}, not to {self.uid!r}"
            )

    def _create(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise self._foreign()
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO owner (uid) VALUES (?)", (self.uid,))
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _foreign(self) -> LocalDatabaseError:
        return LocalDatabaseError(f"{self._called} is a database of something else: set IM_DATA_DIR to another folder")

    @property
    def _lock_path(self) -> Path:
        return self.path.with_suffix(".lock")

    def _has_lock(self) -> bool:
        """Return whether the lock, if this session has one, still keeps others out: a new lock file would not."""
        try:
            return self._lock is None or os.path.samestat(os.fstat(self._lock), os.stat(self._lock_path))
        except OSError:
            return False

    def _hold(self) -> None:
        self._lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalDatabaseError(
                f"another session of {self.uid!r} holds the local database {self._called}: end it, or leave it out "
                "(--no-local); another device has another IM_DATA_DIR, with IM_REDIS_URL and IM_DATABASE_URL set"
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
