"""The SQLite file of a local database: who may open it, whole steps, sound rows, and one line for whatever is wrong.

The file is anybody's to break: a disk, an editor, another program. So what is read is checked before it is used.
"""

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.files.folders import make_private
from imcore.sql import sqlite_file
from imcore.sql.sqlite_file import FileConnection

BUSY_TIMEOUT_S = 10.0
"""For how long a step waits for another program."""

_APPLICATION_ID = 0x696D6372
_ROWS_AT_ONCE = 500
_PASSING = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL),
}
"""What is no fault of the file. SQLite says so of a missing table too, and of a text that is not UTF-8: these are."""
_OF_THE_VALUE = (
    *(UnicodeEncodeError, OverflowError),
    *(sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError),
)
"""What is raised for a value that SQLite does not take: of another type, too long, too large."""
_WAYS_OUT = "free it, set IM_DATA_DIR to another folder, or leave it out (--no-local)"

Values = Mapping[str, object] | Sequence[object]
Types = tuple[Any, ...]
"""Of the columns of a row, as `isinstance` takes them."""


class Schema(NamedTuple):
    """What a file has to hold: these tables, of this version. `owner` is the first of them, and has a column `uid`."""

    version: int
    statements: str


def check_room(size: int, folder: Path, *, called: Path) -> None:
    """Make sure that a folder has room for so many bytes: write them, to a file that has no name any more.

    Nothing is left of it, whatever happens. Raise LocalDatabaseError, about the database `called`.
    """
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
    """One connection to the file of one user's local database.

    Every method raises LocalDatabaseError where the file cannot be used, InvalidInput for values that cannot be kept;
    then nothing has changed.
    """

    def __init__(
        self,
        path: Path,
        uid: str,
        schema: Schema,
        *,
        exclusive: bool = False,
        read_only: bool = False,
        called: Path | None = None,
    ) -> None:
        """Open it, and make it if there is none and it may be written. Errors call it by its path, or as `called`.

        Raise LocalDatabaseError if another session holds it, or if it is damaged, of another version, of another user,
        or in a place that cannot be written.
        """
        self.path = path
        self._called = called or path
        self._uid = uid
        self._schema = schema
        self._lock: int | None = None
        self._withdrawn = sqlite_file.Withdrawn()
        self._is_read_only = read_only
        if problem := sqlite_file.library_problem():
            raise LocalDatabaseError(problem)
        try:
            if not read_only:
                make_private(path.parent, path.parent.parent)  # in the data directory
            if exclusive:
                self._hold()
            self._connection = self._open_to_read() if read_only else self._open()
        except OSError as error:
            self._release()
            raise self._unusable(error.strerror or str(error)) from error
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Close it, and let another session have it."""
        with suppress(LocalDatabaseError):
            self.empty_log()
        self._connection.close()
        self._release()

    def note_withdrawn(self) -> None:
        """Know that a text was taken away: it may still be in the log."""
        self._withdrawn.note()

    def empty_log(self) -> None:
        """Take texts that were taken away out of the log. While somebody reads an older state, a later call does it."""
        if self._withdrawn.is_due and not self._is_read_only:
            with self.guard():
                self._withdrawn.empty(self._connection)

    def rows(self, sql: str, types: Types, values: Values = ()) -> Iterator[Any]:
        """Yield the rows of a query bit by bit, each with a value of its type in every column."""
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
        """Make one step of what is done in the `with`: all of it, or nothing where anything is raised."""
        self._refuse_lost()
        with self.guard():
            sqlite_file.begin_writing(self._connection, BUSY_TIMEOUT_S)
            try:
                yield self._connection
                self._connection.execute("COMMIT")  # which fails where the disk is full
            except BaseException:
                if self._connection.in_transaction:  # SQLite may have gone back by itself
                    self._connection.execute("ROLLBACK")
                raise
        self._refuse_lost()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Translate what SQLite raises."""
        try:
            yield
        except UnicodeDecodeError as error:  # of SQLite's own words, which quote the file
            raise self.damaged() from error
        except _OF_THE_VALUE as error:
            raise InvalidInput(f"the local database cannot keep this: {error}") from error
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _PASSING:
                raise self._unusable(str(error)) from error
            raise self.damaged() from error

    def _refuse_lost(self) -> None:
        """Raise LocalDatabaseError if the file is not in its place any more: nobody would find what is kept in it."""
        if self._connection.lost() or not self._has_lock():
            raise LocalDatabaseError(
                f"the local database {self.path} or its lock was removed or replaced while it was in use, and it keeps "
                "nothing: begin anew, and what is not acked will be pulled again"
            )

    def damaged(self) -> LocalDatabaseError:
        """Return the error that says so."""
        return LocalDatabaseError(
            f"the local database {self._called} is damaged: move it away, and what is not acked will be pulled again"
        )

    def _unusable(self, why: str) -> LocalDatabaseError:
        return _unusable(self._called, why)

    def _missing(self) -> LocalDatabaseError:
        return LocalDatabaseError(f"{self._uid!r} has no local database here: `im listen` or `im pull` makes it")

    def _sound(self, row: Sequence[object], types: Types) -> Sequence[object]:
        if not all(map(isinstance, row, types)):
            raise self.damaged()
        return row

    def _open(self) -> FileConnection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        return self._connected("rw", self._prepare)

    def _open_to_read(self) -> FileConnection:
        if not self.path.exists():
            raise self._missing()
        return self._connected("ro", self._check)

    def _connected(self, mode: str, prepare: Callable[[FileConnection], None]) -> FileConnection:
        uri = f"file:{quote(os.fsencode(self.path))}?mode={mode}"
        with self.guard():
            connection = sqlite_file.connect(str(self.path), uri, timeout_s=BUSY_TIMEOUT_S)
            try:
                prepare(connection)
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
            raise self._unusable(f"its file system cannot keep SQLite's write-ahead log (journal mode {mode})")
        connection.note_files()

    def _check(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise self._missing()
        if connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            raise self._foreign()
        if version > self._schema.version:
            raise LocalDatabaseError(f"the local database {self._called} is of a newer imcore: upgrade imcore")
        if version < 0:
            raise self.damaged()
        if version < self._schema.version:
            raise LocalDatabaseError(
                f"the local database {self._called} is of an older imcore: move it away, and what is not acked will be "
                "pulled again"
            )
        self._check_owner(connection.execute("SELECT uid FROM owner").fetchall())

    def _check_owner(self, owners: Sequence[tuple[object]]) -> None:
        if len(owners) != 1 or not isinstance(owners[0][0], str):
            raise self.damaged()
        if owners[0][0] != self._uid:
            raise LocalDatabaseError(
                f"the local database {self._called} belongs to {owners[0][0]!r}, not to {self._uid!r}"
            )

    def _create(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise self._foreign()
        for statement in self._schema.statements.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO owner (uid) VALUES (?)", (self._uid,))
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {self._schema.version}")

    def _foreign(self) -> LocalDatabaseError:
        return LocalDatabaseError(f"{self._called} is a database of something else: set IM_DATA_DIR to another folder")

    @property
    def _lock_path(self) -> Path:
        return self.path.with_suffix(".lock")

    def _has_lock(self) -> bool:
        """Whether what this session holds, if it holds the file, keeps others out: a new file would not."""
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
                f"another session of {self._uid!r} holds the local database {self._called}: end it, or leave it out "
                "(--no-local); another device has another IM_DATA_DIR, with IM_REDIS_URL and IM_DATABASE_URL set"
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
