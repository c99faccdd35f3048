"""Calls that put back what Redis has lost. No I/O; see `imcore.streams.calls`, and the last files of `lua/`."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.sql.rows import MarkRow, MessageRow
from imcore.streams.calls import Call, Value
from imcore.streams.keys import SEPARATOR, GroupKeys, Keyspace

CHANGED = None
"""What `swap` answers where members came or went since the caller looked."""

OK = "OK"
"""What `mark` answers where entries may be stored."""

MENDED = f"{SEPARATOR}mended"
"""The field of the marks that changes whenever somebody mends a partition."""

NEVER = (1 << 53) - 1
"""Above every packed msgid."""

_JOURNAL = "journal"


class Text(NamedTuple):
    """A message as an entry of a stream; `up`: the sender's offset moved with it, and SQL may not know that yet."""

    row: MessageRow
    up: bool = False


class Passed(NamedTuple):
    """A span (by its key) that may have passed over missing messages, the first of which is `lost` (packed).

    `back` is its offset before that, `joined` where it began, `known` the offset that SQL knows.
    """

    key: str
    lost: int
    back: int
    joined: int
    known: int


class Trim(NamedTuple):
    """The trim point: the newest message (packed) that is in SQL only, and its seq; zeros where there is none."""

    msgid: int
    seq: int


class Seen(NamedTuple):
    """What the caller of `swap` has seen: last id of the journal, newest id of the stream, both as text."""

    journal: str
    stream: str


class Shadow(NamedTuple):
    """What a shadow holds: its newest id (text) and seq, and the id (text) after which ids are to be given."""

    newest: str
    seq: int
    floor: str


class SpanOrder(NamedTuple):
    """What is to be done about a span: `open` it, `close` it, or `drop` the key that stands in `uid`.

    `seq` is that of its offset, where it is known. `seen` is where the uid's open span began when the caller looked.
    """

    what: str
    uid: str
    joined: int = 0
    left: int | None = None
    acked: int = 0
    seq: int | None = None
    seen: int | None = None


def shadow_of(k: GroupKeys) -> str:
    """The stream that is made beside a group's stream, to take its place."""
    return f"{_tag(k.journal)}shadow:{k.gid}"


def marks_of(space: Keyspace, partition: int) -> str:
    """The marks of a partition: up to where each consumer of the worker `persist` was about to store."""
    return f"{_tag(space.journal(partition))}marks"


def unfinished_of(space: Keyspace, partition: int) -> str:
    """The groups of a partition that somebody has begun to mend."""
    return f"{_tag(space.journal(partition))}unfinished"


def rebuilt_of(space: Keyspace, partition: int) -> str:
    """The groups of a partition that a rebuild under way has done."""
    return f"{_tag(space.journal(partition))}rebuilt"


def copy(k: GroupKeys, *, first: str, last: str, count: int, anew: bool) -> Call[int]:
    """Copy a page of a stream into its shadow; answers how many entries that were."""
    return Call("im_restore_copy", (k.stream, shadow_of(k)), (first, last, count, int(anew)), int, k.gid, writes=True)


def add(k: GroupKeys, texts: Iterable[Text], *, anew: bool = False) -> Call[int]:
    """Add messages to a shadow; answers how many it did not have."""
    args = [value for text in texts for value in _entry(text)]
    return Call("im_restore_add", (shadow_of(k), k.uncounted), (int(anew), *args), int, k.gid, writes=True)


def _entry(text: Text) -> tuple[Value, ...]:
    _, msgid, seq, uid, span, content, cid, sent_at_ms, recalls, _ = text.row
    values = (msgids.unpack(msgid), seq, uid, span, cid, sent_at_ms, int(text.up), content, recalls)
    return tuple("" if value is None else value for value in values)


def uncounted(k: GroupKeys, messages: Sequence[int], *, drop: bool = False) -> Call[int]:
    """Say of messages (packed) that they are recalled or tombstones, or (`drop`) neither; answers how many changed."""
    return Call("im_restore_uncounted", (k.uncounted,), (int(drop), *messages), int, k.gid, writes=True)


