"""Bookmarks of one group as both sides have them: how they differ, and which one counts. No I/O.

A user's step changes Redis and the journal at once, and the latest journal entry counts in SQL. So the two differ only
if one side was lost or changed by hand. A bookmark that Redis does not have, or that no member can have, comes from
SQL. Where both have one, that of Redis counts: what the user sees stays. Only if Redis is older than SQL, that of SQL
counts, as it may be the newer one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from imcore.model.rows import BookmarkRow, SpanRow
from imcore.msgid import HIGHEST
from imcore.repair.diff import NO_MESSAGE, NOTHING, UNREADABLE, Difference, described_offset, of_span
from imcore.repair.state import Changes
from imcore.streams.calls.repair_calls import BookmarkOrder

_FORM = re.compile("([0-9]+) ([0-9]+)")


class Marks(NamedTuple):
    """The two parts of a bookmark: read in private up to `private`, marked unread after `mark`; 0 for neither."""

    private: int = 0
    mark: int = 0

    def counting(self, span: SpanRow, offset: int) -> "Marks":
        """Return what counts in a span: nothing of a position that the offset has passed."""
        return self if self.private > max(offset, span.joined_msgid) else self._replace(private=0)

    def fits(self, span: SpanRow, private_bound: int, mark_bound: int) -> bool:
        """Return whether a member can have it in a span."""
        begins_within = self.mark == 0 or span.joined_msgid <= self.mark <= mark_bound
        return begins_within and self.private <= private_bound


def parsed(text: str | None) -> Marks:
    """Return a bookmark of Redis, as its functions read it."""
    return Marks(*(number if number <= HIGHEST else 0 for number in _numbers(text)))


def _numbers(text: str | None) -> tuple[int, ...]:
    parts = _FORM.fullmatch(text or "")
    return tuple(map(int, parts.groups())) if parts else ()


def own_floor(offset: int, mark: int) -> int:
    """Return the position after which a member's own messages are listed; `lua/positions.lua` says the same."""
    return min(offset, mark) if mark > 0 else offset


@dataclass(frozen=True, slots=True)
class BookmarkPair:
    """The bookmark of a member in a span: as Redis has it, and as SQL has it with the journal.

    `text` is that of Redis, None without one. `stored` is None if SQL has none for this span. `is_damaged`: SQL's own
    row holds what no row can hold. `version` is that of the latest row, 0 without one.
    """

    span: SpanRow
    text: str | None
    live: Marks
    is_readable: bool
    stored: Marks | None
    is_damaged: bool
    version: int

    @property
    def is_sound(self) -> bool:
        return self.is_readable and not self.is_damaged and self.live == (self.stored or Marks())

    def difference(self) -> Difference:
        sql = UNREADABLE if self.is_damaged and self.stored is None else _described(self.stored or Marks())
        redis = _described(self.live) if self.is_readable else _described_text(self.text)
        return of_span(self.span.uid, f"bookmark of {self.span.uid!r}", redis, sql)

    def desired(self, newest: int, *, is_older: bool) -> Marks:
        """Return the bookmark to be, where this message is the newest; `is_older`: Redis has lost what SQL has."""
        stored = self.stored or Marks()
        bounds = max(newest, stored.private), max(newest, stored.mark)
        if self.text is None or not self.is_readable or not self.live.fits(self.span, *bounds):
            return stored
        return self.stored if is_older and self.stored is not None else self.live

    def order(self, desired: Marks) -> BookmarkOrder | None:
        """Return what to do in Redis, None for nothing."""
        if self.is_readable and self.live == desired:
            return None
        return BookmarkOrder(self.span.uid, self.span.joined_msgid, *parsed(self.text), *desired)

    def row(self, desired: Marks, version: int) -> BookmarkRow | None:
        """Return the row to write into SQL, None for none."""
        if not self.is_damaged and (self.stored or Marks()) == desired:
            return None
        return BookmarkRow(*self.span[:3], *desired, changed=max(version, self.version))


@dataclass(slots=True)
class BookmarkOrders:
    """The changes that a repair makes to the bookmarks of one group.

    `gone` are users who are no members and have damaged rows in SQL. `changing` are those who changed their bookmarks
    as these were read: they are to be read again.
    """

    in_redis: list[BookmarkOrder] = field(default_factory=list)
    in_sql: list[BookmarkRow] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    changing: set[str] = field(default_factory=set)
    marks: dict[str, int] = field(default_factory=dict)
    """The marks behind offsets, by uid."""


