"""`check` on a real server: it finds each kind of damage, mends it, and is not misled by what is on its way."""

import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin.retention import trim
from imcore.errors import NotMember, RefusedError, TryAgain, UnknownMessage
from imcore.model.rows import Batch, GroupRow, SpanRow
from imcore.repair.check import Checked, check
from imcore.repair.check_members import followers
from imcore.repair.check_messages import MessageAudit
from imcore.repair.diff import Difference
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql import queries
from imcore.streams import keys
from imcore.streams.keys import SEPARATOR, GroupKeys
from imcore.workers.receipts import ReceiptsWorker
from tests.deadline import wait_until
from tests.persist_runs import new_persist

GID = "群 #1"
UIDS = ("ann", "bob", "cy", "{dee}")
MESSAGES = 30
ROUNDS = int(os.environ.get("IM_CHECK_ROUNDS", "10"))
"""How often all is checked while people use the system."""
PAUSE_S = 0.003
"""How long each of them waits between two steps: the machine is to do other things, too."""


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    """A group with a history, all of it stored: who left and came back, who is behind, a recall, a trim point."""
    with opened(valkey, sqlite_url) as chat:
        chat.system.database.upgrade()
        chat.create_group(GID, UIDS)
        chat.create_group("other", UIDS[:2])
        for number in range(MESSAGES):
            said(chat, number)
        chat.ack("bob", GID, nth(chat, 12))
        chat.remove_members(GID, ["cy", "{dee}"])
        said(chat, MESSAGES, "bob")
        chat.add_members(GID, ["cy"])
        said(chat, MESSAGES + 1, "bob")
        said(chat, MESSAGES + 2, "cy")
        chat.recall(GID, nth(chat, 25), by="ann", admin=True)
        chat.send("other", "hello", sender_uid="ann")
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


def persist(chat: Chat) -> None:
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    while worker.step():
        pass
    worker.close()


def test_what_agrees_is_no_difference(chat: Chat) -> None:
    assert list(check(chat.system)) == []


def test_progress_says_from_the_beginning_how_many_groups_there_are(chat: Chat) -> None:
    told: list[Checked] = []

    assert list(check(chat.system, on_progress=told.append)) == []

    assert told == [Checked(0, 2), Checked(2, 2)]


def test_what_no_worker_stores_is_one_line(chat: Chat) -> None:
    # Given a group of which SQL knows nothing, and changes in another one
    chat.create_group("new", ["ann", "bob"])
    said_first = chat.send("new", "first", sender_uid="ann")
    chat.ack("bob", "new", said_first.msgid)
    said(chat, 99)
    chat.ack("ann", GID)
    chat.recall(GID, nth(chat, 30), by="bob", admin=True)
    chat.remove_members(GID, ["ann"])
    # When, then
    (found,) = check(chat.system, repair=True)
    assert (found.gid, found.sql, found.repaired) == ("", "not stored", False)
    # And once it is stored, nothing
    persist(chat)
    assert list(check(chat.system)) == []


# Each kind of damage: what is done to Redis or to SQL, and something that the line about it says.

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


