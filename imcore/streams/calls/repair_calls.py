"""Calls that repair lost or wrong data. No I/O; see `lua/repair_*.lua` and `lua/watermarks.lua`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.model.rows import NO_TIME, MessageRow, WatermarkRow
from imcore.streams.calls.call import Call, Value, flat
from imcore.streams.keys import CONFIG, REBUILDING, SEPARATOR, GroupKeys, Keyspace

CHANGED = None
"""The answer of `swap` if the stream is not as the caller saw it."""

OK = "OK"
"""The answer of `set_watermark` if entries may be stored."""

REPAIRED = f"{SEPARATOR}repaired"
"""The field of the watermarks that changes with every repair of a partition."""

SPANS, BOOKMARKS = "im_repair_spans", "im_repair_bookmarks"

NEVER = (1 << 53) - 1
"""Above every packed msgid."""


class ShadowEntry(NamedTuple):
    """A message for a shadow; `caught_up`: the sender's offset moved with it, and SQL may not know that yet."""

    row: MessageRow
    caught_up: bool = False


class Rollback(NamedTuple):
    """A position that has passed missing messages, the first of which is `lost`, goes back `to` another (packed)."""

    lost: int
    to: int

    def of(self, position: int) -> int:
        return self.to if position >= self.lost else position


class Passed(NamedTuple):
    """A span (by its key) that may have passed missing messages; its positions in SQL, and how each goes back."""

    key: str
    redis_joined: int
    joined: int
    sql_offset: int
    sql_delivered: int
    offset: Rollback
    delivered: Rollback
    private: Rollback


class Trim(NamedTuple):
    """The trim point: the newest message (packed) that is in SQL only, and its seq; zeros without one."""

    msgid: int
    seq: int


class StreamState(NamedTuple):
    """The stream as the caller of `swap` saw it: newest id (text), trim point (packed; None: no such group)."""

    newest: str
    trimmed: int | None


class Shadow(NamedTuple):
    """The size of a shadow, its newest id (text) and seq, and the id that the next ids must exceed."""

    entries: int
    newest: str
    seq: int
    floor: str


class GroupLock(NamedTuple):
    """The lock of a group for one attempt to repair it, which has this token."""

    k: GroupKeys
    token: str

    @property
    def keys(self) -> tuple[str, str]:
        return self.k.group_locks, self.k.shadow

    @property
    def args(self) -> tuple[str, str]:
        return self.k.gid, self.token


class SpanOrder(NamedTuple):
    """How to correct a span: `open` it, `close` it, `drop` the key in `uid`, or move its offset `back` from `left`.

    `sweep` drops the key too, unless it is a whole span by then: the indexes are not read at one moment. `withdraw`
    moves `delivered` back from `left`. `seen` is where the uid's open span began when the caller looked.
    """

    what: str
    uid: str
    joined: int = 0
    left: int | None = None
    acked: int = 0
    delivered: int = 0
    seen: int | None = None


class BookmarkOrder(NamedTuple):
    """A bookmark as it is to be, for the span that began after `joined`, and as the caller saw it."""

    uid: str
    joined: int
    seen_private: int
    seen_mark: int
    private: int
    mark: int


def lock(lock: GroupLock) -> Call[bool]:
    """Begin to repair a group; answers False while another process holds its lock."""
    return Call("im_repair_lock", lock.keys, lock.args, bool, lock.k.gid, writes=True)


def release(lock: GroupLock, *, done: bool) -> Call[bool]:
    """Release a lock; `done`: the repair is complete. Answers False if another process holds it."""
    return Call("im_repair_release", lock.keys, (*lock.args, int(done)), bool, lock.k.gid, writes=True)


def copy(lock: GroupLock, *, last: str, count: int) -> Call[int]:
    """Copy a page of a stream up to an id, without recalled texts, into its shadow; answers how many that has now."""
    keys = (*lock.keys, lock.k.stream, lock.k.recalled, lock.k.meta)
    return Call("im_repair_copy", keys, (*lock.args, last, count), int, lock.k.gid, writes=True)


def add(lock: GroupLock, entries: Iterable[ShadowEntry]) -> Call[int]:
    """Add messages to a shadow; answers how many entries it has now."""
    args = flat(map(_values, entries))
    return Call("im_repair_add", (*lock.keys, lock.k.recalled), (*lock.args, *args), int, lock.k.gid, writes=True)


def _values(entry: ShadowEntry) -> tuple[Value, ...]:
    _, msgid, seq, uid, span, content, cid, sent_at_ms, recalls, _, meta = entry.row
    sent_at_ms = None if sent_at_ms == NO_TIME else sent_at_ms
    values = (msgids.unpack(msgid), seq, uid, span, cid, sent_at_ms, int(entry.caught_up), content, recalls, meta)
    return tuple("" if value is None else value for value in values)


