"""Calls about tallies, readers and receipts. No I/O; see `lua/receipts.lua`."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.values import Message, MessageTally, Receipt
from imcore.streams import wire
from imcore.streams.calls.call import Call, Value, checked, error_of, flat, or_empty
from imcore.streams.keys import SEPARATOR, Keyspace, uid_of


class Counts(NamedTuple):
    read: int
    unread: int
    delivered: int


class TallyPage(NamedTuple):
    """Tallies of messages, newest first; with `more`, Redis has others before these.

    Messages up to `trimmed` (packed) are in SQL only.
    """

    trimmed: int
    tallies: list[MessageTally]
    more: bool


class Names(NamedTuple):
    """A page of the members behind a tally, perhaps with the sender. `message` is None if it is trimmed.

    Those in `arrived` are in `unread`, too: they have it, and have not read it.

    The next page begins at `cursor`; it is '0' after the last one. `newest` is the group's newest message (packed) at
    the first page.
    """

    message: Message | None
    cursor: str
    read: set[str]
    unread: set[str]
    arrived: set[str]
    newest: int


class Segment(NamedTuple):
    """Messages (packed) that offsets have moved over: after `after`, up to `until`; `only`: the uid if one moved."""

    after: int
    until: int
    only: str


class TallyChange(NamedTuple):
    """A message (packed msgid) whose tally changed, its sender and their span, if any."""

    sender_uid: str
    msgid: int
    span: int | None


class TallyChanges(NamedTuple):
    """Messages whose tallies changed. Up to `trimmed` they are in SQL only; the next page begins after `next_after`."""

    trimmed: int
    found: list[TallyChange]
    next_after: int | None


class DirtyReceipt(NamedTuple):
    """A message (packed msgid) whose tally changed; `version` orders the changes."""

    gid: str
    msgid: int
    version: int


def tallies(space: Keyspace, gid: str, messages: Iterable[tuple[int, str, int | str]]) -> Call[list[Counts | ImError]]:
    """Ask for tallies. Each message is (packed msgid, sender, the sender's span); sender and span may both be ''."""
    k = space.group(gid)
    wanted = list(messages)

    def decode(answer: list[Any]) -> list[Counts | ImError]:
        return [
            error_of(item, gid, msgid=message[0]) if isinstance(item, bytes) else Counts(*item)
            for item, message in zip(answer, wanted, strict=True)
        ]

    return Call("im_tally", k.for_tally, flat(wanted), decode, gid)


def status(space: Keyspace, gid: str, *, before: str, count: int, most_bytes: int) -> Call[TallyPage]:
    """Ask for the newest messages before an id ('+': the newest of all) with their tallies.

    At most `count` messages, and `most_bytes` of text, exceeded by the first message only.
    """

    def decode(answer: list[Any]) -> TallyPage:
        return TallyPage(
            int(answer[0]),
            [MessageTally(wire.message(gid, entry), *counts) for entry, *counts in answer[1]],
            answer[2] == 1,
        )

    return Call("im_status", space.group(gid).for_tally, (before, count, most_bytes), decode, gid)


def names(space: Keyspace, gid: str, msgid: int, *, cursor: str, newest: int | None = None, count: int) -> Call[Names]:
    """Ask who has read a message and who has not, about `count` of them; after the first page with its `newest`."""

    def decode(answer: Any) -> Names:
        entry, next_cursor, read, unread, arrived, newest = checked(answer, gid, msgid=msgid)
        message = wire.message(gid, entry) if entry else None
        return Names(message, next_cursor.decode(), _uids(read), _uids(unread), _uids(arrived), int(newest))

    return Call("im_readers", space.group(gid).for_tally, (msgid, cursor, count, or_empty(newest)), decode, gid)


def changes(space: Keyspace, gid: str, segments: Sequence[Segment], count: int) -> Call[TallyChanges]:
    """Ask for which messages moves of offsets have changed the tallies, among the first `count` messages."""

    def decode(answer: list[Any]) -> TallyChanges:
        trimmed, items, next_after = answer
        runs = ((wire.text(sender), int(span) if span else None, msgids) for sender, span, *msgids in items)
        found = [TallyChange(sender, int(msgid), span) for sender, span, msgids in runs for msgid in msgids]
        return TallyChanges(int(trimmed), found, int(next_after) if next_after else None)

    k = space.group(gid)
    return Call("im_changes", (k.meta, k.stream), (count, *flat(segments)), decode, gid)


def publish_receipts(space: Keyspace, gid: str, sender_uid: str, changed: Sequence[TallyChange]) -> Call[int]:
    """Mark a sender's messages (in order) as changed, and publish their tallies; answers how many connections heard."""
    k = space.group(gid)
    args: list[Value] = [k.inboxes + sender_uid, gid, sender_uid]
    for change in changed:
        args += (change.msgid, or_empty(change.span))
    keys = (k.meta, k.version, k.acked, k.joined, k.left, k.dirty(sender_uid), k.ahead, k.ahead_acked)
    return Call("im_publish_receipts", keys, tuple(args), int, gid, writes=True)


def publish_positions(space: Keyspace, gid: str, uids: Sequence[str], *, bookmarks: bool) -> Call[int]:
    """Tell the live sessions of some users where their own offsets are; answers how many connections heard.

    `bookmarks`: what lies beside their offsets has changed.
    """
    k = space.group(gid)
    args: tuple[Value, ...] = (gid, k.inboxes, int(bookmarks), *uids)
    return Call("im_publish_positions", (k.acked,), args, int, gid, writes=True)


def confirm(space: Keyspace, uid: str, receipts: Sequence[Receipt]) -> list[Call[int]]:
    """Confirm receipts, one call per partition; answers how many were still dirty."""
    by_keys: dict[tuple[str, str], list[Value]] = {}
    by_gid: dict[str, list[Value]] = {}
    for receipt in receipts:
        gid = receipt.gid
        if gid not in by_gid:
            k = space.group(gid)
            by_gid[gid] = by_keys.setdefault((k.dirty(uid), k.journal), [])
        member = f"{gid}{SEPARATOR}{msgids.pack(receipt.msgid)}"
        by_gid[gid] += (member, receipt.version, receipt.read, receipt.delivered)
    return [Call("im_confirm", keys, tuple(args), int, writes=True) for keys, args in by_keys.items()]


def dirty(space: Keyspace, partition: int, uid: str, *, after: int, count: int) -> Call[list[DirtyReceipt]]:
    """Ask for a page of a user's messages whose tallies changed, in the order of their last change."""

    def decode(answer: list[Any]) -> list[DirtyReceipt]:
        return [_dirty_receipt(member, version) for member, version in zip(answer[::2], answer[1::2], strict=True)]

    return Call("im_dirty_receipts", (space.dirty(partition, uid),), (after, count), decode)


def _uids(spans: Iterable[bytes]) -> set[str]:
    return {uid_of(wire.text(span)) for span in spans}


def _dirty_receipt(member: bytes, version: bytes) -> DirtyReceipt:
    """Return a dirty receipt. One that was added by hand may name no message."""
    gid, _, msgid = member.rpartition(SEPARATOR.encode())
    return DirtyReceipt(
        wire.text(gid), wire.number(msgid) or msgids.IMPOSSIBLE, int(min(float(version), msgids.HIGHEST))
    )
