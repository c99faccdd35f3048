"""The driver's client of a cluster, such that no silent node holds up what the others could answer.

The driver asks any node for the list of commands as it begins, and walks over all nodes, the silent ones with the whole
timeout of an answer each, when it looks for the slots. This one knows where the key of each of our commands is, and
first looks which node answers at all.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

import redis
from redis import exceptions as driver
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.retry import Retry

from imcore.streams.places import DEFAULT_PORT, Place

_KEY_AT = {"FCALL": 3, "FCALL_RO": 3, "EVAL": 3, "EVALSHA": 3, "MEMORY": 2, "XINFO": 2}
"""The index of the first key of a command, if it does not follow the name."""

PROBES_S = (0.25, 1.0)
"""How long to wait for a node's answer to a PING, in the first round and in the second one."""

_NO_WORD = (driver.ConnectionError, driver.TimeoutError, OSError)


def key_of(command: Sequence[Any]) -> Any:
    """Return a key of a command. All of its keys are in one slot."""
    name = str(command[0]).upper()
    if name in {"XREADGROUP", "XREAD"}:
        return command[command.index("STREAMS") + 1]
    return command[_KEY_AT.get(name, 1)]


def server_of(client: "redis.Redis | Cluster", key: str) -> redis.Redis:
    """Return the server that has a key."""
    if not isinstance(client, Cluster):
        return client
    server: redis.Redis = client.get_redis_connection(client.get_node_from_key(key))
    return server


class Cluster(RedisCluster):
    """A `RedisCluster` that asks no particular node for what any of them knows. Thread-safe, as the driver's is."""

    def __init__(self, places: Sequence[Place], user: str, *, retry: Retry, **options: Any) -> None:
        """`user` is what a URL has before its host, `NAME:PASSWORD@` or "".

        Raise what the driver raises if none of the places is a node that answers.
        """
        pool_options = {"max_connections"}
        self._options: Mapping[str, Any] = {
            **{name: value for name, value in options.items() if name not in pool_options},
            **parse_url(f"redis://{user}{places[0]}"),
        }
        self._places = {_name(place): place for place in places}
        """Asked as long as this client lives, whatever nodes are known by now."""
        self._refreshing = Lock()
        self._mute: set[str] = set()
        """Nodes that did not answer when they were asked last: the last ones to be asked."""
        self.prepared: set[str] = set()
        """The names of the nodes that are known to hold the functions of this program."""
        first, *others = self._sound(list(self._places.values()))
        nodes = [_node(place) for place in others]
        super().__init__(url=f"redis://{user}{first}", startup_nodes=nodes, retry=retry, **options)

    def command(self, **_: Any) -> dict[str, dict[str, Any]]:
        """Return nothing where the driver, as it begins, asks a node for the commands that it has."""
        return {}

    def determine_slot(self, *args: Any) -> int:
        return int(self.keyslot(key_of(args)))

    def refresh(self) -> None:
        """Ask a node that answers which node has which slots; if none does, all stays as it is."""
        with self._refreshing:
            known = [Place(node.host, node.port) for node in self.get_nodes()]
            places = {_name(place): place for place in known} | self._places
            nodes = [self.get_node(place.host, place.port) or _node(place) for place in self._sound([*places.values()])]
            with suppress(*_NO_WORD, driver.RedisError, driver.RedisClusterException):
                self.nodes_manager.startup_nodes = {node.name: node for node in nodes}
                self.nodes_manager.initialize()

    def close(self) -> None:
        """Close all connections; the driver's own leaves those to its nodes open."""
        super().close()
        manager = vars(self).get("nodes_manager")
        for node in manager.nodes_cache.values() if manager else ():
            if node.redis_connection:
                node.redis_connection.connection_pool.disconnect()

    def _sound(self, places: Sequence[Place]) -> list[Place]:
        """Return the first place that answers, in a list. If none does, all of them: the driver says why."""
        places = sorted(places, key=lambda place: _name(place) in self._mute)
        for patience_s in PROBES_S if len(places) > 1 else ():
            for place in places:
                if self._answers(place, patience_s):
                    return [place]
        return places

    def _answers(self, place: Place, patience_s: float) -> bool:
        options = {**self._options, "socket_timeout": patience_s, "socket_connect_timeout": patience_s}
        connection_class = options.pop("connection_class")
        connection = connection_class(**{**options, "host": place.host, "port": place.port or DEFAULT_PORT})
        try:
            connection.connect()
            connection.send_command("PING")
            connection.read_response()
        except _NO_WORD:
            self._mute.add(_name(place))
            return False
        except driver.RedisError:  # a refusal is an answer
            pass
        finally:
            connection.disconnect()
        self._mute.discard(_name(place))
        return True


def _name(place: Place) -> str:
    return f"{place.host}:{place.port or DEFAULT_PORT}"


def _node(place: Place) -> ClusterNode:
    return ClusterNode(place.host, place.port or DEFAULT_PORT)
