"""Calls of the Redis functions, as values: what to send, how to read the answer. No I/O: any client can carry them.

Each builder names one function of the library in `lua/`, where its keys, arguments and answer are described.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError, NotMember
from imcore.model.values import Ack, Draft, Message
from imcore.streams import wire
from imcore.streams.calls.call import Call, Value, error_of, or_empty
from imcore.streams.keys import Keyspace

UIDS_PER_CALL = 1000
"""So many acks take the server some two milliseconds."""


class SendResult(NamedTuple):
    """What became of a draft: its place, and whether an earlier send of the same client_msgid had made it."""

    msgid: str
    seq: int
    repeated: bool


class AckTarget(NamedTuple):
    """A message (packed msgid, None: the newest) that members ack.

    `seq`, where the message is at hand, spares the look-up, or stands in for a trimmed entry.
    """

    msgid: int | None
    uids: Sequence[str]
    seq: int | None = None


class AckResult(NamedTuple):
    """What became of a target: where the offsets stand now of those who acked it, or why it cannot be acked.

    `unmoved` has those whose offset stood there or further already, or who are no members.
    """

    gid: str
    target: int | ImError
    unmoved: Mapping[str, int | NotMember]

    def of(self, uid: str) -> Ack | ImError:
        """Return what became of one member's ack."""
        offset = self.unmoved.get(uid, self.target)
        if isinstance(offset, ImError):
            return offset
        return Ack(self.gid, uid, msgids.unpack_offset(offset), uid not in self.unmoved)


class PullResult(NamedTuple):
    """Messages after `start` (packed) of a group that stands at `head_seq`. Those up to `trimmed` are in SQL only.

    With `more`, Redis has others after these. Who is `apart` may not be handed them: is no member, or joined after some
    later position.
    """

    start: int
    trimmed: int
    head_seq: int
    messages: list[Message]
    more: bool = False
    apart: Mapping[str, int | NotMember] = {}


class EntryPage(NamedTuple):
    """Entries of a group's stream; with `more`, others may come after these."""

    entries: list[wire.Entry]
    more: bool


def send(space: Keyspace, gid: str, drafts: Sequence[Draft], idempotency_ms: int) -> Call[list[SendResult | ImError]]:
    """Store messages of one group; a draft that cannot be stored has its error in its place."""
    k = space.group(gid)
    args: list[Value] = [gid, k.channel, idempotency_ms]
    for draft in drafts:
        sent = "" if draft.sent_at_ms is None else draft.sent_at_ms
        args += (draft.sender_uid, draft.client_msgid, sent, draft.content)

    def decode(answer: list[Any]) -> list[SendResult | ImError]:
        return [
            error_of(item, gid, uid=draft.sender_uid)
            if isinstance(item, bytes)
            else SendResult(item[0].decode(), item[1], item[2] == 1)
            for item, draft in zip(answer, drafts, strict=True)
        ]

    own = [k.own_unacked(draft.sender_uid) for draft in drafts]
    return Call("im_send", (*k.for_send, *own), tuple(args), decode, gid, writes=True)


def ack(space: Keyspace, gid: str, targets: Sequence[AckTarget]) -> Call[list[AckResult]]:
    """Move offsets of one group forward."""
    args: list[Value] = [gid]
    for target in targets:
        args += (or_empty(target.msgid), or_empty(target.seq), len(target.uids))
        args += target.uids

    def decode(answer: list[Any]) -> list[AckResult]:
        return [
            AckResult(
                gid,
                int(item[0]) if item[0].isdigit() else error_of(item[0], gid, msgid=target.msgid),
                _apart(gid, target.uids, item[1:]) if len(item) > 1 else {},
            )
            for item, target in zip(answer, targets, strict=True)
        ]

    return Call("im_ack", space.group(gid).for_ack, tuple(args), decode, gid, writes=True)


def _apart(gid: str, uids: Sequence[str], numbers: list[Any]) -> dict[str, int | NotMember]:
    """Return what is said of some of the uids, by their numbers: a position, or that they are no members."""
    return {
        uids[number]: NotMember(f"{uids[number]!r} is not a member of {gid!r}") if at == b"NOTMEMBER" else int(at)
        for number, at in zip(numbers[::2], numbers[1::2], strict=True)
    }


