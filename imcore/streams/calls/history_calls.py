"""Calls that page through what a member may see. No I/O; see `lua/history.lua`."""

from typing import Any, NamedTuple

from imcore.model.values import Message
from imcore.streams import wire
from imcore.streams.calls.call import Call, checked
from imcore.streams.keys import Keyspace


class Wanted(NamedTuple):
    """The messages still wanted: `older` of them before `low`, and `newer` of them from `high` on (both packed)."""

    low: int
    older: int
    high: int
    newer: int


class HistoryPart(NamedTuple):
    """Messages on both sides, oldest first, as far as Redis has them. A member sees what came after `joined`.

    Messages up to `trimmed` are in SQL only; `last` is the newest. `kept_back`: others follow at once before the older
    ones. `has_more`: Redis has others before all these. Msgids are packed.
    """

    joined: int
    trimmed: int
    last: int
    older: list[Message]
    kept_back: bool
    newer: list[Message]
    has_more: bool


class UnreadPosition(NamedTuple):
    """Up to where a member has read, and the first unread message past the trim point; all packed."""

    read: int
    joined: int
    trimmed: int
    msgid: int | None


def history(space: Keyspace, gid: str, uid: str, wanted: Wanted, *, most_bytes: int) -> Call[HistoryPart]:
    """Ask for the messages on both sides: at most `most_bytes` of text, exceeded by the first of a side only."""
    k = space.group(gid)

    def messages(entries: list[wire.Entry]) -> list[Message]:
        return [wire.message(gid, entry) for entry in entries]

    def decode(answer: Any) -> HistoryPart:
        joined, trimmed, last, older, kept_back, newer, has_more = checked(answer, gid, uid=uid)
        ends = int(joined), int(trimmed), int(last)
        return HistoryPart(*ends, messages(older), kept_back == 1, messages(newer), has_more == 1)

    return Call("im_history", (k.meta, k.stream, k.joined, k.recalled), (uid, *wanted, most_bytes), decode, gid)


def first_unread(space: Keyspace, gid: str, uid: str, *, for_others: bool = False) -> Call[UnreadPosition]:
    """Ask for the first message that a member has not read; `for_others`: without what only the member may know."""
    k = space.group(gid)

    def decode(answer: Any) -> UnreadPosition:
        read, joined, trimmed, msgid = checked(answer, gid, uid=uid)
        return UnreadPosition(int(read), int(joined), int(trimmed), int(msgid) if msgid else None)

    keys = (k.meta, k.stream, k.acked, k.joined, k.recalled, k.own_unacked(uid), k.bookmarks)
    return Call("im_first_unread", keys, (uid, int(for_others)), decode, gid)
