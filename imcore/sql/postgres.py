"""The PostgreSQL backend, through psycopg 3.

Rows whose keys are rarely stored already are copied (COPY, binary). If a key is stored, as when another worker repeats
the entries of a dead one, the transaction is repeated with INSERT ... ON CONFLICT from arrays, at about half the speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import psycopg
from psycopg import errors
from sqlalchemy import Connection, create_engine, event, text

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import Batch
from imcore.sql import postgres_checks, postgres_session, postgres_url
from imcore.sql.backend import Backend
from imcore.sql.bulk import UPDATES, BulkTable, by_table
from imcore.util.batches import batches

TRIES = 5
ROWS_PER_INSERT = 1000

_PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""When a vanished server becomes an error: in seconds, the last one in milliseconds."""

_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure)
_MIGRATION_LOCK = 7_521_983_406_917_284_513
"""Any number that no other program on the same database locks."""


class PostgresBackend(Backend):
    """One PostgreSQL database. Its operator makes it, and looks after VACUUM and the server's log."""

    driver_error = psycopg.Error

    def __init__(self, url: str) -> None:
        given = postgres_url.parse(url)
        self.address = postgres_url.shown(given)
        arguments = {"application_name": "imcore", **_PATIENCE, **given}
        slow_answers = postgres_session.SlowAnswerLog(self.address)
        self.engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: postgres_session.connect(arguments, slow_answers),
            pool_pre_ping=True,  # finds a connection that a restart of the server has cut
            use_native_hstore=False,
            hide_parameters=True,
        )
        event.listen(self.engine, "begin", _begin)

    def remarks(self, connection: Connection) -> list[str]:
        return postgres_checks.remarks(connection, self.address)

    def lock_migrations(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})

    def examine(self, connection: Connection, *, writes: bool) -> None:
        postgres_checks.examine(connection, self.address, writes=writes)

    def write(self, batch: Batch) -> None:
        """Write with COPY, or from arrays if a key is stored already. Repeat the transaction after a deadlock."""
        # A batch with a tombstone holds the recalled message too, which is nearly always stored already.
        may_copy = all(row.recalls is None for row in batch.messages)
        with suppress(errors.UniqueViolation, *_CONFLICTS):
            return self._write_once(batch, may_copy=may_copy)
        for _ in range(TRIES - 2):
            with suppress(*_CONFLICTS):
                return self._write_once(batch, may_copy=False)
        return self._write_once(batch, may_copy=False)

    def translate(self, error: Exception) -> ImError:
        return postgres_checks.translate(error, self.address)

    def _write_once(self, batch: Batch, *, may_copy: bool) -> None:
        with self._transaction() as driver, driver.cursor() as cursor:
            for table, rows in by_table(batch):
                write = _copy if may_copy and table.appends else _insert
                write(cursor, table, [table.values(row, msgids.from_ms) for row in rows])
            for statement, values_of in UPDATES:
                if values := values_of(batch):
                    cursor.executemany(statement.replace("?", "%s").encode(), values)

    @contextmanager
    def _transaction(self) -> Iterator["psycopg.Connection[Any]"]:
        """Lend a connection in a transaction. A usable connection returns to the pool."""
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


def _copy(cursor: psycopg.Cursor[Any], table: BulkTable[Any], rows: list[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {table.table} ({table.names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
        copy.set_types(table.types)
        for row in rows:
            copy.write_row(row)


def _insert(cursor: psycopg.Cursor[Any], table: BulkTable[Any], rows: list[tuple[Any, ...]]) -> None:
    arrays = ", ".join(f"%b::{kind}[]" for kind in table.types)
    statement = f"""INSERT INTO {table.table} ({table.names}) SELECT * FROM unnest({arrays})
        ON CONFLICT {table.on_conflict}"""  # noqa: S608 (our own names)
    for batch in batches(rows, ROWS_PER_INSERT):
        cursor.execute(statement.encode(), [list(column) for column in zip(*batch, strict=True)])
