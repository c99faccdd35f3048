"""Queries for members: a page of history, and places in many groups at once. Each reads ranges of the primary key.

Repair reads many groups at once in the same way.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnClause,
    ColumnElement,
    TableValuedAlias,
    and_,
    bindparam,
    cast,
    column,
    func,
    select,
    union_all,
    values,
)

from imcore import msgid as msgids
from imcore.model.rows import Head, MessageRow
from imcore.sql.cells import has_msgid, int_of, is_msgid, is_recalled
from imcore.sql.tables import GROUP_MSGS, GROUP_SPANS, NAME
from imcore.util.batches import batches

if TYPE_CHECKING:
    from imcore.sql.database import Database

Sides = tuple[list[MessageRow], list[MessageRow]]
"""Messages before a place, and after it; both oldest first."""

Between = tuple[int, int]
"""The messages that count: after the first msgid (packed), up to the second one."""


Place = tuple[str, int]
"""A gid and a msgid (packed)."""

_AT_ONCE = 1000


class Identities(NamedTuple):
    """What tells messages apart, and neither a recall nor an erasure changes: each column as one text."""

    msgids: str
    seqs: str
    senders: str
    spans: str
    """Nothing for a sender who was no member."""


class _Side(NamedTuple):
    """The messages with first <= msgid < end: at most this many, the last or the first of them."""

    first: int | ColumnElement[Any]
    end: int | ColumnElement[Any]
    most: int
    is_last: bool


class HistoryQueries:
    def __init__(self, database: "Database") -> None:
        self._database = database

    def around(self, gid: str, between: Between, low: int, older: int, high: int, newer: int) -> Sides:
        """Return the newest messages before `low` and the oldest from `high` on."""
        after, until = between
        before = _Side(after + 1, min(low, until + 1), older, is_last=True)
        rows = self._rows(gid, before, _Side(max(high, after + 1), until + 1, newer, is_last=False))
        return [row for row in rows if row.msgid < low], [row for row in rows if row.msgid >= low]

    def around_foreign(self, gid: str, uid: str, between: Between, offset: int, older: int, newer: int) -> Sides:
        """Return the messages before and from the first one on, past an offset, that others sent; nothing without one.

        It is no tombstone, but may be recalled.
        """
        c, (after, until) = GROUP_MSGS.c, between
        query = select(c.msgid).where(c.gid == gid, c.msgid > offset, c.msgid <= until)
        query = query.where(c.sender_uid != uid, c.recalls.is_(None)).order_by(c.msgid).limit(1)
        first = query.scalar_subquery()
        before = _Side(after + 1, first, older, is_last=True)
        rows = self._rows(gid, before, _Side(first, until + 1, newer, is_last=False))
        count = next((number for number, row in enumerate(rows) if row.msgid > offset and _is_foreign(row, uid)), 0)
        return rows[:count], rows[count:]

    def messages_at(self, places: Sequence[Place]) -> list[MessageRow]:
        """Return those messages that are stored."""
        c = GROUP_MSGS.c
        rows: list[MessageRow] = []
        for batch in batches(places, _AT_ONCE):
            at = self._table(batch, "gid", "msgid")  # for a list of pairs SQLite would read the whole table
            query = select(*self._database.reader.columns(recalled=is_recalled()))
            query = query.join_from(at, GROUP_MSGS, and_(c.gid == at.c.gid, c.msgid == at.c.msgid))
            rows += self._database.reader.rows(self._database.fetch(query))
        return rows

    def seqs_at(self, places: Sequence[Place]) -> dict[str, int]:
        """Return for each group (gid) the seq of its newest message up to there, 0 without one."""
        c = GROUP_MSGS.c
        seqs: dict[str, int] = {}
        for batch in batches(places, _AT_ONCE):
            at = self._table(batch, "gid", "until")
            query = select(c.seq).where(c.gid == at.c.gid, c.msgid >= 1, c.msgid <= at.c.until)
            newest = query.order_by(c.msgid.desc()).limit(1).scalar_subquery()
            seqs.update(
                (gid, 0 if seq is None else int_of(seq)) for gid, seq in self._database.fetch(select(at.c.gid, newest))
            )
        return seqs

    def firsts_of_others(self, uid: str, between: Sequence[tuple[str, int, int]]) -> dict[str, int]:
        """Return for each group with after < msgid <= until its first message that counts as unread, if there is one.

        That is one of others that is neither recalled nor a tombstone.
        """
        c = GROUP_MSGS.c
        firsts: dict[str, int] = {}
        for batch in batches(between, _AT_ONCE):
            at = self._table(batch, "gid", "after", "until")
            query = select(c.msgid).where(c.gid == at.c.gid, c.msgid > at.c.after, c.msgid <= at.c.until)
            query = query.where(c.sender_uid != uid, c.recalls.is_(None), ~is_recalled())
            first = query.order_by(c.msgid).limit(1).scalar_subquery()
            found = self._database.fetch(select(at.c.gid, first))
            firsts.update((gid, msgid) for gid, msgid in found if is_msgid(msgid))
        return firsts

    def messages_past(self, places: Sequence[Place]) -> Iterator[MessageRow]:
        """Yield the messages of groups after these places, in order of gid and msgid; one place for each group."""
        c, at = GROUP_MSGS.c, self._table(places, "gid", "after")
        query = select(*self._database.reader.columns(recalled=is_recalled()))
        query = query.join_from(at, GROUP_MSGS, and_(c.gid == at.c.gid, c.msgid > at.c.after, has_msgid()))
        yield from self._database.reader.rows(self._database.stream(query.order_by(c.gid, c.msgid)))

    def identities(self, gid: str, first: int, last: int, separator: str) -> Identities:
        """Return the identities of the messages from one to another (msgids), oldest first, as they are stored."""
        c = GROUP_MSGS.c
        rows = select(c.msgid, c.seq, c.sender_uid, func.coalesce(cast(c.span, NAME), "").label("span"))
        ordered = rows.where(c.gid == gid, c.msgid >= first, c.msgid <= last).order_by(c.msgid).subquery()
        joined = [func.aggregate_strings(cast(column, NAME), separator) for column in ordered.c]
        [texts] = self._database.fetch(select(*joined))
        return Identities(*(text or "" for text in texts))

    def heads_at(self, places: Sequence[Place]) -> dict[str, Head]:
        """Return the heads of groups as if the messages at these places were the newest; one place for each group."""
        c, at = GROUP_MSGS.c, self._table(places, "gid", "until")
        columns = (c.gid, func.count(), func.max(c.seq), func.min(c.msgid), func.max(c.msgid))
        joined = and_(c.gid == at.c.gid, c.msgid <= at.c.until, has_msgid())
        query = select(*columns).join_from(at, GROUP_MSGS, joined).group_by(c.gid)
        heads = {gid: Head(gid, *map(int_of, numbers)) for gid, *numbers in self._database.fetch(query)}
        return {gid: heads.get(gid, Head(gid)) for gid, _ in places}

    def displaced_until(self, places: Sequence[Place]) -> set[str]:
        """Return the groups in which the seq of a message up to the place is not its number; one place for each."""
        c, at = GROUP_MSGS.c, self._table(places, "gid", "until")
        place = func.row_number().over(partition_by=c.gid, order_by=c.msgid).label("place")
        numbered = select(c.gid, c.seq, place).join_from(at, GROUP_MSGS, and_(c.gid == at.c.gid, c.msgid <= at.c.until))
        rows = numbered.subquery()
        return {gid for (gid,) in self._database.fetch(select(rows.c.gid).where(rows.c.seq != rows.c.place).distinct())}

    def left_ms(self, gid: str, uid: str, joined: int) -> int | None:
        """Return when the span that began there has ended, in ms since 1970; None if that is not stored."""
        c = GROUP_SPANS.c
        query = select(c.changed).where(c.gid == gid, c.uid == uid, c.joined_msgid == joined, c.left_msgid.is_not(None))
        return next((msgids.time_ms(each) for (each,) in self._database.fetch(query) if is_msgid(each)), None)

    def _table(self, rows: Sequence[tuple[Any, ...]], *names: str) -> CTE | TableValuedAlias:
        """Return rows that begin with a gid, followed by msgids, as a table; there is at least one."""
        columns = [column(name, NAME if name == "gid" else BigInteger) for name in names]
        if self._database.dialect == "postgresql":
            return _arrays(rows, columns)
        return values(*columns, name="wanted").data(rows).cte("wanted")

    def _rows(self, gid: str, *sides: _Side) -> list[MessageRow]:
        c = GROUP_MSGS.c
        parts = []
        for first, end, most, is_last in sides:
            query = select(c.msgid).where(c.gid == gid, c.msgid >= first, c.msgid < end)
            if most:
                parts.append(query.order_by(c.msgid.desc() if is_last else c.msgid).limit(most).subquery())
        return self._database.rows_at(gid, union_all(*map(select, parts)))


def _is_foreign(row: MessageRow, uid: str) -> bool:
    return row.sender_uid != uid and row.recalls is None


def _arrays(rows: Sequence[tuple[Any, ...]], columns: Sequence[ColumnClause[Any]]) -> TableValuedAlias:
    """Return rows as a table of PostgreSQL: with a parameter for each cell, its driver takes longer than the answer."""
    cells = zip(*rows, strict=True)
    arrays = [bindparam(None, list(each), ARRAY(c.type)) for each, c in zip(cells, columns, strict=True)]
    return func.unnest(*arrays).table_valued(*columns, name="wanted").render_derived()
