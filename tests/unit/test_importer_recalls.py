"""Imports of recalls, of groups without events, of policies, and of one-to-one chats."""

import pytest

from imcore import Chat
from imcore.admin.retention import trim
from imcore.errors import InvalidInput
from imcore.model.direct import gid_of, random_gid
from imcore.model.values import GroupPolicy
from tests.helpers.import_events import BY_BOB, HELLO, event, lines, run, run_with_errors
from tests.helpers.workers import store

RECALL = event("recall", "ann", client_msgid="1")
GONE = {"type": "message", "gid": "#g", "uid": "ann", "client_msgid": "1", "recalled": True}
LONG = ("a" * 100, "b" * 100)


def read(chat: Chat, gid: str = "#g") -> list[tuple[str, str, bool, int, int]]:
    """Sender, content, whether it is recalled, and the tally, of each message."""
    tallies = chat.status(gid, limit=0)
    return [(t.message.sender_uid, t.message.content, t.message.recalled, t.read, t.unread) for t in tallies]


def test_recall_withdraws_the_message_that_it_names(chat: Chat) -> None:
    assert run(chat, HELLO, RECALL) == {"messages": 1, "joins": 1, "recalls": 1}

    [message, tombstone] = [tally.message for tally in chat.status("#g")]
    assert (message.content, message.recalled) == ("", True)
    assert (tombstone.recalls, tombstone.sender_uid) == (message.msgid, "ann")


def test_recall_by_somebody_who_is_no_member_joins_nobody(chat: Chat) -> None:
    run(chat, HELLO, event("recall", "admin", client_msgid="1"))

    assert [member.uid for member in chat.members("#g")] == ["ann"]
    assert chat.status("#g")[1].message.sender_uid == "admin"


def test_recalled_message_needs_no_content(chat: Chat) -> None:
    run(chat, GONE, BY_BOB, RECALL)

    assert read(chat)[0] == ("ann", "", True, 0, 0)
    assert run_with_errors(chat, lines([GONE | {"client_msgid": "9", "recalled": False}]))[1] == [
        (1, "content is missing")
    ]


def test_ack_may_name_the_recall_of_a_message(chat: Chat) -> None:
    ack = event("ack", "bob", client_msgid="1") | {"recall": True}

    assert run(chat, event("join", "bob"), HELLO, RECALL, HELLO | {"client_msgid": "2"}, ack)["acks"] == 1
    assert [(read, unread) for *_, read, unread in read(chat)] == [(1, 0), (1, 0), (0, 1)]
    assert run_with_errors(chat, lines([ack | {"client_msgid": "2"}]))[1] == [
        (1, "no recalled message of '#g' has the client_msgid '2'")
    ]
    assert run_with_errors(chat, lines([ack | {"recall": 1}]))[1] == [(1, "recall must be true or false; it is 1")]


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_same_file_again_recalls_nothing_again(chat: Chat, is_trimmed: bool) -> None:
    ack = event("ack", "bob", client_msgid="1") | {"recall": True}
    events = [event("join", "bob"), HELLO, event("leave", "bob"), RECALL, event("join", "bob"), BY_BOB, RECALL, ack]
    run(chat, *events)
    if is_trimmed:
        store(chat)
        trim(chat.system, keep_messages=0)
    before = read(chat), list(chat.members("#g"))

    assert run(chat, *events) == {}
    assert (read(chat), list(chat.members("#g"))) == before


def test_recall_before_its_message_is_an_error_in_each_run(chat: Chat) -> None:
    for _ in range(2):
        _, errors = run_with_errors(chat, lines([RECALL, HELLO]))
        assert errors == [(1, "no message of '#g' has the client_msgid '1'")]
    assert read(chat) == [("ann", "hi", False, 0, 0)]


def test_recall_of_a_message_of_an_earlier_file(chat: Chat) -> None:
    run(chat, HELLO)

    assert run(chat, RECALL) == {"recalls": 1}
    assert run(chat, RECALL, event("join", "bob")) == {"joins": 1}


