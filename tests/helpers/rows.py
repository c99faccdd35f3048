"""Rows to store, and what is stored."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from imcore import msgid as msgids
from imcore.model.rows import Batch, BookmarkRow, GroupRow, MessageRow, MoveRow, SpanRow, UserRow, folded
from imcore.msgid import to_ms
from imcore.sql.database import Database
from imcore.sql.moves import movers_of
from imcore.sql.tables import OFFSET_MOVES, Stored

FIRST_MS = 1_767_225_600_123


def at(number: int) -> int:
    """The packed msgid of message 1, 2, ...; 0 is before the first."""
    return msgids.first_at(FIRST_MS + number * 1000) if number else msgids.NONE


def message(number: int, gid: str = "g", **fields: Any) -> MessageRow:
    """The message of that number and seq, by ann."""
    return MessageRow(gid, at(number), number, "ann", 0, f"message {number}", None, None)._replace(**fields)


def stored(database: Database) -> Batch:
    """All rows of the tables in the form in which they were written, in order of key. Moves are as of one batch."""
    with database.connection() as connection:
        rows: dict[str, Sequence[Any]] = {
            name: connection.execute(select(table).order_by(*table.primary_key)).all()
            for name, table in Stored.metadata.tables.items()
        }
    return Batch(
        groups=[
            GroupRow(row.gid, to_ms(row.created_at), row.receipts, row.asked_by, row.policy_changed)
            for row in rows["chat_groups"]
        ],
        messages=[
            MessageRow(
                *(row.gid, row.msgid, row.seq, row.sender_uid, row.span, row.content, row.client_msgid),
                sent_at_ms=row.sent_at and to_ms(row.sent_at),
            )
            for row in rows["group_msgs"]
        ],
        spans=[SpanRow(*row) for row in rows["group_spans"]],
        bookmarks=[BookmarkRow(*row) for row in rows["bookmarks"]],
        users=[UserRow(*row) for row in rows["user_settings"]],
        moves=folded(
            MoveRow(row.gid, row.msgid, row.start, row.entry + (delay << msgids.COUNTER_BITS), (uid,))
            for row in rows["offset_moves"]
            for uid, delay in movers_of(row.uids)
        ),
    )


def count_moves(database: Database) -> int:
    """How many moves of a uid are stored. A worker that was killed may have stored one twice: it counts once."""
    rows = database.fetch(select(*OFFSET_MOVES.c))
    return len({(row.gid, row.start, row.msgid, uid) for row in rows for uid, _ in movers_of(row.uids)})


def clear(database: Database) -> None:
    """Remove all rows."""
    with database.connection() as connection:
        for table in Stored.metadata.tables.values():
            connection.execute(table.delete())


def contents(database: Database) -> list[str]:
    """The contents of all messages, oldest first."""
    with database.connection() as connection:
        return list(connection.exec_driver_sql("SELECT content FROM group_msgs ORDER BY msgid").scalars())
