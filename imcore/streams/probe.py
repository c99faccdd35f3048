"""Calls that write nothing: whether a server takes writes at all shows by what it answers to them."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import redis
from redis.cluster import RedisCluster

from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace


def writes_of_nothing(client: "redis.Redis | RedisCluster", partitions: int) -> list[Call[Any]]:
    """Return a call for the server, or for each primary of a cluster that has a partition.

    It acks nothing in a group, which need not be there. A server refuses it as it does every write: where it is a
    replica, cannot save to its disk, or has too few replicas itself.
    """
    space = Keyspace(partitions)
    return [message_calls.ack(space, gid, []) for gid in _gids(client, space)]


def _gids(client: "redis.Redis | RedisCluster", space: Keyspace) -> Iterator[str]:
    """Yield a gid for each place: its keys are there."""
    gids = (str(number) for number in count())
    if not isinstance(client, RedisCluster):
        yield next(gids)
        return
    left = {client.get_node_from_key(journal).name for journal in space.journals()}
    while left:
        gid = next(gids)
        place = client.get_node_from_key(space.group(gid).meta).name
        if place in left:
            left.discard(place)
            yield gid
