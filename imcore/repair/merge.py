"""How Redis and SQL become one again where they differ: which spans there are, and which message has which seq. No I/O.

No message of either side is dropped. What SQL has keeps its msgid, and where it can its seq; messages that only Redis
has keep their msgids too, and are numbered where these put them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple, TypeVar

from imcore.model.rows import MessageRow, SpanRow

One = TypeVar("One")
Other = TypeVar("Other")

_SAID = ("sender_uid", "client_msgid", "sent_at_ms", "recalls")


class Placed(NamedTuple):
    """A message at its place: as it is to be, as SQL has it, as Redis has it (None: not at all)."""

    row: MessageRow
    stored: MessageRow | None
    live: MessageRow | None

    @property
    def is_lost(self) -> bool:
        """Whether Redis does not have it."""
        return self.live is None


@dataclass(slots=True)
class Spans:
    """What spans of one uid there are to be, and, after these, rows for the beginnings of spans that never were.

    These are in `void`: they count as the span that began at the value.
    """

    rows: list[SpanRow] = field(default_factory=list)
    void: dict[int, int] = field(default_factory=dict)


def paired(
    ones: Iterable[One], others: Iterable[Other], one_key: Callable[[One], int], other_key: Callable[[Other], int]
) -> Iterator[tuple[One | None, Other | None]]:
    """Yield what has the same key together, in order of key; both sides are in that order."""
    rest = iter(others)
    other = next(rest, None)
    for one in ones:
        while other is not None and other_key(other) < one_key(one):
            yield None, other
            other = next(rest, None)
        if other is not None and other_key(other) == one_key(one):
            yield one, other
            other = next(rest, None)
        else:
            yield one, None
    while other is not None:
        yield None, other
        other = next(rest, None)


def place(
    pairs: Iterable[tuple[MessageRow | None, MessageRow | None]],
    *,
    base: int,
    is_new: Callable[[int], bool],
    span_of: Callable[[MessageRow], int | None],
) -> Iterator[Placed]:
    """Yield messages, given as Redis has each and as SQL has it, with seqs from `base` + 1 on without holes.

    `is_new` tells whether SQL cannot have a message of Redis yet: if it has one of that msgid all the same, these are
    two. That of Redis then comes last, under a msgid above all others. `span_of` gives the sender's span.
    """
    seq, msgid, again = base, 0, []
    for live, stored in pairs:
        if live and stored and is_new(live.msgid) and not _is_same(live, stored):
            again.append(live)
            live = None  # noqa: PLW2901 (this one is stored alone)
        row = live or stored
        if row is None:
            continue
        seq, msgid = seq + 1, row.msgid
        yield Placed(row._replace(seq=seq, span=span_of(row), recalls=_recalls(live, stored)), stored, live)
    for live in again:
        seq, msgid = seq + 1, msgid + 1
        yield Placed(live._replace(msgid=msgid, seq=seq, span=span_of(live)), None, live)


def _recalls(live: MessageRow | None, stored: MessageRow | None) -> int | None:
    """Return what a message recalls, if either side knows it to be a tombstone."""
    return next((row.recalls for row in (live, stored) if row and row.recalls is not None), None)


def _is_same(one: MessageRow, other: MessageRow) -> bool:
    # A message that has been recalled has no content any more, on one side sooner than on the other.
    recalled = not one.content or not other.content
    return (recalled or one.content == other.content) and all(getattr(one, n) == getattr(other, n) for n in _SAID)


def offset_of(row: SpanRow) -> int:
    """Return the offset within a span: nobody reads beyond its end."""
    return row.acked_msgid if row.left_msgid is None else min(row.acked_msgid, row.left_msgid)


def is_void(row: SpanRow) -> bool:
    """Return whether a row is no span: it stands for a beginning that never was, and ends before it."""
    return row.left_msgid is not None and row.left_msgid < row.joined_msgid


def covers(row: SpanRow, msgid: int) -> bool:
    """Return whether a message was said while a membership lasted."""
    return row.joined_msgid < msgid and (row.left_msgid is None or msgid <= row.left_msgid)


def as_known(stored: Sequence[SpanRow], live: Sequence[SpanRow]) -> list[SpanRow]:
    """Return the spans that Redis has of one uid, without those of which SQL knows already that they never were."""
    void = {row.joined_msgid for row in stored if is_void(row)}
    rows: list[SpanRow] = []
    for row in sorted(live, key=attrgetter("joined_msgid")):
        if row.joined_msgid not in void:
            rows.append(row)
        elif rows:
            rows[-1] = rows[-1]._replace(left_msgid=row.left_msgid)
    return rows


def settle(stored: Sequence[SpanRow], live: Sequence[SpanRow], *, version: int) -> list[SpanRow]:
    """Return the spans of one uid, from what SQL has (and the journal tells) and what Redis has, in their order.

    A span that either side has closed is closed, with the later end. `version` is higher than that of any entry of the
    journal; a row whose end is not as SQL has it gets it.
    """
    there = {row.joined_msgid: row for row in stored}
    here = {row.joined_msgid: row for row in live}
    return [_settled(there.get(joined), here.get(joined), version) for joined in sorted({*there, *here})]


def _settled(stored: SpanRow | None, live: SpanRow | None, version: int) -> SpanRow:
    if stored is None or live is None:
        row = stored or live
        if row is None:
            raise ValueError("a span that neither side has")
        return row if stored else row._replace(changed=version)
    ends = [left for left in (stored.left_msgid, live.left_msgid) if left is not None]
    left = max(ends, default=None)
    return stored._replace(
        left_msgid=left,
        changed=stored.changed if left == stored.left_msgid else version,
        acked_msgid=max(stored.acked_msgid, live.acked_msgid),
    )


def in_sequence(rows: Sequence[SpanRow], last_own: Callable[[int], int], *, version: int) -> Spans:
    """Return the spans of one uid so that none begins before another one ends, and each covers what was said in it.

    Where one side did not know of a leave or a join that the other one tells, it may be otherwise: then the later span
    never was. The earlier one ends where that would have ended; its offset stays, since what was said in between has
    not been read. `last_own` gives the newest message that was said in the span of a beginning.
    """
    spans = Spans()
    void: list[SpanRow] = []
    for next_row in rows:
        # Where it is known from an earlier time that a span never was, that stays so.
        was = not is_void(next_row)
        row = _covering(next_row, last_own(next_row.joined_msgid), version) if was else next_row
        before = spans.rows[-1] if spans.rows else None
        if before is None or (before.left_msgid is not None and before.left_msgid <= row.joined_msgid):
            spans.rows.append(row)
            continue
        spans.void[row.joined_msgid] = before.joined_msgid
        if not was:
            void.append(row)
            continue
        void.append(row._replace(left_msgid=row.joined_msgid - 1, changed=version))
        joint = before._replace(left_msgid=row.left_msgid, changed=version)
        said = max(before.left_msgid or 0, last_own(before.joined_msgid))
        spans.rows[-1] = _covering(joint, said, version)
    spans.rows += void
    return spans


def _covering(row: SpanRow, msgid: int, version: int) -> SpanRow:
    if row.left_msgid is None or row.left_msgid >= msgid:
        return row
    return row._replace(left_msgid=msgid, changed=version)
