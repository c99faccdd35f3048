"""Queries for a page of history: messages on both sides of a place, by one statement on the primary key."""

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, select, union_all

from imcore.model.rows import MessageRow
from imcore.sql.tables import GROUP_MSGS

if TYPE_CHECKING:
    from imcore.sql.database import Database

Sides = tuple[list[MessageRow], list[MessageRow]]
"""Messages before a place, and after it; both oldest first."""

Between = tuple[int, int]
"""The messages that count: after the first msgid (packed), up to the second one."""


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
