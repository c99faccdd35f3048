"""Calls that put back what Redis has lost. No I/O; see `imcore.streams.calls`, and the last files of `lua/`."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.model.rows import NO_TIME, MessageRow, WatermarkRow
from imcore.streams.calls.call import Call, Value
from imcore.streams.keys import CONFIG, REBUILDING, SEPARATOR, GroupKeys, Keyspace

CHANGED = None
"""What `swap` answers where the stream is not as the caller has seen it."""

OK = "OK"
"""What `mark` answers where entries may be stored."""

MENDED = f"{SEPARATOR}mended"
"""The field of the marks that changes whenever somebody mends a partition."""

SPANS = "im_restore_spans"
"""The function of `spans`."""

NEVER = (1 << 53) - 1
"""Above every packed msgid."""


class Text(NamedTuple):
    """A message as an entry of a stream; `up`: the sender's offset moved with it, and SQL may not know that yet."""

    row: MessageRow
    up: bool = False


class Passed(NamedTuple):
    """A span (by its key) that may have passed over missing messages, the first of which is `lost` (packed).

    `here` is where it began as Redis has it, `back` its offset before that message, `joined` where it began as it is to
    be, `known` the offset that SQL knows.
    """

    key: str
    here: int
    lost: int
    back: int
    joined: int
    known: int


class Trim(NamedTuple):
    """The trim point: the newest message (packed) that is in SQL only, and its seq; zeros where there is none."""

    msgid: int
    seq: int


class StreamState(NamedTuple):
    """The stream as the caller of `swap` has seen it: newest id (text), trim point (packed; None: no such group)."""

    newest: str
    trimmed: int | None


class Shadow(NamedTuple):
    """What a shadow holds: how many entries, its newest id (text) and seq; the id after which ids are to be given."""

    entries: int
    newest: str
    seq: int
    floor: str


class GroupLock(NamedTuple):
    """Somebody's right to mend a group, until they stop: the token is that of one attempt."""

    k: GroupKeys
    token: str

    @property
    def keys(self) -> tuple[str, str]:
        """What every call that needs the right takes first."""
        return self.k.mending, self.k.shadow

    @property
    def args(self) -> tuple[str, str]:
        """What goes with them."""
        return self.k.gid, self.token


class SpanOrder(NamedTuple):
    """What is to be done about a span: `open` it, `close` it, `drop` the key that stands in `uid`, or let its offset go
    `back` if that stands at `left`.

    `seq` is that of its offset, where it is known. `seen` is where the uid's open span began when the caller looked.
    """

    what: str
    uid: str
    joined: int = 0
    left: int | None = None
    acked: int = 0
    seq: int | None = None
    seen: int | None = None


def lock(claim: GroupLock) -> Call[bool]:
    """Begin to mend a group; answers False while the claim of somebody else lives."""
    return Call("im_restore_claim", claim.keys, claim.args, bool, claim.k.gid, writes=True)


def release(claim: GroupLock, *, done: bool) -> Call[bool]:
    """Give a claim up; `done`: the group is mended to the end. Answers False if it was somebody else's by now."""
    return Call("im_restore_release", claim.keys, (*claim.args, int(done)), bool, claim.k.gid, writes=True)


def copy(claim: GroupLock, *, last: str, count: int) -> Call[int]:
    """Copy a page of a stream up to an id into its shadow; answers how many entries that has now."""
    return Call(
        "im_restore_copy", (*claim.keys, claim.k.stream), (*claim.args, last, count), int, claim.k.gid, writes=True
    )


def add(claim: GroupLock, texts: Iterable[Text]) -> Call[int]:
    """Add messages to a shadow; answers how many entries it has now."""
    args = (value for text in texts for value in _entry(text))
    return Call("im_restore_add", (*claim.keys, claim.k.recalled), (*claim.args, *args), int, claim.k.gid, writes=True)


def _entry(text: Text) -> tuple[Value, ...]:
    _, msgid, seq, uid, span, content, cid, sent_at_ms, recalls, _ = text.row
    sent_at_ms = None if sent_at_ms == NO_TIME else sent_at_ms
    values = (msgids.unpack(msgid), seq, uid, span, cid, sent_at_ms, int(text.up), content, recalls)
    return tuple("" if value is None else value for value in values)


def set_recalled(k: GroupKeys, messages: Sequence[int], *, drop: bool = False) -> Call[int]:
    """Say of messages (packed) that they are recalled or tombstones, or (`drop`) neither; answers how many changed."""
    return Call("im_restore_recalled", (k.recalled,), (int(drop), *messages), int, k.gid, writes=True)


def swap(
    claim: GroupLock,
    seen: StreamState,
    shadow: Shadow,
    trim: Trim,
    *,
    undone: str | None = None,
    passed: Sequence[Passed] = (),
) -> Call[tuple[int, int] | None]:
    """Let the shadow take the stream's place; answers seq and packed msgid of the newest message, or CHANGED.

    `passed` are all spans of the group, if messages were missing; `undone` is where the journal's entries begin that
    the worker `persist` has not done.
    """
    k = claim.k
    lost = min((span.lost for span in passed), default=NEVER)
    args: tuple[Value, ...] = (
        *(*claim.args, seen.newest, "" if seen.trimmed is None else seen.trimmed),
        *(shadow.entries, shadow.newest, shadow.seq, *trim, shadow.floor),
        *(undone or "", "" if lost == NEVER else lost),
        *(value for span in passed for value in span),
    )

    def decode(answer: Any) -> tuple[int, int] | None:
        return CHANGED if isinstance(answer, bytes) else (int(answer[0]), int(answer[1]))

    keys = (*claim.keys, k.meta, k.stream, k.acked, k.joined, k.journal, k.groups, k.creating)
    return Call("im_restore_swap", keys, args, decode, k.gid, writes=True)


