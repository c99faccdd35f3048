"""The PostgreSQL backend, through psycopg 3.

Rows whose keys are hardly ever known are copied (COPY, binary). Where one is known after all, as when the entries of a
dead worker come again, the transaction starts anew with INSERT ... ON CONFLICT from arrays, at about half the speed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Engine, create_engine, event, text

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import Batch
from imcore.sql import postgres_checks, postgres_session, postgres_url
from imcore.sql.bulk import UPDATES, BulkTable, by_target
from imcore.sql.waits import Waits

TRIES = 5
"""How often a transaction starts anew that another one has thwarted."""
ROWS_PER_INSERT = 1000

_PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""After how long a server that is gone without a word is an error: seconds, the last one in milliseconds."""

_THWARTED = (errors.DeadlockDetected, errors.SerializationFailure)
_MIGRATION_LOCK = 7_521_983_406_917_284_513
"""Any number will do that no other program on the same database locks."""


class PostgresBackend:
    """One PostgreSQL database."""

    driver_error: type[Exception] = psycopg.Error

    def __init__(self, url: str) -> None:
        """Raise ConfigurationError for a URL that cannot be used."""
        parsed = postgres_url.parse(url)
        self.address = postgres_url.shown(parsed)
        # An unreachable server is an error within seconds; a connection that a restart has cut is found before use.
        self._arguments = {"application_name": "imcore", **_PATIENCE, **postgres_url.arguments(parsed)}
        self._waits = Waits(self.address)
        self.engine: Engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_pre_ping=True,
            use_native_hstore=False,
            hide_parameters=True,
        )
        event.listen(self.engine, "begin", _begin)

    def create(self) -> None:
        """Do nothing: who runs the server has made the database."""

    def remarks(self, connection: Connection) -> Sequence[str]:
        """Return what the server does not do that a promise rests on."""
        return postgres_checks.remarks(connection, self.address)

    def begin_writing(self, connection: Connection) -> None:
        """Do nothing: writers go on beside each other."""

    def migrating(self, connection: Connection) -> None:
        """Take the lock that every migration takes."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})

    def examine(self, connection: Connection, *, writes: bool) -> None:
        """Raise ConfigurationError, DatabaseUnavailable if the database cannot hold our data, or may not now."""
        postgres_checks.examine(connection, self.address, writes=writes)

    def write(self, batch: Batch) -> None:
        """Write with COPY; with arrays where a key is, or turns out to be, known; again after a deadlock."""
        # With a tombstone comes the message that it recalls, which is nearly always stored already.
        may_copy = all(row.recalls is None for row in batch.messages)
        with suppress(errors.UniqueViolation, *_THWARTED):
            return self._write_once(batch, may_copy=may_copy)
        for _ in range(TRIES - 2):
            with suppress(*_THWARTED):
                return self._write_once(batch, may_copy=False)
        return self._write_once(batch, may_copy=False)

    def committed(self, connection: Connection) -> None:
        """Do nothing: what is committed is stored."""

    def note_withdrawn(self) -> None:
        """Do nothing: VACUUM and the server's own log are its operator's."""

    def empty_log(self, *, always: bool = False) -> bool:  # noqa: ARG002
        """Do nothing, for the same reason."""
        return True

    def translate(self, error: Exception) -> ImError:
        """Return what an error of psycopg means."""
        return postgres_checks.translate(error, self.address)

    def _connect(self) -> postgres_session.PostgresConnection:
        return postgres_session.connect(self._arguments, self._waits)

    def _write_once(self, batch: Batch, *, may_copy: bool) -> None:
        with self._transaction() as driver, driver.cursor() as cursor:
            for target, rows in by_target(batch):
                write = _copy if may_copy and target.appends else _insert
                write(cursor, target, [target.values(row, msgids.from_ms) for row in rows])
            for statement, rows_of in UPDATES:
                changes = rows_of(batch)
                if changes:
                    cursor.executemany(statement.replace("?", "%s").encode(), changes)

    @contextmanager
    def _transaction(self) -> Iterator["psycopg.Connection[Any]"]:
        """Lend a connection in a transaction. The pool gets it back if it can be used again."""
        pooled = self.engine.raw_connection()
        driver = cast("psycopg.Connection[Any]", pooled.driver_connection)
        try:
            driver.execute(postgres_session.begin_statement().encode())
            yield driver
            driver.commit()
        except BaseException:
            if not driver.closed:
                driver.rollback()
            raise
        finally:
            if driver.closed:
                pooled.invalidate()
            pooled.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(postgres_session.begin_statement())


def _copy(cursor: psycopg.Cursor[Any], target: BulkTable[Any], values: list[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {target.table} ({target.names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
        copy.set_types(list(target.columns.values()))
        for value in values:
            copy.write_row(value)


def _insert(cursor: psycopg.Cursor[Any], target: BulkTable[Any], values: list[tuple[Any, ...]]) -> None:
    arrays = ", ".join(f"%b::{kind}[]" for kind in target.columns.values())
    statement = f"""INSERT INTO {target.table} ({target.names}) SELECT * FROM unnest({arrays})
        ON CONFLICT {target.on_conflict}"""  # noqa: S608 (our own names)
    for start in range(0, len(values), ROWS_PER_INSERT):
        columns = [list(column) for column in zip(*values[start : start + ROWS_PER_INSERT], strict=True)]
        cursor.execute(statement.encode(), columns)
