"""The connection that hears sharded channels: one to a server, or one to each node of a cluster that has some of them.

Not the driver's PubSub: that one connects again unseen, waits for the nodes of a cluster in turn, and does not tell
when a node gives a channel away. Here all of these are one thing: RedisUnavailable, and pushes may have been missed.
"""

import select
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from redis.cluster import RedisCluster

from imcore.errors import ConfigurationError, ImError, RedisUnavailable
from imcore.streams.link import Link
from imcore.streams.redis_errors import driver_errors

_CHUNK = 500
_MOST_AT_ONCE = 1000


class Heard(NamedTuple):
    """What came on a channel; `data` is None for the news that the subscription stands."""

    channel: str
    data: bytes | None


class Subscription:
    """Subscribes, unsubscribes and reads. After RedisUnavailable it is dead: close it and open another."""

    def __init__(self, link: Link) -> None:
        """Raise RedisUnavailable."""
        self._where = link.address
        self._client = link.client
        self._connections: dict[str, Any] = {}
        self._leaving: Counter[str] = Counter()
        if link.is_cluster:
            # Asked for a key of each slot, the client learns which node has it now.
            link.read_many([("EXISTS", key) for key in link.space.journals()])

    def add(self, channels: Iterable[str]) -> None:
        """Begin to hear channels. What is published after the news of it has been read is heard."""
        self._send("SSUBSCRIBE", channels)

    def remove(self, channels: Iterable[str]) -> None:
        """Stop hearing channels."""
        names = list(channels)
        self._leaving.update(names)
        self._send("SUNSUBSCRIBE", names)

    def read(self, timeout_s: float) -> list[Heard]:
        """Return what came, after waiting at most so long for the first."""
        with self._errors():
            return [heard for connection in self._readable(timeout_s) for heard in self._drain(connection)]

    def close(self) -> None:
        """End the connections."""
        for connection in self._connections.values():
            connection.disconnect()

    def _send(self, command: str, channels: Iterable[str]) -> None:
        with self._errors():
            for names in self._by_slot(channels):
                connection = self._connection_of(names[0])
                for i in range(0, len(names), _CHUNK):
                    connection.send_command(command, *names[i : i + _CHUNK])

    def _by_slot(self, channels: Iterable[str]) -> Iterable[Sequence[str]]:
        if not isinstance(self._client, RedisCluster):
            names = list(channels)
            return [names] if names else []
        found: dict[int, list[str]] = defaultdict(list)
        for channel in channels:
            found[self._client.keyslot(channel)].append(channel)
        return found.values()

    def _connection_of(self, channel: str) -> Any:
        name, client = "", self._client
        if isinstance(client, RedisCluster):
            node = client.get_node_from_key(channel)
            name, client = node.name, client.get_redis_connection(node)
        if name not in self._connections:
            # One that no pool knows: nobody else may use it, or close it and connect it again without our channels.
            pool = client.connection_pool
            self._connections[name] = pool.connection_class(**pool.connection_kwargs)
            self._connections[name].connect()
        return self._connections[name]

    def _readable(self, timeout_s: float) -> list[Any]:
        timeout_s = max(0.0, timeout_s)
        connections = list(self._connections.values())
        if not connections:
            time.sleep(timeout_s)
        elif len(connections) == 1:
            return connections if connections[0].can_read(timeout_s) else []
        elif not any(connection.can_read(0) for connection in connections):
            select.select([connection._sock for connection in connections], [], [], timeout_s)
        return [connection for connection in connections if connection.can_read(0)]

    def _drain(self, connection: Any) -> Iterator[Heard]:
        for _ in range(_MOST_AT_ONCE):
            kind, channel, data = connection.read_response(push_request=True)
            if kind == b"smessage":
                yield Heard(channel.decode(), data)
            elif kind == b"ssubscribe":
                yield Heard(channel.decode(), None)
            else:
                self._left(channel.decode())
            if not connection.can_read(0):
                return

    def _left(self, channel: str) -> None:
        if not self._leaving[channel]:
            raise RedisUnavailable(f"{self._where} has given a partition to another node: looking where it is")
        self._leaving[channel] -= 1

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with driver_errors(self._where):
                yield
        except (ConfigurationError, RedisUnavailable):
            raise
        except ImError as error:  # MOVED, for one
            raise RedisUnavailable(str(error)) from error
