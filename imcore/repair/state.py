"""The state of one group, as values: what Redis has, what SQL has, and what the journal adds to SQL. No I/O.

The two are compared within a window, since they never rest together:

    the ends of the journals are noted -> unstored entries are read -> both sides are read -> newer entries are read

SQL with the unstored entries (the backlog) is where Redis was when the window opened. Entries merge in any order,
and more than once. What no newer entry has changed has to be alike, whether the worker runs or lags.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.model.rows import BookmarkRow, MessageRow, SpanRow, merged_span
from imcore.streams.calls.receipt_calls import Counts
from imcore.streams.events import Acked, BookmarksSet, Created, Delivered, Entry, Move, Sent, SpanBegun, SpanEnded
from imcore.streams.keys import span_key

One = TypeVar("One")

MAX_AHEAD_MS = 24 * 60 * 60 * 1000
"""No server's clock is further ahead of ours."""


class GroupMeta(NamedTuple):
    """A group's hash; None for a field that holds no number. Msgids are packed."""

    seq: int | None
    last: int | None
    trimmed: int
    exists: bool


@dataclass(slots=True)
class ActualGroup:
    """The state of a group in Redis beside its messages."""

    rows: dict[str, list[SpanRow]]
    keys: set[str]
    """The keys in any of the sorted sets and of bookmarks, also those that make no span."""
    opened: dict[str, int]
    """The beginning of each uid's open span."""
    followers: set[str]
    """The consumer groups of the stream."""
    beyond: dict[str, tuple[int, int]]
    """Offsets that no message can have, by span key: the offset, and the one to assume instead."""
    recalled: set[int]
    """Recalled messages and tombstones."""
    withdrawn: dict[str, tuple[int, int]] = field(default_factory=dict)
    """As `beyond`, for delivered positions instead of offsets."""


@dataclass(slots=True)
class Changes:
    """The changes that entries of the journal make in one group. Msgids are packed."""

    anything: bool = False
    """Whether other entries were trimmed before they were read: then anything may have changed."""
    created_ms: int | None = None
    created: int | None = None
    """The version of the entry of its creation."""
    first_sent: int | None = None
    """Messages from here on are new."""
    recalled: set[int] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    """The uids that joined, left, acked, sent, or changed any other position."""
    members: set[str] = field(default_factory=set)
    """The uids that joined or left."""
    moves: list[Move] = field(default_factory=list)
    spans: dict[tuple[str, int], SpanRow] = field(default_factory=dict)
    bookmarks: dict[str, BookmarkRow] = field(default_factory=dict)
    """The latest of each uid."""

    def add(self, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, Created):
            self.created_ms, self.created = entry.time_ms, entry.version
        elif isinstance(event, Sent):
            self.first_sent = min(event.first, self.first_sent or event.first)
        elif isinstance(event, SpanBegun | SpanEnded):
            self.members.add(event.uid)
            left = event.left if isinstance(event, SpanEnded) else None
            self.add_span(SpanRow(event.gid, event.uid, event.joined, left, entry.version, event.joined))
        elif isinstance(event, Acked | Delivered):
            self._add_moves(event)
        elif isinstance(event, BookmarksSet):
            for joined, private, mark, uids in event.bookmarks:
                self._add_bookmarks(BookmarkRow(event.gid, uid, joined, private, mark, entry.version) for uid in uids)

    def _add_moves(self, event: Acked | Delivered) -> None:
        self.moves += event.moves
        for joined, _, to, uids in event.moves:
            positions = (to, None) if isinstance(event, Acked) else (joined, to)
            for uid in uids:
                self.add_span(SpanRow(event.gid, uid, joined, None, 0, *positions))

    def _add_bookmarks(self, rows: Iterable[BookmarkRow]) -> None:
        for row in rows:
            known = self.bookmarks.get(row.uid, row)
            self.bookmarks[row.uid] = row if known.changed <= row.changed else known
            self.uids.add(row.uid)

    def add_span(self, row: SpanRow) -> None:
        """Add what is new of a span."""
        key = row.uid, row.joined_msgid
        known = self.spans.get(key)
        self.spans[key] = merged_span(known, row) if known else row
        self.uids.add(row.uid)

    def add_message(self, sender_uid: str, recalls: int | None) -> None:
        """Add a message from `first_sent` on."""
        self.uids.add(sender_uid)
        if recalls is not None:
            self.recalled.add(recalls)

    def applied(self, stored: Iterable[SpanRow]) -> Iterator[SpanRow]:
        """Yield spans: those that SQL has, with what is new."""
        rest = dict(self.spans)
        for row in stored:
            newer = rest.pop((row.uid, row.joined_msgid), None)
            yield merged_span(row, newer) if newer else row
        yield from rest.values()

    def covers(self, msgid: int) -> bool:
        """Return whether a message is new: SQL may not have it yet."""
        return self.first_sent is not None and msgid >= self.first_sent

    def message(self, msgid: int) -> bool:
        """Return whether a message was sent or recalled."""
        return msgid in self.recalled or self.covers(msgid)

    def tally(self, msgid: int) -> bool:
        """Return whether somebody may have read a message."""
        return self.message(msgid) or any(move.start < msgid <= move.to for move in self.moves)

    def own(self, uid: str, msgid: int) -> bool:
        """Return whether a message may have become, or ceased to be, an own message past its sender's offset."""
        passed = any(move.start < msgid <= move.to and uid in move.uids for move in self.moves)
        return passed or uid in self.members or uid in self.bookmarks or self.message(msgid)


