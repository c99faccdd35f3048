"""What is set right in SQL where it has one right answer, whatever stands there: the writers only ever add to it."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, cast, literal_column, or_, select, text, update

from imcore import msgid as msgids
from imcore.model.rows import MessageRow, SpanRow
from imcore.sql.cells import has_msgid, msgid_of, text_of
from imcore.sql.database import Database
from imcore.sql.queries import PAGE
from imcore.sql.tables import GROUP_MSGS, GROUP_SPANS


class _Time(NamedTuple):
    """The time that a msgid tells, and that which stands in a row as people see it, in a database's own words."""

    told: str
    shown: str


_MS = f"((msgid >> {msgids.COUNTER_BITS}) + {msgids.EPOCH_MS})"
_TIMES = {
    "sqlite": _Time(f"strftime('%Y-%m-%dT%H:%M:%fZ', {_MS} / 1000.0, 'unixepoch')", "CAST(time AS TEXT)"),
    "postgresql": _Time(
        f"TIMESTAMPTZ 'epoch' + {_MS} * INTERVAL '1 millisecond'",
        """to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""",
    ),
}


def lower_spans(database: Database, rows: Iterable[SpanRow], *, above: int) -> None:
    """Set offsets and ends of spans, where they are above one msgid (packed) or no whole number, in one transaction."""
    c = GROUP_SPANS.c
    key = and_(c.gid == bindparam("of_gid"), c.uid == bindparam("of_uid"), c.joined_msgid == bindparam("joined"))
    values = [
        {
            "of_gid": row.gid,
            "of_uid": row.uid,
            "joined": row.joined_msgid,
            "acked": row.acked_msgid,
            "left": row.left_msgid,
        }
        for row in rows
    ]
    with database.writing() as connection:
        for column, name in ((c.acked_msgid, "acked"), (c.left_msgid, "left")):
            impossible = or_(column > above, column != cast(column, BigInteger))
            connection.execute(update(GROUP_SPANS).where(key, impossible).values({column: bindparam(name)}), values)


def take_texts_away(database: Database, gid: str) -> None:
    """Blank the recalled messages of a group."""
    tombstone = GROUP_MSGS.alias()
    recalled = select(tombstone.c.recalls).where(tombstone.c.gid == gid, tombstone.c.recalls.is_not(None))
    c = GROUP_MSGS.c
    with database.writing() as connection:
        withdrawn = c.msgid.in_(recalled), c.content != ""
        if connection.execute(update(GROUP_MSGS).where(c.gid == gid, *withdrawn).values(content="")).rowcount:
            database.note_withdrawn()
    database.empty_log()


def wrong_times(database: Database, gid: str) -> Iterator[tuple[int, str]]:
    """Yield the messages (packed) of a group whose time is not that of their msgid, and that time in ISO 8601."""
    c = GROUP_MSGS.c
    with database.connection() as connection:
        time = _TIMES[connection.dialect.name]
        is_wrong = and_(has_msgid(), c.time != literal_column(time.told))
        query = select(c.msgid, literal_column(time.shown)).where(c.gid == gid, is_wrong)
        for row in connection.execute(query.order_by(c.msgid), execution_options={"yield_per": PAGE}):
            yield msgid_of(row[0]), text_of(row[1])


def correct_times(database: Database, gid: str) -> None:
    """Set the times of such messages to those of their msgids."""
    c = GROUP_MSGS.c
    with database.writing() as connection:
        told: ColumnElement[datetime] = literal_column(_TIMES[connection.dialect.name].told)
        connection.execute(update(GROUP_MSGS).where(c.gid == gid, has_msgid(), c.time != told).values(time=told))


def close_gaps(database: Database, gid: str) -> int:
    """Give the messages of a group the seqs 1, 2, 3, ... in their order; return how many have another one now."""
    statement = text(
        """UPDATE group_msgs SET seq = numbered.place
        FROM (SELECT msgid, row_number() OVER (ORDER BY msgid) AS place FROM group_msgs
              WHERE gid = :gid AND msgid BETWEEN 1 AND :highest) AS numbered
        WHERE group_msgs.gid = :gid AND group_msgs.msgid = numbered.msgid AND group_msgs.seq <> numbered.place"""
    )
    with database.writing() as connection:
        return connection.execute(statement, {"gid": gid, "highest": msgids.HIGHEST}).rowcount


def rewrite(database: Database, rows: Iterable[MessageRow]) -> None:
    """Give messages the seq, the span and the recall that their rows say, in one transaction. No text changes."""
    statement = text(
        "UPDATE group_msgs SET seq = :seq, span = :span, recalls = :recalls WHERE gid = :gid AND msgid = :msgid"
    )
    names = ("gid", "msgid", "seq", "span", "recalls")
    values = [{name: getattr(row, name) for name in names} for row in rows]
    with database.writing() as connection:
        connection.execute(statement, values)
