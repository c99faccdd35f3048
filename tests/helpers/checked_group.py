"""A group with a history on a real server and SQLite, and what may damage it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin.retention import trim
from imcore.settings import Settings
from imcore.streams.keys import GroupKeys
from tests.helpers.workers import persist

GID = "群 #1"
UIDS = ("ann", "bob", "cy", "{dee}")
MESSAGES = 30


@contextmanager
def checked_group(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    """A group with a history, all of it stored: who left and came back, who is behind, a recall, a trim point.

    More has arrived at bob, and at {dee} who left, than they have read. Bob has read some of it in private, and ann has
    marked messages unread, one of which only SQL has.
    """
    with opened(valkey, sqlite_url) as chat:
        chat.system.database.upgrade()
        chat.create_group(GID, UIDS)
        chat.create_group("other", UIDS[:2])
        for number in range(MESSAGES):
            said(chat, number)
        chat.ack("bob", GID, nth(chat, 12))
        arrived(chat, "bob", 12, 17)
        arrived(chat, "{dee}", 0, 5)
        chat.remove_members(GID, ["cy", "{dee}"])
        said(chat, MESSAGES, "bob")
        chat.add_members(GID, ["cy"])
        said(chat, MESSAGES + 1, "bob")
        said(chat, MESSAGES + 2, "cy")
        chat.recall(GID, nth(chat, 25), by="ann", admin=True)
        chat.send("other", "hello", sender_uid="ann")
        chat.ack("bob", GID, nth(chat, 15), private=True)
        chat.ack("ann", GID, nth(chat, 13))
        chat.mark_unread("ann", GID, nth(chat, 11))
        persist(chat)
        trim(chat.system, keep_messages=20)
        yield chat


def opened(valkey: str, database_url: str) -> Chat:
    return Chat.connect(
        valkey, database_url, settings=replace(Settings.from_env({}), block_ms=0, retry_ms=0, partitions=2)
    )


def said(chat: Chat, number: int, sender: str = "") -> None:
    chat.send(GID, f"message {number}", sender_uid=sender or UIDS[number % 3], client_msgid=f"c{number}")


def nth(chat: Chat, number: int) -> str:
    return chat.status(GID, limit=0)[number].message.msgid


def arrived(chat: Chat, uid: str, begin: int, end: int) -> None:
    for number in range(begin, end):
        chat.delivered(uid, GID, nth(chat, number))


# Damage: what is done to Redis or to SQL.

Damage = Callable[[Chat, GroupKeys], object]


def sql(statement: str, **values: object) -> Damage:
    def damage(chat: Chat, _: GroupKeys) -> None:
        with chat.system.database.connection() as connection:
            newest = chat.group(GID).last_msgid
            given = {"gid": GID, "newest": msgids.pack(newest or ""), **values}
            names = {name: value for name, value in given.items() if f":{name}" in statement}
            assert connection.execute(text(statement), names).rowcount

    return damage


def redis(command: str, key: str, *args: object) -> Damage:
    def damage(chat: Chat, k: GroupKeys) -> None:
        name = {"own_unacked": k.own_unacked("bob"), "groups_of": k.groups_of("bob")}.get(key) or getattr(k, key)
        assert chat.system.client.driver.execute_command(command, name, *args)

    return damage


def lose_message(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.xdel(k.stream, nth(chat, 20))


def lose_newest_message(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.xdel(k.stream, nth(chat, -1))


def lose_stream(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.delete(k.stream)


def garbage(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.xadd(k.stream, {"nonsense": "1"})


def back(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.xgroup_setid(k.stream, "bob", nth(chat, 11))


def ahead(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.xgroup_setid(k.stream, "bob", nth(chat, 20))


def stray_reader(chat: Chat, k: GroupKeys) -> None:
    assert chat.system.client.driver.xreadgroup("bob", "device", {k.stream: ">"})


def index_ahead(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.zadd(k.acked, {"bob": msgids.pack(nth(chat, 20))})


def closed_span(chat: Chat, k: GroupKeys) -> None:
    (span,) = (name for name in chat.system.client.driver.zrange(k.left, 0, -1) if name.startswith(b"{dee}"))
    chat.system.client.driver.zrem(k.left, span)


def beyond_its_end(chat: Chat, k: GroupKeys) -> None:
    (span,) = (name for name in chat.system.client.driver.zrange(k.left, 0, -1) if name.startswith(b"{dee}"))
    chat.system.client.driver.zadd(k.acked, {span: 1 << 51})


def end_beyond(chat: Chat, k: GroupKeys) -> None:
    (span,) = (name for name in chat.system.client.driver.zrange(k.left, 0, -1) if name.startswith(b"{dee}"))
    chat.system.client.driver.zadd(k.left, {span: 9e18})


def end_of_another_day(chat: Chat, k: GroupKeys) -> None:
    (span,) = (name for name in chat.system.client.driver.zrange(k.left, 0, -1) if name.startswith(b"{dee}"))
    chat.system.client.driver.zincrby(k.left, 1_000_000_000_000, span)


def begun_another_day(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.zadd(k.joined, {"bob": msgids.pack(nth(chat, -1)) + 1_000_000_000_000})


def recall_at_another_place(chat: Chat, k: GroupKeys) -> None:
    (recalled, _) = chat.system.client.driver.zrange(k.recalled, 0, -1)
    chat.system.client.driver.zadd(k.recalled, {recalled: 5})


def listed_too_often(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.sadd(k.groups_of("{dee}"), GID)


def own_in_disorder(chat: Chat, k: GroupKeys) -> None:
    client, key = chat.system.client.driver, k.own_unacked("bob")
    client.rpush(key, client.lpop(key))


def claimed(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.hset(k.group_locks, GID, "somebody 0")
