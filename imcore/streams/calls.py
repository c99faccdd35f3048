"""Calls of the Redis functions, as values: what to send, how to read the answer. No I/O: any client can carry them.

Each builder names one function of the library in `lua/`, where its keys, arguments and answer are described.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, NotMember, NotSender, UnknownMessage
from imcore.streams import wire
from imcore.streams.keys import CONFIG, Keyspace
from imcore.values import Ack, Group, Message

T_co = TypeVar("T_co", covariant=True)
Value = str | bytes | int


class Call(NamedTuple, Generic[T_co]):
    """One call of a Redis function; without one, `args` are a plain command that only reads.

    `gid` is the group that an error of the whole call is about.
    """

    function: str
    keys: tuple[str, ...]
    args: tuple[Value, ...]
    decode: Callable[[Any], T_co]
    gid: str = ""
    writes: bool = False


def words(call: Call[Any]) -> tuple[Any, ...]:
    """Return a call as the command that is sent."""
    if not call.function:
        return call.args
    return ("FCALL" if call.writes else "FCALL_RO", call.function, len(call.keys), *call.keys, *call.args)


MembersCall = Callable[[Keyspace, str, Sequence[str]], Call[Group]]
"""A builder for a change of members: of these uids, in this group."""


class Draft(NamedTuple):
    """A message to be sent."""

    sender_uid: str
    content: str
    client_msgid: str = ""
    sent_at_ms: int | None = None


class Sent(NamedTuple):
    """What became of a draft: its place, and whether an earlier send of the same client_msgid had made it."""

    msgid: str
    seq: int
    repeated: bool


class Target(NamedTuple):
    """A message (packed msgid, None: the newest) that members ack.

    `seq`, where the message is at hand, spares the look-up, or stands in for a trimmed entry.
    """

    msgid: int | None
    uids: Sequence[str]
    seq: int | None = None


class Acked(NamedTuple):
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


class Pulled(NamedTuple):
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


class Page(NamedTuple):
    """Entries of a group's stream; with `more`, others may come after these."""

    entries: list[wire.Entry]
    more: bool


class Position(NamedTuple):
    """How far a member is behind (msgids packed); what is `uncounted` past the offset is not unread."""

    head_seq: int
    last: int
    acked: int
    acked_seq: int | None
    uncounted: int


class Trimmed(UnknownMessage):
    """That message is no longer in Redis: SQL has it."""


def problem(code: bytes, gid: str, *, uid: str = "", msgid: int | None = None) -> ImError:
    """Return the error that an item's code stands for."""
    text = msgids.unpack(msgid) if msgid else "that message"
    match code:
        case b"NOTMEMBER":
            return NotMember(f"{uid!r} is not a member of {gid!r}")
        case b"NOTSENDER":
            return NotSender(f"{text} of {gid!r} is not by {uid!r}")
        case b"TOMBSTONE":
            return InvalidInput(f"{text} of {gid!r} is itself the recall of a message")
        case b"FUTURE":
            return UnknownMessage(f"{text} has not been issued yet in {gid!r}")
        case b"TRIMMED":
            return Trimmed(f"{text} of {gid!r} is no longer in Redis")
        case b"NOMSG":
            return UnknownMessage(f"{text} is not a message of {gid!r}")
    raise AssertionError(f"unknown code {code!r}")


def init(partitions: int, dataset: str) -> Call[tuple[int, str]]:
    """Fix the partition count and the dataset id of new data; answers what stands."""
    return Call(
        "im_init", (CONFIG,), (partitions, dataset), lambda answer: (int(answer[0]), answer[1].decode()), writes=True
    )


def version() -> Call[int]:
    """Ask which version of the library is loaded."""
    return Call("im_version", (), (), int)


def create_group(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    """Make a group, in one step. See `imcore.streams.creation_calls` for one with many members."""
    k = space.group(gid)
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, k.groups, k.creating, *map(k.groups_of, uids))
    return Call("im_create", keys, (gid, k.inboxes, *uids), _group(gid), gid, writes=True)


def add_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    """Add members."""
    k = space.group(gid)
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, *map(k.groups_of, uids))
    return Call("im_join", keys, (gid, k.inboxes, *uids), _group(gid), gid, writes=True)


def remove_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    """Remove members."""
    k = space.group(gid)
    pairs = [key for uid in uids for key in (k.groups_of(uid), k.own(uid))]
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, *pairs)
    return Call("im_leave", keys, (gid, k.inboxes, *uids), _group(gid), gid, writes=True)


def group(space: Keyspace, gid: str) -> Call[Group]:
    """Ask what a group is now."""
    k = space.group(gid)
    return Call("im_group", (k.meta, k.acked, k.left), (), _group(gid), gid)


def send(space: Keyspace, gid: str, drafts: Sequence[Draft], idempotency_ms: int) -> Call[list[Sent | ImError]]:
    """Store messages of one group; a draft that cannot be stored has its error in its place."""
    k = space.group(gid)
    args: list[Value] = [gid, k.channel, idempotency_ms]
    for draft in drafts:
        sent = "" if draft.sent_at_ms is None else draft.sent_at_ms
        args += (draft.sender_uid, draft.client_msgid, sent, draft.content)

    def decode(answer: list[Any]) -> list[Sent | ImError]:
        return [
            problem(item, gid, uid=draft.sender_uid)
            if isinstance(item, bytes)
            else Sent(item[0].decode(), item[1], item[2] == 1)
            for item, draft in zip(answer, drafts, strict=True)
        ]

    own = [k.own(draft.sender_uid) for draft in drafts]
    return Call("im_send", (*k.for_send, *own), tuple(args), decode, gid, writes=True)


