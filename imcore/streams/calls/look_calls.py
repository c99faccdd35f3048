"""Calls of a comparison with SQL that ask for much of a group at once. No I/O; see `lua/repair_look.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore.streams.calls.call import Call
from imcore.streams.keys import GroupKeys, Keyspace


class GroupLook(NamedTuple):
    """What Redis has of a group beside its hash and its messages: names and values in turn, as it answers them.

    `members` are whether each of the uids lists the group, and their own messages past the offset.
    """

    followers: list[bytes]
    bookmarked: list[bytes]
    bookmarks: list[bytes]
    acked: list[bytes]
    joined: list[bytes]
    left: list[bytes]
    ahead: list[bytes]
    ahead_acked: list[bytes]
    recalled: list[bytes]
    members: list[tuple[bool, list[bytes]]]


def heads(space: Keyspace, gids: Sequence[str]) -> Call[list[tuple[int, list[bytes | None], int, int]]]:
    """Ask for groups of one partition: 1 if listed, (seq, last, trimmed), the number of entries, of spans; see Lua."""
    k = list(map(space.group, gids))
    keys = (k[0].groups, *(key for each in k for key in (each.meta, each.stream, each.acked)))
    return Call("im_repair_heads", keys, tuple(gids), list)


def look(k: GroupKeys, uids: Sequence[str], most: int) -> Call[GroupLook | None]:
    """Ask for all of a group but its hash and its messages; None if one of its sets or lists holds more than `most`."""

    def decode(answer: list[Any] | None) -> GroupLook | None:
        if answer is None:
            return None
        members = [(is_listed == 1, own) for is_listed, own in zip(answer[9::2], answer[10::2], strict=True)]
        return GroupLook(*(*answer[:9], members))

    own = (key for uid in uids for key in (k.groups_of(uid), k.own_unacked(uid)))
    sets = (k.acked, k.joined, k.left, k.ahead, k.ahead_acked, k.recalled)
    return Call("im_repair_look", (k.stream, k.bookmarks, *sets, *own), (k.gid, most), decode, k.gid)
