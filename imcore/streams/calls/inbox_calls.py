"""Calls about what a user is shown of many groups at once. No I/O; see `lua/inbox.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore.model.values import Message
from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.calls.group_calls import Position, position_keys, position_of
from imcore.streams.keys import Keyspace


class InboxPlace(NamedTuple):
    """Where a group is in a member's inbox, and how much is unread in it. Msgids are packed.

    `newest` is the newest message that is neither recalled nor a tombstone: 0 without one. It is None if only SQL may
    have one, after `joined` and up to `trimmed`. `unread` is None if only SQL knows it: then it is `counted` less the
    seq of the newest message up to `unread_after`.
    """

    newest: int | None
    unread: int | None
    trimmed: int = 0
    joined: int = 0
    counted: int = 0
    unread_after: int = 0


class Shown(NamedTuple):
    """What a member is shown of one group, all of one moment. Msgids are packed.

    Messages up to `trimmed` are in SQL only. For `newest` see InboxPlace; `message` is None if only SQL has it.
    `first_unread` is the first unread message past `trimmed`, None without one.
    """

    position: Position
    trimmed: int
    newest: int | None
    message: Message | None
    first_unread: int | None


def order(space: Keyspace, gids: Sequence[str], uid: str) -> Call[list[InboxPlace | None]]:
    """Ask for the places of groups of one partition. A group whose member they are no more has None."""

    def decode(answer: list[Any]) -> list[InboxPlace | None]:
        return [None if isinstance(item, bytes) else _place(*item) for item in answer]

    return Call("im_inbox_order", _keys(space, gids, uid), (uid,), decode)


def inbox(space: Keyspace, gids: Sequence[str], uid: str, *, most_bytes: int) -> Call[list[Shown | None]]:
    """Ask what a member is shown of groups of one partition. A group whose member they are no more has None.

    The answer ends with the group in which there are more than `most_bytes` of text.
    """

    def decode(answer: list[Any]) -> list[Shown | None]:
        return [
            None if isinstance(item, bytes) else _shown(gid, *item) for gid, item in zip(gids, answer, strict=False)
        ]

    return Call("im_inbox", _keys(space, gids, uid), (uid, most_bytes), decode)


def _keys(space: Keyspace, gids: Sequence[str], uid: str) -> tuple[str, ...]:
    return tuple(key for gid in gids for key in position_keys(space, gid, uid))


def _place(newest: bytes, unread: int | bytes, *rest: Any) -> InboxPlace:
    count = unread if isinstance(unread, int) else None
    return InboxPlace(int(newest) if newest else None, count, *map(int, rest))


def _shown(gid: str, position: list[Any], trimmed: bytes, newest: bytes, entry: Any, first_unread: bytes) -> Shown:
    message = wire.message(gid, entry) if entry else None
    ends = int(newest) if newest else None, message, int(first_unread) if first_unread else None
    return Shown(position_of(position), int(trimmed), *ends)
