"""The PostgreSQL backend, through psycopg 3.

Rows whose keys are rarely stored already are copied (COPY, binary). If a key is stored, as when another worker repeats
the entries of a dead one, the transaction is repeated with INSERT ... ON CONFLICT from arrays, at about half the speed.

A database, a role and the PG* variables may change any setting of a session, and a pooler in transaction mode gives
each transaction another session. So each transaction begins with its settings, and no statement is prepared.
"""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors, waiting
from sqlalchemy import Connection, create_engine, event, text

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import Batch
from imcore.sql import postgres_checks, postgres_url
from imcore.sql.backend import Backend
from imcore.sql.bulk import ERASURES_QUERY, RECALL, BulkTable, by_table, check_deletions, erasures_of
from imcore.util.backoff import ThrottledLog
from imcore.util.batches import batches

log = logging.getLogger(__name__)

T = TypeVar("T")
Sent = TypeVar("Sent")
Yielded = TypeVar("Yielded")

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

_time_of_ms = lru_cache(maxsize=1024)(msgids.from_ms)
"""Many messages of a batch are of the same millisecond."""

_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure)
_MIGRATION_LOCK = 7_521_983_406_917_284_513
"""Any number that no other program on the same database locks."""


LOCK_TIMEOUT_MS = 10_000

SLOW_AFTER_S = 10.0

_INTERVAL_S = 0.1
"""The interval at which a wait for the server looks for an interruption, and at its own length."""

_SILENT = "the database %s has not answered for %d s: it is silent or busy, and this waits for it (see that it runs)"

_ALWAYS = {
    # How times leave the server, and enter it.
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    # How literals are read: strings, `= NULL`, and NULL in an array, which the driver sends as text if all are NULL.
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
}


class PostgresBackend(Backend):
    """One PostgreSQL database. Its operator makes it, and looks after VACUUM and the server's log."""

    driver_error = psycopg.Error

    def __init__(self, url: str) -> None:
        given = postgres_url.parse(url)
        self.address = postgres_url.shown(given)
        arguments = {"application_name": "imcore", **_PATIENCE, **given}
        slow_answers = SlowAnswerLog(self.address)
        self.engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: connect(arguments, slow_answers),
            pool_pre_ping=True,  # finds a connection that a restart of the server has cut
            use_native_hstore=False,
            hide_parameters=True,
        )
        event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql(begin_statement()))

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
            check_deletions(batch, lambda statement, values: cursor.execute(_with_parameters(statement), values))
            # The lock lasts until the commit: the beginning and the end of an erasure wait for it.
            cursor.execute(f"LOCK TABLE erasures IN ROW SHARE MODE; {_BY_KEY} {ERASURES_QUERY}".encode())
            while cursor.nextset():
                pass
            batch = erasures_of(cursor).applied(batch)
            for table, rows in by_table(batch):
                write = _copy if may_copy and table.appends else _insert
                write(cursor, table, [table.values(row, _time_of_ms) for row in rows])
            statement, values_of = RECALL
            if values := values_of(batch):
                cursor.executemany(_with_parameters(statement), values)
            for rows in batches(batch.confirms, ROWS_PER_INSERT):
                cursor.execute(_CONFIRM, [list(column) for column in zip(*rows, strict=True)])

    @contextmanager
    def _transaction(self) -> Iterator["psycopg.Connection[Any]"]:
        """Lend a connection in a transaction. A usable connection returns to the pool."""
        pooled = self.engine.raw_connection()
        driver = cast("psycopg.Connection[Any]", pooled.driver_connection)
        try:
            driver.execute(begin_statement().encode())
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


_BY_KEY = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off;"
"""Each row is found by its key. Otherwise PostgreSQL reads all messages for `_CONFIRM`, until there are very many."""

# As `bulk.CONFIRM`, for all messages at once: a sender confirms each.
_CONFIRM = b"""UPDATE group_msgs SET
        confirmed_read = greatest(confirmed_read, confirmed.read),
        confirmed_delivered = greatest(confirmed_delivered, confirmed.delivered)
    FROM unnest(%b::text[], %b::int8[], %b::int4[], %b::int4[]) AS confirmed (gid, msgid, read, delivered)
    WHERE group_msgs.gid = confirmed.gid AND group_msgs.msgid = confirmed.msgid
        AND (confirmed_read < confirmed.read OR confirmed_delivered < confirmed.delivered)"""


def _with_parameters(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()


def begin_statement() -> str:
    """Return the statement that begins a transaction, in one message to the server."""
    settings = [
        *(f"set_config('{name}', '{value}', true)" for name, value in _ALWAYS.items()),
        # A worker acks its journal entries after the commit: the rows must be on the disk by then.
        _instead("synchronous_commit", "off", "on"),
        # A limit that somebody has set stays.
        _instead("lock_timeout", "0", str(LOCK_TIMEOUT_MS)),
    ]
    return f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {', '.join(settings)}"


def _instead(name: str, unwanted: str, value: str) -> str:
    now = f"current_setting('{name}')"
    return f"set_config('{name}', CASE {now} WHEN '{unwanted}' THEN '{value}' ELSE {now} END, true)"


class SlowAnswerLog:
    """Logs that a database is silent for long: one line a minute, however many threads wait for it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._throttle = ThrottledLog(time.monotonic)

    def watch(self, gen: Generator[Yielded, Sent, T]) -> Generator[Yielded, Sent, T]:
        """Run `gen`, a generator of psycopg. During a wait its driver sends a false value again and again."""
        began = time.monotonic()
        was_logged = False
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() - began >= SLOW_AFTER_S and self._throttle.is_due("silent"):
                    was_logged = True
                    log.warning(_SILENT, self._address, time.monotonic() - began)
                state = gen.send(ready)
        except StopIteration as end:
            if was_logged:
                log.info("the database %s answers again after %d s", self._address, time.monotonic() - began)
            answer: T = end.value
            return answer


class PostgresConnection(psycopg.Connection[Any]):
    """A connection that logs long waits. An interruption of a wait closes it: an answer is still to come.

    The driver's clean-up would wait for the silent server.
    """

    slow_answers: SlowAnswerLog | None = None

    def wait(self, gen: Any, interval: float = _INTERVAL_S, timeout: float | None = None) -> Any:
        watched = self.slow_answers.watch(gen) if self.slow_answers else gen
        limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            # Not psycopg's own method: after Ctrl-C it waits seconds for one more answer of a silent server.
            return waiting.wait(watched, self.pgconn.socket, interval=interval, **limit)
        except Exception:
            raise
        except BaseException:
            self.close()
            raise


def connect(arguments: dict[str, Any], slow_answers: SlowAnswerLog) -> PostgresConnection:
    """Open a connection, on which `begin_statement` begins each transaction. Raise psycopg.Error."""
    connection = PostgresConnection.connect(
        **arguments, client_encoding="UTF8", autocommit=True, prepare_threshold=None
    )
    connection.slow_answers = slow_answers
    return connection