def swap(
    k: GroupKeys, seen: Seen, shadow: Shadow, trim: Trim, *, undone: str | None = None, passed: Sequence[Passed] = ()
) -> Call[tuple[int, int] | None]:
    """Let the shadow take the stream's place; answers seq and packed msgid of the newest message, or CHANGED.

    `passed` are all spans of the group, if messages were missing; `undone` is where the journal's entries begin that
    the worker `persist` has not done.
    """
    keys = (k.meta, k.stream, shadow_of(k), k.acked, k.uncounted, k.journal, k.groups)
    lost = min((span.lost for span in passed), default=NEVER)
    args: tuple[Value, ...] = (
        *(k.gid, k.inboxes, *seen, shadow.newest, shadow.seq, *trim, shadow.floor),
        *(undone or "", "" if lost == NEVER else lost),
        *(value for span in passed for value in span),
    )

    def decode(answer: Any) -> tuple[int, int] | None:
        return CHANGED if isinstance(answer, bytes) else (int(answer[0]), int(answer[1]))

    return Call("im_restore_swap", keys, args, decode, k.gid, writes=True)


def spans(k: GroupKeys, orders: Sequence[SpanOrder], trim: Trim) -> Call[int]:
    """Make spans what they should be; answers about how many nothing was done, since members came or went."""
    own = (key for order in orders for key in (k.groups_of(order.uid), k.own(order.uid)))
    args = tuple("" if value is None else value for order in orders for value in order)
    keys = (k.stream, k.acked, k.joined, k.left, *own)
    return Call("im_restore_spans", keys, (k.gid, k.inboxes, trim.msgid, *args), int, k.gid, writes=True)


def own(k: GroupKeys, uids: Sequence[str], trimmed: dict[str, list[int]]) -> Call[int]:
    """Find the own messages of members past their offsets; `trimmed` are those (packed) that are in SQL only."""
    args = [value for uid in uids for value in (uid, len(trimmed.get(uid, ())), *trimmed.get(uid, ()))]
    keys = (k.stream, k.acked, k.uncounted, *map(k.own, uids))
    return Call("im_restore_own", keys, tuple(args), int, k.gid, writes=True)


def again(k: GroupKeys, uids: Sequence[str]) -> Call[int]:
    """Tell the live sessions of members to begin again from their offsets; answers how many are members."""
    return Call("im_restore_again", (k.acked,), (k.gid, k.inboxes, *uids), int, k.gid, writes=True)


def once(k: GroupKeys, rows: Iterable[MessageRow], once_ms: int, *, correct: bool = False) -> Call[int]:
    """Know the client_msgids of messages again; `correct`: what is known of them is wrong."""
    known = [
        value
        for row in rows
        for value in (f"{row.sender_uid}{SEPARATOR}{row.client_msgid}", msgids.unpack(row.msgid), row.seq)
    ]
    return Call("im_restore_once", (k.once_newer,), (once_ms, int(correct), *known), int, k.gid, writes=True)


def dirty(k: GroupKeys, sender_uid: str, messages: Sequence[int]) -> Call[int]:
    """Mark messages (packed) of a sender as changed; answers how many were not marked."""
    members = tuple(f"{k.gid}{SEPARATOR}{msgid}" for msgid in messages)
    return Call("im_restore_dirty", (k.version, k.dirty(sender_uid)), members, int, k.gid, writes=True)


def journal(space: Keyspace, partition: int, floor: str) -> Call[str]:
    """Let a journal give ids after this one (text); answers the last one as it stands."""
    return Call("im_restore_journal", (space.journal(partition),), (floor,), bytes.decode, writes=True)


def mark(space: Keyspace, row: MarkRow, newest: str, *, mended: str, stored: dict[str, int]) -> Call[str]:
    """Say up to where a consumer is about to store; answers OK, or what is in the way.

    `newest` is the id of the newest entry, as text; `mended` the state of mending when the entries were taken; `stored`
    up to where each consumer of the partition has stored (packed ids).
    """
    keys = (marks_of(space, row.partition), space.journal(row.partition))
    known = (value for pair in stored.items() for value in pair)
    args = (row.consumer, newest, row.entry, mended, *known)
    return Call("im_restore_mark", keys, args, bytes.decode, writes=True)


def marks(space: Keyspace, partition: int, stored: dict[str, int]) -> Call[int]:
    """Set the marks of consumers."""
    args = tuple(value for pair in stored.items() for value in pair)
    return Call("im_restore_marks", (marks_of(space, partition),), args, int, writes=True)


def hold(space: Keyspace, partition: int, for_ms: int) -> Call[int]:
    """Let no worker store entries of a partition for so long (0: let them go on)."""
    return Call("im_restore_hold", (marks_of(space, partition),), (for_ms,), int, writes=True)


def _tag(journal_key: str) -> str:
    return journal_key.removesuffix(_JOURNAL)
