"""Calls that create a group in steps. No I/O; see `lua/groups.lua`."""

from collections.abc import Sequence
from typing import Any

from imcore.model.values import Group
from imcore.streams import wire
from imcore.streams.calls.call import Call, Value
from imcore.streams.calls.group_calls import group_of
from imcore.streams.keys import Keyspace

LOST = None
"""The answer of a step if another process has taken the creation over."""


def begin(space: Keyspace, gid: str, token: str) -> Call[tuple[Group, bool] | None]:
    """Begin to create a group, or resume; answers None, or the group if it exists already.

    With the group it answers whether the members may not have been notified.
    """
    k = space.group(gid)

    def decode(answer: list[Any]) -> tuple[Group, bool] | None:
        return (group_of(gid)(answer[:3]), answer[3] == 1) if answer else None

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
    args: tuple[Value, ...] = (gid, k.inboxes, int(is_last), *uids)
    return Call("im_create_notify", (k.unnotified, k.acked), args, int, gid, writes=True)


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