# Spans.


def offset_of(row: SpanRow) -> int:
    """Return the offset within a span: nobody reads beyond its end."""
    return row.acked_msgid if row.left_msgid is None else min(row.acked_msgid, row.left_msgid)


def delivered_of(row: SpanRow) -> int:
    """Return the position up to which messages have arrived within a span: no offset is past it."""
    return row.acked_msgid if row.delivered_msgid is None else max(row.acked_msgid, row.delivered_msgid)


def ahead_of(row: SpanRow) -> int | None:
    """Return the position up to which messages have arrived within a span, None if that is not past its offset."""
    delivered = delivered_of(row) if row.left_msgid is None else min(delivered_of(row), row.left_msgid)
    return delivered if delivered > offset_of(row) else None


def is_void(row: SpanRow) -> bool:
    """Return whether a row is no span: it marks a beginning that never was, and ends before it."""
    return row.left_msgid is not None and row.left_msgid < row.joined_msgid


def is_empty(row: SpanRow) -> bool:
    """Return whether a span covers no message. Redis drops these when they are closed."""
    return row.left_msgid is not None and row.left_msgid <= row.joined_msgid


def covers(row: SpanRow, msgid: int) -> bool:
    """Return whether a message was sent during a membership."""
    return row.joined_msgid < msgid and (row.left_msgid is None or msgid <= row.left_msgid)


def key_of(row: SpanRow) -> str:
    return row.uid if row.left_msgid is None else span_key(row.uid, row.joined_msgid)


def furthest(rows: Iterable[SpanRow]) -> int:
    """Return the highest msgid that any span names, 0 without spans. No later message may have a lower one."""
    return max((max(row.joined_msgid, row.left_msgid or 0, delivered_of(row)) for row in rows), default=0)


def outside(known: Iterable[SpanRow], desired: Mapping[tuple[str, int], SpanRow]) -> Iterator[SpanRow]:
    """Yield what rows of SQL become whose positions are past the desired end of their span.

    That of Redis may be the end, and its clock behind that of the lost messages which SQL knows to be read.
    """
    for row in known:
        left = desired.get((row.uid, row.joined_msgid), row).left_msgid
        if left is not None and row.joined_msgid < left < delivered_of(row):
            row = row._replace(left_msgid=left)  # noqa: PLW2901
            row = row._replace(acked_msgid=offset_of(row), delivered_msgid=ahead_of(row))  # noqa: PLW2901
            yield row


def highest_offset(newest: int, now_ms: int) -> int:
    """Return the highest offset (packed) that is possible where this message is the newest.

    A power cut may take the newest messages from both sides, so an offset a little beyond them is possible. One that is
    days ahead was written by hand, and would pass all later messages.
    """
    return min(msgids.HIGHEST, max(newest, msgids.first_at(now_ms + MAX_AHEAD_MS)))


