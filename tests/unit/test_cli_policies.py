"""`im group set`, `im user set`, `im why`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from tests.helpers.cli import connected_chat, im, lines, refused
from tests.helpers.talk import say


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    for chat in connected_chat(monkeypatch, tmp_path):
        chat.create_group("team", ["ann", "bob"])
        yield chat


def test_a_group_is_set_in_parts() -> None:
    assert lines("group", "set", "team", "receipts=counts") == [
        {"gid": "team", "receipts": "counts", "asked_by": "sender"}
    ]
    assert lines("group", "set", "team", "asked-by=members", "receipts=off") == [
        {"gid": "team", "receipts": "off", "asked_by": "members"}
    ]
    assert im("group", "set", "team", "receipts=names").stdout == "gid\treceipts\tasked_by\nteam\tnames\tmembers\n"


def test_a_user_is_set(chat: Chat) -> None:
    assert lines("user", "set", "bob", "receipts=off") == [{"uid": "bob", "receipts": "off"}]
    assert chat.user_policy("bob").receipts == "off"
    assert lines("user", "set", "bob", "receipts=on") == [{"uid": "bob", "receipts": "on"}]


def test_without_a_value_the_present_policy_is_shown_and_nothing_is_changed(chat: Chat) -> None:
    assert lines("group", "set", "team") == [{"gid": "team", "receipts": "names", "asked_by": "sender"}]
    assert lines("user", "set", "bob") == [{"uid": "bob", "receipts": "on"}]

    chat.set_group("team", receipts="counts", asked_by="members")
    chat.set_user("bob", receipts="off")
    server = chat.system.client.driver
    before = {key: server.dump(key) for key in server.scan_iter()}

    assert lines("group", "set", "team") == [{"gid": "team", "receipts": "counts", "asked_by": "members"}]
    assert im("group", "set", "team").stdout == "gid\treceipts\tasked_by\nteam\tcounts\tmembers\n"
    assert lines("user", "set", "bob") == [{"uid": "bob", "receipts": "off"}]
    assert im("user", "set", "bob").stdout == "uid\treceipts\nbob\toff\n"
    assert {key: server.dump(key) for key in server.scan_iter()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["group", "set"],
        ["group", "set", "team", "receipts"],
        ["group", "set", "team", "receipts=none"],
        ["group", "set", "team", "receipts="],
        ["group", "set", "team", "asked_by=sender"],
        ["group", "set", "team", "receipts=off", "receipts=names"],
        ["user", "set", "bob", "receipts=names"],
        ["user", "set", "bob", "asked-by=sender"],
        ["user", "set"],
    ],
)
def test_what_does_not_exist_is_wrong_usage(chat: Chat, arguments: list[str]) -> None:
    result = im(*arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert (chat.group_policy("team").receipts, chat.user_policy("bob").receipts) == ("names", "on")


def test_an_unknown_group_and_a_chat_that_names_one_user_only() -> None:
    assert "no group 'other'" in refused("group", "set", "other", "receipts=off")
    assert "no group 'other'" in refused("group", "set", "other")
    assert "whose chat with 'bob'" in refused("group", "set", "dm:bob", "receipts=off")
    assert "whose chat with 'bob'" in refused("group", "set", "dm:bob")
    assert "whose chat with 'bob'" in refused("why", "dm:bob", "1767225600000-0", "bob")


def test_operators_are_told_all(chat: Chat) -> None:
    [sent] = say(chat, "hi")
    chat.ack("bob", "team")
    lines("group", "set", "team", "receipts=off")
    assert lines("status", "team", sent.msgid)[0]["read_by"] == [{"uid": "bob", "read_at": None}]
    assert lines("why", "team", sent.msgid, "bob")[0]["why"] == "read"


def test_why_in_one_word_or_a_sentence(chat: Chat) -> None:
    [sent] = say(chat, "hi")
    answer = {"gid": "team", "msgid": sent.msgid, "uid": "bob", "why": "offline", "since": None}
    assert lines("why", "team", sent.msgid, "bob") == [answer]

    def sentence(uid: str = "bob") -> str:
        return im("why", "team", sent.msgid, uid).stdout

    assert (
        sentence()
        == "bob is offline and was never seen online, and no client of theirs has confirmed that it has arrived\n"
    )
    session = chat.begin_session("bob")
    assert sentence().startswith("bob is online, but no client")
    chat.end_session("bob", session)
    assert sentence().startswith("bob is offline since 2")
    assert lines("why", "team", sent.msgid, "bob")[0]["since"] is not None
    chat.delivered("bob", "team", sent.msgid)
    assert sentence() == "it has arrived at a client of bob, who has not read it\n"
    chat.ack("bob", "team")
    assert sentence() == "bob has read it (when, no worker has stored yet)\n"
    lines("user", "set", "bob", "receipts=off")
    assert sentence() == "bob tells nobody what they read\n"
    assert sentence("ann") == "ann has sent it\n"
    assert "has not been issued" in refused("why", "team", "2600000000000-0", "bob")
