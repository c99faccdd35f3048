"""Exports: the order of events, what changes meanwhile, and what a user's export does not have."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from imcore import Chat
from imcore.admin.retention import trim
from imcore.errors import DatabaseNotReady, UnknownGroup
from imcore.exporter.client_msgids import ClientMsgids, NameSet
from imcore.exporter.exporter import Export
from imcore.model.values import Draft, Message
from imcore.operations import queries
from tests.helpers.workers import store

LONG = ("a" * 100, "b" * 100)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob", "cy"])
    return chat


def group(chat: Chat, gid: str = "team") -> list[str]:
    return list(map(short, Export(chat).group(gid)))


def user(chat: Chat, uid: str) -> list[str]:
    return list(map(short, Export(chat).user(uid)))


def short(event: Any) -> str:
    """Return an event as a few words."""
    words = [event["type"], event.get("uid", event["gid"]), event.get("content"), event.get("client_msgid")]
    return " ".join([*filter(None, words), *(key for key in ("recall", "recalled") if key in event)])


def say(chat: Chat, uid: str, client_msgid: str) -> str:
    return chat.send("team", f"by-{uid}", sender_uid=uid, client_msgid=client_msgid).msgid


def test_a_policy_is_in_the_export_of_the_group_alone(chat: Chat) -> None:
    begin = {"type": "group", "gid": "team"}
    assert next(Export(chat).group("team")) == begin
    chat.set_group("team", asked_by="members")
    assert next(Export(chat).group("team")) == begin | {"asked_by": "members"}
    chat.set_group("team", receipts="off", asked_by="sender")
    assert next(Export(chat).group("team")) == begin | {"receipts": "off"}
    assert next(Export(chat).user("ann")) == begin


def test_memberships_come_where_they_began_and_ended(chat: Chat) -> None:
    say(chat, "ann", "1")
    chat.ack("bob", "team")
    chat.remove_members("team", ["bob", "cy"])
    chat.add_members("team", ["bob", "eve"])
    second = say(chat, "bob", "2")
    chat.recall("team", second, by="admin", admin=True)
    chat.ack("ann", "team")

    assert group(chat) == [
        *["group team", "join ann", "join bob", "join cy", "message ann by-ann 1"],
        *["ack bob 1", "leave bob", "leave cy", "join bob", "join eve"],
        *["message bob 2 recalled", "recall admin 2", "ack ann 2 recall", "ack bob 2"],
    ]


def test_group_without_members_and_messages(chat: Chat) -> None:
    chat.create_group("empty")

    assert group(chat, "empty") == ["group empty"]


def test_what_only_sql_has_comes_first(chat: Chat) -> None:
    say(chat, "ann", "1")
    store(chat)
    trim(chat.system, keep_messages=0)
    say(chat, "bob", "2")

    assert [line for line in group(chat) if line.startswith("message")] == [
        "message ann by-ann 1",
        "message bob by-bob 2",
    ]


@pytest.mark.parametrize("keep", [0, 400, 1300])
def test_messages_that_come_and_are_trimmed_meanwhile_make_no_hole(chat: Chat, keep: int) -> None:
    # Given more messages than a page has
    for number in range(0, 1500, 100):
        chat.send_many("team", [Draft("ann", "x", str(number + each)) for each in range(100)])
    store(chat)
    events = Export(chat).group("team")
    first = list(islice(events, 100))
    # When, after the first page, members go, others come and send, and old messages are trimmed
    chat.remove_members("team", ["bob", "ann"])
    chat.add_members("team", ["dan"])
    say(chat, "dan", "new")
    chat.ack("cy", "team")
    trim(chat.system, keep_messages=keep)
    all_events = [*first, *events]
    # Then
    sent = [event["client_msgid"] for event in all_events if event["type"] == "message"]
    assert sent == list(map(str, range(1500)))
    assert {event["client_msgid"] for event in all_events if event["type"] == "ack"} <= set(sent)


def test_spans_that_change_while_they_are_read_are_not_lost(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given members who leave and come back between the parts of a scan
    say(chat, "ann", "1")
    client = chat.system.client
    call_each = client.call_each
    turns: Iterator[Any] = iter([chat.remove_members, chat.add_members, chat.remove_members, chat.add_members])

    def changing(calls: Any, **more: Any) -> Any:
        answer = call_each(calls, **more)
        if calls[0].args and calls[0].args[0] in {"ZSCAN", "ZMSCORE", "ZRANGEBYSCORE"}:
            with monkeypatch.context() as usual:
                usual.setattr(client, "call_each", call_each)
                for turn in islice(turns, 1):
                    turn("team", ["ann", "bob"])
                    say(chat, "cy", f"again {turn}")
        return answer

    monkeypatch.setattr(client, "call_each", changing)
    # When
    events = group(chat)
    # Then
    assert events[:5] == ["group team", "join ann", "join bob", "join cy", "message ann by-ann 1"]
    assert "ack ann 1" in events


def test_message_that_is_recalled_meanwhile_is_recalled_in_the_end(chat: Chat) -> None:
    msgid = say(chat, "ann", "1")
    events = Export(chat).group("team")
    begun = [next(events)]
    chat.recall("team", msgid, by="ann")

    assert list(map(short, [*begun, *events]))[4:] == ["message ann 1 recalled", "recall ann 1", "ack ann 1"]


def test_group_that_is_gone_meanwhile_is_an_error(chat: Chat) -> None:
    say(chat, "ann", "1")
    events = Export(chat).group("team")
    next(events)
    chat.system.client.driver.flushall()

    with pytest.raises(UnknownGroup):
        list(events)


def test_foreign_entries_and_members_are_left_out(chat: Chat) -> None:
    keys = chat.system.client.space.group("team")
    driver = chat.system.client.driver
    driver.zadd(keys.joined, {b"\xff": 0, "half": 0, "odd": 1.5})
    driver.zadd(keys.left, {b"\xff": 1})
    say(chat, "ann", "1")
    driver.xadd(keys.stream, {"by": "hand"})

    assert [line for line in group(chat) if not line.startswith("ack")] == [
        *["group team", "join ann", "join bob", "join cy", "message ann by-ann 1"]
    ]


def test_user_gets_what_was_said_to_them_and_nothing_of_how_others_read(chat: Chat) -> None:
    say(chat, "ann", "1")
    chat.ack("cy", "team")
    chat.remove_members("team", ["bob"])
    say(chat, "ann", "2")
    chat.add_members("team", ["bob", "dan"])
    say(chat, "cy", "3")
    chat.ack("ann", "team")
    chat.ack("bob", "team")
    chat.create_group("other", ["ann"])

    assert user(chat, "bob") == [
        *["group team", "join bob", "message ann by-ann 1", "leave bob", "join bob", "message cy by-cy 3", "ack bob 3"]
    ]


def test_user_gets_groups_that_they_have_left(chat: Chat) -> None:
    say(chat, "ann", "1")
    chat.remove_members("team", ["bob"])
    expected = ["group team", "join bob", "message ann by-ann 1", "leave bob"]

    assert user(chat, "bob") == expected, "only the journal knows"
    store(chat)
    assert user(chat, "bob") == expected, "SQL knows"
    with chat.system.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM imcore_meta")
    with pytest.raises(DatabaseNotReady), Chat(chat.system) as again:
        user(again, "bob")


@pytest.mark.parametrize("users", [("ann", "bob"), ("ann", "ann"), LONG])
def test_one_to_one_chat_names_both_users(chat: Chat, users: tuple[str, str]) -> None:
    gid = chat.send_direct(users[1], "hi", sender_uid=users[0], client_msgid="1").gid
    chat.ack(users[1], gid)
    events = [event for event in Export(chat).user(users[0]) if event["gid"] == gid]

    assert [event["uid"] for event in events if event["type"] == "join"] == sorted(set(users))
    assert [event["uid"] for event in events if event["type"] == "ack"] == [users[0]]
    whole = list(Export(chat).group(gid))
    assert [event["uid"] for event in whole if event["type"] == "ack"] == sorted(set(users))


def test_messages_without_a_client_msgid_or_with_a_taken_one_are_named_by_their_msgids() -> None:
    given = ClientMsgids()
    messages = [
        Message("g", "1767225600000-0", 1, "ann", "x"),
        Message("g", "1767225600000-1", 2, "ann", "x", "c"),
        Message("g", "1767225600000-2", 3, "bob", "x", "c"),
        Message("g", "1767225600000-3", 4, "bob", "x", "1767225600000-4"),
        Message("g", "1767225600000-4", 5, "bob", "x"),
    ]

    names = [given.of(message) for message in messages]

    expected = ["1767225600000-0", "c", "1767225600000-2", "1767225600000-4", "1767225600000-4~2"]
    assert (names, given.renamed) == (expected, 1)


def test_set_of_names_grows() -> None:
    names = NameSet()

    assert all(names.add(str(number)) for number in range(20_000))
    assert not any(names.add(str(number)) for number in range(20_000))


def test_long_texts_are_read_in_pages_and_come_back_whole(chat: Chat) -> None:
    text = "群" * 21_845
    chat.send_many("team", [Draft("ann", text, str(number)) for number in range(40)])

    assert 40 * len(text.encode()) > 2 * queries.PAGE_BYTES
    assert [event["content"] for event in Export(chat).group("team") if event["type"] == "message"] == [text] * 40
