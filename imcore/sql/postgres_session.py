"""Connections to PostgreSQL that rest on nothing that a session keeps, and on nothing that it says by itself.

A database, a role and the PG* variables set what they like for a session, and a pooler in transaction mode gives each
transaction another one. So each transaction begins with what matters to it, and no statement is prepared.
"""

from typing import Any

import psycopg
from psycopg import waiting

from imcore.sql.waits import Waits

LOCK_TIMEOUT_MS = 10_000
"""For how long a statement waits for a lock that somebody else has."""

_INTERVAL_S = 0.1
"""How often a wait for the server looks whether it was broken off, or is to be told of."""

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


def begin_statement() -> str:
    """Return what begins a transaction: one message to the server, whatever there is between us and it."""
    settings = [
        *(f"set_config('{name}', '{value}', true)" for name, value in _ALWAYS.items()),
        # A worker confirms what it has stored once it is committed: then it has to be on the disk.
        _instead("synchronous_commit", "off", "on"),
        # Whoever has set a limit keeps it.
        _instead("lock_timeout", "0", str(LOCK_TIMEOUT_MS)),
    ]
    return f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {', '.join(settings)}"


def _instead(name: str, unwanted: str, value: str) -> str:
    now = f"current_setting('{name}')"
    return f"set_config('{name}', CASE {now} WHEN '{unwanted}' THEN '{value}' ELSE {now} END, true)"


class PostgresConnection(psycopg.Connection[Any]):
    """One that tells of long waits, and is closed where a wait is broken off.

    Nobody can use it then, as the answer is still to come: the clean-up would ask the server once more, in vain.
    """

    waits: Waits | None = None

    def wait(self, gen: Any, interval: float = _INTERVAL_S, timeout: float | None = None) -> Any:
        """Wait for the server."""
        watched = self.waits.watched(gen) if self.waits else gen
        limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            # Not that of psycopg, which after Ctrl-C asks a server that is silent once more, for seconds.
            return waiting.wait(watched, self.pgconn.socket, interval=interval, **limit)
        except Exception:
            raise
        except BaseException:
            self.close()
            raise


def connect(arguments: dict[str, Any], waits: Waits) -> PostgresConnection:
    """Open a connection. Raise psycopg.Error.

    psycopg itself begins no transaction on it: `begin_statement` does.
    """
    connection = PostgresConnection.connect(
        **arguments, client_encoding="UTF8", autocommit=True, prepare_threshold=None
    )
    connection.waits = waits
    return connection
