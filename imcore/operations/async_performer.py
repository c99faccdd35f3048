"""Performs effects on Redis and the database under asyncio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

from imcore.errors import DatabaseOpening
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
from imcore.operations.performer import Performer
from imcore.streams.aio.client import AsyncAnswers, AsyncRedisClient
from imcore.streams.aio.shared_waits import SharedWaits
from imcore.streams.durability import SentMessages
from imcore.streams.rounds import OTHERS_S
from imcore.system import System
from imcore.util.steps import perform_async, stream_async
from imcore.util.threads import in_thread

T = TypeVar("T")

_MOST_QUERIES = 8
"""The queries of the database that run at once: its pool has a few connections more."""


class AsyncPerformer:
    """Performs effects of many tasks of one event loop. The database is queried in threads."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.client = AsyncRedisClient(system.client)
        self._synchronous = Performer(system)
        self._waits = SharedWaits(self._synchronous.durability)
        self._queries = asyncio.Semaphore(_MOST_QUERIES)

    def open_early(self) -> None:
        """Do as `Performer.open_early` does."""
        self._synchronous.open_early()

    async def close(self) -> None:
        self._waits.close()
        try:
            await self.client.close()
        finally:
            await in_thread(self._synchronous.close)

    async def perform(self, effects: Effects[T]) -> T:
        """Do as `Performer.perform` does."""
        return await perform_async(effects, self._perform_in_turn)

    def stream(self, effects: Pages[T]) -> AsyncIterator[T]:
        """Do as `Performer.stream` does."""
        return stream_async(effects, self._perform_in_turn)

    async def _perform_in_turn(self, effect: Effect[Any]) -> Any:
        if isinstance(effect, SqlQuery):
            return await self._in_thread(effect)
        return await self.perform_one(effect)

    def perform_now(self, effect: Effect[Any]) -> Any:
        """Return the answer to an effect that needs no waiting, None for any other."""
        return self.client.start_now(effect.calls) if isinstance(effect, StartCalls) else None

    async def perform_one(self, effect: Effect[Any]) -> Any:
        """Return the answer to an effect. Raise DatabaseOpening for a query while the database is being opened."""
        match effect:
            case RedisCalls(calls, repeatable, waits_for_all):  # by far the most frequent one
                return await self.client.call_each(
                    calls, repeatable=repeatable, others_s=None if waits_for_all else OTHERS_S
                )
            case SqlQuery():
                if self._synchronous.is_opening:
                    raise DatabaseOpening
                return await self._in_thread(effect)
            case Warn():
                return self._synchronous.perform_one(effect)
        return await self._perform_in_redis(effect)

    async def _perform_in_redis(self, effect: Effect[Any]) -> Any:
        match effect:
            case GetKeyspace():
                return await self.client.space()
            case StartCalls(calls):
                return await self.client.start(calls)
            case FinishCalls(started):
                return await cast("AsyncAnswers[Any]", started)()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case RequireDurable():
                return await self._require(effect)
            case ConfirmDurable(kind, gid, msgids):
                return await self._waits.confirm(kind, SentMessages(gid, msgids))
        raise AssertionError(f"{effect} is for a driver with a subscription")

    async def _require(self, effect: RequireDurable) -> None:
        await self.client.space()
        if not self._synchronous.durability.is_checked(effect.kind, effect.gid):
            await self.client.in_turn(lambda: self._synchronous.perform_one(effect))

    async def _in_thread(self, query: SqlQuery[T]) -> T:
        async with self._queries:
            answer: T = await in_thread(lambda: self._synchronous.perform_in_turn(query))
            return answer
