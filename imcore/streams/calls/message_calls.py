"""Calls that send, recall, pull, ack and trim messages. No I/O; see `lua/messages.lua` and `lua/acks.lua`."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError, NotMember
from imcore.model.meta import to_text
from imcore.model.values import Ack, Draft, Message
from imcore.streams import wire
from imcore.streams.calls.call import Call, EntryPage, Value, checked, error_of, or_empty
from imcore.streams.keys import Keyspace
from imcore.util.batches import batches

UIDS_PER_CALL = 1000
"""One call with this many acks takes the server about two milliseconds."""


class SendResult(NamedTuple):
    """The position of a sent message, and the number of its recipients (None for a tombstone).

    `repeated`: an earlier send of the same client_msgid had stored it.
    """

    msgid: str
    seq: int
    recipients: int | None = None
    repeated: bool = False


class AckTarget(NamedTuple):
    """A message (packed msgid, None: the newest) that members ack.

    A given `seq` spares the look-up, and replaces that of a trimmed entry.
    """

    msgid: int | None
    uids: Sequence[str]
    seq: int | None = None


class AckResult(NamedTuple):
    """The offset of the members who acked a target, or why it cannot be acked.

    `unmoved` has the offsets of members whose offset did not move, and the errors of uids that are no members. Some of
    these have `read_in_private`: less is unread for them than before. For those in `unsure` only SQL knows whether
    another message comes before one that came alone.
    """

    gid: str
    target: int | ImError
    unmoved: Mapping[str, int | NotMember]
    read_in_private: Collection[str] = ()
    unsure: Collection[str] = ()

    def of(self, uid: str) -> Ack | ImError:
        """Return the result of one member's ack."""
        offset = self.unmoved.get(uid, self.target)
        if isinstance(offset, ImError):
            return offset
        has_advanced = uid not in self.unmoved or uid in self.read_in_private
        return Ack(self.gid, uid, msgids.unpack_offset(offset), has_advanced)


class DeliveryTarget(NamedTuple):
    """A message (packed msgid, None: the newest) that has arrived at clients of members.

    All messages after `since` (packed), up to it, have arrived. If it came alone, SQL has no message of others up to
    `since` that has not. For `seq` see AckTarget.
    """

    msgid: int | None
    uids: Sequence[str]
    since: int = 0
    alone: bool = False
    seq: int | None = None


Target = TypeVar("Target", AckTarget, DeliveryTarget)


class LeftOut(NamedTuple):
    """Messages after `after` that a pull leaves out. `first` is the first of them that Redis has; msgids are packed.

    The last one is the pull's new start. If only SQL has them, `keep` says how many of SQL's newest are not left out.
    """

    after: int
    first: int
    keep: int | None = None


class PullResult(NamedTuple):
    """Messages after `start` (packed) of a group whose newest seq is `head_seq`. Up to `trimmed` they are in SQL only.

    With `more`, Redis has others after these. Uids in `apart` may not get all of them: each is no member, or joined
    after the later position given. `process` names the server's process that has answered. If `parts_at` (packed) is
    given, there are no messages: what a client was handed and what the server has part after it.
    """

    start: int
    trimmed: int
    head_seq: int
    messages: list[Message]
    more: bool = False
    apart: Mapping[str, int | NotMember] = {}
    left_out: LeftOut | None = None
    process: str = ""
    parts_at: int | None = None


UNKNOWN = "-"


class HandedMessage(NamedTuple):
    """A message (packed msgid) that clients were handed, and the server's process that gave it; it may be UNKNOWN.

    `is_pushed`: this process has stored it, too. Another one may have given its msgid to another message.
    """

    msgid: int
    process: str
    is_pushed: bool = False