def possible(rows: Iterable[SpanRow], newest: int, actual: Iterable[SpanRow] = (), *, bound: int) -> list[SpanRow]:
    """Return spans with what Redis has, or the newest message, for each offset and end above `bound`.

    A position up to which messages have arrived, above it or outside the span, becomes what Redis has, or the offset:
    nobody has confirmed more.
    """
    in_redis = {(row.uid, row.joined_msgid): row for row in actual}
    return [row if _is_possible(row, bound) else _lowered(row, in_redis.get(row[1:3]), newest, bound) for row in rows]


def _is_possible(row: SpanRow, bound: int) -> bool:
    highest = max(row.acked_msgid, row.left_msgid or 0, row.delivered_msgid or 0)
    return highest <= bound and (row.delivered_msgid == ahead_of(row) or is_empty(row))


def _lowered(row: SpanRow, actual: SpanRow | None, newest: int, bound: int) -> SpanRow:
    def lowered(stored: int | None, in_redis: int | None) -> int | None:
        if stored is None or stored <= bound:
            return stored
        return max(row.joined_msgid, newest if in_redis is None or in_redis > bound else in_redis)

    left = lowered(row.left_msgid, actual and actual.left_msgid)
    acked, delivered = lowered(row.acked_msgid, actual and actual.acked_msgid) or 0, row.delivered_msgid
    if delivered is not None and delivered > (bound if left is None else left):
        delivered = actual.delivered_msgid if actual and (actual.delivered_msgid or 0) <= bound else None
    row = row._replace(left_msgid=left, acked_msgid=acked, delivered_msgid=delivered)
    return row._replace(acked_msgid=offset_of(row), delivered_msgid=ahead_of(row))


# Tallies by their definition. Redis counts in another way, by the ranks of scores, so the two can be compared.


class Counter:
    """Counts readers of messages: packed msgids, in order, with their senders. Give every span of their group to `add`.

    A span costs O(log n). In memory are the messages and the spans of their senders.
    """

    def __init__(self, messages: Sequence[tuple[int, str]]) -> None:
        self._messages = messages
        self._msgids = [msgid for msgid, _ in messages]
        self._present = [0] * (len(messages) + 1)
        self._read = [0] * (len(messages) + 1)
        self._delivered = [0] * (len(messages) + 1)
        self._of_senders: dict[str, list[SpanRow]] = {uid: [] for _, uid in messages}

    def add(self, span: SpanRow) -> None:
        """Count a span for each message that it covers."""
        first = bisect_right(self._msgids, span.joined_msgid)
        end = len(self._msgids) if span.left_msgid is None else bisect_right(self._msgids, span.left_msgid)
        _raise(self._present, first, end)
        _raise(self._read, first, min(end, bisect_right(self._msgids, span.acked_msgid)))
        _raise(self._delivered, first, min(end, bisect_right(self._msgids, delivered_of(span))))
        if span.uid in self._of_senders:
            self._of_senders[span.uid].append(span)

    def counts(self) -> list[Counts]:
        """Return the counts of each message."""
        steps = self._present, self._read, self._delivered
        sums = zip(self._messages, zip(*map(accumulate, steps), strict=True), strict=False)
        return [self._without_sender(msgid, uid, *counts) for (msgid, uid), counts in sums]

    def _without_sender(self, msgid: int, uid: str, present: int, read: int, delivered: int) -> Counts:
        for span in self._of_senders[uid]:
            if covers(span, msgid):
                present -= 1
                read -= span.acked_msgid >= msgid
                delivered -= delivered_of(span) >= msgid
        return Counts(read, present - read, delivered)


def _raise(steps: list[int], first: int, end: int) -> None:
    if first < end:
        steps[first] += 1
        steps[end] -= 1


# Both sides together.


def paired(
    ones: Iterable[One], rows: Iterable[MessageRow], msgid_of: Callable[[One], int]
) -> Iterator[tuple[One | None, MessageRow | None]]:
    """Yield what has the same msgid together, in order. Both sides are in that order."""
    rest = iter(rows)
    row = next(rest, None)
    for one in ones:
        while row is not None and row.msgid < msgid_of(one):
            yield None, row
            row = next(rest, None)
        if row is not None and row.msgid == msgid_of(one):
            yield one, row
            row = next(rest, None)
        else:
            yield one, None
    while row is not None:
        yield None, row
        row = next(rest, None)
