"""The PostgreSQL backend, through psycopg 3.

Rows whose keys are hardly ever known are copied (COPY, binary). Where one is known after all, as when the entries of a
dead worker come again, the transaction starts anew with INSERT ... ON CONFLICT from arrays, at about half the speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import psycopg
from psycopg import errors
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseRejected, DatabaseUnavailable, ImError
from imcore.sql.bulk import UPDATES, Target, by_target
from imcore.sql.rows import Batch

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

LOCK_TIMEOUT_MS = 10_000
"""For how long a statement waits for a lock that somebody else has."""

# Not as an option of the connection, which a pooler such as PgBouncer may refuse. Who has set a limit keeps it.
_LIMIT_LOCKS = "SELECT set_config('lock_timeout', %s, false) WHERE current_setting('lock_timeout') = '0'"

_THWARTED = (errors.DeadlockDetected, errors.SerializationFailure)
_OF_A_ROW = {"22", "23", "54"}
"""Classes of errors that come of what is written: data, broken constraints, limits such as that of an index row."""
_MIGRATION_LOCK = 7_521_983_406_917_284_513
"""Any number will do that no other program on the same database locks."""


class PostgresBackend:
    """One PostgreSQL database."""

    driver_error: type[Exception] = psycopg.Error

    def __init__(self, url: URL) -> None:
        self.address = _shown(url)
        # An unreachable server is an error within seconds; a connection that a restart has cut is found before use.
        query = {"application_name": "imcore", **_PATIENCE, **url.query}
        url = url.set(drivername="postgresql+psycopg", query=query)
        self.engine: Engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
        event.listen(self.engine, "do_connect", _connect)

    def create(self) -> None:
        """Do nothing: who runs the server has made the database."""

    def migrating(self, connection: Connection) -> None:
        """Take the lock that every migration takes."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})

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

    def translate(self, error: Exception) -> ImError:
        """Return what an error of psycopg means."""
        state = getattr(error, "sqlstate", None) or ""
        reason = str(error).partition("\n")[0]  # the rest may quote what was written
        if state[:2] in _OF_A_ROW or isinstance(error, psycopg.DataError):
            return DatabaseRejected(f"the database refused a row: {reason}")
        if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn):
            return DatabaseNotReady(f"the database {self.address} has not the tables of imcore: run im db upgrade")
        if isinstance(error, errors.LockNotAvailable):
            return DatabaseUnavailable(
                f"the database {self.address} cannot be used now: somebody has had a lock on it for too long (see "
                "pg_locks and pg_stat_activity)"
            )
        if isinstance(error, psycopg.ProgrammingError):
            return ConfigurationError(f"cannot use the database {self.address} ({reason}): set IM_DATABASE_URL")
        return DatabaseUnavailable(
            f"the database {self.address} cannot be used now ({reason}): see that it runs, or set IM_DATABASE_URL"
        )

    def _write_once(self, batch: Batch, *, may_copy: bool) -> None:
        with self._lent() as driver, driver.transaction(), driver.cursor() as cursor:
            for target, rows in by_target(batch):
                write = _copy if may_copy and target.appends else _insert
                write(cursor, target, [target.values(row, msgids.from_ms) for row in rows])
            for statement, rows_of in UPDATES:
                changes = rows_of(batch)
                if changes:
                    cursor.executemany(statement.replace("?", "%s").encode(), changes)

    @contextmanager
    def _lent(self) -> Iterator["psycopg.Connection[Any]"]:
        """Lend a connection of the pool, which gets it back if it can be used again."""
        pooled = self.engine.raw_connection()
        driver = cast("psycopg.Connection[Any]", pooled.driver_connection)
        try:
            yield driver
        finally:
            if driver.closed:
                pooled.invalidate()
            pooled.close()


class _Connection(psycopg.Connection[Any]):
    """One that is closed where a wait for the server is broken off: the answer is still to come, so nobody can use it.

    Else the clean-up would ask the server once more, in vain, or wait for it again.
    """

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().wait(*args, **kwargs)
        except Exception:
            raise
        except BaseException:
            self.close()
            raise


def _connect(_dialect: Any, _record: Any, args: Any, options: Any) -> _Connection:
    connection = _Connection.connect(*args, **options)
    try:
        connection.autocommit = True
        connection.execute(_LIMIT_LOCKS, (str(LOCK_TIMEOUT_MS),))
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    return connection


def _copy(cursor: psycopg.Cursor[Any], target: Target[Any], values: list[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {target.table} ({target.names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
        copy.set_types(list(target.columns.values()))
        for value in values:
            copy.write_row(value)


def _insert(cursor: psycopg.Cursor[Any], target: Target[Any], values: list[tuple[Any, ...]]) -> None:
    arrays = ", ".join(f"%b::{kind}[]" for kind in target.columns.values())
    statement = f"""INSERT INTO {target.table} ({target.names}) SELECT * FROM unnest({arrays})
        ON CONFLICT {target.on_conflict}"""  # noqa: S608 (our own names)
    for start in range(0, len(values), ROWS_PER_INSERT):
        columns = [list(column) for column in zip(*values[start : start + ROWS_PER_INSERT], strict=True)]
        cursor.execute(statement.encode(), columns)


def _shown(url: URL) -> str:
    # Made of what is known to be harmless: a password can also stand in the query.
    user = f"{url.username}@" if url.username else ""
    host = url.host or url.query.get("host", "")
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{user}{host if isinstance(host, str) else ','.join(host)}{port}/{url.database or ''}"