def send(space: Keyspace, gid: str, drafts: Sequence[Draft], idempotency_ms: int) -> Call[list[SendResult | ImError]]:
    """Store messages of one group; a draft that cannot be stored has its error in its place."""
    k = space.group(gid)
    args: list[Value] = [gid, k.channel, idempotency_ms]
    for draft in drafts:
        sent = "" if draft.sent_at_ms is None else draft.sent_at_ms
        meta = "" if draft.meta is None else to_text(draft.meta)
        args += (draft.sender_uid, draft.client_msgid, sent, meta, draft.content)

    def decode(answer: list[Any]) -> list[SendResult | ImError]:
        if answer and isinstance(answer[-1], int):
            joined, first, recipients = answer
            return [SendResult(each, seq, recipients, False) for seq, each in enumerate(joined.decode().split(), first)]
        return [
            error_of(item, gid, uid=draft.sender_uid)
            if isinstance(item, bytes)
            else SendResult(item[0].decode(), item[1], item[2], item[3] == 1)
            for item, draft in zip(answer, drafts, strict=True)
        ]

    own = [k.own_unacked(draft.sender_uid) for draft in drafts]
    return Call("im_send", (*k.for_send, *own), tuple(args), decode, gid, writes=True)


def barrier(space: Keyspace, gid: str, msgids: Sequence[int]) -> Call[list[bool]]:
    """Write after messages of a group (packed), without a change; answers for each whether Redis still knows it."""
    k = space.group(gid)
    return Call(
        "im_barrier", (k.meta, k.stream), tuple(msgids), lambda has: [one == 1 for one in has], gid, writes=True
    )


def ack(
    space: Keyspace, gid: str, targets: Sequence[AckTarget | DeliveryTarget], *, private: bool = False
) -> Call[list[AckResult]]:
    """Ack messages; `private`: for nobody else to see."""
    args: list[Value] = [gid, int(private)]
    for target in targets:
        args += (or_empty(target.msgid), or_empty(target.seq), len(target.uids))
        args += target.uids

    def decode(answer: list[Any]) -> list[AckResult]:
        return [_result(gid, target.msgid, target.uids, item) for item, target in zip(answer, targets, strict=True)]

    return Call("im_ack", space.group(gid).for_ack, tuple(args), decode, gid, writes=True)


def delivered(space: Keyspace, gid: str, targets: Sequence[DeliveryTarget]) -> Call[list[AckResult]]:
    """Note what has arrived. The results have the positions of delivery in place of the offsets."""
    args: list[Value] = [gid]
    for target in targets:
        args += (or_empty(target.msgid), or_empty(target.seq), int(target.alone), target.since, len(target.uids))
        args += target.uids

    def decode(answer: list[Any]) -> list[AckResult]:
        return [_result(gid, target.msgid, target.uids, item) for item, target in zip(answer, targets, strict=True)]

    return Call("im_delivered", space.group(gid).for_ack, tuple(args), decode, gid, writes=True)


def _result(gid: str, msgid: int | None, uids: Sequence[str], item: list[Any]) -> AckResult:
    target = int(item[0]) if item[0].isdigit() else error_of(item[0], gid, msgid=msgid)
    if len(item) == 1:
        return AckResult(gid, target, {})
    found = list(zip(item[1::2], item[2::2], strict=True))
    private, unsure = (
        frozenset(uids[number] for number, at in found if at.startswith(prefix)) for prefix in (b"p", b"s")
    )
    numbers = [part for number, at in found for part in (number, at.removeprefix(b"p").removeprefix(b"s"))]
    return AckResult(gid, target, _apart(gid, uids, numbers), private, unsure)


def _apart(gid: str, uids: Sequence[str], numbers: list[Any]) -> dict[str, int | NotMember]:
    """Return the positions of some uids, given by their numbers, or the errors of those that are no members."""
    return {
        uids[number]: NotMember(f"{uids[number]!r} is not a member of {gid!r}") if at == b"NOTMEMBER" else int(at)
        for number, at in zip(numbers[::2], numbers[1::2], strict=True)
    }


def recall(space: Keyspace, gid: str, msgid: int, *, by: str, sender_uid: str, admin: bool) -> Call[SendResult | None]:
    """Recall a message of a sender; answers the tombstone, None if it is recalled already."""
    k = space.group(gid)
    keys = (
        k.meta,
        k.stream,
        k.acked,
        k.joined,
        k.recalled,
        k.journal,
        k.own_unacked(sender_uid),
        k.rewrites,
        k.erasing,
    )

    def decode(answer: Any) -> SendResult | None:
        if answer == b"RECALLED":
            return None
        tombstone, seq = checked(answer, gid, uid=by, msgid=msgid)
        return SendResult(tombstone.decode(), seq)

    args = (gid, k.channel, by, msgid, sender_uid, int(admin))
    return Call("im_recall", keys, args, decode, gid, writes=True)


