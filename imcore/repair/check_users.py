"""Whether users are listed under the groups that they are members of, and no others.

The groups themselves are compared by their members; here it is looked at from the other end.
"""

from collections.abc import Iterator
from typing import NamedTuple

from imcore.repair.check_messages import chunks
from imcore.sql import queries
from imcore.streams import wire
from imcore.streams.calls import group_calls
from imcore.system import System

AT_ONCE = 200


class Listing(NamedTuple):
    """A group among those of a user who is no member of it. `removed`: it was there."""

    gid: str
    uid: str
    removed: bool


def strange_listings(system: System, *, repair: bool) -> Iterator[Listing]:
    """Yield the groups that users are listed under wrongly; with `repair` these go."""
    client, space = system.client, system.client.space
    for uids in chunks(queries.uids(system.database), AT_ONCE):
        sets = [(uid, space.groups_of(p, uid)) for uid in uids for p in range(space.partitions)]
        found = client.query_many([("SMEMBERS", key) for _, key in sets])
        pairs = [(wire.text(gid), uid, key) for (uid, key), gids in zip(sets, found, strict=True) for gid in gids]
        answers = client.call_each([group_calls.is_member(space, gid, uid) for gid, uid, _ in pairs])
        for (gid, uid, key), is_member in zip(pairs, answers, strict=True):
            # It may be an error: what else may be wrong with a group is told by who looks at that.
            if is_member is False and _is_strange(system, gid, uid, key):
                yield Listing(gid, uid, repair and bool(client.execute_once("SREM", key, gid)))


def _is_strange(system: System, gid: str, uid: str, key: str) -> bool:
    """Ask once more, since people come and go: both are changed in one step."""
    listed = system.client.query("SISMEMBER", key, gid)
    return bool(listed) and system.client.query("ZSCORE", system.client.space.group(gid).acked, uid) is None
