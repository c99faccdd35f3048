"""Calls that create a group in steps. No I/O; see `imcore.streams.calls`, and `lua/groups.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Group
from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace

LOST = None
"""What a step answers where the creation has gone to another process."""


class Begun(NamedTuple):
    """What the beginning of a creation answers where the group is there. `is_untold`: its members may not know it."""

    group: Group
    is_untold: bool


def begin(space: Keyspace, gid: str, token: str) -> Call[Begun | None]:
    """Begin to create a group, or go on with it; answers the group if it is there already."""
    k = space.group(gid)

    def decode(answer: list[Any]) -> Begun | None:
        if not answer:
            return None
        members, messages, last, is_untold = answer
        return Begun(Group(gid, members, messages, msgids.unpack_offset(int(last))), is_untold == 1)

    keys = (k.meta, k.acked, k.left, k.creating, k.untold)
    return Call("im_create_begin", keys, (gid, token), decode, gid, writes=True)


def add(space: Keyspace, gid: str, token: str, uids: Sequence[str]) -> Call[int | None]:
    """Give members to a group that is being created; answers how many were new, or LOST."""
    k = space.group(gid)
    keys = (k.creating, k.meta, k.stream, k.acked, k.joined, *map(k.groups_of, uids))
    return Call("im_create_add", keys, (gid, token, *uids), _number_or_lost, gid, writes=True)


def end(space: Keyspace, gid: str, token: str, members: int) -> Call[int | None]:
    """Let the group be there, with so many members; answers their number, or LOST."""
    k = space.group(gid)
    keys = (k.creating, k.meta, k.acked, k.journal, k.groups, k.untold)
    return Call("im_create_end", keys, (gid, token, members), _number_or_lost, gid, writes=True)


def tell(space: Keyspace, gid: str, uids: Sequence[str], *, is_last: bool) -> Call[int]:
    """Tell the live sessions of members that they are in a group; answers how many were told."""
    k = space.group(gid)
    return Call("im_create_tell", (k.untold, k.acked), (gid, k.inboxes, int(is_last), *uids), int, gid, writes=True)


def undo(space: Keyspace, gid: str, uids: Sequence[str], *, mends: bool = False) -> Call[bool]:
    """Take members away from a creation that was given up, or, by who `mends` the group, from any; without any, end it.

    Answers False if there is none.
    """
    k = space.group(gid)
    keys = (k.creating, k.meta, k.stream, k.acked, k.joined, *map(k.groups_of, uids))
    return Call("im_create_undo", keys, (gid, int(mends), *uids), bool, gid, writes=True)


def given_up(space: Keyspace, partition: int) -> Call[list[str]]:
    """Ask which creations of a partition have been given up, and are to be undone."""
    return Call("im_abandoned", (space.creating(partition),), (), _gids, writes=True)


def untold(space: Keyspace, partition: int) -> Call[list[str]]:
    """Ask which groups of a partition are there, and nobody goes on telling their members."""
    return Call("im_abandoned", (space.untold(partition),), (), _gids, writes=True)


def _gids(answer: list[bytes]) -> list[str]:
    return list(map(wire.text, answer))


def _number_or_lost(answer: Any) -> int | None:
    return LOST if isinstance(answer, bytes) else int(answer)