DAMAGE: dict[str, tuple[Damage, str]] = {
    "redis lost a message": (lose_message, "message"),
    "redis lost the newest message": (lose_newest_message, "message"),
    "redis lost a stream": (lose_stream, "message"),
    "redis lost a group": (redis("DEL", "meta"), "group"),
    "redis lost all of a group": (
        lambda chat, k: chat.system.client.driver.delete(k.meta, k.stream, k.acked, k.joined, k.left, k.recalled),
        "group",
    ),
    "redis lost a group's name": (redis("SREM", "groups", GID), "group in the list of all"),
    "redis has an entry that is no message": (garbage, "cannot be read"),
    "redis has a wrong head": (redis("HSET", "meta", "x", 1, "seq", 7, "last", 9), "newest message"),
    "redis has the trim point too low": (redis("HSET", "meta", "x", 1, "trimmed", 0), "trim point"),
    "redis lost an offset": (redis("ZREM", "acked", "bob"), "offset in the span of 'bob'"),
    "redis lost a beginning": (redis("ZREM", "joined", "bob"), "beginning of the span of 'bob'"),
    "redis lost an end": (closed_span, "end of the span of '{dee}'"),
    "redis lost closed spans": (redis("DEL", "left"), "end of the span"),
    "redis lost a consumer group": (redis("XGROUP DESTROY", "stream", "bob"), "consumer group of 'bob'"),
    "a consumer group is behind": (back, "consumer group of 'bob'"),
    "a consumer group is ahead": (ahead, "consumer group of 'bob'"),
    "a consumer group was read from": (stray_reader, "consumer group of 'bob'"),
    "a consumer group too many": (redis("XGROUP CREATE", "stream", "eve", "0"), "consumer group of 'eve'"),
    "the index is ahead": (index_ahead, "offset in the span of 'bob'"),
    "the index has a stranger": (redis("ZADD", "acked", 0, "eve"), "open span of 'eve' in acked"),
    "the index has a span too many": (redis("ZADD", "joined", 5, f"eve{SEPARATOR}5"), "span of 'eve'"),
    "the index goes beyond the end of a span": (beyond_its_end, "offset in the span of '{dee}'"),
    "the index goes beyond all messages": (redis("ZADD", "acked", "CH", 1 << 52, "bob"), "offset in the span of 'bob'"),
    "the index goes on for ever": (redis("ZADD", "acked", "CH", "inf", "bob"), "offset in the span of 'bob'"),
    "the index is beyond all numbers": (redis("ZADD", "acked", "CH", 9e18, "bob"), "offset in the span of 'bob'"),
    "the index is no whole number": (redis("ZADD", "acked", "CH", 2**50 + 0.5, "bob"), "offset in the span of 'bob'"),
    "a beginning is beyond all numbers": (
        redis("ZADD", "joined", "CH", 9e18, "bob"),
        "beginning of the span of 'bob'",
    ),
    "an end is beyond all numbers": (end_beyond, "end of the span of '{dee}'"),
    "an end is of another day": (end_of_another_day, "end of the span of '{dee}'"),
    "a beginning is of another day": (begun_another_day, "beginning of the span of 'bob'"),
    "redis lost own messages": (redis("DEL", "own_unacked"), "of 'bob' past the offset"),
    "redis has an own message too many": (redis("RPUSH", "own_unacked", 1 << 52), "of 'bob' past the offset"),
    "redis has an own message that is none": (redis("RPUSH", "own_unacked", "mine"), "data"),
    "a user is listed under a group too many": (listed_too_often, "group among those of '{dee}'"),
    "redis lost a user's group": (redis("DEL", "groups_of"), "group among those of 'bob'"),
    "redis lost a recall": (redis("DEL", "recalled"), "recall of message"),
    "redis has a recall too many": (redis("ZADD", "recalled", 77, 77), "recall of message"),
    "redis has a recall at another place": (recall_at_another_place, "score of a recalled message"),
    "redis has a head that is no number": (redis("HSET", "meta", "x", 1, "seq", "many"), "newest message"),
    "sql has what was recalled": (
        sql("UPDATE group_msgs SET content = 'back' WHERE gid = :gid AND seq = 26"),
        "text of recalled message",
    ),
    "sql lost what was recalled": (sql("UPDATE group_msgs SET recalls = NULL WHERE gid = :gid"), "recalls of message"),
    "sql lost a message": (sql("DELETE FROM group_msgs WHERE gid = :gid AND msgid = :newest"), "message"),
    "sql lost the newest messages": (sql("DELETE FROM group_msgs WHERE gid = :gid AND seq > 15"), "message"),
    "own messages are out of order": (own_in_disorder, "order of the own messages of 'bob'"),
    "sql has another sender's span": (
        sql("UPDATE group_msgs SET span = NULL WHERE gid = :gid AND msgid = :newest"),
        "span of message",
    ),
    "somebody died over mending it": (claimed, "mending"),
    "sql has another seq": (sql("UPDATE group_msgs SET seq = 99 WHERE gid = :gid AND msgid = :newest"), "seq of"),
    "sql lost the group": (sql("DELETE FROM chat_groups WHERE gid = :gid"), "group"),
    "sql lost a span": (sql("DELETE FROM group_spans WHERE gid = :gid AND uid = 'bob'"), "open span of 'bob'"),
    "sql lost all spans": (sql("DELETE FROM group_spans WHERE gid = :gid"), "span of"),
    "sql has an offset behind": (
        sql("UPDATE group_spans SET acked_msgid = 0 WHERE gid = :gid AND uid = 'bob'"),
        "offset in the span of 'bob'",
    ),
    "sql has an offset ahead": (
        sql("UPDATE group_spans SET acked_msgid = :newest WHERE gid = :gid AND uid = 'bob'"),
        "offset in the span of 'bob'",
    ),
    "sql has an offset beyond all numbers": (
        sql("UPDATE group_spans SET acked_msgid = 9000000000000000000 WHERE gid = :gid AND uid = 'bob'"),
        "offset in the span of 'bob'",
    ),
    "sql has an offset of another day": (
        sql("UPDATE group_spans SET acked_msgid = :newest + 1000000000000 WHERE gid = :gid AND uid = 'bob'"),
        "offset in the span of 'bob'",
    ),
    "sql has an offset that is no number": (
        sql("UPDATE group_spans SET acked_msgid = 'many' WHERE gid = :gid AND uid = 'bob'"),
        "offset in the span of 'bob'",
    ),
    "sql has an offset of another day in a closed span": (
        sql("UPDATE group_spans SET acked_msgid = :newest + 1000000000000 WHERE gid = :gid AND uid = '{dee}'"),
        "offset in the span of '{dee}'",
    ),
    "sql has an end that did not come": (
        sql("UPDATE group_spans SET left_msgid = :newest WHERE gid = :gid AND uid = 'bob'"),
        "span of 'bob'",
    ),
    "sql has an end that no message can have": (
        sql("UPDATE group_spans SET left_msgid = 9000000000000000000 WHERE gid = :gid AND uid = '{dee}'"),
        "end of the span of '{dee}'",
    ),
    "sql has an end that is no number": (
        sql("UPDATE group_spans SET left_msgid = 'long ago' WHERE gid = :gid AND uid = '{dee}'"),
        "end of the span of '{dee}'",
    ),
    "sql has no end": (
        sql("UPDATE group_spans SET left_msgid = NULL WHERE gid = :gid AND uid = '{dee}'"),
        "span of '{dee}'",
    ),
}