def test_group_event_creates_a_group_without_members(chat: Chat) -> None:
    group = {"type": "group", "gid": "#g"}

    assert run(chat, group) == {}
    assert chat.group("#g").members == 0
    chat.add_members("#g", ["ann"])
    assert run(chat, group) == {}
    assert chat.group("#g").members == 1


def test_group_event_sets_the_policy(chat: Chat) -> None:
    group = {"type": "group", "gid": "#g"}

    run(chat, group | {"receipts": "counts"}, HELLO)
    assert chat.group_policy("#g") == GroupPolicy("#g", "counts", "sender")
    run(chat, group | {"asked_by": "members"}, HELLO)
    run(chat, group)
    assert chat.group_policy("#g") == GroupPolicy("#g", "counts", "members")
    for wrong in ({"receipts": "none"}, {"asked_by": None}, {"receipts": ["off"]}):
        _, [(number, reason)] = run_with_errors(chat, lines([group | wrong]))
        assert (number, reason.split(" ")[0]) == (1, *wrong)
    assert chat.group_policy("#g") == GroupPolicy("#g", "counts", "members")


@pytest.mark.parametrize("users", [("ann", "bob"), ("ann", "ann"), LONG])
def test_one_to_one_chat(chat: Chat, users: tuple[str, str]) -> None:
    gid = gid_of(*users)
    events = [event_ | {"gid": gid} for event_ in (event("join", users[0]), event("join", users[1]))]
    events = [{"type": "group", "gid": gid, "receipts": "off"}, *events, HELLO | {"gid": gid, "uid": users[0]}]

    assert run(chat, *events) == {"messages": 1, "joins": len(set(users))}
    assert [member.uid for member in chat.members(gid)] == sorted(set(users))
    assert chat.send_direct(users[1], "more", sender_uid=users[0]).gid == gid
    assert run(chat, *events) == {}
    assert chat.group_policy(gid).receipts == "off"


def test_one_to_one_chat_is_of_its_two_users_only(chat: Chat) -> None:
    for gid in (gid_of("ann", "bob"), gid_of(*LONG)):
        refused = [HELLO | {"gid": gid, "uid": "eve"}, event("leave", LONG[0]) | {"gid": gid}]
        joins = [event("join", uid) | {"gid": gid} for uid in ("eve", "mallory", "eve")]
        assert len(run_with_errors(chat, lines([*joins, *refused]))[1]) >= 3
    assert [group.members for group in chat.groups()] == []


def test_gid_that_is_no_one_to_one_chat_is_refused(chat: Chat) -> None:
    _, errors = run_with_errors(chat, lines([event("join", "ann") | {"gid": "dm:x"}]))

    assert errors == [(1, "the one-to-one chat 'dm:x' is not one of 'ann'")]


@pytest.mark.parametrize("is_again", [False, True], ids=["one file", "another file"])
def test_chat_whose_gid_names_nobody_is_of_any_two_users_who_may_leave(chat: Chat, is_again: bool) -> None:
    gid = random_gid()
    join, hello, leave, eve = (
        each | {"gid": gid} for each in (event("join", "bob"), HELLO, event("leave", "ann"), event("join", "eve"))
    )
    events = [{"type": "group", "gid": gid}, join, hello, leave]
    if is_again:
        assert run(chat, *events) == {"messages": 1, "joins": 2, "leaves": 1}
        summary, errors = run_with_errors(chat, lines([eve]))
        assert summary == {"errors": 1}
    else:
        summary, errors = run_with_errors(chat, lines([*events, eve]))
        assert summary == {"messages": 1, "joins": 2, "leaves": 1, "errors": 1}

    assert [reason for _, reason in errors] == [f"the one-to-one chat {gid!r} has two other users than 'eve'"]
    assert [member.uid for member in chat.members(gid)] == ["bob"]
    assert run(chat, *events) == {}
    with pytest.raises(InvalidInput, match="kept for one-to-one chats"):
        chat.add_members(gid, ["eve"])
    with pytest.raises(InvalidInput, match="kept for one-to-one chats"):
        chat.create_group(random_gid())


def test_chat_that_both_users_have_left_exists(chat: Chat) -> None:
    gid = random_gid()

    assert run(chat, {"type": "group", "gid": gid}) == {}
    assert chat.group(gid).members == 0