def entries(space: Keyspace, gid: str, first: str, last: str, count: int) -> Call[EntryPage[wire.Entry]]:
    """Ask for a page of the entries of a group's stream from `first` to `last` (XRANGE ids), oldest first."""
    k = space.group(gid)
    keys = (k.stream, k.recalled, k.meta)
    return Call("im_range", keys, (first, last, count), lambda answer: EntryPage(answer[0], answer[1] == 1), gid)


def pull(
    space: Keyspace,
    gid: str,
    uids: Sequence[str],
    *,
    after: int | None,
    count: int,
    most_bytes: int,
    newest: int | None = None,
) -> Call[PullResult]:
    """Ask for unacked messages of members. `after` is their shared position; None: where a single member is.

    At most `count` messages, and `most_bytes` of text, exceeded by the first message only. With `newest`, all messages
    but so many of the newest are left out.
    """
    k = space.group(gid)

    def decode(answer: Any) -> PullResult:
        start, trimmed, head_seq, more, entries, numbers, skipped, process, parts_at = checked(answer, gid, uid=uids[0])
        messages = [wire.message(gid, entry) for entry in entries]
        apart, left_out = _apart(gid, uids, numbers), _left_out(*skipped) if skipped else None
        parts = int(parts_at) if parts_at else None
        return PullResult(
            int(start), int(trimmed), head_seq, messages, more == 1, apart, left_out, process.decode(), parts
        )

    limit = "" if newest is None else min(newest, msgids.HIGHEST)
    args: list[Value] = [or_empty(after), count, most_bytes, limit, "", "", *uids]
    keys = (k.meta, k.stream, k.acked, k.joined, k.recalled, k.bookmarks)
    return Call("im_pull", keys, tuple(args), decode, gid)


def with_check(pull: Call[PullResult], handed: HandedMessage | None) -> Call[PullResult]:
    """Let a pull also say where to begin again, if the server does not have a message that was handed over."""
    if handed is None:
        return pull
    process = f"={handed.process}" if handed.is_pushed else handed.process
    return pull._replace(args=(*pull.args[:4], handed.msgid, process, *pull.args[6:]))


def _left_out(after: bytes, first: bytes, keep: bytes | None = None) -> LeftOut:
    return LeftOut(int(after), int(first or 0), None if keep is None else int(keep))


def recalled(space: Keyspace, gid: str, messages: Sequence[int]) -> Call[list[bool]]:
    """Ask which messages (packed) are recalled, or are the tombstones of others."""
    command: tuple[Value, ...] = ("ZMSCORE", space.group(gid).recalled, *messages)
    return Call("", (), command, lambda scores: [score is not None for score in scores], gid)


def rotate_idempotency(space: Keyspace, gid: str) -> Call[int]:
    """Drop client_msgids of a group that count no longer; answers how many tables are left."""
    k = space.group(gid)
    return Call("im_rotate_idempotency", (k.idempotency_newer, k.idempotency_older), (), int, gid, writes=True)


def trim(space: Keyspace, gid: str, msgid: int) -> Call[int]:
    k = space.group(gid)
    keys = (k.meta, k.stream, k.group_locks)
    return Call("im_trim", keys, (gid, msgid), lambda answer: int(checked(answer, gid, msgid=msgid)), gid, writes=True)


def split_targets(acks: Iterable[Target]) -> Iterator[list[Target]]:
    """Yield the acks of each call, limited by UIDS_PER_CALL: a call blocks the server."""
    part: list[Target] = []
    room = UIDS_PER_CALL
    for target in acks:
        pieces = [target]
        if len(target.uids) > UIDS_PER_CALL:
            pieces = [target._replace(uids=uids) for uids in batches(target.uids, UIDS_PER_CALL)]
        for piece in pieces:
            if len(piece.uids) > room:
                yield part
                part, room = [], UIDS_PER_CALL
            part.append(piece)
            room -= len(piece.uids)
    if part:
        yield part