def set_recalled(k: GroupKeys, messages: Sequence[int], *, drop: bool = False) -> Call[int]:
    """Mark messages (packed) as recalled or tombstones, or (`drop`) as neither; answers how many changed."""
    values = messages if drop else flat((msgid, msgid) for msgid in messages)
    return Call("", (), ("ZREM" if drop else "ZADD", k.recalled, *values), int, k.gid, writes=True)


def swap(
    lock: GroupLock,
    seen: StreamState,
    shadow: Shadow,
    trim: Trim,
    *,
    undone: str | None = None,
    passed: Sequence[Passed] = (),
) -> Call[tuple[int, int] | None]:
    """Replace the stream with its shadow; answers seq and packed msgid of the newest message, or CHANGED.

    `passed` are all spans of the group, if messages were missing; `undone` is the id from which on the worker `persist`
    has not done the journal's entries.
    """
    k = lock.k
    lost = min((span.offset.lost for span in passed), default=NEVER)
    args: tuple[Value, ...] = (
        *(*lock.args, seen.newest, "" if seen.trimmed is None else seen.trimmed),
        *(shadow.entries, shadow.newest, shadow.seq, *trim, shadow.floor),
        *(undone or "", "" if lost == NEVER else lost),
        *flat((*span[:5], *span.offset, *span.delivered, *span.private) for span in passed),
    )

    def decode(answer: Any) -> tuple[int, int] | None:
        return CHANGED if isinstance(answer, bytes) else (int(answer[0]), int(answer[1]))

    held = (k.creating, k.deleting)
    keys = (*lock.keys, k.meta, k.stream, k.acked, k.joined, k.journal, k.groups, *held, *k.positions)
    return Call("im_repair_swap", keys, args, decode, k.gid, writes=True)


def spans(lock: GroupLock, orders: Sequence[SpanOrder], trim: Trim) -> Call[list[int]]:
    """Correct spans; answers the numbers of those that were left alone, since members came or went."""
    k = lock.k
    own = (key for order in orders for key in (k.groups_of(order.uid), k.own_unacked(order.uid)))
    args = ("" if value is None else value for order in orders for value in order)
    keys = (k.group_locks, k.stream, k.acked, k.joined, k.left, *k.positions, *own)
    return Call(SPANS, keys, (*lock.args, k.inboxes, trim.msgid, *args), list, k.gid, writes=True)


def bookmarks(lock: GroupLock, orders: Sequence[BookmarkOrder]) -> Call[list[int]]:
    """Correct bookmarks; answers the numbers of those that were left alone, since they or the spans have changed."""
    keys = (lock.k.group_locks, lock.k.joined, lock.k.bookmarks)
    return Call(BOOKMARKS, keys, (*lock.args, *flat(orders)), list, lock.k.gid, writes=True)


class OwnPage(NamedTuple):
    """Own messages in a page of a stream, which was read up to a position (packed).

    `floors` are the positions after which own messages of the users are listed, None for one who is no member, and
    `marks` the users' marks, 0 for none: both with the first page only. `messages` are the uid and the packed msgid of
    each.
    """

    upto: int
    more: bool
    floors: dict[str, int | None]
    marks: dict[str, int]
    messages: list[tuple[str, int]]


def find_own(k: GroupKeys, uids: Sequence[str], *, after: int | None, most: int) -> Call[OwnPage]:
    """Find own messages of users in a page of at most `most` entries.

    Without `after` it begins with the first one that may have to be listed.
    """

    def decode(answer: list[Any]) -> OwnPage:
        upto, more, positions, *messages = answer
        floors = {uid: int(floor) if floor else None for uid, floor in zip(uids, positions[::2], strict=False)}
        marks = dict(zip(uids, map(int, positions[1::2]), strict=False))
        found = [(uids[number], int(msgid)) for number, msgid in zip(messages[::2], messages[1::2], strict=True)]
        return OwnPage(int(upto), more == 1, floors, marks, found)

    args = ("" if after is None else after, most, *uids)
    return Call("im_repair_find_own", (k.stream, k.acked, k.bookmarks), args, decode, k.gid)


class OwnList(NamedTuple):
    """A user's own messages (packed) after a position, oldest first. `floor` is None for one who is no member."""

    uid: str
    floor: int | None
    messages: Sequence[int]


