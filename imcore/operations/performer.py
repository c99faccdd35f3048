"""Performs effects on Redis and the database, one after the other."""

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseOpening
from imcore.operations.durability import ConfirmDurable, RequireDurable
from imcore.operations.effects import (
    Effect,
    Effects,
    FinishCalls,
    GetKeyspace,
    Pages,
    RedisCalls,
    Sleep,
    SqlQuery,
    StartCalls,
    Warn,
)
from imcore.streams import configuration
from imcore.streams.client import RedisClient
from imcore.streams.durability import Durability, SentMessages
from imcore.streams.rounds import OTHERS_S
from imcore.system import System
from imcore.util.backoff import ThrottledLog
from imcore.util.steps import perform, stream

if TYPE_CHECKING:
    from imcore.sql.database import Database

T = TypeVar("T")

_CLOSING_S = 1.0
"""For how long `close` waits for a database that is being opened. One that is silent is left alone."""


class Performer:
    """Performs effects on a system, one after the other."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.durability = Durability(system.client, system.settings.durable_ms)
        self._log = ThrottledLog(time.monotonic)
        self._opening: Thread | None = None
        self._is_abandoned = Event()
        self._history_since: int | None = None

    def open_early(self) -> None:
        """Begin to open the database in the background, the first time that this is called. Raise nothing.

        Without a database this does nothing. Loading SQL's libraries and connecting take half a second: too long for
        live traffic. Meanwhile `perform_one` raises DatabaseOpening. The next query raises the error of an opening that
        failed.
        """
        if self._opening is None and self.system.has_database:
            self._is_abandoned = Event()
            # A daemon: an ending process does not wait for a silent database.
            opening = Thread(
                target=_open, args=(self.system, self._is_abandoned), name="imcore-opens-database", daemon=True
            )
            with suppress(RuntimeError):  # this process has as many threads as it may
                opening.start()
                self._opening = opening

    @property
    def history_database(self) -> "Database":
        """The database, for what Redis has trimmed. Raise DatabaseNotReady, ConfigurationError if it has other data."""
        if self._history_since != self.system.database.changes:
            since = self.system.database.changes
            self._check_dataset()
            self._history_since = since
        return self.system.database

    def _check_dataset(self) -> None:
        client, database = self.system.client, self.system.database
        in_redis, in_sql = configuration.dataset(client), database.meta("dataset")
        if in_sql is None:
            raise DatabaseNotReady(f"{database.address} holds nothing of this system yet: is IM_DATABASE_URL right?")
        if in_redis is None:
            raise ConfigurationError(
                f"{client.address} does not have the data that {database.address} has: set IM_DATABASE_URL or "
                "IM_REDIS_URL if one is wrong; if Redis has lost its data, run im rebuild"
            )
        if in_redis != in_sql:
            raise ConfigurationError(
                f"{database.address} holds the data of another system than {client.address}: set IM_DATABASE_URL or "
                "IM_REDIS_URL"
            )

    def close(self) -> None:
        self.durability.close()
        opening, self._opening = self._opening, None
        if opening:
            self._is_abandoned.set()
            opening.join(_CLOSING_S)
            if opening.is_alive():
                return  # it closes the database once it has opened it
        self.system.close_database()

    def perform(self, effects: Effects[T]) -> T:
        """Perform an operation. Raise what the client and the database raise, unless the operation handles it."""
        return perform(effects, self.perform_in_turn)

    def stream(self, effects: Pages[T]) -> Iterator[T]:
        """Perform an operation that yields its results in pages; yield the results one by one."""
        return stream(effects, self.perform_in_turn)

    @property
    def is_opening(self) -> bool:
        """Whether the database is being opened in the background."""
        return self._opening is not None and self._opening.is_alive()

    def perform_in_turn(self, effect: Effect[Any]) -> Any:
        """Return the answer to an effect; a query waits while the database is being opened."""
        opening = self._opening
        if opening and isinstance(effect, SqlQuery):
            opening.join()  # nobody else waits for this one
        return self.perform_one(effect)

    def perform_one(self, effect: Effect[Any]) -> Any:
        """Return the answer to an effect. Raise DatabaseOpening for a query while the database is being opened."""
        match effect:
            case RedisCalls() | GetKeyspace():  # by far the most frequent ones
                return _perform_in_redis(self.system.client, effect)
            case SqlQuery():
                if self.is_opening:
                    raise DatabaseOpening
                return effect.run(self.history_database if effect.needs_data else self.system.database)
            case Warn(error, text):
                return self._log.note(error, text)
            case RequireDurable(kind, gid):
                return self.durability.check(kind, gid)
            case ConfirmDurable(kind, gid, msgids):
                return self.durability.confirm(kind, [SentMessages(gid, msgids)])[0]
        return _perform_in_redis(self.system.client, effect)


def perform_in_redis(client: RedisClient, effects: Effects[T]) -> T:
    return perform(effects, partial(_perform_in_redis, client))


def stream_from_redis(client: RedisClient, effects: Pages[T]) -> Iterator[T]:
    return stream(effects, partial(_perform_in_redis, client))


def _perform_in_redis(client: RedisClient, effect: Effect[Any]) -> Any:
    match effect:
        case RedisCalls(calls, repeatable, waits_for_all):
            return client.call_each(calls, repeatable=repeatable, others_s=None if waits_for_all else OTHERS_S)
        case StartCalls(calls):
            return client.start(calls)
        case FinishCalls(started):
            return started()
        case GetKeyspace():
            return client.space
        case Sleep(seconds):
            return time.sleep(seconds)
    raise AssertionError(f"{effect} is for a driver with a subscription or a database")


def _open(system: System, is_abandoned: Event) -> None:
    """Open the database. Only the database is asked: the client of Redis is for its own thread."""
    with suppress(Exception):  # the next query raises it again
        try:
            database = system.database
            if not is_abandoned.is_set():
                database.meta("dataset")  # connects, and looks whether the database can hold our data
        finally:
            if is_abandoned.is_set():
                system.close_database()
