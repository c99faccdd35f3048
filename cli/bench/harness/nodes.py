"""The servers that a benchmark runs on: a single one, or each primary of a cluster."""

from collections.abc import Callable
from typing import Any

import redis

from imcore.chat import Chat
from imcore.streams.cluster import Cluster
from imcore.streams.redis_errors import driver_errors
from imcore.streams.server_info import primaries_of
from imcore.util.batches import batches

_KEYS_AT_ONCE = 1000


def nodes_of(client: redis.Redis | Cluster) -> list[redis.Redis]:
    return [node for _, node in primaries_of(client)]


def infos(chat: Chat, section: str) -> list[dict[str, Any]]:
    """Return what each server says of itself."""
    client = chat.system.client
    with driver_errors(client.address):
        return [_execute(node)("INFO", section) for node in nodes_of(client.driver)]


def total(chat: Chat, section: str, *names: str) -> float:
    """Return the sum of these numbers over all servers; one that a server does not have is 0."""
    return sum(float(info.get(name, 0)) for info in infos(chat, section) for name in names)


def drop_ours(client: redis.Redis | Cluster) -> None:
    """Drop all of our keys from servers that were empty when the benchmark began."""
    for node in nodes_of(client):
        for keys in batches(node.scan_iter(match="im:*", count=_KEYS_AT_ONCE), _KEYS_AT_ONCE):
            with node.pipeline(transaction=False) as pipe:  # on a cluster a command has keys of one slot only
                for key in keys:
                    pipe.unlink(key)
                pipe.execute()


def _execute(node: redis.Redis) -> Callable[..., Any]:
    return node.execute_command
