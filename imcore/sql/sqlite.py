"""The SQLite backend: a file in WAL mode, synced at every commit.

A worker acks journal entries after the commit, and nobody reads them again. So a commit must survive a power cut:
synchronous=FULL, which in WAL mode means one sync per batch.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, QueuePool, create_engine, event

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
from imcore.sql.backend import Backend
from imcore.sql.bulk import CONFIRM, ERASURES_QUERY, RECALL, BulkTable, by_table, check_deletions, erasures_of
from imcore.sql.sqlite_file import FileConnection, error_code
from imcore.sql.tables import to_iso

BUSY_TIMEOUT_MS = 10_000

_REJECTED = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE}
_NOT_USABLE = {sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOTADB}
_NOT_WRITABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}


SCHEME = "sqlite:///"
_OPTION = re.compile(r"\?([A-Za-z_]+)=[^/]*$")
"""Looks like an option at the end of a URL. A path may contain `?`, but hardly this at its end."""


def path_of(url: str) -> Path:
    """Return the path in a URL, which is not decoded: it may contain any character. Raise ConfigurationError."""
    path = url.removeprefix(SCHEME)
    if path in {"", ":memory:"}:
        raise ConfigurationError(f"a database must be a file: set IM_DATABASE_URL to {SCHEME}PATH")
    if option := _OPTION.search(path):
        raise ConfigurationError(
            f"a SQLite database takes no options: leave ?{option[1]}=... out of IM_DATABASE_URL, which is {SCHEME}PATH"
        )
    return Path(path)


class SqliteBackend(Backend):
    """One SQLite file. Only `create` makes it. Opening it and its log is the whole examination."""

    driver_error = sqlite3.Error

    def __init__(self, path: Path, data_dir: Path | None) -> None:
        if problem := sqlite_file.library_problem():
            raise ConfigurationError(problem)
        self._path = path.absolute()
        self._data_dir = data_dir
        self._was_open = False
        self._recalled_texts = sqlite_file.RecalledTexts()
        self.address = f"sqlite:///{path}"
        self.engine = create_engine("sqlite://", creator=self._connect, poolclass=QueuePool, hide_parameters=True)
        event.listen(self.engine, "checkout", lambda driver, *_: _refuse_lost(driver))  # the pool closes it then

    def create(self) -> None:
        """Make the file, for its owner only, and its folder, if that is the data directory or below it."""
        try:
            if self._data_dir is not None and self._path.is_relative_to(self._data_dir.absolute()):
                make_private(self._path.parent, self._data_dir.absolute())
            # Never open an existing file: closing it would drop the locks that SQLite holds on it in this process.
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self._path} ({error.strerror}): set IM_DATA_DIR or IM_DATABASE_URL to another place"
            ) from error
        with self._lend() as driver:
            mode = sqlite_file.use_log(driver, BUSY_TIMEOUT_MS / 1000)
            if mode is not None:
                raise ConfigurationError(
                    f"the file system of {self._path} cannot keep SQLite's write-ahead log (journal mode {mode}): set "
                    "IM_DATA_DIR or IM_DATABASE_URL to a disk of this machine"
                )
            driver.note_files()

    def begin_writing(self, connection: Connection) -> None:
        """Become the only writer, and so the only one that migrates."""
        sqlite_file.begin_writing(_driver(connection.connection), BUSY_TIMEOUT_MS / 1000)

    def write(self, batch: Batch) -> None:
        """Write with executemany. Recalled texts leave the log too."""
        with self._lend() as driver:
            with driver:
                sqlite_file.begin_writing(driver, BUSY_TIMEOUT_MS / 1000)
                check_deletions(batch, driver.execute)
                stored = erasures_of(driver.execute(ERASURES_QUERY)).applied(batch)
                for table, rows in by_table(stored):
                    driver.executemany(_insert(table), (table.values(row, to_iso) for row in rows))
                for statement, values_of in (RECALL, CONFIRM):
                    driver.executemany(statement, values_of(stored))
            _refuse_lost(driver)
        if any(row.recalls is not None for row in batch.messages):
            self._recalled_texts.note()
            self.empty_log()

    def empty_log(self, *, always: bool = False) -> bool:
        if not (always or self._recalled_texts.is_due):
            return True
        with self._lend() as driver:
            return self._recalled_texts.empty(driver)

    def check_commit(self, connection: Connection) -> None:
        _refuse_lost(_driver(connection.connection))

    def translate(self, error: Exception) -> ImError:
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

    @contextmanager
    def _lend(self) -> Iterator[FileConnection]:
        with closing(self.engine.raw_connection()) as pooled:
            yield _driver(pooled)

    def _connect(self) -> FileConnection:
        if not self._path.exists():  # after a failure of SQLite, another process may have made it
            raise self._missing()
        # mode=rw: a command that only reads must not leave an empty database behind.
        connection = sqlite_file.connect(
            str(self._path),
            f"file:{quote(os.fsencode(self._path))}?mode=rw",
            timeout_s=BUSY_TIMEOUT_MS / 1000,
            same_thread=False,
        )
        connection.text_factory = cells.decoded
        self._was_open = True
        return connection


def _driver(pooled: Any) -> FileConnection:
    return cast("FileConnection", pooled.driver_connection)


def _refuse_lost(driver: FileConnection) -> None:
    if problem := driver.lost():
        raise DatabaseReplaced(problem)


def _insert(table: BulkTable[Any]) -> str:
    values = ", ".join("?" for _ in table.types)
    return f"INSERT INTO {table.table} ({table.names}) VALUES ({values}) ON CONFLICT {table.on_conflict}"  # noqa: S608 (our own names)