def spans(claim: GroupLock, orders: Sequence[SpanOrder], trim: Trim) -> Call[list[int]]:
    """Make spans what they should be; answers about which (their numbers) nothing was done: members came or went."""
    k = claim.k
    own = (key for order in orders for key in (k.groups_of(order.uid), k.own_unacked(order.uid)))
    args = ("" if value is None else value for order in orders for value in order)
    keys = (k.mending, k.stream, k.acked, k.joined, k.left, *own)
    return Call(SPANS, keys, (*claim.args, k.inboxes, trim.msgid, *args), list, k.gid, writes=True)


def restore_own_unacked(k: GroupKeys, uids: Sequence[str], trimmed: dict[str, list[int]]) -> Call[int]:
    """Find the own messages of members past their offsets; `trimmed` are those (packed) that are in SQL only."""
    args = [value for uid in uids for value in (uid, len(trimmed.get(uid, ())), *trimmed.get(uid, ()))]
    keys = (k.stream, k.acked, k.recalled, *map(k.own_unacked, uids))
    return Call("im_restore_own", keys, tuple(args), int, k.gid, writes=True)


def resync(k: GroupKeys, uids: Sequence[str]) -> Call[int]:
    """Tell the live sessions of members to begin again from their offsets; answers how many are members."""
    return Call("im_restore_again", (k.acked,), (k.gid, k.inboxes, *uids), int, k.gid, writes=True)


def restore_idempotency(k: GroupKeys, rows: Iterable[MessageRow], once_ms: int, *, correct: bool = False) -> Call[int]:
    """Know the client_msgids of messages again; `correct`: what is known of them is wrong."""
    known = [
        value
        for row in rows
        for value in (f"{row.sender_uid}{SEPARATOR}{row.client_msgid}", msgids.unpack(row.msgid), row.seq)
    ]
    return Call("im_restore_once", (k.idempotency_newer,), (once_ms, int(correct), *known), int, k.gid, writes=True)


def dirty(k: GroupKeys, sender_uid: str, messages: Sequence[int]) -> Call[int]:
    """Mark messages (packed) of a sender as changed; answers how many were not marked."""
    members = tuple(f"{k.gid}{SEPARATOR}{msgid}" for msgid in messages)
    return Call("im_restore_dirty", (k.version, k.dirty(sender_uid)), members, int, k.gid, writes=True)


def raise_versions(space: Keyspace, partition: int) -> Call[int]:
    """Let new versions of tallies be above all that were given before; answers where the counter stands."""
    return Call("im_restore_versions", (space.version(partition),), (), int, writes=True)


def journal(space: Keyspace, partition: int, floor: str) -> Call[str]:
    """Let a journal give ids after this one (text); answers the last one as it stands."""
    return Call("im_restore_journal", (space.journal(partition),), (floor,), bytes.decode, writes=True)


def set_watermark(space: Keyspace, row: WatermarkRow, newest: str, *, mended: str, stored: dict[str, int]) -> Call[str]:
    """Say up to where a consumer is about to store; answers OK, or what is in the way.

    `newest` is the id of the newest entry, as text; `mended` the state of mending when the entries were taken; `stored`
    up to where each consumer of the partition has stored (packed ids).
    """
    keys = (space.watermarks(row.partition), space.journal(row.partition))
    known = (value for pair in stored.items() for value in pair)
    args = (row.consumer, newest, row.entry, mended, *known)
    return Call("im_restore_mark", keys, args, bytes.decode, writes=True)


def set_watermarks(space: Keyspace, partition: int, stored: dict[str, int]) -> Call[int]:
    """Set the marks of consumers."""
    args = tuple(value for pair in stored.items() for value in pair)
    return Call("im_restore_marks", (space.watermarks(partition),), args, int, writes=True)


def lock_partition(space: Keyspace, partition: int, token: str, for_ms: int) -> Call[bool]:
    """Let no worker store entries of a partition for so long (0: let them go on); False: somebody else does so."""
    return Call("im_restore_hold", (space.watermarks(partition),), (token, for_ms), bool, writes=True)


def inherit(space: Keyspace, row: WatermarkRow, stored: dict[str, int]) -> Call[bool]:
    """Let a process take over the marks of others that are no more; answers False if Redis has lost one of these."""
    known = (value for pair in stored.items() for value in pair)
    args = (row.consumer, row.entry, *known)
    return Call("im_restore_inherit", (space.watermarks(row.partition),), args, bool, writes=True)


def forget(space: Keyspace, partition: int, consumers: Sequence[str]) -> Call[int]:
    """Drop the marks of consumers that are no more; answers how many."""
    return Call("im_restore_forget", (space.watermarks(partition),), tuple(consumers), int, writes=True)


def end_rebuild(token: str) -> Call[bool]:
    """Note that the rebuild of this token is under way no more; answers False if another one is, or none."""
    return Call("im_rebuild_end", (CONFIG,), (REBUILDING, token), bool, writes=True)
