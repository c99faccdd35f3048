"""A chat that gives workers work, and the rows that are stored."""

from sqlalchemy import text

from imcore import Chat
from imcore.model.values import Draft
from imcore.sql.database import Database
from imcore.streams.calls.message_calls import AckTarget, ack, send

UIDS = [f"user{number}" for number in range(20)]


def talk(chat: Chat, gid: str = "g", count: int = 100) -> None:
    """Have a group of twenty send `count` messages, and one of them ack all."""
    chat.create_group(gid, UIDS)
    for start in range(0, count, 100):
        drafts = [Draft(UIDS[number % 20], f"{number}") for number in range(start, min(count, start + 100))]
        chat.system.client.call(send(chat.system.client.space, gid, drafts, 1000))
    chat.system.client.call(ack(chat.system.client.space, gid, [AckTarget(None, [UIDS[0]])]))


def count(database: Database, table: str = "group_msgs") -> int:
    with database.connection() as connection:
        rows: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    return rows