def is_readable(side: str) -> bool:
    """Return whether a side says something, in words and msgids."""
    return bool(side) and "None" not in side and not re.search(r"(?<![-.\d])\d{14,}(?![-\d])", side)


OFFSETS_MOVE = {"the index is ahead", "sql has an offset ahead"}
"""Here the further one wins, and that is another answer than before."""
MEMBERS_GO = {"sql has an end that did not come"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_found_and_mended(chat: Chat, kind: str) -> None:
    # Given
    damage, says = DAMAGE[kind]
    before = answers(chat)
    damage(chat, chat.system.client.space.group(GID))
    # When
    found = list(check(chat.system))
    # Then it says so, and looking has changed nothing
    assert any(says in each.what for each in found), found
    assert {each.gid for each in found} == {GID}
    assert [each for each in found for side in (each.redis, each.sql) if not is_readable(side)] == []
    assert [(each.what, each.repaired) for each in check(chat.system)] == [(each.what, False) for each in found]
    # When
    mended = list(check(chat.system, repair=True))
    # Then
    assert [each for each in mended if not each.repaired] == []
    assert list(check(chat.system)) == []
    after = answers(chat)
    for question in before if kind not in OFFSETS_MOVE | MEMBERS_GO else ["group"] if kind in OFFSETS_MOVE else []:
        assert after[question] == before[question], question
    # And the consumer groups stand where the index does
    k = chat.system.client.space.group(GID)
    acked = {
        uid: int(score) for uid, score in chat.system.client.driver.zscan_iter(k.acked) if SEPARATOR.encode() not in uid
    }
    assert followers(chat.system.client, k.stream) == {uid.decode(): score for uid, score in acked.items()}


def test_the_data_of_another_system_is_left_alone(chat: Chat, valkey: str, tmp_path: Path) -> None:
    # Given the database of another system, with a group of the same name
    with opened(valkey, f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.system.database.upgrade()
        other.system.database.set_meta("dataset", "another")
        other.system.database.write(Batch(groups=[GroupRow(GID, 0)], spans=[SpanRow(GID, "mallory", 0, None, 1, 0)]))
        before = answers(chat)
        # When
        (found,) = check(other, repair=True)
        # Then
        assert (found.what, found.sql, found.repaired) == ("dataset", "another", False)
        with pytest.raises(RefusedError, match=r"set IM_DATABASE_URL or IM_REDIS_URL if .* --adopt"):
            rebuild(other, yes=True)
    assert answers(chat) == before
    assert "mallory" not in {member.uid for member in chat.members(GID)}
    assert list(check(chat.system)) == []
    persist(chat)


def test_a_new_database_in_place_of_one_that_is_lost_is_filled(chat: Chat, valkey: str, tmp_path: Path) -> None:
    with opened(valkey, f"sqlite:///{tmp_path / 'new.db'}") as other:
        other.system.database.upgrade()
        said(other, 99)
        # When
        list(check(other, repair=True))
        # Then it has what Redis has, and the workers go on with it
        said(other, 100)
        persist(other)
        rows = other.system.database.messages_after(GID, 0)
        assert [row.content for row in rows][-2:] == ["message 99", "message 100"]
        assert len(rows) == 22


def test_the_time_of_a_message_is_that_of_its_msgid(valkey: str, database_url: str) -> None:
    with opened(valkey, database_url) as chat:
        # Given
        chat.system.database.upgrade()
        chat.create_group(GID, UIDS)
        for number in range(MESSAGES):
            said(chat, number)
        persist(chat)
        assert list(check(chat.system)) == []
        sql("UPDATE group_msgs SET time = '2020-01-02T03:04:05.678Z' WHERE gid = :gid AND seq = 5")(
            chat, chat.system.client.space.group(GID)
        )
        # When
        (found,) = check(chat.system, repair=True)
        # Then
        message = chat.status(GID, limit=0)[4].message
        assert found.what == f"time of message {message.msgid}"
        assert found.redis == f"{message.time:%Y-%m-%dT%H:%M:%S}.{message.time.microsecond // 1000:03}Z"
        assert (found.sql, found.repaired) == ("2020-01-02T03:04:05.678Z", True)
        assert list(check(chat.system)) == []


@pytest.mark.parametrize("number", [1, 2])
def test_an_entry_that_is_no_message_is_named_by_its_own_id(chat: Chat, number: int) -> None:
    stream = chat.system.client.space.group(GID).stream
    ids = [chat.system.client.driver.xadd(stream, {"nonsense": "1"}).decode() for _ in range(number)]
    assert [each.what for each in check(chat.system)] == [f"message {entry_id} that cannot be read" for entry_id in ids]


def test_what_both_sides_have_lost_shows_in_the_order(chat: Chat) -> None:
    # Given
    k = chat.system.client.space.group(GID)
    lost, after = nth(chat, 20), nth(chat, 21)
    chat.system.client.driver.xdel(k.stream, lost)
    sql("DELETE FROM group_msgs WHERE gid = :gid AND msgid = :lost", lost=msgids.pack(lost))(chat, k)
    # When
    (found,) = check(chat.system)
    # Then
    assert (found.what, found.redis, found.sql) == (
        f"order of message {after}",
        "seq 22 after seq 20",
        "seq 22 by 'ann'",
    )


IMPOSSIBLE = ("9000000000000000000", ":newest + 1000000000000", "'many'")
"""Offsets that no message can have, as SQL takes them."""


@pytest.mark.parametrize("offset", IMPOSSIBLE)
def test_where_no_message_can_have_either_offset_the_newest_one_counts(chat: Chat, offset: str) -> None:
    # Given
    k = chat.system.client.space.group(GID)
    sql(f"UPDATE group_spans SET acked_msgid = {offset} WHERE gid = :gid AND uid = 'bob'")(chat, k)
    chat.system.client.driver.zadd(k.acked, {"bob": float("inf")})
    # When
    (found,) = (each for each in check(chat.system, repair=True) if each.what.startswith("offset"))
    # Then
    assert all(side.endswith(": no message can have that id") for side in (found.redis, found.sql))
    assert found.repaired
    assert list(check(chat.system)) == []
    newest = chat.group(GID).last_msgid
    assert {member.uid: member.last_ack_msgid for member in chat.members(GID)}["bob"] == newest


def test_what_redis_and_sql_agree_on_is_told_if_no_message_can_have_it(chat: Chat) -> None:
    k = chat.system.client.space.group(GID)
    offset = msgids.pack(nth(chat, -1)) + 1_000_000_000_000
    chat.system.client.driver.zadd(k.acked, {"bob": offset})
    chat.system.client.driver.xgroup_setid(k.stream, "bob", msgids.unpack(offset))
    sql("UPDATE group_spans SET acked_msgid = :offset WHERE gid = :gid AND uid = 'bob'", offset=offset)(chat, k)
    (found,) = check(chat.system)
    assert found.redis == found.sql == f"{msgids.unpack(offset)}: no message can have that id"


def close_before_the_last_word(chat: Chat) -> str:
    """Close the span of bob by hand in SQL, before something that he says; return the id of that."""
    before = nth(chat, -1)
    last_word = chat.send(GID, "one more thing", sender_uid="bob").msgid
    for number in range(3):
        said(chat, 50 + number, "ann")
    persist(chat)
    sql("UPDATE group_spans SET left_msgid = :left WHERE gid = :gid AND uid = 'bob'", left=msgids.pack(before))(
        chat, chat.system.client.space.group(GID)
    )
    return last_word


@pytest.mark.parametrize("has_redis_lost_it", [False, True])
def test_a_span_goes_on_to_the_last_that_was_said_in_it(chat: Chat, has_redis_lost_it: bool) -> None:
    # Given
    last_word = close_before_the_last_word(chat)
    # When
    if has_redis_lost_it:
        chat.system.client.driver.flushall()
        rebuild(chat.system)
    else:
        assert [each for each in check(chat.system, repair=True) if not each.repaired] == []
    # Then
    assert list(check(chat.system)) == []
    newest = {message.msgid for message in (tally.message for tally in chat.status(GID, limit=3))}
    assert all("bob" not in chat.message_status(GID, msgid).unread_by for msgid in newest)
    with chat.system.database.connection() as connection:
        ends = connection.scalars(
            text("SELECT left_msgid FROM group_spans WHERE gid = :gid AND uid = 'bob'"), {"gid": GID}
        )
        assert list(ends) == [msgids.pack(last_word)]


def test_so_it_does_where_both_sides_have_the_wrong_end(chat: Chat) -> None:
    # Given
    close_before_the_last_word(chat)
    with pytest.MonkeyPatch.context() as as_it_was:
        as_it_was.setattr(queries, "newest_own", lambda *_, **__: {})
        list(check(chat.system, repair=True))
    assert {each.what.split()[0] for each in check(chat.system)} == {"tally"}
    # When
    mended = list(check(chat.system, repair=True))
    # Then
    assert [each for each in mended if not each.repaired] == []
    assert list(check(chat.system)) == []


def test_seqs_that_are_wrong_below_the_trim_point_are_found(chat: Chat) -> None:
    sql("UPDATE group_msgs SET seq = 5 - seq WHERE gid = :gid AND seq IN (2, 3)")(
        chat, chat.system.client.space.group(GID)
    )
    found = list(check(chat.system))
    assert [each.what.split()[0] for each in found] == ["place", "place"]


def test_a_group_that_cannot_be_read_hides_no_other(chat: Chat) -> None:
    # Given one key of the wrong type, and damage elsewhere
    k, other = chat.system.client.space.group(GID), chat.system.client.space.group("other")
    chat.system.client.driver.delete(other.acked)
    chat.system.client.driver.set(other.acked, "text")
    chat.system.client.driver.zrem(k.acked, "bob")
    # When
    found = list(check(chat.system, repair=True))
    # Then
    assert {(each.gid, each.repaired) for each in found} == {("other", False), (GID, True)}
    assert any("WRONGTYPE" in each.redis for each in found)


def test_damage_is_found_while_a_group_changes_all_the_time(chat: Chat, valkey: str, sqlite_url: str) -> None:
    # Given, in a group where somebody speaks at every moment
    k = chat.system.client.space.group(GID)
    strange = msgids.pack(nth(chat, 15))
    chat.system.client.driver.zadd(k.recalled, {str(strange): strange})
    chat.add_members(GID, ["zoe"])
    said(chat, 77)
    chat.system.client.driver.rpush(k.own_unacked("zoe"), msgids.pack(nth(chat, -1)))
    persist(chat)
    with Crowd(valkey, sqlite_url):
        # When
        found = {each.what for each in check(chat.system) if not each.unsure}
    # Then
    assert any(what.startswith("recall of message") for what in found)
    assert any("of 'zoe' past the offset" in what for what in found)


def test_what_has_no_one_answer_is_said_and_left(chat: Chat) -> None:
    sql("UPDATE group_msgs SET content = 'forged' WHERE gid = :gid AND msgid = :newest")(
        chat, chat.system.client.space.group(GID)
    )
    (found,) = check(chat.system, repair=True)
    assert (found.what.split()[0], found.repaired) == ("content", False)
    assert "forged" in found.sql


def answers(chat: Chat) -> dict[str, object]:
    """All that can be asked, of every message and everybody."""
    messages = [tally.message.msgid for tally in chat.status(GID, limit=0)]
    return {
        "group": chat.group(GID),
        "members": list(chat.members(GID)),
        "pull": [chat.pull(uid) for uid in UIDS],
        "unread": [chat.unread(uid) for uid in UIDS],
        "tallies": chat.status(GID, limit=0),
        "names": [chat.message_status(GID, msgid) for msgid in messages],
    }


def test_what_happens_meanwhile_is_no_difference(chat: Chat, valkey: str, sqlite_url: str) -> None:
    """People talk, ack, come and go; the worker stores it; retention trims: and all the while `check` finds nothing."""
    # Given
    with Crowd(valkey, sqlite_url) as crowd:
        for number in range(ROUNDS):
            crowd.trims = number >= ROUNDS // 2
            # When, then
            found = list(check(chat.system))
            assert found == []
    persist(chat)
    assert list(check(chat.system)) == []


def test_damage_is_mended_while_all_goes_on(chat: Chat, valkey: str, sqlite_url: str) -> None:
    # Given
    k = chat.system.client.space.group(GID)
    with Crowd(valkey, sqlite_url):
        for damage in (lose_message, redis("ZREM", "acked", "bob"), redis("DEL", "left"), redis("DEL", "own_unacked")):
            chat.remove_members(GID, ["bob"])
            chat.add_members(GID, ["bob"])
            said(chat, 0, "bob")
            # When
            with suppress(AssertionError):  # nothing was there to be lost
                damage(chat, k)
            # Then
            assert [each for each in check(chat.system, repair=True) if not each.repaired] == []
    persist(chat)
    assert list(check(chat.system)) == []


class Crowd:
    """Threads that use the system for as long as they are let."""

    def __init__(self, valkey: str, database_url: str) -> None:
        self.trims = False
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        tasks = (self._talk, self._ack, self._come_and_go, self._store, self._trim)
        self._chats = [opened(valkey, database_url) for _ in tasks]
        self._threads = [
            threading.Thread(target=self._run, args=(task, chat)) for task, chat in zip(tasks, self._chats, strict=True)
        ]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        client = self._chats[0].client.driver
        wait_until(lambda: client.exists(keys.lease("persist", 1)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for chat in self._chats:
            chat.close()
        assert self._errors == []

    def _run(self, task: Callable[[Chat, random.Random], object], chat: Chat) -> None:
        try:
            chance = random.Random(1)
            while not self._stop.wait(PAUSE_S):
                with suppress(NotMember, UnknownMessage):
                    task(chat, chance)
        except BaseException as error:  # for the test to see
            self._errors.append(error)

    def _talk(self, chat: Chat, chance: random.Random) -> None:
        chat.send(chance.choice((GID, "other")), "talk", sender_uid=chance.choice(UIDS[:3]))

    def _ack(self, chat: Chat, chance: random.Random) -> None:
        gid = chance.choice((GID, "other"))
        tallies = chat.status(gid, limit=5)
        chat.ack(chance.choice(UIDS), gid, chance.choice(tallies).message.msgid if tallies else None)

    def _come_and_go(self, chat: Chat, chance: random.Random) -> None:
        uid = chance.choice(UIDS)
        chance.choice((chat.add_members, chat.remove_members))("other", [uid])

    def _store(self, chat: Chat, _: random.Random) -> None:
        self._worker = getattr(self, "_worker", None) or new_persist(
            chat.system.client, chat.system.database, chat.system.settings
        )
        with suppress(TryAgain):  # somebody mends: a worker waits, and goes on
            self._worker.step()
        if self._stop.is_set():
            self._worker.close()

    def _trim(self, chat: Chat, chance: random.Random) -> None:
        if self.trims:
            trim(chat.system, keep_messages=chance.randrange(3, 30))


def test_a_journal_that_is_trimmed_meanwhile_hides_nothing_that_happened(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given somebody who reads while both sides are read, and a trim before check asks what has happened meanwhile
    tell(chat)
    trim(chat.system)
    tallies, acks = MessageAudit._tallies, iter([20, 25])

    def meanwhile(self: MessageAudit, some: list[Any]) -> list[Difference]:
        answer = list(tallies(self, some))
        for number in islice(acks, 1):
            chat.ack("ann", GID, nth(chat, number))
            answer = list(tallies(self, some))
            persist(chat)
            tell(chat)
            assert trim(chat.system).journal_entries
        return answer

    monkeypatch.setattr(MessageAudit, "_tallies", meanwhile)
    # Then
    assert list(check(chat.system)) == []


def tell(chat: Chat) -> None:
    worker = ReceiptsWorker(chat.system.client, chat.system.database, chat.system.settings)
    while not worker.drained():
        worker.step()
    worker.close()


def test_a_recall_of_a_trimmed_message_that_is_not_stored_yet_is_no_difference(chat: Chat) -> None:
    # Given an own message past the offset, which is in SQL only
    chat.create_group("team", ["ann", "bob"])
    chat.send("team", "not read by ann", sender_uid="bob")
    own = chat.send("team", "a slip", sender_uid="ann")
    persist(chat)
    trim(chat.system, keep_messages=0)
    # When
    chat.recall("team", own.msgid, by="ann")
    # Then
    assert [difference for difference in check(chat.system) if difference.gid == "team"] == []
