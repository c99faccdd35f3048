"""`check` on a real server: positions beside the offset, in Redis and in SQL, each damaged by hand, and at random.

`IM_DAMAGE_SEEDS=500 pytest tests/integration/test_check_positions.py` damages that many more groups at random.
"""

import os
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.streams.keys import SEPARATOR, GroupKeys
from tests.helpers.checked_group import GID, UIDS, Damage, checked_group, nth, redis, said, sql
from tests.helpers.workers import persist
from tests.integration.test_check import answers, is_readable

SEEDS = range(int(os.environ.get("IM_DAMAGE_SEEDS", "25")))


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    with checked_group(valkey, sqlite_url) as chat:
        yield chat


def of_closed_span(command: str, key: str, *args: object) -> Damage:
    def damage(chat: Chat, k: GroupKeys) -> None:
        (span,) = (name for name in chat.system.client.driver.zrange(k.left, 0, -1) if name.startswith(b"{dee}"))
        assert chat.system.client.driver.execute_command(command, getattr(k, key), *args, span)

    return damage


def arrived_at_another_message(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.zadd(k.ahead, {"bob": msgids.pack(nth(chat, 20))})


def another_bookmark(chat: Chat, k: GroupKeys) -> None:
    chat.system.client.driver.hset(k.bookmarks, "bob", f"0 {msgids.pack(nth(chat, 14)) - 1}")


def of_bookmark(column: str, value: str) -> Damage:
    return sql(f"UPDATE bookmarks SET {column} = {value} WHERE gid = :gid AND uid = 'bob'")


def of_span(value: str, uid: str = "bob") -> Damage:
    return sql(f"UPDATE group_spans SET delivered_msgid = {value} WHERE gid = :gid AND uid = '{uid}'")


BOB, DEE = "delivered in the span of 'bob'", "delivered in the span of '{dee}'"
BOOKMARK = "bookmark of 'bob'"
DAMAGE: dict[str, tuple[Damage, str]] = {
    "redis lost what has arrived": (redis("DEL", "ahead"), BOB),
    "redis lost what has arrived in a closed span": (of_closed_span("ZREM", "ahead"), DEE),
    "redis lost the offsets of what has arrived": (redis("DEL", "ahead_acked"), BOB),
    "redis lost one offset of what has arrived": (of_closed_span("ZREM", "ahead_acked"), DEE),
    "an offset of what has arrived is another": (redis("ZADD", "ahead_acked", "CH", 5, "bob"), BOB),
    "an offset of what has arrived is no number": (redis("ZADD", "ahead_acked", "CH", "inf", "bob"), BOB),
    "what has arrived is not past the offset": (redis("ZADD", "ahead", "CH", 1, "bob"), BOB),
    "what has arrived is below zero": (redis("ZADD", "ahead", "CH", -5, "bob"), BOB),
    "what has arrived is beyond all messages": (redis("ZADD", "ahead", "CH", 1 << 52, "bob"), BOB),
    "what has arrived goes on for ever": (redis("ZADD", "ahead", "CH", "inf", "bob"), BOB),
    "what has arrived is beyond all numbers": (redis("ZADD", "ahead", "CH", 9e18, "bob"), BOB),
    "what has arrived is no whole number": (redis("ZADD", "ahead", "CH", 2**50 + 0.5, "bob"), BOB),
    "what has arrived goes beyond the end of a span": (of_closed_span("ZADD", "ahead", "CH", 1 << 51), DEE),
    "what has arrived goes further": (arrived_at_another_message, BOB),
    "somebody who is caught up has more": (redis("ZADD", "ahead", 7, "cy", 7, "ann"), "delivered in the span of 'cy'"),
    "somebody has an offset of what has arrived": (redis("ZADD", "ahead_acked", 7, "cy"), "of 'cy'"),
    "what has arrived at a stranger": (redis("ZADD", "ahead", 5, "eve"), "open span of 'eve' in ahead"),
    "an offset of a stranger": (redis("ZADD", "ahead_acked", 5, "eve"), "open span of 'eve' in ahead_acked"),
    "what has arrived in no span": (redis("ZADD", "ahead", 7, f"eve{SEPARATOR}5"), "span of 'eve'"),
    "redis lost a bookmark": (redis("HDEL", "bookmarks", "bob"), BOOKMARK),
    "redis lost all bookmarks": (redis("DEL", "bookmarks"), "bookmark of 'ann'"),
    "redis has another bookmark": (another_bookmark, BOOKMARK),
    "redis has a bookmark of a stranger": (redis("HSET", "bookmarks", "eve", "5 0"), "bookmark of 'eve'"),
    "redis has a bookmark of one who left": (redis("HSET", "bookmarks", "{dee}", "0 9"), "bookmark of '{dee}'"),
    "redis has a bookmark of no name": (redis("HSET", "bookmarks", f"bob{SEPARATOR}5", "0 9"), "bookmark of"),
    **{
        f"redis has the bookmark {value}": (
            lambda chat, k, value=value: chat.system.client.driver.hset(k.bookmarks, "bob", value),
            BOOKMARK,
        )
        for value in (
            "",
            "mine",
            "5",
            "0 0",
            "-5 0",
            "5 0 0",
            " 7 7",
            f"{1 << 52} 0",
            f"0 {1 << 52}",
            "9" * 20 + " 0",
            "1.5 0",
            "٣ 0",
        )
    },
    "sql lost what has arrived": (of_span("NULL"), BOB),
    "sql lost what has arrived in a closed span": (of_span("NULL", "{dee}"), DEE),
    "sql has less that has arrived": (of_span("acked_msgid + 1"), BOB),
    **{
        f"sql has arrived {value}": (of_span(value), BOB)
        for value in (
            "acked_msgid",
            "5",
            "-7",
            "9000000000000000000",
            "'many'",
            "x'ff41'",
            "1.5",
            ":newest + 1000000000000",
        )
    },
    **{
        f"sql has arrived {value} in a closed span": (of_span(value, "{dee}"), DEE)
        for value in (":newest", "acked_msgid", "'many'", "9000000000000000000")
    },
    "sql has an offset past the end of a span": (
        sql("UPDATE group_spans SET acked_msgid = :newest WHERE gid = :gid AND uid = '{dee}'"),
        "offset in the span of '{dee}'",
    ),
    "sql lost a bookmark": (sql("DELETE FROM bookmarks WHERE gid = :gid AND uid = 'bob'"), BOOKMARK),
    "sql has another bookmark": (of_bookmark("private_msgid", "private_msgid + 1"), BOOKMARK),
    "sql has a bookmark that was removed": (of_bookmark("mark_msgid = 0, private_msgid", "0"), BOOKMARK),
    "sql has a bookmark of another span": (of_bookmark("joined_msgid", "5"), BOOKMARK),
    **{
        f"sql has a bookmark with {column} {value}": (of_bookmark(column, value), BOOKMARK)
        for column in ("joined_msgid", "private_msgid", "mark_msgid", "changed")
        for value in ("-7", "'many'", "x'ff41'", "9000000000000000000")
    },
    "sql has a bookmark of another day": (of_bookmark("private_msgid", ":newest + 1000000000000"), BOOKMARK),
    "sql has a bookmark that changed another day": (of_bookmark("changed", "changed + 10000000000000"), BOOKMARK),
    "sql has a row of a stranger": (sql("INSERT INTO bookmarks VALUES (:gid, 'eve', 0, 5, 0, 'later')"), "of 'eve'"),
}
ANOTHER_ANSWER = {
    *("what has arrived goes further", "redis has another bookmark", "sql has an offset past the end of a span"),
}
"""Here the further position counts, or what Redis has, and that is another answer than before."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_repair_mends_each_damage_to_a_position(chat: Chat, kind: str) -> None:
    # Given
    damage, says = DAMAGE[kind]
    before = answers(chat)
    damage(chat, chat.system.client.space.group(GID))
    # When
    differences = list(check(chat.system))
    # Then
    assert any(says in each.what for each in differences), differences
    assert {each.gid for each in differences} == {GID}
    assert [each for each in differences for side in (each.redis, each.sql) if not is_readable(side)] == []
    # When
    repaired = list(check(chat.system, repair=True))
    # Then
    assert [each for each in repaired if not each.repaired] == []
    assert list(check(chat.system)) == []
    after = answers(chat)
    for question in before if kind not in ANOTHER_ANSWER else ["group", "members"]:
        assert after[question] == before[question], question
    # And all goes on
    chat.mark_unread("bob", GID, nth(chat, 22))
    chat.delivered("cy", GID, nth(chat, -1))
    persist(chat)
    assert list(check(chat.system)) == []


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind.startswith("sql")][::2])
def test_rebuild_spreads_no_damaged_position(chat: Chat, kind: str) -> None:
    DAMAGE[kind][0](chat, chat.system.client.space.group(GID))
    chat.system.client.driver.flushall()
    rebuild(chat.system)
    assert list(check(chat.system)) == []
    said(chat, 99)
    assert msgids.time_of(nth(chat, -1)).year < 2100
    chat.mark_unread("bob", GID, nth(chat, 22))
    persist(chat)
    assert list(check(chat.system)) == []
    assert [unread.marked for unread in chat.unread("bob") if unread.gid == GID] == [True]


NUMBERS = (-1, 0, 1, 2**50 + 0.5, 1 << 52, 9e18, "inf")
TEXTS = ("", "mine", "0 0", "5 0", "0 5", f"0 {1 << 52}", "1 2 3")
CELLS = ("NULL", "-1", "0", "5", "1.5", "'many'", "x'ff41'", "9000000000000000000")


class Vandal:
    """Damages Redis and SQL at random: keys, scores, fields, cells."""

    def __init__(self, chat: Chat, seed: int) -> None:
        self.random = random.Random(seed)
        self.driver = chat.system.client.driver
        self.chat = chat
        self.k = chat.system.client.space.group(GID)
        self.msgids = [msgids.pack(tally.message.msgid) for tally in chat.status(GID, limit=0)]

    def strike(self) -> None:
        self.random.choice([self.zset, self.zset, self.bookmark, self.span_cell, self.bookmark_cell, self.row])()

    def number(self) -> int | float | str:
        return self.random.choice([*NUMBERS, *self.random.sample(self.msgids, 4)])

    def zset(self) -> None:
        key = self.random.choice([self.k.ahead, self.k.ahead_acked, self.k.ahead, self.k.ahead_acked, self.k.acked])
        spans = [*self.driver.zrange(self.k.joined, 0, -1), "eve", f"eve{SEPARATOR}7"]
        if self.random.random() < 0.3:
            self.driver.zrem(key, self.random.choice(spans))
        else:
            self.driver.zadd(key, {self.random.choice(spans): self.number()})

    def bookmark(self) -> None:
        uid = self.random.choice([*UIDS, "eve"])
        position, other = self.random.sample([0, *self.msgids], 2)
        if self.random.random() < 0.3:
            self.driver.hdel(self.k.bookmarks, uid)
        else:
            self.driver.hset(self.k.bookmarks, uid, self.random.choice([*TEXTS, f"{position} {other}"]))

    def cell(self) -> str:
        return self.random.choice([*CELLS, *map(str, self.random.sample(self.msgids, 4))])

    def span_cell(self) -> None:
        self.sql(f"UPDATE group_spans SET delivered_msgid = {self.cell()} WHERE gid = :gid AND uid = :uid")

    def bookmark_cell(self) -> None:
        column = self.random.choice(["joined_msgid", "private_msgid", "mark_msgid", "changed"])
        value = self.cell().replace("NULL", "0")
        self.sql(f"UPDATE bookmarks SET {column} = {value} WHERE gid = :gid AND uid = :uid")

    def row(self) -> None:
        self.sql("DELETE FROM bookmarks WHERE gid = :gid AND uid = :uid")

    def sql(self, statement: str) -> None:
        with self.chat.system.database.writing() as connection:
            connection.execute(text(statement), {"gid": GID, "uid": self.random.choice(UIDS)})


@pytest.mark.parametrize("seed", SEEDS)
def test_repair_mends_random_damage_to_positions(chat: Chat, seed: int) -> None:
    # Given
    vandal = Vandal(chat, seed)
    for _ in range(vandal.random.randint(1, 12)):
        vandal.strike()
    # When
    list(check(chat.system, repair=True))
    list(check(chat.system, repair=True))
    # Then
    assert list(check(chat.system)) == []
    # And all goes on, with no position that no message has
    newest = chat.status(GID, limit=1)[0].message.msgid
    assert all((member.last_ack_msgid or "") <= newest for member in chat.members(GID))
    for uid in ("ann", "bob", "cy"):
        chat.ack(uid, GID, newest, private=True)
        chat.mark_unread(uid, GID, nth(chat, -2))
        chat.ack(uid, GID)
    persist(chat)
    assert list(check(chat.system)) == []
    assert [chat.unread(uid)[-1].unread for uid in ("ann", "bob", "cy")] == [0, 0, 0]
