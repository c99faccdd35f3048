"""Groups as they are now."""

from collections.abc import Iterator

from imcore.errors import UnknownGroup
from imcore.model.limits import check_name
from imcore.model.values import Group
from imcore.operations.effects import raised
from imcore.streams import wire
from imcore.streams.calls import group_calls
from imcore.streams.client import CHUNK, RedisClient


def group(client: RedisClient, gid: str) -> Group:
    """Return what a group is now."""
    return client.call(group_calls.group(client.space, check_name(gid, "gid")))


def groups(client: RedisClient) -> Iterator[Group]:
    """Yield all groups, by gid."""
    space = client.space
    found = sorted(
        {  # a scan may bring some of them twice
            wire.text(gid)
            for partition in range(space.partitions)
            for gid in scan(client, "SSCAN", space.groups(partition))
        }
    )
    for i in range(0, len(found), CHUNK):
        for each in client.call_each([group_calls.group(space, gid) for gid in found[i : i + CHUNK]]):
            if not isinstance(each, UnknownGroup):
                yield raised(each)


def scan(client: RedisClient, command: str, key: str) -> list[bytes]:
    """Return all names of a set or sorted set."""
    found: list[bytes] = []
    cursor = 0
    while True:
        cursor, page = client.query(command, key, cursor, "COUNT", 1000)
        found += page if command == "SSCAN" else [name for name, _ in page]
        if int(cursor) == 0:
            return found
