"""The SQLite backend: a file in WAL mode, synced at every commit.

A worker confirms an entry of the journal once its transaction is committed, and nobody reads that entry again. So a
commit must outlive a power cut, not only a kill: synchronous=FULL, which in WAL mode is one sync for each batch.
"""

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine

from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseRejected, DatabaseUnavailable, ImError
from imcore.folders import make_private
from imcore.sql.bulk import UPDATES, Target, by_target
from imcore.sql.rows import Batch
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


class SqliteBackend:
    """One SQLite file. Nothing makes it but `create`."""

    driver_error: type[Exception] = sqlite3.Error

    def __init__(self, path: Path, data_dir: Path | None) -> None:
        self._path = path.absolute()
        self._data_dir = data_dir
        self.address = f"sqlite:///{path}"
        self.engine = _engine(self._path)

    def create(self) -> None:
        """Make the file, for its owner only, and its folder, if that is the data directory or in it."""
        try:
            self._make_folder()
            self._make_file()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self._path} ({error.strerror}): set IM_DATA_DIR or IM_DATABASE_URL to another place"
            ) from error
        self._use_wal()

    def migrating(self, connection: Connection) -> None:
        """Become the only writer."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def write(self, batch: Batch) -> None:
        """Write with executemany: the driver's bulk path."""
        with closing(self.engine.raw_connection()) as pooled:
            driver = cast("sqlite3.Connection", pooled.driver_connection)
            with driver:
                driver.execute("BEGIN IMMEDIATE")
                for target, rows in by_target(batch):
                    driver.executemany(_insert(target), (target.values(row, to_iso) for row in rows))
                for statement, rows_of in UPDATES:
                    driver.executemany(statement, rows_of(batch))

    def translate(self, error: Exception) -> ImError:
        """Return what an error of sqlite3 means."""
        code = _code(error)
        if code == sqlite3.SQLITE_CANTOPEN and not os.path.exists(self._path):
            return DatabaseNotReady(f"there is no database {self._path} yet: run im db upgrade, or set IM_DATABASE_URL")
        if "no such table" in str(error) or "no such column" in str(error):
            return DatabaseNotReady(f"the database {self._path} has not the tables of imcore: run im db upgrade")
        if code in _NOT_USABLE:
            return ConfigurationError(f"cannot use the database {self._path} ({error}): set IM_DATABASE_URL")
        if code in _REJECTED or isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
            return DatabaseRejected(f"the database refused a row: {error}")
        return DatabaseUnavailable(f"the database {self._path} cannot be used now: {error}")

    def _use_wal(self) -> None:
        # The file remembers it. For this change of mode alone SQLite does not wait for others by itself.
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        with closing(self.engine.raw_connection()) as pooled:
            driver = cast("sqlite3.Connection", pooled.driver_connection)
            while True:
                try:
                    driver.execute("PRAGMA journal_mode = WAL")
                except sqlite3.OperationalError as error:
                    if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
                else:
                    return

    def _make_file(self) -> None:
        # Not opened if it is there already: closing it would drop the locks that SQLite holds on it in this process.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _make_folder(self) -> None:
        if self._data_dir is not None and self._path.is_relative_to(self._data_dir.absolute()):
            make_private(self._path.parent, self._data_dir.absolute())


def _code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the rest is detail


def _engine(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        # mode=rw: a command that only shows must not leave an empty database behind.
        # isolation_level=None: the driver begins no transaction of its own, we begin ours.
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT_MS / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: a sync that reaches the disk
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=QueuePool, hide_parameters=True)


def _insert(target: Target[Any]) -> str:
    marks = ", ".join("?" for _ in target.columns)
    return f"INSERT INTO {target.table} ({target.names}) VALUES ({marks}) ON CONFLICT {target.on_conflict}"  # noqa: S608 (our own names)
