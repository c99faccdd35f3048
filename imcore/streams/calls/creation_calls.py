"""Calls that create a group, in one step or in several. No I/O; see `lua/groups.lua`."""

from collections.abc import Callable, Sequence
from typing import Any

from imcore.model.values import Group
from imcore.streams import wire
from imcore.streams.calls.call import Call, T, Value
from imcore.streams.calls.group_calls import group_of
from imcore.streams.keys import Keyspace

LOST = None
"""The answer of a step if another process has taken the creation over."""

Existing = tuple[Group, bool, bool]
"""A group that exists already, whether its members may not have been notified, and whether all the uids are members."""


def create(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Existing | None]:
    """Create a group in one step, unless it exists."""
    return _step(space, gid, ("", 1, len(uids), *uids), _existing(gid))


def begin(space: Keyspace, gid: str, token: str) -> Call[Existing | None]:
    """Begin to create a group, or resume, unless it exists."""
    return _step(space, gid, (token, 1, ""), _existing(gid))


def add(space: Keyspace, gid: str, token: str, uids: Sequence[str]) -> Call[int | None]:
    """Add members to a group that is being created; answers their number, or LOST."""
    return _step(space, gid, (token, 0, "", *uids), _unless_lost(len(uids)))


def end(space: Keyspace, gid: str, token: str, members: int) -> Call[int | None]:
    """Make the group visible, if it has this many members; answers their number, or LOST."""
    return _step(space, gid, (token, 0, members), _unless_lost(members))


def _step(space: Keyspace, gid: str, args: tuple[Value, ...], decode: Callable[[list[Any]], T]) -> Call[T]:
    """Take a step: token, whether it is the first, the members of the group after the last one, and new members."""
    k = space.group(gid)
    groups_of = (k.groups_of(str(uid)) for uid in args[3:])
    of_group = k.meta, k.stream, k.acked, k.joined, k.left, k.journal
    keys = (*of_group, k.groups, k.creating, k.unnotified, k.deleting, k.erasing, *groups_of)
    return Call("im_create", keys, (gid, k.inboxes, *args), decode, gid, writes=True)


def _existing(gid: str) -> Callable[[list[Any]], Existing | None]:
    return lambda answer: (group_of(gid)(answer[:3]), answer[3] == 1, answer[4] == 1) if answer else None


def _unless_lost(members: int) -> Callable[[list[Any]], int | None]:
    return lambda answer: LOST if isinstance(answer, bytes) else members


def notify(space: Keyspace, gid: str, uids: Sequence[str], *, is_last: bool) -> Call[int]:
    """Publish to the live sessions of members that they joined; answers how many were notified."""
    k = space.group(gid)
    return Call("im_notify", (k.acked, k.unnotified), (gid, k.inboxes, "", int(is_last), *uids), int, gid, writes=True)


def undo(space: Keyspace, gid: str, uids: Sequence[str], *, is_repair: bool = False) -> Call[bool]:
    """Remove members from an abandoned creation, or end it if no uids are given. A repair may do so with any creation.

    Answers False if there is none.
    """
    k = space.group(gid)
    keys = (k.creating, k.meta, k.stream, k.acked, k.joined, *k.positions, *map(k.groups_of, uids))
    return Call("im_create_undo", keys, (gid, int(is_repair), *uids), bool, gid, writes=True)


def abandoned(space: Keyspace, partition: int) -> Call[list[str]]:
    """Ask which creations of a partition are abandoned, and to be undone."""
    return Call("im_abandoned", (space.creating(partition),), (), wire.texts, writes=True)


def unnotified(space: Keyspace, partition: int) -> Call[list[str]]:
    """Ask which new groups of a partition have members that no living process notifies."""
    return Call("im_abandoned", (space.unnotified(partition),), (), wire.texts, writes=True)