def ack(space: Keyspace, gid: str, targets: Sequence[Target]) -> Call[list[Acked]]:
    """Move offsets of one group forward."""
    args: list[Value] = [gid]
    for target in targets:
        args += (_or_empty(target.msgid), _or_empty(target.seq), len(target.uids))
        args += target.uids

    def decode(answer: list[Any]) -> list[Acked]:
        return [
            Acked(
                gid,
                int(item[0]) if item[0].isdigit() else problem(item[0], gid, msgid=target.msgid),
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


def recall(space: Keyspace, gid: str, msgid: int, *, by: str, sender_uid: str, admin: bool) -> Call[Sent | None]:
    """Withdraw a message of a sender; answers the tombstone, None if it is recalled already."""
    k = space.group(gid)
    keys = (k.meta, k.stream, k.acked, k.joined, k.uncounted, k.journal, k.own(sender_uid))

    def decode(answer: Any) -> Sent | None:
        if answer == b"RECALLED":
            return None
        if isinstance(answer, bytes):
            raise problem(answer, gid, uid=by, msgid=msgid)
        return Sent(answer[0].decode(), answer[1], False)

    args = (gid, k.channel, by, msgid, sender_uid, int(admin))
    return Call("im_recall", keys, args, decode, gid, writes=True)


def entries(space: Keyspace, gid: str, first: str, last: str, count: int) -> Call[Page]:
    """Ask for a page of the entries from `first` to `last` (ids as XRANGE takes them), oldest first.

    At most so many, and about 1 MiB, but one in any case.
    """
    k = space.group(gid)
    return Call(
        "im_range", (k.stream, k.uncounted), (first, last, count), lambda answer: Page(answer[0], answer[1] == 1), gid
    )


def pull(
    space: Keyspace, gid: str, uids: Sequence[str], *, after: int | None, count: int, most_bytes: int
) -> Call[Pulled]:
    """Ask for what members have not acked: after a position that they share, or after the offset of one.

    At most so many messages, and so many bytes of text but for the first one.
    """
    k = space.group(gid)

    def decode(answer: Any) -> Pulled:
        if isinstance(answer, bytes):
            raise problem(answer, gid, uid=uids[0])
        start, trimmed, head_seq, more, found, apart = answer
        messages = [wire.message(gid, entry) for entry in found]
        return Pulled(int(start), int(trimmed), head_seq, messages, more == 1, _apart(gid, uids, apart))

    args: list[Value] = [_or_empty(after), count, most_bytes, *uids]
    return Call("im_pull", (k.meta, k.stream, k.acked, k.joined, k.uncounted), tuple(args), decode, gid)


def standing(space: Keyspace, gid: str, uid: str) -> list[Call[int | None]]:
    """Ask for the offset of a member, and after which message they joined; None for one who is none."""
    k = space.group(gid)
    return [Call("", (), ("ZSCORE", key, uid), _score, gid) for key in (k.acked, k.joined)]


def is_member(space: Keyspace, gid: str, uid: str) -> Call[bool]:
    """Ask whether somebody is a member, wherever their offset is."""
    return Call("", (), ("ZSCORE", space.group(gid).acked, uid), lambda score: score is not None, gid)


def groups_of(space: Keyspace, uid: str) -> list[Call[list[str]]]:
    """Ask for a user's groups, in each partition."""
    return [
        Call("", (), ("SMEMBERS", space.groups_of(partition, uid)), lambda found: list(map(wire.text, found)))
        for partition in range(space.partitions)
    ]


def being_created(space: Keyspace) -> list[Call[list[str]]]:
    """Ask which groups are being created, in each partition: they are not there yet."""
    return [
        Call("", (), ("HKEYS", space.creating(partition)), lambda found: list(map(wire.text, found)))
        for partition in range(space.partitions)
    ]


def uncounted(space: Keyspace, gid: str, messages: Sequence[int]) -> Call[list[bool]]:
    """Ask which messages (packed) are recalled, or are the tombstones of others."""
    command: tuple[Value, ...] = ("ZMSCORE", space.group(gid).uncounted, *messages)
    return Call("", (), command, lambda scores: [score is not None for score in scores], gid)


def position(space: Keyspace, gid: str, uid: str) -> Call[Position]:
    """Ask how far a member is behind."""
    k = space.group(gid)

    def decode(answer: Any) -> Position:
        if isinstance(answer, bytes):
            raise problem(answer, gid, uid=uid)
        head_seq, last, acked, acked_seq, uncounted = answer
        return Position(int(head_seq), int(last), int(acked), None if acked_seq == b"" else int(acked_seq), uncounted)

    return Call("im_unread", (k.meta, k.stream, k.acked, k.own(uid), k.uncounted), (uid,), decode, gid)


def rotate_once(space: Keyspace, gid: str) -> Call[int]:
    """Let the client_msgids of a group go that count no more; answers how many tables are left."""
    k = space.group(gid)
    return Call("im_rotate_once", (k.once_newer, k.once_older), (), int, gid, writes=True)


def trim(space: Keyspace, gid: str, msgid: int) -> Call[int]:
    """Drop the entries of a group's stream up to a message."""
    k = space.group(gid)

    def decode(answer: Any) -> int:
        if isinstance(answer, bytes):
            raise problem(answer, gid, msgid=msgid)
        return int(answer)

    return Call("im_trim", (k.meta, k.stream, k.mending), (gid, msgid), decode, gid, writes=True)


def _group(gid: str) -> Callable[[list[Any]], Group]:
    def decode(answer: list[Any]) -> Group:
        members, messages, last = answer
        return Group(gid, members, messages, msgids.unpack_offset(int(last)))

    return decode


def _score(answer: Any) -> int | None:
    return None if answer is None else int(float(answer))  # by the driver's protocol it is a text or a number


def _or_empty(number: int | None) -> Value:
    return "" if number is None else number
