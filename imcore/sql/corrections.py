"""Corrections of stored rows that have one right value. All other writers only add rows, or raise values."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    cast,
    delete,
    false,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)

from imcore import msgid as msgids
from imcore.model.rows import BookmarkRow, MessageRow, SpanRow
from imcore.sql.cells import has_msgid, has_text, is_among, msgid_of, text_of
from imcore.sql.database import PAGE, Database
from imcore.sql.erasures import check_count
from imcore.sql.tables import BOOKMARKS, GROUP_MSGS, GROUP_SPANS
from imcore.util.batches import batches

_MS = f"((msgid >> {msgids.COUNTER_BITS}) + {msgids.EPOCH_MS})"
_TIME_OF_MSGID = {
    "sqlite": f"strftime('%Y-%m-%dT%H:%M:%fZ', {_MS} / 1000.0, 'unixepoch')",
    "postgresql": f"TIMESTAMPTZ 'epoch' + {_MS} * INTERVAL '1 millisecond'",
}
_STORED_TIME = {
    "sqlite": "CAST(time AS TEXT)",
    "postgresql": """to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""",
}
"""In ISO 8601."""


def lower_spans(database: Database, rows: Iterable[SpanRow], *, above: int) -> None:
    """Set the positions and ends of spans that are above a msgid (packed) or no whole number, in one transaction.

    Also those that are past the end of their span, and those up to which messages have arrived, if that is not past the
    offset.
    """
    c = GROUP_SPANS.c
    names = ("gid", "uid", "joined_msgid", "acked_msgid", "left_msgid", "delivered_msgid")
    values = [{f"new_{name}": getattr(row, name) for name in names} for row in rows]
    key = and_(*(column == bindparam(f"new_{column.name}") for column in (c.gid, c.uid, c.joined_msgid)))
    with database.writing() as connection:
        is_outside = or_(c.delivered_msgid <= c.acked_msgid, c.delivered_msgid > c.left_msgid)
        wrong = (c.left_msgid, false()), (c.acked_msgid, c.acked_msgid > c.left_msgid), (c.delivered_msgid, is_outside)
        for column, is_wrong in wrong:
            is_wrong = or_(is_wrong, column > above, column != cast(column, BigInteger))  # noqa: PLW2901
            change = update(GROUP_SPANS).where(key, is_wrong).values({column: bindparam(f"new_{column.name}")})
            connection.execute(change, values)


def set_bookmarks(
    database: Database, gid: str, rows: Sequence[BookmarkRow], gone: Iterable[str], *, erasures: int
) -> None:
    """Store bookmarks of a group whatever is there, and delete those of other users, in one transaction.

    `erasures` is the count of erasures when they were read. Raise ErasuresChanged if it is another one by now.
    """
    c = BOOKMARKS.c
    uids = [*(row.uid for row in rows), *gone]
    if not uids:
        return
    with database.writing() as connection:
        check_count(connection, erasures)
        for batch in batches(uids, PAGE):
            connection.execute(delete(BOOKMARKS).where(c.gid == gid, c.uid.in_(batch)))
        if rows:
            connection.execute(insert(BOOKMARKS), [row._asdict() for row in rows])


def delete_recalled_texts(database: Database, gid: str) -> None:
    c, tombstone = GROUP_MSGS.c, GROUP_MSGS.alias()
    recalled = select(tombstone.c.recalls).where(tombstone.c.gid == gid, tombstone.c.recalls.is_not(None))
    with_text = and_(c.gid == gid, c.msgid.in_(recalled), has_text())
    with database.writing() as connection:
        deleted = connection.execute(update(GROUP_MSGS).where(with_text).values(content="", meta=None)).rowcount
    database.empty_log(always=deleted > 0)


def wrong_times(database: Database, gids: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yield gid and msgid of each message of some groups whose time is not that of its msgid; and it in ISO 8601."""
    c, stored_time = GROUP_MSGS.c, _STORED_TIME[database.dialect]
    query = select(c.gid, c.msgid, literal_column(stored_time)).where(
        is_among(c.gid, gids, database.dialect), _is_wrong(database)
    )
    for gid, msgid, stored in database.stream(query.order_by(c.gid, c.msgid)):
        yield gid, msgid_of(msgid), text_of(stored)


def correct_times(database: Database, gid: str) -> None:
    """Set the times of a group's messages to those of their msgids."""
    correct: ColumnElement[datetime] = literal_column(_TIME_OF_MSGID[database.dialect])
    with database.writing() as connection:
        wrong = update(GROUP_MSGS).where(GROUP_MSGS.c.gid == gid, _is_wrong(database))
        connection.execute(wrong.values(time=correct))


def _is_wrong(database: Database) -> ColumnElement[bool]:
    return and_(has_msgid(), GROUP_MSGS.c.time != literal_column(_TIME_OF_MSGID[database.dialect]))


def close_gaps(database: Database, gid: str) -> int:
    """Give a group's messages the seqs 1, 2, 3, ... in their order; return the number of changed messages."""
    statement = text(
        """UPDATE group_msgs SET seq = numbered.place
        FROM (SELECT msgid, row_number() OVER (ORDER BY msgid) AS place FROM group_msgs
              WHERE gid = :gid AND msgid BETWEEN 1 AND :highest) AS numbered
        WHERE group_msgs.gid = :gid AND group_msgs.msgid = numbered.msgid AND group_msgs.seq <> numbered.place"""
    )
    with database.writing() as connection:
        return connection.execute(statement, {"gid": gid, "highest": msgids.HIGHEST}).rowcount


def rewrite(database: Database, rows: Iterable[MessageRow]) -> None:
    """Set seq, span and recall of messages to those of their rows, in one transaction. Texts stay as they are."""
    statement = text(
        "UPDATE group_msgs SET seq = :seq, span = :span, recalls = :recalls WHERE gid = :gid AND msgid = :msgid"
    )
    names = ("gid", "msgid", "seq", "span", "recalls")
    values = [{name: getattr(row, name) for name in names} for row in rows]
    with database.writing() as connection:
        connection.execute(statement, values)
