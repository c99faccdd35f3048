"""Calls that create a group in steps. No I/O; see `lua/groups.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Group
from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace

LOST = None
"""The answer of a step if another process has taken the creation over."""


class Begun(NamedTuple):
    """The answer of `begin` for a group that exists. `is_unnotified`: its members may not have been notified."""

    group: Group
    is_unnotified: bool


def begin(space: Keyspace, gid: str, token: str) -> Call[Begun | None]:
    """Begin to create a group, or resume; answers the group if it exists already."""
    k = space.group(gid)

    def decode(answer: list[Any]) -> Begun | None:
        if not answer:
            return None
        members, messages, last, is_unnotified = answer
        return Begun(Group(gid, members, messages, msgids.unpack_offset(int(last))), is_unnotified == 1)

    keys = (k.meta, k.acked, k.left, k.creating, k.unnotified)
    return Call("im_create_begin", keys, (gid, token), decode, gid, writes=True)


def add(space: Keyspace, gid: str, token: str, uids: Sequence[str]) -> Call[int | None]:
    """Add members to a group that is being created; answers how many were new, or LOST."""
    k = space.group(gid)
    keys = (k.creating, k.meta, k.stream, k.acked, k.joined, *map(k.groups_of, uids))
    return Call("im_create_add", keys, (gid, token, *uids), _number_or_lost, gid, writes=True)


def end(space: Keyspace, gid: str, token: str, members: int) -> Call[int | None]:
    """Make the group visible, if it has this many members; answers their number, or LOST."""
    k = space.group(gid)
    keys = (k.creating, k.meta, k.acked, k.journal, k.groups, k.unnotified)
    return Call("im_create_end", keys, (gid, token, members), _number_or_lost, gid, writes=True)


def notify(space: Keyspace, gid: str, uids: Sequence[str], *, is_last: bool) -> Call[int]:
    """Publish to the live sessions of members that they joined; answers how many were notified."""
    k = space.group(gid)
    return Call(
        "im_create_notify", (k.unnotified, k.acked), (gid, k.inboxes, int(is_last), *uids), int, gid, writes=True
    )


def undo(space: Keyspace, gid: str, uids: Sequence[str], *, is_repair: bool = False) -> Call[bool]:
    """Remove members from an abandoned creation or, as a repair, from any; without uids, end the creation.

    Answers False if there is none.
    """
    k = space.group(gid)
    keys = (k.creating, k.meta, k.stream, k.acked, k.joined, *map(k.groups_of, uids))
    return Call("im_create_undo", keys, (gid, int(is_repair), *uids), bool, gid, writes=True)


def abandoned(space: Keyspace, partition: int) -> Call[list[str]]:
    """Ask which creations of a partition are abandoned, and to be undone."""
    return Call("im_abandoned", (space.creating(partition),), (), wire.texts, writes=True)


def unnotified(space: Keyspace, partition: int) -> Call[list[str]]:
    """Ask which new groups of a partition have members that no living process notifies."""
    return Call("im_abandoned", (space.unnotified(partition),), (), wire.texts, writes=True)


def _number_or_lost(answer: Any) -> int | None:
    return LOST if isinstance(answer, bytes) else int(answer)
