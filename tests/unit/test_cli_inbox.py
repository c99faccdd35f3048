"""`im inbox`, `im mark`, `im unmark`, `im ack --private`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from imcore.model.direct import gid_of
from tests.helpers.cli import connected_chat, im, lines, refused
from tests.helpers.talk import say, say_many


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    for chat in connected_chat(monkeypatch, tmp_path):
        chat.create_group("team", ["ann", "bob"])
        yield chat


def test_json_has_a_line_for_each_group_and_the_totals(chat: Chat) -> None:
    chat.create_group("empty", ["ann"])
    first, second = say(chat, "one", "two", sender="bob")

    in_team, empty, totals = lines("inbox", "ann")

    time = lines("status", "team")[-1]["time"]
    assert list(in_team.items()) == [
        *{"gid": "team", "unread": 2, "marked": False, "first_unread_msgid": first.msgid}.items(),
        *{"msgid": second.msgid, "sender_uid": "bob", "time": time, "content": "two"}.items(),
    ]
    nothing = dict.fromkeys(("first_unread_msgid", "msgid", "sender_uid", "time", "content"))
    assert empty == {"gid": "empty", "unread": 0, "marked": False, **nothing}
    assert totals == {"groups": 2, "unread_groups": 1, "unread": 2, "next": None}
    assert lines("inbox", "ann", "--unread-only") == [in_team, totals]


def test_the_next_page_begins_after_the_cursor(chat: Chat) -> None:
    for gid in ("a", "b c", "d"):
        chat.create_group(gid, ["ann"])

    one, two, totals = lines("inbox", "ann", "--limit", "2")
    three, four, end = lines("inbox", "ann", "--limit", "2", "--after", str(totals["next"]))

    assert [line["gid"] for line in (one, two, three, four)] == ["a", "b c", "d", "team"]
    assert end["next"] is None
    people = im("inbox", "ann", "--limit", "2")
    assert people.stdout.splitlines()[-2:] == ["groups\tunread_groups\tunread", "4\t0\t0"]
    assert people.stderr.splitlines() == [f"more: im inbox ann --limit 2 --after '{totals['next']}'"]


def test_people_get_a_table_with_the_peers_of_one_to_one_chats(chat: Chat) -> None:
    chat.send_direct("bob", "hi\x1b[2J", sender_uid="ann")

    result = im("inbox", "bob")

    assert result.exit_code == 0
    header, direct, *_ = result.stdout.splitlines()
    assert header.split("\t") == ["gid", "unread", "marked", "time", "sender_uid", "content"]
    assert direct.startswith("dm:ann\t1\t")
    assert "\x1b" not in result.stdout
    assert lines("inbox", "bob")[0]["peer"] == "ann"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--limit", "0"], 2),
        (["--limit", "1000000"], 2),
        (["--after", "team"], 1),
        (["--after", ""], 1),
        (["--after", "1767225600000-0"], 1),
    ],
)
def test_wrong_arguments(arguments: list[str], code: int) -> None:
    result = im("inbox", "ann", *arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)


def test_an_unknown_user_is_an_error() -> None:
    assert "'dan' is in no group" in refused("inbox", "dan")


def test_a_mark_is_set_and_removed(chat: Chat) -> None:
    sent = say(chat, *"abc", sender="bob")
    chat.ack("ann", "team")

    assert lines("mark", "ann", "team", sent[1].msgid) == [{"gid": "team", "uid": "ann", "unread": 2}]
    assert lines("inbox", "ann")[0]["marked"] is True
    assert lines("group", "show", "team")[0]["unread"] == 0
    assert lines("unmark", "ann", "team") == [{"gid": "team", "uid": "ann", "unread": 0}]
    assert lines("unmark", "ann", "team") == [{"gid": "team", "uid": "ann", "unread": 0}]


def test_a_mark_of_a_one_to_one_chat(chat: Chat) -> None:
    sent = chat.send_direct("ann", "hi", sender_uid="bob")
    chat.ack("ann", sent.gid)

    assert lines("mark", "ann", "dm:bob", sent.msgid) == [{"gid": gid_of("ann", "bob"), "uid": "ann", "unread": 1}]


def test_what_cannot_be_marked(chat: Chat) -> None:
    [before] = say(chat, "before", sender="bob")
    chat.add_members("team", ["dan"])
    sent = say_many(chat, 100, sender="bob")
    tombstone = chat.recall("team", sent[50], by="bob").msgid

    assert "joined" in refused("mark", "dan", "team", before.msgid)
    assert "is itself the recall" in refused("mark", "ann", "team", tombstone)
    assert "not among the newest 100" in refused("mark", "ann", "team", sent[0])
    assert "has not been issued" in refused("mark", "ann", "team", "2600000000000-0")
    assert "is not a member" in refused("mark", "eve", "team", sent[99])
    assert lines("mark", "ann", "team", sent[1])[0]["unread"] == 98


def test_reading_in_private_leaves_the_offset(chat: Chat) -> None:
    sent = say(chat, *"ab", sender="bob")

    [acked] = lines("ack", "ann", "team", sent[0].msgid, "--private")
    again = lines("ack", "ann", "team", sent[0].msgid, "--private")[0]

    assert acked == {"gid": "team", "uid": "ann", "last_ack_msgid": None, "advanced": True}
    assert again["advanced"] is False
    assert lines("unread", "ann") == [{"gid": "team", "unread": 1}]
    assert lines("status", "team")[0]["read"] == 0
    assert [line["content"] for line in lines("pull", "ann", "team", "--no-local")] == ["b"]
