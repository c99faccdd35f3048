"""Subscriptions to sharded channels under asyncio: one connection to a server, or to each node that has some."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from imcore.errors import ImError
from imcore.streams.aio.client import AsyncRedisClient
from imcore.streams.aio.connection import LoopConnection, opened
from imcore.streams.keys import Keyspace
from imcore.streams.packing import pack
from imcore.streams.pubsub import by_slot, event_of, key_of_each_slot, node_of, subscription_errors
from imcore.streams.wire import PONG, PubSubEvent


class _Listening(LoopConnection):
    """Hands over what comes on one connection."""

    def __init__(self, connection: Any, heard: Callable[["_Listening", Any], None], lost: Callable[[Exception], None]):
        super().__init__(connection)
        self._heard, self._lost = heard, lost

    def heard(self, answer: Any) -> None:
        self._heard(self, answer)

    def lost(self, error: Exception) -> None:
        self._lost(error)


class AsyncSubscription:
    """Subscribes, unsubscribes, and collects events. Once it has an `error` it is dead: close it and open another.

    `notify` is called in the loop when something has come. The channels are those of the served partitions.
    """

    def __init__(self, client: AsyncRedisClient, space: Keyspace, notify: Callable[[], None]) -> None:
        self._client = client
        self._space = space
        self._notify = notify
        self._connections: dict[str, _Listening] = {}
        self._silent: set[_Listening] | None = None  # connections that have not answered a ping
        self._events: list[PubSubEvent] = []
        self._is_closed = False
        self.error: ImError | None = None
        """RedisUnavailable, or ConfigurationError."""

    async def open(self) -> None:
        """Raise RedisUnavailable."""
        if self._client.client.is_cluster:
            # Queries for a key of each slot let the client learn which node has it now.
            await self._client.query_many(key_of_each_slot(self._space))

    async def change(self, drop: Sequence[str], add: Sequence[str]) -> None:
        """Unsubscribe and subscribe channels; pushes come after their SUBSCRIBED event. Raise RedisUnavailable."""
        await self._send("SUNSUBSCRIBE", drop)
        await self._send("SSUBSCRIBE", add)

    def ping(self) -> None:
        """Ping each connection: whatever it brings next is an answer."""
        for connection in self._connections.values():
            connection.write(pack(("PING",)))
        self._silent = set(self._connections.values())

    def read(self) -> None:
        """Read what has arrived: the loop may have been kept from that for long."""
        for connection in list(self._connections.values()):
            connection.read()

    def take(self) -> list[PubSubEvent]:
        """Return the events that have come."""
        events, self._events = self._events, []
        if self._silent is not None and not self._silent:
            self._silent = None
            events.append(PubSubEvent(PONG))
        return events

    def close(self) -> None:
        self._is_closed = True
        for connection in self._connections.values():
            connection.close(RedisConnectionError("the connection is closed"))

    async def _send(self, command: str, channels: Iterable[str]) -> None:
        with subscription_errors(self._client.address):
            for names in by_slot(self._client.client.driver, channels):
                (await self._connection_of(names[0])).write(pack((command, *names)))

    async def _connection_of(self, channel: str) -> _Listening:
        name, server = node_of(self._client.client.driver, channel)
        if name not in self._connections:
            with subscription_errors(self._client.address, name):
                connection = await opened(server)
            self._connections[name] = _Listening(connection, self._heard, partial(self._lost, name))
        return self._connections[name]

    def _heard(self, connection: _Listening, answer: Any) -> None:
        if self._silent:
            self._silent.discard(connection)
        if isinstance(answer, Exception):
            self._lost("", answer)
        elif event := event_of(answer):
            self._events.append(event)
        self._notify()

    def _lost(self, name: str, error: Exception) -> None:
        if self._is_closed or self.error:
            return
        try:
            with subscription_errors(self._client.address, name):
                raise error
        except ImError as translated:
            self.error = translated
        self._notify()
