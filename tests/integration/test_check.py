"""`check` on a real server: it finds each kind of damage, and `--repair` repairs it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import RefusedError
from imcore.model.rows import Batch, GroupRow, SpanRow
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.repair.window import followers
from imcore.sql import queries
from imcore.streams.keys import SEPARATOR
from tests.helpers.checked_group import (
    GID,
    MESSAGES,
    UIDS,
    Damage,
    ahead,
    back,
    begun_another_day,
    beyond_its_end,
    checked_group,
    claimed,
    closed_span,
    end_beyond,
    end_of_another_day,
    garbage,
    index_ahead,
    listed_too_often,
    lose_message,
    lose_newest_message,
    lose_stream,
    nth,
    opened,
    own_in_disorder,
    recall_at_another_place,
    redis,
    said,
    sql,
    stray_reader,
)
from tests.helpers.workers import persist
from tests.model.fingerprint import fingerprint


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    with checked_group(valkey, sqlite_url) as chat:
        yield chat


def test_check_reports_nothing_for_sound_data(chat: Chat) -> None:
    assert list(check(chat.system)) == []


def test_repair_writes_nothing_where_nothing_differs(chat: Chat, tmp_path: Path) -> None:
    # Given
    before = fingerprint(chat, tmp_path / "imcore.db")
    # When
    assert list(check(chat.system, repair=True)) == []
    # Then
    assert fingerprint(chat, tmp_path / "imcore.db") == before


def test_check_progress_begins_with_the_number_of_groups(chat: Chat) -> None:
    told: list[tuple[int, int]] = []

    assert list(check(chat.system, on_progress=lambda *seen: told.append(seen))) == []

    assert told == [(0, 2), (2, 2)]


def test_check_reports_unstored_entries_in_one_line(chat: Chat) -> None:
    # Given a group that SQL does not have, and changes in another one
    chat.create_group("new", ["ann", "bob"])
    said_first = chat.send("new", "first", sender_uid="ann")
    chat.ack("bob", "new", said_first.msgid)
    said(chat, 99)
    chat.ack("ann", GID)
    chat.recall(GID, nth(chat, 30), by="bob", admin=True)
    chat.remove_members(GID, ["ann"])
    # When, then
    (difference,) = check(chat.system, repair=True)
    assert (difference.gid, difference.sql, difference.repaired) == ("", "not stored", False)
    # And once it is stored, nothing
    persist(chat)
    assert list(check(chat.system)) == []


# Each kind of damage, and a part of the line that reports it.

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
    "somebody died over a repair": (claimed, "mending"),
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
    """Return whether the text of a side is readable: words and msgids."""
    return bool(side) and "None" not in side and not re.search(r"(?<![-.\d])\d{14,}(?![-\d])", side)


OFFSETS_MOVE = {"the index is ahead", "sql has an offset ahead"}
"""Here the further one wins, and that is another answer than before."""
MEMBERS_GO = {"sql has an end that did not come"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_repair_mends_each_damage(chat: Chat, kind: str) -> None:
    # Given
    damage, says = DAMAGE[kind]
    before = answers(chat)
    damage(chat, chat.system.client.space.group(GID))
    # When
    differences = list(check(chat.system))
    # Then it says so, and looking has changed nothing
    assert any(says in each.what for each in differences), differences
    assert {each.gid for each in differences} == {GID}
    assert [each for each in differences for side in (each.redis, each.sql) if not is_readable(side)] == []
    assert [(each.what, each.repaired) for each in check(chat.system)] == [(each.what, False) for each in differences]
    # When
    repaired = list(check(chat.system, repair=True))
    # Then
    assert [each for each in repaired if not each.repaired] == []
    assert list(check(chat.system)) == []
    after = answers(chat)
    for question in before if kind not in OFFSETS_MOVE | MEMBERS_GO else ["group"] if kind in OFFSETS_MOVE else []:
        assert after[question] == before[question], question
    # And the consumer groups have the offsets of the index
    k = chat.system.client.space.group(GID)
    acked = {
        uid: int(score) for uid, score in chat.system.client.driver.zscan_iter(k.acked) if SEPARATOR.encode() not in uid
    }
    assert followers(chat.system.client, k.stream) == {uid.decode(): score for uid, score in acked.items()}


def test_repair_leaves_data_of_another_system_alone(chat: Chat, valkey: str, tmp_path: Path) -> None:
    # Given the database of another system, with a group of the same name
    with opened(valkey, f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.system.database.upgrade()
        other.system.database.set_meta("dataset", "another")
        other.system.database.write(Batch(groups=[GroupRow(GID, 0)], spans=[SpanRow(GID, "mallory", 0, None, 1, 0)]))
        before = answers(chat)
        # When
        (difference,) = check(other.system, repair=True)
        # Then
        assert (difference.what, difference.sql, difference.repaired) == ("dataset", "another", False)
        with pytest.raises(RefusedError, match=r"set IM_DATABASE_URL or IM_REDIS_URL if .* --adopt"):
            rebuild(other.system, yes=True)
    assert answers(chat) == before
    assert "mallory" not in {member.uid for member in chat.members(GID)}
    assert list(check(chat.system)) == []
    persist(chat)


def test_repair_fills_a_new_database(chat: Chat, valkey: str, tmp_path: Path) -> None:
    with opened(valkey, f"sqlite:///{tmp_path / 'new.db'}") as other:
        other.system.database.upgrade()
        said(other, 99)
        # When
        list(check(other.system, repair=True))
        # Then it has what Redis has, and the workers continue with it
        said(other, 100)
        persist(other)
        rows = other.system.database.messages_after(GID, 0)
        assert [row.content for row in rows][-2:] == ["message 99", "message 100"]
        assert len(rows) == 22


def test_repair_sets_times_to_those_of_msgids(valkey: str, database_url: str) -> None:
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
        (difference,) = check(chat.system, repair=True)
        # Then
        message = chat.status(GID, limit=0)[4].message
        assert difference.what == f"time of message {message.msgid}"
        assert difference.redis == f"{message.time:%Y-%m-%dT%H:%M:%S}.{message.time.microsecond // 1000:03}Z"
        assert (difference.sql, difference.repaired) == ("2020-01-02T03:04:05.678Z", True)
        assert list(check(chat.system)) == []


@pytest.mark.parametrize("number", [1, 2])
def test_check_names_an_entry_that_is_no_message_by_its_id(chat: Chat, number: int) -> None:
    stream = chat.system.client.space.group(GID).stream
    ids = [chat.system.client.driver.xadd(stream, {"nonsense": "1"}).decode() for _ in range(number)]
    assert [each.what for each in check(chat.system)] == [f"message {entry_id} that cannot be read" for entry_id in ids]


def test_check_reports_a_hole_where_both_sides_lost_a_message(chat: Chat) -> None:
    # Given
    k = chat.system.client.space.group(GID)
    lost, after = nth(chat, 20), nth(chat, 21)
    chat.system.client.driver.xdel(k.stream, lost)
    sql("DELETE FROM group_msgs WHERE gid = :gid AND msgid = :lost", lost=msgids.pack(lost))(chat, k)
    # When
    (difference,) = check(chat.system)
    # Then
    assert (difference.what, difference.redis, difference.sql) == (
        f"order of message {after}",
        "seq 22 after seq 20",
        "seq 22 by 'ann'",
    )


IMPOSSIBLE = ("9000000000000000000", ":newest + 1000000000000", "'many'")
"""Offsets that no message can have, as SQL takes them."""


@pytest.mark.parametrize("offset", IMPOSSIBLE)
def test_repair_replaces_impossible_offsets_of_both_sides_by_the_newest_message(chat: Chat, offset: str) -> None:
    # Given
    k = chat.system.client.space.group(GID)
    sql(f"UPDATE group_spans SET acked_msgid = {offset} WHERE gid = :gid AND uid = 'bob'")(chat, k)
    chat.system.client.driver.zadd(k.acked, {"bob": float("inf")})
    # When
    (difference,) = (each for each in check(chat.system, repair=True) if each.what.startswith("offset"))
    # Then
    assert all(side.endswith(": no message can have that id") for side in (difference.redis, difference.sql))
    assert difference.repaired
    assert list(check(chat.system)) == []
    newest = chat.group(GID).last_msgid
    assert {member.uid: member.last_ack_msgid for member in chat.members(GID)}["bob"] == newest


def test_check_reports_an_impossible_offset_that_both_sides_have(chat: Chat) -> None:
    k = chat.system.client.space.group(GID)
    offset = msgids.pack(nth(chat, -1)) + 1_000_000_000_000
    chat.system.client.driver.zadd(k.acked, {"bob": offset})
    chat.system.client.driver.xgroup_setid(k.stream, "bob", msgids.unpack(offset))
    sql("UPDATE group_spans SET acked_msgid = :offset WHERE gid = :gid AND uid = 'bob'", offset=offset)(chat, k)
    (difference,) = (each for each in check(chat.system) if each.what.startswith("offset"))
    assert difference.redis == difference.sql == f"{msgids.unpack(offset)}: no message can have that id"


def close_before_the_last_word(chat: Chat) -> str:
    """Close the span of bob by hand in SQL, before a message of his; return its id."""
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
def test_repair_extends_a_span_to_its_last_message(chat: Chat, has_redis_lost_it: bool) -> None:
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


def test_repair_extends_a_span_whose_end_is_wrong_on_both_sides(chat: Chat) -> None:
    # Given
    close_before_the_last_word(chat)
    with pytest.MonkeyPatch.context() as as_it_was:
        as_it_was.setattr(queries, "newest_own", lambda *_, **__: {})
        list(check(chat.system, repair=True))
    assert {each.what.split()[0] for each in check(chat.system)} == {"tally"}
    # When
    repaired = list(check(chat.system, repair=True))
    # Then
    assert [each for each in repaired if not each.repaired] == []
    assert list(check(chat.system)) == []


def test_check_reports_wrong_seqs_of_trimmed_messages(chat: Chat) -> None:
    sql("UPDATE group_msgs SET seq = 5 - seq WHERE gid = :gid AND seq IN (2, 3)")(
        chat, chat.system.client.space.group(GID)
    )
    differences = list(check(chat.system))
    assert [each.what.split()[0] for each in differences] == ["place", "place"]


def test_check_reports_other_groups_beside_an_unreadable_one(chat: Chat) -> None:
    # Given one key of the wrong type, and damage elsewhere
    k, other = chat.system.client.space.group(GID), chat.system.client.space.group("other")
    chat.system.client.driver.delete(other.acked)
    chat.system.client.driver.set(other.acked, "text")
    chat.system.client.driver.zrem(k.acked, "bob")
    # When
    differences = list(check(chat.system, repair=True))
    # Then
    assert {(each.gid, each.repaired) for each in differences} == {("other", False), (GID, True)}
    assert any("WRONGTYPE" in each.redis for each in differences)


def test_repair_reports_and_leaves_texts_that_differ(chat: Chat) -> None:
    sql("UPDATE group_msgs SET content = 'forged' WHERE gid = :gid AND msgid = :newest")(
        chat, chat.system.client.space.group(GID)
    )
    (difference,) = check(chat.system, repair=True)
    assert (difference.what.split()[0], difference.repaired) == ("content", False)
    assert "forged" in difference.sql


def answers(chat: Chat) -> dict[str, object]:
    """The answers to all queries, for every message and every user."""
    messages = [tally.message.msgid for tally in chat.status(GID, limit=0)]
    return {
        "group": chat.group(GID),
        "members": list(chat.members(GID)),
        "pull": [chat.pull(uid) for uid in UIDS],
        "unread": [chat.unread(uid) for uid in UIDS],
        "tallies": chat.status(GID, limit=0),
        "names": [chat.message_status(GID, msgid) for msgid in messages],
    }
