"""The SQLite backend: a file in WAL mode, synced at every commit.

A worker confirms an entry of the journal once its transaction is committed, and nobody reads that entry again. So a
commit must outlive a power cut, not only a kill: synchronous=FULL, which in WAL mode is one sync for each batch.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event

from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    DatabaseRejected,
    DatabaseReplaced,
    DatabaseUnavailable,
    ImError,
)
from imcore.files.folders import make_private
from imcore.model.rows import Batch
from imcore.sql import cells, sqlite_file
from imcore.sql.bulk import UPDATES, BulkTable, by_target
from imcore.sql.sqlite_file import FileConnection, error_code
from imcore.sql.tables import to_iso

BUSY_TIMEOUT_MS = 10_000
"""For how long a writer waits for another one."""

_REJECTED = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE}
_NOT_USABLE = {
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
_NOT_WRITABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}


class SqliteBackend:
    """One SQLite file. Nothing makes it but `create`."""

    driver_error: type[Exception] = sqlite3.Error

    def __init__(self, path: Path, data_dir: Path | None) -> None:
        if problem := sqlite_file.library_problem():
            raise ConfigurationError(problem)
        self._path = path.absolute()
        self._data_dir = data_dir
        self._was_open = False
        self._withdrawn = sqlite_file.Withdrawn()
        self.address = f"sqlite:///{path}"
        self.engine: Engine = create_engine(
            "sqlite://", creator=self._connect, poolclass=QueuePool, hide_parameters=True
        )
        event.listen(self.engine, "checkout", self._look_at_files)

    def create(self) -> None:
        """Make the file, for its owner only, and its folder, if that is the data directory or in it."""
        try:
            self._make_folder()
            self._make_file()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self._path} ({error.strerror}): set IM_DATA_DIR or IM_DATABASE_URL to another place"
            ) from error
        self._use_log()

    def remarks(self, connection: Connection) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: every connection says itself how it wants to store."""
        return ()

    def begin_writing(self, connection: Connection) -> None:
        """Become the only writer."""
        sqlite_file.begin_writing(_driver(connection.connection), BUSY_TIMEOUT_MS / 1000)

    def migrating(self, connection: Connection) -> None:
        """Do nothing: the only writer is the only one that migrates."""

    def examine(self, connection: Connection, *, writes: bool) -> None:
        """Do nothing: opening the file and its log has shown all that can be seen."""

    def write(self, batch: Batch) -> None:
        """Write with executemany: the driver's bulk path. A text that is withdrawn leaves the log too."""
        with self._lent() as driver:
            with driver:
                sqlite_file.begin_writing(driver, BUSY_TIMEOUT_MS / 1000)
                for target, rows in by_target(batch):
                    driver.executemany(_insert(target), (target.values(row, to_iso) for row in rows))
                for statement, rows_of in UPDATES:
                    driver.executemany(statement, rows_of(batch))
            self._refuse_lost(driver)
        if any(row.recalls is not None for row in batch.messages):
            self._withdrawn.note()
            self.empty_log()

    def empty_log(self, *, always: bool = False) -> bool:
        """Empty the log if it may hold what is withdrawn, or `always`; return False if somebody was in the way."""
        if not (always or self._withdrawn.is_due):
            return True
        with self._lent() as driver:
            return self._withdrawn.empty(driver)

    def note_withdrawn(self) -> None:
        """Know that a text was taken away: it may still be in the log."""
        self._withdrawn.note()

    def committed(self, connection: Connection) -> None:
        """Raise DatabaseReplaced if what was just stored is in a file that nobody will find."""
        self._refuse_lost(_driver(connection.connection))

    def translate(self, error: Exception) -> ImError:
        """Return what an error of sqlite3 means."""
        code = error_code(error)
        if code == sqlite3.SQLITE_CANTOPEN and not os.path.exists(self._path):
            return self._missing()
        if "no such table" in str(error) or "no such column" in str(error):
            return DatabaseNotReady(f"the database {self._path} has not the tables of imcore: run im db upgrade")
        if code in _NOT_WRITABLE:
            return ConfigurationError(
                f"cannot use the database {self._path} ({error}): the file and its folder, where SQLite keeps its log, "
                "must be writable; set IM_DATABASE_URL"
            )
        if code in _NOT_USABLE:
            return ConfigurationError(f"cannot use the database {self._path} ({error}): set IM_DATABASE_URL")
        if code in _REJECTED or isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
            return DatabaseRejected(f"the database refused a row: {error}")
        return DatabaseUnavailable(f"the database {self._path} cannot be used now: {error}")

    def _missing(self) -> ImError:
        if self._was_open:
            return DatabaseReplaced(sqlite_file.lost_file(str(self._path), "removed"))
        return DatabaseNotReady(f"there is no database {self._path} yet: run im db upgrade, or set IM_DATABASE_URL")

    def _look_at_files(self, driver: FileConnection, *_: object) -> None:
        """Refuse a connection of the pool whose files are gone. The pool closes it."""
        self._refuse_lost(driver)

    def _refuse_lost(self, driver: FileConnection) -> None:
        if what := driver.lost():
            raise DatabaseReplaced(what)

    @contextmanager
    def _lent(self) -> Iterator[FileConnection]:
        with closing(self.engine.raw_connection()) as pooled:
            yield _driver(pooled)

    def _connect(self) -> FileConnection:
        if not self._path.exists():  # once SQLite has failed over that, it may be there
            raise self._missing()
        # mode=rw: a command that only shows must not leave an empty database behind.
        connection = sqlite_file.connect(
            str(self._path),
            f"file:{quote(os.fsencode(self._path))}?mode=rw",
            timeout_s=BUSY_TIMEOUT_MS / 1000,
            same_thread=False,
        )
        connection.text_factory = cells.decoded
        self._was_open = True
        return connection

    def _use_log(self) -> None:
        with self._lent() as driver:
            mode = sqlite_file.use_log(driver, BUSY_TIMEOUT_MS / 1000)
            if mode is not None:
                raise ConfigurationError(
                    f"the file system of {self._path} cannot keep SQLite's write-ahead log (journal mode {mode}): set "
                    "IM_DATA_DIR or IM_DATABASE_URL to a disk of this machine"
                )
            driver.note_files()

    def _make_file(self) -> None:
        # Not opened if it is there already: closing it would drop the locks that SQLite holds on it in this process.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _make_folder(self) -> None:
        if self._data_dir is not None and self._path.is_relative_to(self._data_dir.absolute()):
            make_private(self._path.parent, self._data_dir.absolute())


def _driver(pooled: Any) -> FileConnection:
    return cast("FileConnection", pooled.driver_connection)


def _insert(target: BulkTable[Any]) -> str:
    marks = ", ".join("?" for _ in target.columns)
    return f"INSERT INTO {target.table} ({target.names}) VALUES ({marks}) ON CONFLICT {target.on_conflict}"  # noqa: S608 (our own names)
