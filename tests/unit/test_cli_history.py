"""`im history`, and metas on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from tests.helpers.cli import connected_chat, im, lines, refused
from tests.helpers.talk import say

META = {"kind": "image", "name": "\x1b[2J[red]"}


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    for chat in connected_chat(monkeypatch, tmp_path):
        chat.create_group("team", ["ann", "bob"])
        yield chat


# History.


def test_the_last_line_says_what_is_beyond_the_page(chat: Chat) -> None:
    sent = [message.msgid for message in say(chat, *"abcdefg")]

    def page(*options: str) -> tuple[list[object], dict[str, object]]:
        *messages, ends = lines("history", "bob", "team", *options)
        return [message["content"] for message in messages], ends

    def ends(*, older: bool, newer: bool) -> dict[str, object]:
        return {"gid": "team", "uid": "bob", "older": older, "newer": newer}

    assert page() == (list("abcdefg"), ends(older=False, newer=False))
    assert page("--limit", "2") == (["f", "g"], ends(older=True, newer=False))
    assert page("--before", sent[2]) == (["a", "b"], ends(older=False, newer=True))
    assert page("--after", sent[2], "--limit", "3") == (["d", "e", "f"], ends(older=True, newer=True))
    assert page("--around", sent[3], "--limit", "3") == (["c", "d", "e"], ends(older=True, newer=True))
    assert page("--after", sent[6]) == ([], ends(older=True, newer=False))
    chat.ack("bob", "team", sent[4])
    assert page("--first-unread", "--limit", "3") == (["e", "f", "g"], ends(older=True, newer=False))
    assert list(lines("history", "bob", "team", "--limit", "1")[0])[:3] == ["gid", "msgid", "seq"]


def test_people_get_a_table_and_a_hint_how_to_go_on(chat: Chat) -> None:
    sent = say(chat, *"abc")

    middle = im("history", "bob", "team", "--around", sent[1].msgid, "--limit", "1")
    whole = im("history", "bob", "team")

    assert middle.stdout.splitlines()[1].endswith("\tteam\tann\tb")
    assert middle.stderr.splitlines() == [
        f"older: im history bob team --before {sent[1].msgid}",
        f"newer: im history bob team --after {sent[1].msgid}",
    ]
    assert (len(whole.stdout.splitlines()), whole.stderr) == (4, "")


def test_an_empty_page_goes_on_from_its_cursor(chat: Chat) -> None:
    sent = say(chat, *"ab")

    shown = im("history", "bob", "team", "--after", sent[1].msgid)

    assert shown.stderr == f"older: im history bob team --before {sent[1].msgid}\n"


def test_a_one_to_one_chat_is_called_as_people_call_it(chat: Chat) -> None:
    chat.send_direct("bob", "hi", sender_uid="ann")

    *messages, ends = lines("history", "bob", "dm:ann")

    assert [(message["content"], message["peer"]) for message in messages] == [("hi", "ann")]
    assert ends["gid"] == "dm:3:ann:bob"


def test_what_is_no_page_is_refused(chat: Chat) -> None:
    say(chat, "hi")

    assert "is not a msgid" in refused("history", "bob", "team", "--before", "x")
    assert "is not a member" in refused("history", "zoe", "team")
    for options in (["--limit", "501"], ["--limit", "0"], ["--first-unread", "--before", "1767225600000-0"]):
        result = im("history", "bob", "team", *options)
        assert (result.exit_code, result.stdout) == (2, "")


# Metas.


def test_a_meta_is_in_json_lines_and_in_no_table(chat: Chat) -> None:
    [sent] = lines("send", "team", "hi", "--from", "ann", "--meta", json.dumps(META))
    [direct] = lines("dm", "bob", "hi", "--from", "ann", "--meta", "{}")
    [plain] = lines("send", "team", "hi", "--from", "ann")

    assert (sent["meta"], direct["meta"], "meta" in plain) == (META, {}, False)
    assert [message.meta for message in chat.pull("bob", "team")] == [META, None]
    assert [line.get("meta") for line in lines("pull", "bob", "team")] == [META, None]
    assert [line.get("meta") for line in lines("log", "ann")] == [META, {}, None]
    for command in (("pull", "bob"), ("status", "team"), ("log", "ann"), ("history", "bob", "team")):
        assert "image" not in im(*command).stdout


@pytest.mark.parametrize(
    ("meta", "said"),
    [("x", "meta is not JSON"), ("[]", "must be a JSON object"), ('{"a": 1, "a": 2}', "a key twice"), ("{", "is not")],
)
def test_what_is_no_meta_is_refused(chat: Chat, meta: str, said: str) -> None:
    assert said in refused("send", "team", "hi", "--from", "ann", "--meta", meta)
    assert chat.group("team").messages == 0


def test_a_meta_waits_in_the_outbox_and_goes_with_its_message(chat: Chat, tmp_path: Path) -> None:
    with LocalDatabase(path_of(tmp_path, "ann"), "ann") as local:
        device = Device(chat, "ann", local)
        device.queue("hi", gid="team", meta=META)
        device.queue("hi", to_uid="bob", meta={"a": (1, 2)})
        assert [line.meta for line in local.unsent()] == [META, {"a": [1, 2]}]

        sent = device.flush().sent

        assert [message.meta for message in sent] == [META, {"a": [1, 2]}]
        assert [line.meta for line in local.log()] == [META, {"a": [1, 2]}]
        device.keep([chat.recall("team", sent[0].msgid, by="ann")])
        device.keep([sent[0]])
        assert [(line.content, line.meta) for line in local.log()] == [("", None), ("hi", {"a": [1, 2]})]


def test_queue_takes_a_meta_too() -> None:
    [sent] = lines("send", "team", "hi", "--from", "ann", "--queue", "--meta", json.dumps(META))

    assert sent["meta"] == META
