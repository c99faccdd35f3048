"""Whether users are listed under the groups that they are members of, and no others.

The groups themselves are compared by their members; here it is looked at from the other end.
"""

from collections.abc import Iterator
from typing import NamedTuple

from imcore.admin.audit_messages import chunks
from imcore.chat import Chat
from imcore.sql import stored
from imcore.streams import calls, wire

AT_ONCE = 200


class Listing(NamedTuple):
    """A group among those of a user who is no member of it. `removed`: it was there."""

    gid: str
    uid: str
    removed: bool


def strange_listings(chat: Chat, *, repair: bool) -> Iterator[Listing]:
    """Yield the groups that users are listed under wrongly; with `repair` these go."""
    link, space = chat.link, chat.link.space
    for uids in chunks(stored.uids(chat.database), AT_ONCE):
        sets = [(uid, space.groups_of(p, uid)) for uid in uids for p in range(space.partitions)]
        found = link.read_many([("SMEMBERS", key) for _, key in sets])
        pairs = [(wire.text(gid), uid, key) for (uid, key), gids in zip(sets, found, strict=True) for gid in gids]
        answers = link.gather([calls.is_member(space, gid, uid) for gid, uid, _ in pairs])
        for (gid, uid, key), is_member in zip(pairs, answers, strict=True):
            # It may be an error: what else may be wrong with a group is told by who looks at that.
            if is_member is False and _is_strange(chat, gid, uid, key):
                yield Listing(gid, uid, repair and bool(link.once("SREM", key, gid)))


def _is_strange(chat: Chat, gid: str, uid: str, key: str) -> bool:
    """Ask once more, since people come and go: both are changed in one step."""
    listed = chat.link.read("SISMEMBER", key, gid)
    return bool(listed) and chat.link.read("ZSCORE", chat.link.space.group(gid).acked, uid) is None
