"""The client of Redis under asyncio: performs the steps of `RedisClient` without blocking the loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from imcore.errors import ImError
from imcore.streams.aio.connection import Pipeline, opened
from imcore.streams.calls.call import Call, command_of
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.cluster import Cluster
from imcore.streams.keys import Keyspace
from imcore.streams.redis_errors import LOST
from imcore.streams.rounds import Answered, Command, Pause, Run, Send
from imcore.util.steps import perform_async
from imcore.util.threads import in_thread

T = TypeVar("T")
_SILENT = RedisTimeoutError("Timeout reading from socket")
_SINGLE = ""
"""The name of a server that is no node of a cluster."""

AsyncAnswers = Callable[[], Awaitable[list[T | ImError]]]
"""Awaits the answers of calls in flight; a call that failed has its error in its place."""


class AsyncRedisClient:
    """Calls Redis functions over one connection to each server, which all tasks of one event loop share.

    A `RedisClient` decides. What is rare (functions to load, a partition count to fix, slots to refresh, errors to
    translate) it does itself, in a thread. Cancelling a call leaves its connection as usable as before.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._pipelines: dict[str, Pipeline] = {}
        self._openings: dict[str, asyncio.Task[Pipeline]] = {}
        self._departures = client.departures
        self._lock = Lock()
        """The synchronous client is for one thread until it has its functions."""

    @property
    def address(self) -> str:
        return self.client.address

    async def space(self) -> Keyspace:
        """Do as `RedisClient.space` does."""
        if "space" in vars(self.client):
            return self.client.space
        return await self.in_turn(lambda: self.client.space)

    async def call_each(
        self, batch: Sequence[Call[T]], *, repeatable: bool = True, others_s: float | None = None
    ) -> list[T | ImError]:
        """Do as `RedisClient.call_each` does."""
        steps = self.client.each(batch, repeatable=repeatable, others_s=others_s)
        return await perform_async(steps, self._perform_step)

    def start_now(self, batch: Sequence[Call[T]]) -> AsyncAnswers[T] | None:
        """Do as `start` does, if that needs no waiting; else return None."""
        pipeline = self._pipelines.get(_SINGLE)
        if pipeline is None or not pipeline.is_usable:
            return None
        if not self.client.is_prepared_for(batch) or not 0 < len(batch) <= CHUNK:
            return None
        return partial(self._finish, batch, pipeline.send(list(map(command_of, batch))))

    async def start(self, batch: Sequence[Call[T]]) -> AsyncAnswers[T]:
        """Do as `RedisClient.start` does. The answers may be dropped."""
        if not self.client.is_prepared_for(batch):
            await self.in_turn(partial(self.client.prepare, batch))
        driver = self.client.driver
        if isinstance(driver, Cluster) or not 0 < len(batch) <= CHUNK:
            calls = asyncio.ensure_future(self.call_each(batch))
            calls.add_done_callback(_retrieve)
            return lambda: calls
        begun = await self._begun(driver, list(map(command_of, batch)))
        return partial(self._finish, batch, begun)

    async def _finish(
        self, batch: Sequence[Call[T]], begun: "asyncio.Future[Answered] | Exception"
    ) -> list[T | ImError]:
        answered = begun if isinstance(begun, Exception) else await begun
        answers = [answered] * len(batch) if isinstance(answered, Exception) else answered
        return await perform_async(self.client.finish(batch, answers), self._perform_step)

    async def query_many(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Do as `RedisClient.query_many` does."""
        answers = await perform_async(self.client.queries(commands), self._perform_step)
        for answer in answers:
            if isinstance(answer, ImError):
                raise answer
        return answers

    async def in_turn(self, function: Callable[[], T]) -> T:
        """Run a function of the synchronous client in a thread, when no other one runs."""

        def run() -> T:
            with self._lock:
                return function()

        try:
            return await in_thread(run)
        finally:
            if self._departures != self.client.departures and not self.client.is_cluster:
                self._departures = self.client.departures
                self._leave()

    def _leave(self) -> None:
        """Open new connections for what is called from now on."""
        for pipeline in self._pipelines.values():
            pipeline.retire()
        self._pipelines.clear()

    async def close(self) -> None:
        """Close all connections; calls that wait for answers raise RedisUnavailable."""
        for opening in self._openings.values():
            opening.cancel()
        for pipeline in self._pipelines.values():
            pipeline.close(RedisConnectionError("the connection is closed"))
        self._pipelines.clear()
        await self.in_turn(self.client.close)

    async def _perform_step(self, step: Send | Pause | Run) -> Any:
        match step:
            case Send(flights, others_s):
                return await self._send(flights, others_s)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Run(function):
                return await self.in_turn(function)

    async def _send(
        self, flights: Sequence[tuple[redis.Redis, Sequence[Command]]], others_s: float | None
    ) -> list[Answered]:
        if len(flights) == 1:
            [(server, commands)] = flights
            return [await self._sent(server, commands)]
        sent = [asyncio.ensure_future(self._sent(server, commands)) for server, commands in flights]
        try:
            if others_s is not None and sent:
                await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait(sent, timeout=others_s)
                return [each.result() if each.done() else _SILENT for each in sent]
            return list(await asyncio.gather(*sent))
        finally:
            for each in sent:
                each.cancel()  # its connection reads and drops the answer

    async def _sent(self, server: redis.Redis, commands: Sequence[Command]) -> Answered:
        begun = await self._begun(server, commands)
        return begun if isinstance(begun, Exception) else await begun

    async def _begun(self, server: redis.Redis, commands: Sequence[Command]) -> "asyncio.Future[Answered] | Exception":
        try:
            return (await self._pipeline(server)).send(commands)
        except LOST as error:
            return error

    async def _pipeline(self, server: redis.Redis) -> Pipeline:
        name = self._name_of(server)
        pipeline = self._pipelines.get(name)
        if pipeline is not None and pipeline.is_usable:
            return pipeline
        opening = self._openings.get(name)
        if opening is None:
            opening = self._openings[name] = asyncio.ensure_future(self._open(name, server))
            opening.add_done_callback(_retrieve)
        return await asyncio.shield(opening)

    async def _open(self, name: str, server: redis.Redis) -> Pipeline:
        try:
            pipeline = self._pipelines[name] = Pipeline(await opened(server))
        finally:
            del self._openings[name]
        return pipeline

    def _name_of(self, server: redis.Redis) -> str:
        """Return the host and port of a cluster's node."""
        if not self.client.is_cluster:
            return _SINGLE
        place = server.connection_pool.connection_kwargs
        return f"{place.get('host')}:{place.get('port')}"


def _retrieve(task: "asyncio.Future[Any]") -> None:
    """Look at the error of a task for which perhaps nobody waits any more: else asyncio reports it."""
    if not task.cancelled():
        task.exception()