def recall(space: Keyspace, gid: str, msgid: int, *, by: str, sender_uid: str, admin: bool) -> Call[SendResult | None]:
    """Withdraw a message of a sender; answers the tombstone, None if it is recalled already."""
    k = space.group(gid)
    keys = (k.meta, k.stream, k.acked, k.joined, k.recalled, k.journal, k.own_unacked(sender_uid))

    def decode(answer: Any) -> SendResult | None:
        if answer == b"RECALLED":
            return None
        if isinstance(answer, bytes):
            raise error_of(answer, gid, uid=by, msgid=msgid)
        return SendResult(answer[0].decode(), answer[1], False)

    args = (gid, k.channel, by, msgid, sender_uid, int(admin))
    return Call("im_recall", keys, args, decode, gid, writes=True)


def entries(space: Keyspace, gid: str, first: str, last: str, count: int) -> Call[EntryPage]:
    """Ask for a page of the entries from `first` to `last` (ids as XRANGE takes them), oldest first.

    At most so many, and about 1 MiB, but one in any case.
    """
    k = space.group(gid)
    return Call(
        "im_range",
        (k.stream, k.recalled),
        (first, last, count),
        lambda answer: EntryPage(answer[0], answer[1] == 1),
        gid,
    )


def pull(
    space: Keyspace, gid: str, uids: Sequence[str], *, after: int | None, count: int, most_bytes: int
) -> Call[PullResult]:
    """Ask for what members have not acked: after a position that they share, or after the offset of one.

    At most so many messages, and so many bytes of text but for the first one.
    """
    k = space.group(gid)

    def decode(answer: Any) -> PullResult:
        if isinstance(answer, bytes):
            raise error_of(answer, gid, uid=uids[0])
        start, trimmed, head_seq, more, found, apart = answer
        messages = [wire.message(gid, entry) for entry in found]
        return PullResult(int(start), int(trimmed), head_seq, messages, more == 1, _apart(gid, uids, apart))

    args: list[Value] = [or_empty(after), count, most_bytes, *uids]
    return Call("im_pull", (k.meta, k.stream, k.acked, k.joined, k.recalled), tuple(args), decode, gid)


def recalled(space: Keyspace, gid: str, messages: Sequence[int]) -> Call[list[bool]]:
    """Ask which messages (packed) are recalled, or are the tombstones of others."""
    command: tuple[Value, ...] = ("ZMSCORE", space.group(gid).recalled, *messages)
    return Call("", (), command, lambda scores: [score is not None for score in scores], gid)


def rotate_idempotency(space: Keyspace, gid: str) -> Call[int]:
    """Let the client_msgids of a group go that count no more; answers how many tables are left."""
    k = space.group(gid)
    return Call("im_rotate_idempotency", (k.idempotency_newer, k.idempotency_older), (), int, gid, writes=True)


def trim(space: Keyspace, gid: str, msgid: int) -> Call[int]:
    """Drop the entries of a group's stream up to a message."""
    k = space.group(gid)

    def decode(answer: Any) -> int:
        if isinstance(answer, bytes):
            raise error_of(answer, gid, msgid=msgid)
        return int(answer)

    return Call("im_trim", (k.meta, k.stream, k.mending), (gid, msgid), decode, gid, writes=True)


def split_targets(acks: Iterable[AckTarget]) -> Iterator[list[AckTarget]]:
    """Yield the acks of each call: the server does nothing else while it carries one out."""
    part: list[AckTarget] = []
    room = UIDS_PER_CALL
    for target in acks:
        for some in [target] if len(target.uids) <= UIDS_PER_CALL else _pieces(target):
            if len(some.uids) > room:
                yield part
                part, room = [], UIDS_PER_CALL
            part.append(some)
            room -= len(some.uids)
    if part:
        yield part


def _pieces(target: AckTarget) -> Iterator[AckTarget]:
    for start in range(0, len(target.uids), UIDS_PER_CALL):
        yield target._replace(uids=target.uids[start : start + UIDS_PER_CALL])
