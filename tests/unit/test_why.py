"""Why a user has not read a message: each word, in the order in which they are looked at, and since when."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from imcore import Chat, Message, Why
from imcore.errors import InvalidInput, NotAllowed, UnknownGroup, UnknownMessage
from imcore.streams.calls import session_calls
from tests.helpers.talk import leave_to_sql, say, say_many
from tests.helpers.workers import store

GID = "team"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group(GID, ["ann", "bob", "a*[b]"])
    return chat


@pytest.fixture
def sent(chat: Chat) -> Message:
    return say(chat, "hi")[0]


def word(chat: Chat, sent: Message, uid: str = "bob") -> str:
    answer = chat.why(GID, sent.msgid, uid)
    assert answer == Why(GID, sent.msgid, uid, answer.why, answer.since)
    return answer.why


def since(chat: Chat, sent: Message, uid: str = "bob") -> datetime | None:
    return chat.why(GID, sent.msgid, uid).since


def is_recent(moment: datetime | None) -> bool:
    return moment is not None and timedelta(seconds=-5) < datetime.now(UTC) - moment < timedelta(minutes=1)


def test_the_sender(chat: Chat, sent: Message) -> None:
    assert (word(chat, sent, "ann"), since(chat, sent, "ann")) == ("sender", None)
    chat.remove_members(GID, ["ann"])
    chat.set_user("ann", receipts="off")
    assert word(chat, sent, "ann") == "sender"


def test_who_was_no_member_when_it_was_sent(chat: Chat, sent: Message) -> None:
    chat.add_members(GID, ["dan"])
    assert [word(chat, sent, uid) for uid in ("dan", "eve")] == ["not-a-member"] * 2
    chat.remove_members(GID, ["bob"])
    [between] = say(chat, "between")
    chat.add_members(GID, ["bob"])
    assert word(chat, between) == "not-a-member"


def test_who_reads_in_private(chat: Chat, sent: Message) -> None:
    chat.ack("bob", GID)
    chat.set_user("bob", receipts="off")
    assert (word(chat, sent), since(chat, sent)) == ("receipts-off", None)
    chat.set_user("bob", receipts="on")
    assert word(chat, sent) == "read"


def test_who_has_read_it(chat: Chat, sent: Message) -> None:
    chat.ack("bob", GID)
    assert (word(chat, sent), since(chat, sent)) == ("read", None)
    store(chat)
    assert is_recent(since(chat, sent))
    chat.remove_members(GID, ["bob"])
    assert word(chat, sent) == "read"
    assert is_recent(since(chat, sent))


@pytest.mark.parametrize("uid", ["bob", "a*[b]"])
def test_who_has_left(chat: Chat, sent: Message, uid: str) -> None:
    chat.delivered(uid, GID, sent.msgid)
    chat.remove_members(GID, [uid])
    chat.add_members(GID, [uid])
    say(chat, "later")
    assert (word(chat, sent, uid), since(chat, sent, uid)) == ("left", None)
    store(chat)
    assert is_recent(since(chat, sent, uid))
    for _ in range(3):
        say(chat, "more")
        chat.remove_members(GID, [uid])
        chat.add_members(GID, [uid])
    assert (word(chat, sent, uid), word(chat, say(chat, "new")[0], uid)) == ("left", "offline")


def test_a_message_that_has_arrived(chat: Chat, sent: Message) -> None:
    chat.delivered("bob", GID, sent.msgid)
    chat.begin_session("bob")
    assert (word(chat, sent), since(chat, sent)) == ("delivered", None)


def test_reading_in_private_is_no_reason(chat: Chat, sent: Message) -> None:
    chat.ack("bob", GID, private=True)
    assert word(chat, sent) == "offline"
    chat.ack("bob", GID)
    chat.mark_unread("bob", GID, sent.msgid)
    assert word(chat, sent) == "read"


def test_who_is_online_and_since_when_they_are_offline(chat: Chat, sent: Message) -> None:
    assert (word(chat, sent), since(chat, sent)) == ("offline", None)
    one, other = chat.begin_session("bob"), chat.begin_session("bob")
    assert (word(chat, sent), since(chat, sent)) == ("online", None)
    chat.end_session("bob", one)
    assert word(chat, sent) == "online"
    chat.end_session("bob", other)
    assert word(chat, sent) == "offline"
    assert is_recent(since(chat, sent))


def test_a_session_that_has_expired_ended_then(chat: Chat, sent: Message) -> None:
    space, client = chat.system.client.space, chat.system.client
    client.call(session_calls.heartbeat(space, "bob", "s", 1, opens=True))
    time.sleep(0.01)
    first = since(chat, sent)
    assert (word(chat, sent), is_recent(first)) == ("offline", True)

    client.call(session_calls.expire_online(space, space.partition_of("bob")))

    assert client.driver.zcard(space.online(space.partition_of("bob"))) == 0
    assert since(chat, sent) == first
    client.call(session_calls.heartbeat(space, "bob", "t", 1, opens=True))
    time.sleep(0.01)
    for uid in ("x1", "x2", "x3", "x4"):  # one of them is of the same partition
        client.call(session_calls.heartbeat(space, uid, "s", 60_000, opens=True))
    assert max(filter(None, [first, since(chat, sent)])) != first


def test_trimmed_messages(chat: Chat, sent: Message) -> None:
    [other] = say(chat, "other", sender="bob")
    chat.ack("bob", GID, sent.msgid)
    leave_to_sql(chat, other.msgid)
    words = [word(chat, sent, uid) for uid in ("ann", "bob", "a*[b]", "eve")]
    assert words == ["sender", "read", "offline", "not-a-member"]
    assert word(chat, other) == "sender"


def test_a_span_is_found_among_many(chat: Chat) -> None:
    chat.create_group("large", [f"user{number}" for number in range(2500)])
    [msgid] = say_many(chat, 1, gid="large", sender="user1")
    chat.remove_members("large", [f"user{number}" for number in range(2, 2500)])
    assert chat.why("large", msgid, "user2499").why == "left"
    assert chat.why("large", msgid, "user0").why == "offline"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("no", "1767225600000-0", "bob"), UnknownGroup),
        ((GID, "1767225600000-0", "bob"), UnknownMessage),
        ((GID, "2600000000000-0", "bob"), UnknownMessage),
        ((GID, "x", "bob"), InvalidInput),
        ((GID, "1767225600000-0", ""), InvalidInput),
    ],
)
def test_what_cannot_be_asked(chat: Chat, sent: Message, arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        chat.why(*arguments)


def test_who_may_ask(chat: Chat, sent: Message) -> None:
    assert chat.why(GID, sent.msgid, "bob", by="ann").why == "offline"
    with pytest.raises(NotAllowed):
        chat.why(GID, sent.msgid, "ann", by="bob")
    chat.set_group(GID, asked_by="members")
    assert chat.why(GID, sent.msgid, "ann", by="bob").why == "sender"
