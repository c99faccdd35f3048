"""What is to become of one group where Redis and SQL differ. No I/O: `imcore.repair.mend` carries it out."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from imcore import msgid as msgids
from imcore.model.rows import MessageRow, SpanRow
from imcore.repair.check_members import is_empty
from imcore.repair.journal_window import START
from imcore.repair.merge import Placed, Spans, as_known, covers, in_sequence, is_void, offset_of, settle
from imcore.streams.calls.repair_calls import NEVER, Passed, SpanOrder, StreamState, Trim
from imcore.streams.keys import span_key

Span = tuple[str, int | None]
"""A span by its uid and beginning; None: where that is not known."""


@dataclass(slots=True)
class LiveGroup:
    """What Redis has of a group beside its messages."""

    rows: dict[str, list[SpanRow]]
    keys: set[str]
    """All span keys of any of the sorted sets, also those that make no span."""
    opened: dict[str, int]
    """Where each open span began."""
    followers: set[str]
    """The consumer groups of the stream."""
    beyond: dict[str, tuple[int, int]]
    """Offsets (by span key) that are no message's: what they are, and what they are taken for."""
    recalled: set[int]
    """Recalled messages and tombstones."""


@dataclass(slots=True)
class Plan:
    """What is to become of the messages after `base`, and of the spans. Msgids are packed."""

    base: Trim
    trim: Trim
    seen: StreamState
    journal_end: str
    newest_live: int
    newest_stored: int
    live: LiveGroup
    known: dict[tuple[str, int], int]
    """The offsets that SQL knows, by uid and beginning."""
    settled: dict[str, list[SpanRow]]
    """The spans as they are where neither side contradicts the other."""
    lowered: list[SpanRow]
    """What SQL gets in place of offsets that no message can have."""
    version: int
    """What a row of SQL gets that is changed now: all that follows has a higher one."""
    seq: int
    newest: int
    spans: dict[str, Spans] = field(default_factory=dict)
    """The spans that are to be."""
    is_laid_out: bool = False
    stands: bool = True
    """Whether the stream, and what is said of it, is as it is to be."""
    lost: list[int] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)
    """The message before each lost one."""
    rewritten: list[MessageRow] = field(default_factory=list)
    once: list[MessageRow] = field(default_factory=list)
    """Messages of whose client_msgids Redis may know a seq that is theirs no more."""
    moved_senders: set[int] = field(default_factory=set)
    """Messages with which their sender's offset has moved."""
    foreign: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Entries that are no messages, by id."""
    senders: set[str] = field(default_factory=set)
    added: int = 0
    moved: int = 0

    @property
    def resets(self) -> bool:
        """Whether offsets may have to go back, so that nothing that rests on the present ones may be stored."""
        opened = self.live.opened.items()
        return bool(self.lost) or any(uid in self.spans and began in self.spans[uid].void for uid, began in opened)

    @property
    def floor(self) -> int:
        """The highest msgid that any span names: no message that comes later may have a lower one."""
        return max((max(row.joined_msgid, row.left_msgid or 0, row.acked_msgid) for row in self.rows), default=0)

    @property
    def rows(self) -> Iterator[SpanRow]:
        """The spans that are to be, without those that never were."""
        return (row for each in self.spans.values() for row in each.rows if row.joined_msgid not in each.void)

    def span_of(self, row: MessageRow) -> int | None:
        """Return the span of a message's sender; None where neither side knows any more that they were a member.

        Where the end of an earlier span is lost, and with it that they were none or had come back, it lies in that.
        """
        if not self.is_laid_out:
            return row.span
        spans = self.spans.get(row.sender_uid, Spans())
        began = None if row.span is None else spans.void.get(row.span, row.span)
        rows = [span for span in spans.rows if span.joined_msgid not in spans.void]
        if any(span.joined_msgid == began for span in rows):
            return began
        return next((span.joined_msgid for span in rows if covers(span, row.msgid)), None)


def merged_messages(plan: Plan, messages: Iterable[Placed], said: dict[Span, int]) -> None:
    """Settle which spans there are to be, from the messages with the spans that their senders had.

    `said` are the newest ones up to the base, as far as they matter, by the sender's span.
    """
    last_own = dict(said)
    for row, _, _ in messages:
        last_own[row.sender_uid, row.span] = row.msgid
    for uid, rows in plan.settled.items():
        spoke = partial(_spoke, last_own, uid)
        plan.spans[uid] = in_sequence(rows, spoke, version=plan.version)
    plan.is_laid_out = True


def ended(plan: Plan, rows: Iterable[SpanRow]) -> dict[Span, int]:
    """Return the spans that are to be closed, and their ends, where SQL (whose `rows` are given) or Redis has another.

    What was said in these may have come after that.
    """
    there = {(row.uid, row.joined_msgid): row.left_msgid for row in rows}
    here = {(row.uid, row.joined_msgid): row.left_msgid for rows in plan.live.rows.values() for row in rows}
    closed = {
        (row.uid, row.joined_msgid): row.left_msgid
        for rows in plan.settled.values()
        for row in rows
        if row.left_msgid is not None and not is_void(row)
    }
    return {span: left for span, left in closed.items() if not there.get(span) == here.get(span) == left}


def _spoke(last_own: dict[Span, int], uid: str, joined: int) -> int:
    return last_own.get((uid, joined), 0)


def note(plan: Plan, placed: Placed) -> None:
    """Take the next message."""
    row, there, here = placed
    if here is None:
        plan.lost.append(row.msgid)
        plan.before[row.msgid] = plan.newest
    plan.senders.add(row.sender_uid)
    plan.stands &= here is not None and place_of(here) == place_of(row)
    if there is None:
        plan.added += 1
    elif (there.seq, there.span, there.recalls) != (row.seq, row.span, row.recalls):
        plan.rewritten.append(row._replace(content=""))
    if (here or there or row).seq != row.seq:
        plan.moved += 1
        if row.client_msgid:
            plan.once.append(row._replace(content=""))
    plan.newest, plan.seq = row.msgid, row.seq


def place_of(row: MessageRow) -> tuple[int, int, str, int, str, int]:
    """What two sides have to agree on for all before it to be alike. Content may be recalled."""
    span = -1 if row.span is None else row.span
    return row.msgid, row.seq, row.sender_uid, span, row.client_msgid or "", row.recalls or 0


def bounded(live: LiveGroup, told: Sequence[SpanRow], newest: int, *, bound: int) -> LiveGroup:
    """Return what Redis has, but for offsets that can be no message's: beyond the newest of all, or beyond their span.

    Instead of these stands what the other side tells, or that nothing was read. Spans that begin or end beyond
    `bound` are as if they were not there.
    """
    known = {(row.uid, row.joined_msgid): row.acked_msgid for row in told}
    rows: dict[str, list[SpanRow]] = {}
    beyond = {}
    for uid, each in live.rows.items():
        for row in each:
            if max(row.joined_msgid, row.left_msgid or 0) > bound:
                continue
            there = known.get((uid, row.joined_msgid), row.joined_msgid)
            if row.acked_msgid > max(newest if row.left_msgid is None else row.left_msgid, there):
                beyond[uid if row.left_msgid is None else span_key(uid, row.joined_msgid)] = row.acked_msgid, there
                row = row._replace(acked_msgid=there)  # noqa: PLW2901 (it never stood there)
            rows.setdefault(uid, []).append(row)
    return replace(live, rows=rows, beyond=beyond)


def settled(rows: Sequence[SpanRow], live: LiveGroup, *, version: int) -> dict[str, list[SpanRow]]:
    """Return the spans that are to be, by uid, but for contradictions; `rows` SQL has, or the journal tells."""
    there: dict[str, list[SpanRow]] = {}
    for row in rows:
        there.setdefault(row.uid, []).append(row)
    return {
        uid: settle(there.get(uid, []), as_known(there.get(uid, []), live.rows.get(uid, [])), version=version)
        for uid in sorted({*there, *live.rows})
    }


def version_after(rows: Sequence[SpanRow], journal_end: str) -> int:
    """Return a version above that of each row, and not above those of entries that the journal gets later."""
    ended = 0 if journal_end == START else msgids.pack_id(journal_end.encode())
    return max(ended, max((row.changed for row in rows), default=0) + 1)


def passed(plan: Plan) -> Iterator[Passed]:
    """Yield every span that Redis has, with the first lost message that it may have passed over."""
    for uid, rows in plan.live.rows.items():
        void = plan.spans[uid].void
        here = {row.joined_msgid: row for row in rows}
        for row in rows:
            key = uid if row.left_msgid is None else span_key(uid, row.joined_msgid)
            found = _passed(plan, key, row, row.joined_msgid)
            began = void.get(row.joined_msgid)
            if began is not None:
                # It never was: the offset is that of the span that goes on.
                found = _passed(plan, key, row, began)
                stands = here.get(began)
                back = found.sql_offset if stands is None else _offset_after(_passed(plan, key, stands, began), stands)
                found = found._replace(lost=row.joined_msgid, rollback_to=back)
            yield found


def _passed(plan: Plan, key: str, row: SpanRow, began: int) -> Passed:
    known = max(plan.known.get((row.uid, began), 0), began)
    i = bisect_right(plan.lost, known)
    lost = plan.lost[i] if i < len(plan.lost) else NEVER
    return Passed(key, row.joined_msgid, lost, max(known, plan.before.get(lost, 0)), began, known)


def _offset(plan: Plan, row: SpanRow) -> int:
    """Return what becomes of the offset of a span where offsets may have to go back."""
    for stands in plan.live.rows.get(row.uid, ()):
        if stands.joined_msgid == row.joined_msgid:
            return _offset_after(_passed(plan, "", stands, row.joined_msgid), stands)
    return max(plan.known.get((row.uid, row.joined_msgid), 0), row.joined_msgid)


def _offset_after(found: Passed, row: SpanRow) -> int:
    return found.rollback_to if row.acked_msgid >= found.lost else max(row.acked_msgid, found.sql_offset)


def lowest_behind(plan: Plan) -> int | None:
    """Return the lowest offset in Redis (packed) that is behind what SQL knows; None if none is."""
    here = {(row.uid, row.joined_msgid): row.acked_msgid for rows in plan.live.rows.values() for row in rows}
    found = ((here.get(span, span[1]), acked) for span, acked in plan.known.items())
    return min((stands for stands, acked in found if stands < acked), default=None)


def orders(plan: Plan) -> Iterator[SpanOrder]:
    """Yield what is to be done about spans: all of them are asserted, and what is no span is dropped."""
    opened = dict(plan.live.opened)
    for key, (stands, told) in plan.live.beyond.items():
        yield SpanOrder("back", key, 0, stands, told, None, opened.get(key))
    wanted = set()
    for row in plan.rows:
        uid, joined = row.uid, row.joined_msgid
        seen = opened.get(uid)
        acked = _offset(plan, row) if plan.resets else row.acked_msgid
        if row.left_msgid is None:
            wanted.add(uid)
            yield SpanOrder("open", uid, joined, None, acked, None, seen)
            continue
        if not is_empty(row):
            wanted.add(span_key(uid, joined))
        if seen == joined:
            wanted.add(uid)
            del opened[uid]
        elif is_empty(row):
            continue
        offset = offset_of(row._replace(acked_msgid=acked))
        yield SpanOrder("close", uid, joined, row.left_msgid, offset, None, seen)
    for key in sorted(plan.live.keys - wanted):
        yield SpanOrder("drop", key, seen=plan.live.opened.get(key))
