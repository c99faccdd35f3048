"""Marks and reading in private: what is unread for the user alone, and where their history begins."""

from collections.abc import Callable

import pytest

from imcore import Chat, Message
from imcore import msgid as msgids
from imcore.errors import InvalidInput, NotMember, UnknownMessage
from tests.helpers.talk import leave_to_sql, offset, say, say_many


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def unread(chat: Chat) -> int:
    return chat.unread("ann")[0].unread


def first_unread(chat: Chat) -> str:
    """The message in the middle of a page around the first unread one."""
    return chat.history("ann", "team", first_unread=True, limit=1).messages[0].content


def test_an_own_message_after_a_mark_is_not_unread(chat: Chat) -> None:
    [first] = say(chat, "one", sender="bob")
    chat.ack("ann", "team")
    assert chat.mark_unread("ann", "team", first.msgid).unread == 1

    say(chat, "mine", sender="ann")

    assert unread(chat) == 1


@pytest.mark.parametrize("trimmed", range(9))
def test_history_begins_at_the_bookmark_at_every_trim_point(chat: Chat, trimmed: int) -> None:
    sent = say(chat, *"ab", sender="bob") + say(chat, "mine") + say(chat, *"cdef", sender="bob")
    chat.recall("team", sent[3].msgid, by="bob")
    everything = [tally.message for tally in chat.status("team", limit=0)]
    if trimmed:
        leave_to_sql(chat, everything[min(trimmed, len(everything)) - 1].msgid)

    chat.ack("ann", "team", sent[1].msgid, private=True)
    assert (first_unread(chat), unread(chat)) == ("d", 3)
    chat.ack("ann", "team", private=True)
    assert unread(chat) == 0
    assert offset(chat, "ann") is None

    chat.mark_unread("ann", "team", sent[2].msgid)
    assert (first_unread(chat), unread(chat)) == ("d", 3)
    chat.mark_unread("ann", "team", sent[0].msgid)
    assert (first_unread(chat), unread(chat)) == ("a", 5)
    chat.unmark("ann", "team")
    assert unread(chat) == 0


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_around_a_recalled_message(chat: Chat, is_trimmed: bool) -> None:
    sent = say(chat, *"abc", sender="bob")
    chat.recall("team", sent[1].msgid, by="bob")
    if is_trimmed:
        leave_to_sql(chat, sent[2].msgid)

    page = chat.history("ann", "team", around=sent[1].msgid, limit=3)

    assert [(message.content, message.recalled) for message in page.messages] == [
        ("a", False),
        ("", True),
        ("c", False),
    ]


def test_a_mark_reaches_the_newest_hundred_messages_as_it_is_set(chat: Chat) -> None:
    sent = say_many(chat, 101, sender="bob")
    with pytest.raises(InvalidInput, match="not among the newest 100"):
        chat.mark_unread("ann", "team", sent[0])
    chat.mark_unread("ann", "team", sent[1])

    say_many(chat, 50, sender="bob")

    assert unread(chat) == 150


def test_what_comes_before_a_mark_counts_as_read_and_an_older_ack_removes_the_mark(chat: Chat) -> None:
    sent = say_many(chat, 10, sender="bob")
    assert chat.mark_unread("ann", "team", sent[8]).unread == 2
    assert chat.tally("team", sent[0]).read == 0
    chat.ack("ann", "team")
    assert chat.mark_unread("ann", "team", sent[4]).unread == 6
    chat.ack("ann", "team", sent[3])
    assert (unread(chat), offset(chat, "ann")) == (6, sent[9])

    older = chat.ack("ann", "team", sent[6])

    assert (unread(chat), older.last_ack_msgid, older.advanced) == (0, sent[9], False)


@pytest.mark.parametrize("trimmed", range(5))
def test_what_redis_has_trimmed_arrives_as_everything_else_does(chat: Chat, trimmed: int) -> None:
    sent = [*say(chat, "1", "2", sender="bob"), *say(chat, "mine"), *say(chat, "3", sender="bob")]
    if trimmed:
        leave_to_sql(chat, sent[trimmed - 1].msgid)

    moves = [chat.delivered("ann", "team", sent[at].msgid).advanced for at in (3, 1, 0, 3, 1, 3)]

    assert moves == [False, False, True, False, True, True]
    assert [chat.message_status("team", each.msgid).delivered_to for each in sent if each.sender_uid == "bob"] == [
        ("ann",)
    ] * 3


def test_what_cannot_be_marked(chat: Chat) -> None:
    [before] = say(chat, "before", sender="bob")
    chat.add_members("team", ["dan"])
    [sent] = say(chat, "after", sender="bob")
    tombstone = chat.recall("team", sent.msgid, by="bob")
    refusals: list[tuple[type[Exception], Callable[[], object]]] = [
        (UnknownMessage, lambda: chat.mark_unread("dan", "team", before.msgid)),
        (InvalidInput, lambda: chat.mark_unread("dan", "team", tombstone.msgid)),
        (UnknownMessage, lambda: chat.mark_unread("dan", "team", "1767225600000-0")),
        (NotMember, lambda: chat.mark_unread("eve", "team", sent.msgid)),
        (NotMember, lambda: chat.unmark("eve", "team")),
    ]

    for refusal, call in refusals:
        with pytest.raises(refusal):
            call()
    assert [each.marked for each in chat.unread("dan")] == [False]


def contents(messages: list[Message]) -> list[str]:
    return [message.content for message in messages]


def test_a_pull_begins_after_what_was_read_in_private(chat: Chat) -> None:
    sent = say(chat, *"abc", sender="bob")
    chat.ack("ann", "team", sent[1].msgid, private=True)
    chat.mark_unread("ann", "team", sent[0].msgid)

    assert contents(chat.pull("ann", "team")) == ["c"]


def test_an_ack_of_the_message_just_before_a_mark_leaves_it(chat: Chat) -> None:
    """Messages of one call are often of one millisecond: then a mark is at the message before the marked one."""
    sent = say_many(chat, 50, sender="bob")
    neighbours = [at for at in range(1, 50) if msgids.pack(sent[at]) == msgids.pack(sent[at - 1]) + 1]
    assert neighbours, "no two messages of one millisecond"
    at = neighbours[-1]
    chat.mark_unread("ann", "team", sent[at])

    chat.ack("ann", "team", sent[at - 1], private=True)
    assert (unread(chat), chat.unread("ann")[0].marked) == (50 - at, True)
    chat.ack("ann", "team", sent[at - 1])
    assert (unread(chat), chat.unread("ann")[0].marked) == (50 - at, True)
    chat.ack("ann", "team", sent[at])
    assert (unread(chat), chat.unread("ann")[0].marked) == (50 - at - 1, False)