class Bookmarks:
    """The bookmarks of one group on both sides."""

    def __init__(
        self,
        stored: Iterable[BookmarkRow],
        live: Mapping[str, str],
        backlog: Changes,
        later: Changes | None = None,
        *,
        bound: int,
        latest_change: int,
    ) -> None:
        """Compare those of SQL, with the backlog of the journal, and the texts of Redis, by uid.

        `later` are changes since the backlog was read. No position is above `bound`, and no row was changed by a
        journal entry after `latest_change` (packed).
        """
        self._live = live
        self._bound = bound
        self._rows = {row.uid: row for row in stored}
        self._damaged = {uid for uid, row in self._rows.items() if _is_damaged(row, latest_change)}
        self._latest = {uid: row for uid, row in self._rows.items() if uid not in self._damaged}
        self._changing = later.bookmarks if later else {}
        for row in (*backlog.bookmarks.values(), *self._changing.values()):
            self._latest[row.uid] = max(self._latest.get(row.uid, row), row, key=attrgetter("changed"))
        self.uids = {*live, *self._rows, *self._latest}

    @property
    def furthest(self) -> int:
        """The highest msgid that a bookmark of SQL or the journal names, 0 without one."""
        positions = (position for row in self._latest.values() for position in (row.private_msgid, row.mark_msgid))
        return max((position for position in positions if position <= self._bound), default=0)

    @property
    def private(self) -> dict[tuple[str, int], int]:
        """The private positions that SQL has, by uid and beginning of the span."""
        rows = (row for uid, row in self._rows.items() if uid not in self._damaged)
        return {(row.uid, row.joined_msgid): row.private_msgid for row in rows if row.private_msgid <= self._bound}

    def marks(self, uid: str) -> Marks:
        """Return the bookmark of Redis."""
        return parsed(self._live.get(uid))

    def pair(self, span: SpanRow, offset: int) -> BookmarkPair:
        """Return both sides for an open span with this offset."""
        uid, bounds = span.uid, (self._bound, self._bound)
        text, live = self._live.get(uid), self.marks(uid)
        is_readable = text is None or (live != Marks() and live == _numbers(text) and live.fits(span, *bounds))
        latest, stored = self._latest.get(uid), None
        is_damaged = uid in self._damaged
        if latest and latest.joined_msgid == span.joined_msgid:
            marks = Marks(latest.private_msgid, latest.mark_msgid)
            stored = marks.counting(span, offset) if marks.fits(span, *bounds) else None
            is_damaged |= stored is None
        version = latest.changed if latest else 0
        return BookmarkPair(span, text, live.counting(span, offset), is_readable, stored, is_damaged, version)

    def differences(self, spans: Iterable[SpanRow], offsets: Mapping[str, int]) -> Iterator[Difference]:
        """Yield how the bookmarks differ of members with these spans; Redis has these offsets, by uid."""
        open_spans = (span for span in spans if span.left_msgid is None and span.uid in self.uids)
        members = {span.uid: span for span in open_spans}
        pairs = (self.pair(span, offsets[uid]) for uid, span in members.items() if uid in offsets)
        yield from (pair.difference() for pair in pairs if not pair.is_sound)
        yield from self._strangers(members)

    def orders(self, members: Mapping[str, SpanRow], newest: int, version: int, *, is_older: bool) -> BookmarkOrders:
        """Return what to do for these members, whose rows have the offsets of Redis; see `BookmarkPair.desired`."""
        orders = BookmarkOrders(gone=sorted(self._damaged.difference(members)))
        for uid in sorted(self.uids.intersection(members)):
            pair = self.pair(members[uid], members[uid].acked_msgid)
            desired = pair.desired(newest, is_older=is_older)
            if not pair.is_sound and uid in self._changing:
                orders.changing.add(uid)
                continue
            if order := pair.order(desired):
                orders.in_redis.append(order)
            if row := pair.row(desired, version):
                orders.in_sql.append(row)
            if 0 < desired.mark < members[uid].acked_msgid:
                orders.marks[uid] = desired.mark
        return orders

    def _strangers(self, members: Iterable[str]) -> Iterator[Difference]:
        """Yield a difference for each bookmark or damaged row of a user who is not a member."""
        others = self.uids.difference(members)
        for uid in sorted(others & self._live.keys()):
            yield of_span(uid, f"bookmark of {uid!r}", _described_text(self._live[uid]), "not a member")
        for uid in sorted(others & self._damaged):
            yield of_span(uid, f"row of the bookmark of {uid!r}", NOTHING, UNREADABLE)


def _is_damaged(row: BookmarkRow, latest_change: int) -> bool:
    return row.changed > latest_change or not all(0 <= cell <= HIGHEST for cell in row[2:])


def _described_text(text: str | None) -> str:
    marks = parsed(text)
    return f"{_described(marks)}: {NO_MESSAGE}" if marks != Marks() else UNREADABLE


def _described(marks: Marks) -> str:
    parts = (("read in private up to", marks.private), ("unread after", marks.mark))
    return ", ".join(f"{words} {described_offset(position)}" for words, position in parts if position) or NOTHING
