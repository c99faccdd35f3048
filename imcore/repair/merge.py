"""The desired state of one group where both sides know something: its spans, and the seq of each message. No I/O.

No message of either side is dropped. What SQL has keeps its msgid, and its seq where that is possible. What only Redis
has keeps its msgid, and gets the seq of that place. A span that either side has closed is closed. The further offset
wins.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from imcore.model.rows import MessageRow, SpanRow
from imcore.repair.state import ActualGroup, ahead_of, covers, delivered_of, furthest, is_void, key_of
from imcore.streams.calls.repair_calls import StreamState, Trim
from imcore.util.batches import grouped

Span = tuple[str, int | None]
"""The uid and the beginning of a span. None: the beginning is not known."""

_UNCHANGED = ("sender_uid", "client_msgid", "sent_at_ms", "recalls")


# Messages.


class Placed(NamedTuple):
    """A message at its place: as desired, as SQL has it, as Redis has it. None: that side does not have it."""

    row: MessageRow
    stored: MessageRow | None
    live: MessageRow | None


def place(
    pairs: Iterable[tuple[MessageRow | None, MessageRow | None]],
    *,
    base: int,
    is_new: Callable[[int], bool],
    span_of: Callable[[MessageRow], int | None],
) -> Iterator[Placed]:
    """Yield messages, given as Redis and SQL have each, with seqs from `base` + 1 on without holes.

    `is_new`: SQL cannot have a message of Redis yet. If SQL has another one of that msgid, that of Redis comes last,
    under a msgid above all others. `span_of` gives the sender's span.
    """
    seq, msgid, doubles = base, 0, []
    for live, stored in pairs:
        if live and stored and is_new(live.msgid) and not _is_same(live, stored):
            doubles.append(live)
            live = None  # noqa: PLW2901 (this one is stored alone)
        row = live or stored
        if row is None:
            continue
        seq, msgid = seq + 1, row.msgid
        yield Placed(row._replace(seq=seq, span=span_of(row), recalls=_recalls(live, stored)), stored, live)
    for live in doubles:
        seq, msgid = seq + 1, msgid + 1
        yield Placed(live._replace(msgid=msgid, seq=seq, span=span_of(live)), None, live)


def _recalls(live: MessageRow | None, stored: MessageRow | None) -> int | None:
    return next((row.recalls for row in (live, stored) if row and row.recalls is not None), None)


def _is_same(one: MessageRow, other: MessageRow) -> bool:
    # A recalled message has lost its text, on one side sooner than on the other.
    recalled = not one.content or not other.content
    return (recalled or (one.content, one.meta) == (other.content, other.meta)) and all(
        getattr(one, n) == getattr(other, n) for n in _UNCHANGED
    )


def identity_of(row: MessageRow) -> tuple[int, int, str, int, str, int]:
    """Return the values that are alike on both sides only if all before them is. Content may be recalled."""
    span = -1 if row.span is None else row.span
    return row.msgid, row.seq, row.sender_uid, span, row.client_msgid or "", row.recalls or 0


# Spans.


@dataclass(slots=True)
class Spans:
    """The desired spans of one uid, followed by rows for beginnings that never were.

    `void` gives, for each of these beginnings, that of the span which counts instead.
    """

    rows: list[SpanRow] = field(default_factory=list)
    void: dict[int, int] = field(default_factory=dict)

    @property
    def real(self) -> list[SpanRow]:
        return [row for row in self.rows if row.joined_msgid not in self.void]


def as_known(stored: Sequence[SpanRow], live: Sequence[SpanRow]) -> list[SpanRow]:
    """Return the spans that Redis has of one uid, without those which SQL knows to be void."""
    void = {row.joined_msgid for row in stored if is_void(row)}
    rows: list[SpanRow] = []
    for row in sorted(live, key=attrgetter("joined_msgid")):
        if row.joined_msgid not in void:
            rows.append(row)
        elif rows:
            rows[-1] = rows[-1]._replace(left_msgid=row.left_msgid)
    return rows


def settle(stored: Sequence[SpanRow], live: Sequence[SpanRow], *, version: int) -> list[SpanRow]:
    """Return the spans of one uid in order, from those of SQL with the journal's, and those of Redis.

    A span that either side has closed is closed, with the later end. A row whose end is not that of SQL gets `version`,
    which is higher than that of any journal entry.
    """
    in_sql = {row.joined_msgid: row for row in stored}
    in_redis = {row.joined_msgid: row for row in live}
    rows: list[SpanRow] = []
    for joined in sorted({*in_sql, *in_redis}):
        row, other = in_sql.get(joined), in_redis.get(joined)
        if row and other:
            rows.append(_settled(row, other, version))
        elif row:
            rows.append(row)
        elif other:
            rows.append(other._replace(changed=version))
    return rows


def _settled(stored: SpanRow, live: SpanRow, version: int) -> SpanRow:
    left = max((end for end in (stored.left_msgid, live.left_msgid) if end is not None), default=None)
    changed = stored.changed if left == stored.left_msgid else version
    acked, delivered = max(stored.acked_msgid, live.acked_msgid), max(delivered_of(stored), delivered_of(live))
    row = stored._replace(left_msgid=left, changed=changed, acked_msgid=acked, delivered_msgid=delivered)
    return row._replace(delivered_msgid=ahead_of(row))


def in_sequence(rows: Sequence[SpanRow], last_own: Mapping[Span, int], *, version: int) -> Spans:
    """Return the spans of one uid so that none begins before another one ends, and each covers what was sent in it.

    One side may not know of a leave or join that the other knows. Then the later span is void, and the earlier one ends
    where it would have ended. The earlier offset stays, since messages between the two have not been read. `last_own`
    has the newest message that was sent in each span.
    """
    spans = Spans()
    void: list[SpanRow] = []
    for next_row in rows:
        was_void = is_void(next_row)
        row = next_row if was_void else _covering(next_row, last_own.get(next_row[1:3], 0), version)
        before = spans.rows[-1] if spans.rows else None
        if before is None or (before.left_msgid is not None and before.left_msgid <= row.joined_msgid):
            spans.rows.append(row)
            continue
        spans.void[row.joined_msgid] = before.joined_msgid
        if was_void:
            void.append(row)
            continue
        void.append(row._replace(left_msgid=row.joined_msgid - 1, changed=version, delivered_msgid=None))
        joint = before._replace(left_msgid=row.left_msgid, changed=version)
        sent = max(before.left_msgid or 0, last_own.get(before[1:3], 0))
        spans.rows[-1] = _covering(joint, sent, version)
    spans.rows += void
    return spans


def _covering(row: SpanRow, msgid: int, version: int) -> SpanRow:
    if row.left_msgid is None or row.left_msgid >= msgid:
        return row
    return row._replace(left_msgid=msgid, changed=version)


def bounded(live: ActualGroup, desired: Sequence[SpanRow], newest: int, *, bound: int) -> ActualGroup:
    """Return what Redis has, without positions that no message can have: beyond the newest message, or the span's end.

    The other side's position takes their place, or the beginning of the span. Spans that begin or end beyond `bound`
    are left out.
    """
    known = {(row.uid, row.joined_msgid): row for row in desired}
    bounded = replace(live, rows={}, beyond={}, withdrawn={})
    for row in (row for of_uid in live.rows.values() for row in of_uid):
        if max(row.joined_msgid, row.left_msgid or 0) <= bound:
            other = known.get(
                (row.uid, row.joined_msgid), row._replace(acked_msgid=row.joined_msgid, delivered_msgid=None)
            )
            end = newest if row.left_msgid is None else row.left_msgid
            bounded.rows.setdefault(row.uid, []).append(_bounded(row, other, end, bounded))
    return bounded


def _bounded(row: SpanRow, other: SpanRow, end: int, bounded: ActualGroup) -> SpanRow:
    acked, delivered = other.acked_msgid, delivered_of(other)
    if row.acked_msgid > max(end, acked):
        bounded.beyond[key_of(row)] = row.acked_msgid, acked
        row = row._replace(acked_msgid=acked)
    if row.delivered_msgid is not None and row.delivered_msgid > max(end, delivered):
        bounded.withdrawn[key_of(row)] = row.delivered_msgid, delivered
        row = row._replace(delivered_msgid=delivered)
    return row._replace(delivered_msgid=ahead_of(row))


def settled_spans(rows: Iterable[SpanRow], live: ActualGroup, *, version: int) -> dict[str, list[SpanRow]]:
    """Return the spans that SQL (with the journal) and Redis have together, by uid."""
    desired = grouped((row.uid, row) for row in rows)
    settled = {}
    for uid in sorted({*desired, *live.rows}):
        of_uid = desired.get(uid, [])
        settled[uid] = settle(of_uid, as_known(of_uid, live.rows.get(uid, [])), version=version)
    return settled


# Both.


@dataclass(slots=True)
class Plan:
    """The desired messages after `base`, and the desired spans. Msgids are packed."""

    base: Trim
    trim: Trim
    seen: StreamState
    journal_end: str
    newest_live: int
    newest_stored: int
    live: ActualGroup
    settled: dict[str, list[SpanRow]]
    """The spans that both sides have together, by uid, contradictions included."""
    known: dict[tuple[str, int], SpanRow]
    """The spans that SQL has, by uid and beginning."""
    lowered: list[SpanRow]
    """Rows that take the place of positions in SQL that no message can have."""
    private: dict[tuple[str, int], int]
    """The private positions that SQL has, by uid and beginning of the span."""
    bookmarked: int
    """The highest msgid that a bookmark names."""
    bound: int
    """No position in SQL is above it, and no journal entry after `latest_change`."""
    latest_change: int
    version: int
    seq: int
    newest: int
    changing: set[str] = field(default_factory=set)
    """The uids that joined or left as their spans were read: they are to be read again."""
    spans: dict[str, Spans] = field(default_factory=dict)
    has_spans: bool = False
    is_sound: bool = True
    """Whether the stream, and what Redis says about it, is as desired."""
    lost: list[int] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)
    """The message before each lost one."""
    rewritten: list[MessageRow] = field(default_factory=list)
    reidentified: list[MessageRow] = field(default_factory=list)
    """Messages whose client_msgids Redis may know with a former seq."""
    moved_senders: set[int] = field(default_factory=set)
    """Messages with which their sender's offset has moved."""
    foreign: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Entries that are no messages, by id."""
    senders: set[str] = field(default_factory=set)
    moved: int = 0

    @property
    def resets(self) -> bool:
        """Whether offsets may have to go back. Nothing that relies on the present ones may be stored then."""
        opened = self.live.opened.items()
        return bool(self.lost) or any(uid in self.spans and began in self.spans[uid].void for uid, began in opened)

    @property
    def rows(self) -> Iterator[SpanRow]:
        """The desired spans, without void ones."""
        return (row for of_uid in self.spans.values() for row in of_uid.real)

    @property
    def floor(self) -> int:
        """The highest msgid that any desired span or bookmark names."""
        return max(furthest(self.rows), self.bookmarked)

    def span_of(self, row: MessageRow) -> int | None:
        """Return the span of a message's sender, None if neither side knows any more that they were a member.

        If the end of an earlier span was lost, the message belongs to that span.
        """
        if not self.has_spans:
            return row.span
        spans = self.spans.get(row.sender_uid, Spans())
        began = None if row.span is None else spans.void.get(row.span, row.span)
        if any(span.joined_msgid == began for span in spans.real):
            return began
        return next((span.joined_msgid for span in spans.real if covers(span, row.msgid)), None)

    def lay_out(self, messages: Iterable[Placed], last_own: dict[Span, int]) -> None:
        """Set the spans, from the messages with the spans that their senders had.

        `last_own` are the newest messages up to the base, as far as they matter, by the sender's span.
        """
        last = {**last_own, **{(row.sender_uid, row.span): row.msgid for row, _, _ in messages}}
        for uid, rows in self.settled.items():
            self.spans[uid] = in_sequence(rows, last, version=self.version)
        self.has_spans = True

    def note(self, placed: Placed) -> None:
        """Note what the next message needs."""
        row, stored, live = placed
        if live is None:
            self.lost.append(row.msgid)
            self.before[row.msgid] = self.newest
        self.senders.add(row.sender_uid)
        self.is_sound &= live is not None and identity_of(live) == identity_of(row)
        if stored and (stored.seq, stored.span, stored.recalls) != (row.seq, row.span, row.recalls):
            self.rewritten.append(row.without_text())
        if (live or stored or row).seq != row.seq:
            self.moved += 1
            if row.client_msgid:
                self.reidentified.append(row.without_text())
        self.newest, self.seq = row.msgid, row.seq


def ended(plan: Plan, desired: Iterable[SpanRow]) -> dict[Span, int]:
    """Return the spans to close, and their ends, where SQL or Redis has another end. Messages may lie after these.

    `desired` are the spans that SQL has, with what the journal adds.
    """

    def ends(rows: Iterable[SpanRow]) -> dict[Span, int | None]:
        return {(row.uid, row.joined_msgid): row.left_msgid for row in rows if not is_void(row)}

    in_sql, in_redis = ends(desired), ends(row for of_uid in plan.live.rows.values() for row in of_uid)
    settled = ends(row for of_uid in plan.settled.values() for row in of_uid)
    closed = {span: left for span, left in settled.items() if left is not None}
    return {span: left for span, left in closed.items() if not in_sql.get(span) == in_redis.get(span) == left}