def restore_own_unacked(k: GroupKeys, own: Sequence[OwnList], *, trimmed: int, upto: int) -> Call[list[str]]:
    """Make the own_unacked lists of members anew, from their own messages up to one (packed), and what came later.

    It answers the uids that were left alone, since they have joined, or marked older messages unread, or since more was
    trimmed than up to `trimmed`.
    """
    args: list[Value] = [trimmed, upto]
    for uid, floor, messages in own:
        args += (uid, "" if floor is None else floor, len(messages), *messages)
    keys = (k.meta, k.stream, k.acked, k.recalled, k.bookmarks, *(k.own_unacked(each.uid) for each in own))
    return Call(
        "im_repair_own_unacked",
        keys,
        tuple(args),
        lambda numbers: [own[number].uid for number in numbers],
        k.gid,
        writes=True,
    )


def resync(k: GroupKeys, uids: Sequence[str]) -> Call[int]:
    """Let the live sessions of members resync from their offsets; answers how many are members."""
    return Call("im_notify", (k.acked, k.unnotified), (k.gid, k.inboxes, "again", 0, *uids), int, k.gid, writes=True)


def restore_idempotency(k: GroupKeys, rows: Iterable[MessageRow], for_ms: int, *, correct: bool = False) -> Call[int]:
    """Add the client_msgids of messages for a time; `correct`: overwrite known ones; answers how many are new."""
    known = [
        value
        for row in rows
        for value in (f"{row.sender_uid}{SEPARATOR}{row.client_msgid}", msgids.unpack(row.msgid), row.seq)
    ]
    args = (for_ms, int(correct), *known)
    return Call("im_repair_idempotency", (k.idempotency_newer,), args, int, k.gid, writes=True)


def unlist_group(k: GroupKeys) -> Call[bool]:
    """Remove a gid from the list of all groups, unless its group exists; answers whether it was removed."""
    return Call("im_repair_unlist_group", (k.meta, k.groups), (k.gid,), bool, writes=True)


def unlist(k: GroupKeys, uid: str) -> Call[bool]:
    """Remove a group from the list of a user, unless the user is a member; answers whether it was removed."""
    return Call("im_repair_unlist", (k.acked, k.groups_of(uid)), (k.gid, uid), bool, writes=True)


def dirty(k: GroupKeys, sender_uid: str, messages: Sequence[int]) -> Call[int]:
    """Mark messages (packed) of a sender as changed; answers how many were not dirty."""
    members = tuple(f"{k.gid}{SEPARATOR}{msgid}" for msgid in messages)
    return Call("im_repair_dirty", (k.version, k.dirty(sender_uid)), members, int, k.gid, writes=True)


def raise_versions(space: Keyspace, partition: int) -> Call[int]:
    """Let the next versions of tallies be above all earlier ones; answers the counter."""
    return Call("im_repair_raise_versions", (space.version(partition),), (), int, writes=True)


def journal(space: Keyspace, partition: int, floor: str) -> Call[str]:
    """Let the next ids of a journal exceed this one (text); answers its last id."""
    return Call("im_repair_journal", (space.journal(partition),), (floor,), bytes.decode, writes=True)


def set_watermark(
    space: Keyspace, row: WatermarkRow, newest: str, *, repaired: str, stored: dict[str, int]
) -> Call[str]:
    """Set a watermark before its entries are stored; answers OK, or the reason why they may not be stored.

    `newest` is the id of the newest entry, as text; `repaired` the REPAIRED field when the entries were read; `stored`
    the watermarks in SQL of all consumers of the partition.
    """
    keys = (space.watermarks(row.partition), space.journal(row.partition))
    args = (row.consumer, newest, row.entry, repaired, *flat(stored.items()))
    return Call("im_repair_set_watermark", keys, args, bytes.decode, writes=True)


def set_watermarks(
    space: Keyspace, partition: int, marks: Mapping[str, int], *, unless_lost: Mapping[str, int] | None = None
) -> Call[bool]:
    """Set the watermarks of consumers, unless Redis has lost one of others; answers whether they are set."""
    args = (len(marks), *flat(marks.items()), *flat((unless_lost or {}).items()))
    return Call("im_repair_set_watermarks", (space.watermarks(partition),), args, bool, writes=True)


def lock_partition(space: Keyspace, partition: int, token: str, for_ms: int) -> Call[bool]:
    """Let no worker store entries of a partition for a time (0: release); answers False if another process does so."""
    return Call("im_repair_lock_partition", (space.watermarks(partition),), (token, for_ms), bool, writes=True)


def forget(space: Keyspace, partition: int, consumers: Sequence[str]) -> Call[int]:
    """Drop the watermarks of ended consumers; answers how many."""
    return Call("", (), ("HDEL", space.watermarks(partition), *consumers), int, writes=True)


def end_rebuild(token: str) -> Call[bool]:
    """Mark the rebuild of this token as ended; answers False if another one is running, or none."""
    return Call("im_repair_end_rebuild", (CONFIG,), (REBUILDING, token), bool, writes=True)
