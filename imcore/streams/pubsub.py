"""Subscriptions to sharded channels: over one connection to a server, or one to each node of a cluster that has some.

The driver's PubSub reconnects unseen, waits for the nodes of a cluster in turn, and does not report when a node gives a
channel away. Here all of these are one thing: RedisUnavailable, and pushes may have been missed.
"""

import select
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

from imcore.errors import ConfigurationError, ImError, RedisUnavailable
from imcore.streams.client import RedisClient
from imcore.streams.cluster import Cluster
from imcore.streams.keys import Keyspace
from imcore.streams.redis_errors import LOST, LostNodeError, driver_errors
from imcore.streams.rounds import Client
from imcore.streams.wire import PONG, PUSHED, PubSubEvent
from imcore.util.batches import batches, grouped

CHUNK = 500
"""The most channels that one command names."""
_MOST_AT_ONCE = 1000


class Waker:
    """Ends the wait of one thread from any other. It has no sockets before somebody waits."""

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self.is_awake = False

    def wake(self) -> None:
        self.is_awake = True  # first: a thread that begins to wait makes its sockets, then looks at this
        if ends := self._ends:
            with suppress(OSError):  # enough was written already, or it was closed meanwhile
                ends[1].send(b"\0")

    def fileno(self) -> int:
        """Return what to poll for reading, together with other sockets."""
        if self._ends is None:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
        return self._ends[0].fileno()

    def wait(self, timeout_s: float) -> None:
        self.poll([], timeout_s)

    def poll(self, others: Iterable[Any], timeout_s: float) -> None:
        """Wait until one of some sockets can be read, or somebody wakes this one."""
        waiting = select.poll()  # select() takes no descriptor from 1024 on: a gateway has many sockets
        for each in (self, *others):
            waiting.register(each, select.POLLIN)
        readable = waiting.poll(0 if self.is_awake else timeout_s * 1000)
        if any(descriptor == self.fileno() for descriptor, _ in readable):
            self.is_awake = True

    def reset(self) -> None:
        """Sleep again: what woke this one was seen."""
        self.is_awake = False  # first: what is written from now on wakes it again
        if self._ends:
            with suppress(BlockingIOError):
                while self._ends[0].recv(4096):
                    pass

    def close(self) -> None:
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()


class Subscription:
    """Subscribes, unsubscribes and reads. After RedisUnavailable it is dead: close it and open another."""

    def __init__(self, client: RedisClient) -> None:
        """Raise RedisUnavailable."""
        self._where = client.address
        self._client = client.driver
        self._connections: dict[str, Any] = {}
        self._silent: set[str] | None = None  # connections that have not answered a ping
        if client.is_cluster:
            # Queries for a key of each slot let the client learn which node has it now.
            client.query_many(key_of_each_slot(client.space))

    def change(self, drop: Sequence[str], add: Sequence[str]) -> None:
        """Unsubscribe and subscribe channels; pushes come after their SUBSCRIBED event."""
        self._send("SUNSUBSCRIBE", drop)
        self._send("SSUBSCRIBE", add)

    def ping(self) -> None:
        """Ping each connection: whatever it brings next is an answer."""
        with subscription_errors(self._where):
            for connection in self._connections.values():
                connection.send_command("PING", check_health=False)
        self._silent = set(self._connections)

    def read(self, timeout_s: float, waker: Waker) -> list[PubSubEvent]:
        """Return the events that have arrived, after waiting at most so long for the first, or to be woken."""
        with subscription_errors(self._where):
            names = self._readable()
            if not names and timeout_s > 0:
                waker.poll([connection._sock for connection in self._connections.values()], timeout_s)
                names = self._readable()
            events: list[PubSubEvent] = []
            for name in names:
                with subscription_errors(self._where, name):
                    events += self._drain(name)
        if self._silent is not None and not self._silent:
            self._silent = None
            events.append(PubSubEvent(PONG))
        return events

    def close(self) -> None:
        for connection in self._connections.values():
            connection.disconnect()

    def _send(self, command: str, channels: Iterable[str]) -> None:
        with subscription_errors(self._where):
            for names in by_slot(self._client, channels):
                connection = self._connection_of(names[0])
                connection.send_command(command, *names, check_health=False)

    def _connection_of(self, channel: str) -> Any:
        name, client = node_of(self._client, channel)
        if name not in self._connections:
            # Not of the pool: another user might close it and reconnect it without our channels.
            pool = client.connection_pool
            with subscription_errors(self._where, name):
                self._connections[name] = _opened(pool.connection_class(**pool.connection_kwargs))
        return self._connections[name]

    def _readable(self) -> list[str]:
        return [name for name, connection in self._connections.items() if connection.can_read(0)]

    def _drain(self, name: str) -> Iterator[PubSubEvent]:
        connection = self._connections[name]
        for _ in range(_MOST_AT_ONCE):
            answer = connection.read_response(push_request=True)
            if self._silent:
                self._silent.discard(name)
            if event := event_of(answer):
                yield event
            if not connection.can_read(0):
                return


def key_of_each_slot(space: Keyspace) -> list[tuple[str, str]]:
    """Return queries that go to each slot with our data, of the served partitions."""
    return [("EXISTS", space.journal(p)) for p in space.served]


@contextmanager
def subscription_errors(where: str, node: str = "") -> Iterator[None]:
    """Translate what the driver raises: but for a ConfigurationError the subscription is lost.

    `node` names the node of a cluster to which a connection is that may be lost.
    """
    try:
        with driver_errors(where):
            try:
                yield
            except LOST as error:
                if node:
                    raise LostNodeError(node, error) from error
                raise
    except (ConfigurationError, RedisUnavailable):
        raise
    except ImError as error:  # MOVED, for one
        raise RedisUnavailable(str(error)) from error


def by_slot(client: Client, channels: Iterable[str]) -> Iterator[list[str]]:
    """Yield channels that one command may name: those of one slot of a cluster, not too many."""
    slot_of = client.keyslot if isinstance(client, Cluster) else lambda _: 0
    for names in grouped((slot_of(channel), channel) for channel in channels).values():
        yield from batches(names, CHUNK)


def node_of(client: Client, channel: str) -> tuple[str, redis.Redis]:
    """Return the node that has a channel, with its name. A single server has the name ""."""
    if not isinstance(client, Cluster):
        return "", client
    node = client.get_node_from_key(channel)
    return node.name, client.get_redis_connection(node)


def event_of(answer: Any) -> PubSubEvent | None:
    """Return the event of an answer; None for that of a PING: a text, or a list."""
    if not isinstance(answer, list) or answer[0] == PONG:
        return None
    kind, channel, data = answer
    return PubSubEvent(kind, channel.decode(), data if kind == PUSHED else b"")


def _opened(connection: Any) -> Any:
    connection.connect()
    if connection.get_protocol() not in {2, "2"}:  # as the driver's PubSub does it
        # The driver's own handler formats each push for its log, at a tenth of a gateway's time.
        connection._parser.set_pubsub_push_handler(lambda push: push)
    return connection
