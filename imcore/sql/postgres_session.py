"""Connections to PostgreSQL that rely on no state of the session, and that log when the server is silent for long.

A database, a role and the PG* variables may change any setting of a session, and a pooler in transaction mode gives
each transaction another session. So each transaction begins with its settings, and no statement is prepared.
"""

import logging
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg import waiting

from imcore.util.backoff import ThrottledLog

log = logging.getLogger(__name__)

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

T = TypeVar("T")
Sent = TypeVar("Sent")
Yielded = TypeVar("Yielded")


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
