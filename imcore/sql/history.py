"""Queries for a page of history: messages on both sides of a place, by one statement on the primary key."""

from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, literal, select, union_all

from imcore.model.rows import MessageRow
from imcore.sql.cells import has_msgid, is_recalled
from imcore.sql.tables import GROUP_MSGS

if TYPE_CHECKING:
    from imcore.sql.database import Database

Sides = tuple[list[MessageRow], list[MessageRow]]
"""Messages before a place, and after it; both oldest first."""

Between = tuple[int, int]
"""The messages that count: after the first msgid (packed), up to the second one."""


class _Side(NamedTuple):
    """At most this many messages, the nearest to a msgid (packed)."""

    msgid: ColumnElement[Any]
    most: int


class HistoryQueries:
    def __init__(self, database: "Database") -> None:
        self._database = database

    def around(self, gid: str, between: Between, low: int, older: int, high: int, newer: int) -> Sides:
        """Return the newest messages before `low` and the oldest from `high` on."""
        rows = self._rows(gid, between, _Side(literal(low), older), _Side(literal(high), newer))
        return [row for row in rows if row.msgid < low], [row for row in rows if row.msgid >= low]

    def around_unread(self, gid: str, uid: str, between: Between, offset: int, older: int, newer: int) -> Sides:
        """Return the messages before the first unread one of a user, and those from it on; nothing without one.

        It is the first one past the offset that others sent and nobody recalled.
        """
        c = GROUP_MSGS.c
        query = select(c.msgid).where(c.gid == gid, c.msgid > offset, c.msgid <= between[1], has_msgid())
        query = query.where(c.sender_uid != uid, c.recalls.is_(None), ~is_recalled()).order_by(c.msgid).limit(1)
        unread = query.scalar_subquery()
        rows = self._rows(gid, between, _Side(unread, older), _Side(unread, newer))
        count = next((number for number, row in enumerate(rows) if row.msgid > offset and _is_unread(row, uid)), 0)
        return rows[:count], rows[count:]

    def _rows(self, gid: str, between: Between, older: _Side, newer: _Side) -> list[MessageRow]:
        c, database = GROUP_MSGS.c, self._database
        query = select(*database.reader.columns(recalled=is_recalled())).where(
            c.gid == gid, c.msgid > between[0], c.msgid <= between[1], has_msgid()
        )
        sides = [
            query.where(c.msgid < older.msgid).order_by(c.msgid.desc()).limit(older.most),
            query.where(c.msgid >= newer.msgid).order_by(c.msgid).limit(newer.most),
        ]
        wanted = [select(side.subquery()) for side, (_, most) in zip(sides, (older, newer), strict=True) if most]
        return sorted(database.reader.rows(database.fetch(union_all(*wanted))), key=attrgetter("msgid"))


def _is_unread(row: MessageRow, uid: str) -> bool:
    return row.sender_uid != uid and row.recalls is None and not row.recalled
