"""The chat commands against a real Chat on fakeredis: their JSON, their tables, and what is refused."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from imcore.cli import output
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.model.values import Receipt
from tests.helpers.cli import connected_chat, im, lines, refused
from tests.helpers.talk import publish_receipts

MESSAGE_KEYS = ["gid", "msgid", "seq", "sender_uid", "time", "content", "client_msgid"]
HOSTILE = "\x1b[2J[red]eve[/red]\n{0} 'x' \u202e群 👩\u200d💻 " + "x" * 3000


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    yield from connected_chat(monkeypatch, tmp_path)


def test_groups() -> None:
    assert lines("group", "create", "#ubuntu", "ann", "bob") == [{"gid": "#ubuntu", "members": 2}]
    assert lines("group", "create", "#ubuntu", "bob", "ann") == [{"gid": "#ubuntu", "members": 2}]
    assert lines("group", "add", "#ubuntu", "cleo", "ann") == [{"gid": "#ubuntu", "members": 3}]
    assert lines("group", "remove", "#ubuntu", "bob", "--yes") == [{"gid": "#ubuntu", "members": 2}]
    [sent] = lines("send", "#ubuntu", "hi", "--from", "ann")

    assert lines("group", "list") == [{"gid": "#ubuntu", "members": 2, "messages": 1, "last_msgid": sent["msgid"]}]
    assert lines("group", "show", "#ubuntu") == [
        {"gid": "#ubuntu", "uid": "ann", "last_ack_msgid": sent["msgid"], "unread": 0, "online": False},
        {"gid": "#ubuntu", "uid": "cleo", "last_ack_msgid": None, "unread": 1, "online": False},
    ]


def test_the_life_of_a_message() -> None:
    lines("group", "create", "team", "ann", "bob", "cleo")

    [sent] = lines("send", "team", HOSTILE, "--from", "ann", "--client-msgid", "c1")
    assert list(sent) == [*MESSAGE_KEYS, "recipients"]
    assert (sent["gid"], sent["seq"], sent["sender_uid"], sent["content"], sent["client_msgid"]) == (
        "team", 1, "ann", HOSTILE, "c1",
    )  # fmt: skip
    assert lines("send", "team", "again", "--from", "ann", "--client-msgid", "c1") == [sent]
    assert sent.pop("recipients") == 2

    assert lines("pull", "bob", "team") == [sent]
    assert lines("unread", "bob") == [{"gid": "team", "unread": 1}]
    assert lines("ack", "bob", "team", str(sent["msgid"])) == [
        {"gid": "team", "uid": "bob", "last_ack_msgid": sent["msgid"], "advanced": True}
    ]
    assert lines("ack", "bob", "team")[0]["advanced"] is False
    assert lines("unread", "bob") == [{"gid": "team", "unread": 0}]
    assert lines("pull", "bob") == []

    assert lines("status", "team") == [{**sent, "read": 1, "unread": 1, "delivered": 1}]
    assert lines("status", "team", str(sent["msgid"])) == [
        {
            **sent,
            "read": 1,
            "unread": 1,
            "delivered": 1,
            "read_by": [{"uid": "bob", "read_at": None}],
            "unread_by": ["cleo"],
            "delivered_to": ["bob"],
        }
    ]


def test_time_is_utc_with_milliseconds_and_that_of_the_msgid() -> None:
    lines("group", "create", "team", "ann")

    [sent] = lines("send", "team", "hi", "--from", "ann")

    milliseconds = int(str(sent["msgid"]).partition("-")[0]) % 1000
    assert str(sent["time"]).endswith(f".{milliseconds:03}Z")


def test_one_to_one() -> None:
    [sent] = lines("dm", "bob", "Hello", "--from", "ann")

    assert list(sent) == [*MESSAGE_KEYS, "recipients", "peer"]
    assert sent.pop("recipients") == 1
    assert (sent["gid"], sent["peer"]) == ("dm:3:ann:bob", "bob")
    assert lines("pull", "bob") == [{**sent, "peer": "ann"}]
    assert lines("unread", "bob") == [{"gid": "dm:3:ann:bob", "unread": 1, "peer": "ann"}]
    assert [line["peer"] for line in lines("log", "bob")] == ["ann"]
    assert "\tdm:ann\tann\tHello" in im("pull", "bob").stdout
    assert "dm:ann\t1" in im("unread", "bob").stdout
    assert im("log", "ann").stdout.splitlines()[1].startswith("dm:bob\t")


def test_a_table_shows_nobody_as_a_group_could_be_called() -> None:
    lines("dm", "bob", "Hello", "--from", "ann")

    shown = im("unread", "bob").stdout.splitlines()[1].partition("\t")[0]

    assert "is kept for one-to-one chats" in refused("group", "create", shown, "ann", "bob")


def test_a_live_session_names_the_peer_of_a_one_to_one_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat.create_group("team", ["ann", "bob"])
    events = [
        chat.send_direct("bob", "Hello", sender_uid="ann"),
        Receipt("dm:3:ann:bob", "1767225600000-0", 1, 0, 1, 1),
        chat.send("team", "Hi", sender_uid="ann"),
    ]
    monkeypatch.setattr(Device, "live", lambda self, stopping, **options: iter(events))

    assert [event.get("peer") for event in lines("listen", "bob")] == ["ann", "ann", None]
    shown = [line.split("  ") for line in im("listen", "bob").stdout.splitlines()]
    assert [line[-3:] for line in shown] == [
        ["dm:ann", "ann", "Hello"],
        ["dm:ann", "1767225600000-0", "read 1/1"],
        ["team", "ann", "Hi"],
    ]


def test_one_to_one_where_the_gid_does_not_name_the_peer() -> None:
    bob = "b" * 100
    [sent] = lines("dm", bob, "Hello", "--from", "a" * 100)

    assert str(sent["gid"]).startswith("dm#")
    assert sent["peer"] == bob
    assert [each["peer"] for each in lines("pull", bob)] == ["a" * 100]
    # Also where nobody has answered yet
    assert [line["peer"] for line in lines("log", "a" * 100)] == [bob]
    assert im("log", "a" * 100).stdout.splitlines()[1].startswith(f"dm:{bob}\t")
    # And to whom it is new
    assert [line["peer"] for line in lines("log", bob)] == ["a" * 100]


def test_content_from_stdin_is_taken_as_it_is() -> None:
    lines("group", "create", "team", "ann")

    assert lines("send", "team", "-", "--from", "ann", stdin="two\r\nlines\n群\n")[0]["content"] == "two\r\nlines\n群\n"
    assert lines("dm", "bob", "-", "--from", "ann", stdin="hi")[0]["content"] == "hi"
    assert refused("send", "team", "-", "--from", "ann", stdin=b"ab\xff") == (
        "content on stdin is not valid UTF-8: byte 3 cannot be read"
    )
    assert "more than 65536 bytes" in refused("send", "team", "-", "--from", "ann", stdin=b"\xe7" * 65_537)
    assert "content is empty" in refused("send", "team", "-", "--from", "ann", stdin="")


def test_pull_with_ack_confirms_the_printed_messages_only() -> None:
    for gid in ("one", "two"):
        lines("group", "create", gid, "ann", "bob")
        for text in "abc":
            lines("send", gid, text, "--from", "ann")

    printed = lines("pull", "bob", "--limit", "2", "--ack")

    assert [f"{each['gid']} {each['content']}" for each in printed] == ["one a", "one b", "two a", "two b"]
    assert [each["content"] for each in lines("pull", "bob")] == ["c", "c"]


def test_pulled_messages_are_in_the_local_database(chat: Chat, tmp_path: Path) -> None:
    # Given a message that came back after a power cut, before what the local database has
    chat.create_group("team", ["ann", "bob"])
    back, kept = (chat.send("team", text, sender_uid="ann") for text in ("back", "kept"))
    with LocalDatabase(path_of(tmp_path, "bob"), "bob") as local:
        local.begin({})
        local.keep([kept], {"team": kept.msgid})
    # When
    assert [line["msgid"] for line in lines("pull", "bob", "--ack")] == [back.msgid, kept.msgid]
    # Then
    assert [line["content"] for line in lines("log", "bob")] == ["back", "kept"]


def test_the_log_reads_like_a_chat_across_groups(chat: Chat) -> None:
    # Given
    for gid in ("zoo", "alps"):
        chat.create_group(gid, ["ann", "bob"])
    sent = []
    for gid in ("zoo", "alps", "zoo"):
        time.sleep(0.002)  # messages of one millisecond have no order across groups
        sent.append(chat.send(gid, f"in {gid}", sender_uid="ann"))
    lines("pull", "bob")
    # When
    shown = lines("log", "bob")
    # Then
    assert [(line["gid"], line["msgid"]) for line in shown] == [(each.gid, each.msgid) for each in sent]
    assert [line.split("\t")[0] for line in im("log", "bob").stdout.splitlines()[1:]] == ["zoo", "alps", "zoo"]
    assert [line["content"] for line in lines("log", "bob", "zoo")] == ["in zoo", "in zoo"]


def test_confirmed_receipts_are_in_the_local_database(chat: Chat) -> None:
    # Given
    im("group", "create", "team", "ann", "bob", "cy")
    msgid = str(lines("send", "team", "hi", "--from", "ann")[0]["msgid"])
    publish_receipts(chat, [msgid])
    im("receipts", "ann")
    assert [line["state"] for line in lines("log", "ann")] == ["stored"]
    im("ack", "bob", "team")
    # When
    receipt = {"gid": "team", "msgid": msgid, "read": 1, "unread": 1, "delivered": 1}
    assert lines("receipts", "ann", "--ack") == [receipt]
    # Then
    assert [line["state"] for line in lines("log", "ann")] == ["read 1/2"]
    assert lines("receipts", "ann") == []


def test_a_stored_message_is_reported_when_the_output_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lines("group", "create", "team", "ann", "bob")

    def lose() -> None:
        patch.undo()
        raise output.OutputError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(output, "flush", lose)
        result = im("send", "team", "hi", "--from", "ann")

    [line] = lines("log", "ann")
    assert (result.exit_code, result.stderr) == (1, f"im: {line['msgid']} is stored, but lost\n")


def test_pull_confirms_nothing_when_the_output_was_lost(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")

    def lose() -> None:
        raise output.OutputError("lost")

    monkeypatch.setattr(output, "flush", lose)
    result = im("pull", "bob", "--ack")

    assert result.exit_code == 1
    assert len(chat.pull("bob")) == 1


def test_status_takes_a_limit_and_0_is_all() -> None:
    lines("group", "create", "team", "ann")
    for number in range(25):
        lines("send", "team", str(number), "--from", "ann")

    assert [each["content"] for each in lines("status", "team", "--limit", "2")] == ["23", "24"]
    assert len(lines("status", "team")) == 20
    assert len(lines("status", "team", "--limit", "0")) == 25
    assert im("status", "team", "1767225600000-0", "--limit", "1").exit_code == 2


def test_without_json_a_pipe_gets_plain_rows_that_cannot_act() -> None:
    im("group", "create", "team", "ann", "bob")
    sent = im("send", "team", HOSTILE, "--from", "ann").stdout.splitlines()
    msgid = sent[1].split("\t")[0]

    assert len(sent) == 2
    assert "␛[2J[red]eve[/red]␊{0} 'x' <U+202E>群 👩\u200d💻 xxx" in sent[1]
    shown = im("status", "team", msgid).stdout.splitlines()
    assert shown[2:] == ["", "uid\tdelivered\tread\tread_at", "bob\tno\tno\t-"]
    assert im("unread", "bob").stdout == "gid\tunread\nteam\t1\n"
    im("pull", "bob", "team", "--ack")
    assert im("status", "team", msgid).stdout.splitlines()[4].startswith("bob\tyes\tyes\t")


@pytest.mark.parametrize(
    "words",
    [
        ["pull"],
        ["pull", "--ack"],
        ["pull", "--no-local", "--limit", "1"],
        ["unread"],
        ["receipts"],
        ["receipts", "--ack"],
        ["receipts", "--ack", "--no-local"],
        ["listen"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["table", "json"])
def test_a_user_in_no_group_is_an_error(words: list[str], as_json: list[str], tmp_path: Path) -> None:
    command, *options = words

    assert refused(command, "nobody", *options, *as_json) == "'nobody' is in no group: add them to one first"
    assert not path_of(tmp_path, "nobody").exists()


@pytest.mark.parametrize("words", [["pull", "ann"], ["unread", "ann"], ["receipts", "ann"], ["group", "show", "team"]])
def test_a_user_without_messages_is_no_error(words: list[str]) -> None:
    lines("group", "create", "team", *["ann"] * (words[0] != "group"))

    result = im(*words)

    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == (2 if words[0] == "unread" else 1)


def test_a_user_who_left_all_groups_still_gets_receipts(chat: Chat) -> None:
    # Given a sender who learns of a reader only after they have left
    lines("group", "create", "team", "ann", "bob")
    msgid = str(lines("send", "team", "hi", "--from", "ann", "--no-local")[0]["msgid"])
    lines("ack", "bob", "team")
    publish_receipts(chat, [msgid])
    lines("group", "remove", "team", "ann", "--yes")
    # When
    receipts = lines("receipts", "ann", "--ack", "--no-local")
    # Then
    assert receipts == [{"gid": "team", "msgid": msgid, "read": 1, "unread": 0, "delivered": 1}]
    assert refused("receipts", "ann") == "'ann' is in no group: add them to one first"


def test_the_log_reports_a_group_that_a_local_database_does_not_have() -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")
    result = im("log", "ann", "taem")
    assert (result.exit_code, result.stderr) == (0, "nothing of 'taem' is here\n")
    assert refused("log", "ann", "") == "gid is empty: give 1 to 128 bytes"


def test_commands_accept_the_name_of_a_one_to_one_chat_from_tables() -> None:
    [sent] = lines("dm", "bob", "hi", "--from", "ann")
    assert [message["content"] for message in lines("pull", "bob", "dm:ann")] == ["hi"]
    assert lines("send", "dm:ann", "hello", "--from", "cy")[0]["gid"] == "dm:3:ann:cy"
    assert refused("pull", "cy", str(sent["gid"])) == f"'cy' is not a member of {sent['gid']!r}"
    assert "its gid is in `im group list`" in refused("status", "dm:bob")
    assert lines("ack", "ann", "dm:bob")[0]["peer"] == "bob"
    assert lines("ack", "bob", "dm:ann")[0]["gid"] == sent["gid"]
    assert [line["state"] for line in lines("log", "ann", "dm:bob")] == ["stored"]
    assert lines("recall", "dm:bob", str(sent["msgid"]), "--by", "ann", "--yes")[0]["recalls"] == sent["msgid"]
    assert lines("pull", "bob", str(sent["gid"])) == lines("pull", "bob", "dm:ann")


def test_a_one_to_one_chat_with_the_longest_name_has_the_name_of_the_peer() -> None:
    long = "x" * 128
    [sent] = lines("dm", long, "hi", "--from", "ann")
    called = f"dm:{long}"
    assert lines("send", called, "there", "--from", "ann")[0]["gid"] == sent["gid"]
    assert [line["content"] for line in lines("log", "ann", called)] == ["hi", "there"]
    assert lines("pull", "ann", called) == []
    assert lines("ack", "ann", called)[0]["gid"] == sent["gid"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["pull", "ann", "nowhere"], "there is no group 'nowhere'"),
        (["status", "nowhere"], "there is no group 'nowhere'"),
        (["group", "show", "nowhere"], "there is no group 'nowhere'"),
        (["group", "add", "nowhere", "ann"], "there is no group 'nowhere'"),
        (["send", "team", "hi", "--from", "eve"], "'eve' is not a member of 'team'"),
        (["ack", "eve", "team"], "'eve' is not a member of 'team'"),
        (["send", "team", "", "--from", "ann"], "content is empty"),
        (["send", "team", "x" * 65_537, "--from", "ann"], "at most 65536"),
        (["send", "", "hi", "--from", "ann"], "gid is empty"),
        (["send", "team", "hi", "--from", "a\x1b[2Jb"], "control character"),
        (["group", "create", "g" * 129], "at most 128"),
        (["group", "create", "team", "ann"], "exists already"),
        (["send", "team", "\udcff", "--from", "ann"], "not valid UTF-8"),
        (["ack", "ann", "team", "soon"], "'soon' is not a msgid"),
        (["ack", "ann", "team", "1767225600000-0"], "not been issued yet"),
        (["status", "team", "0-0"], "is not a msgid"),
        (["ack", "ann", "team", "99999999999999-0"], "is not a msgid: the last possible one is 2677348427775-8191"),
        (["recall", "team", "1767225600000-8192", "--by", "ann", "--yes"], "its second number is at most 8191"),
    ],
)
def test_bad_input_is_one_line_and_1(args: list[str], why: str) -> None:
    lines("group", "create", "team", "ann", "bob")

    assert why in refused(*args)


def test_an_ack_in_an_empty_group_does_nothing() -> None:
    lines("group", "create", "team", "ann")

    assert lines("ack", "ann", "team") == [{"gid": "team", "uid": "ann", "last_ack_msgid": None, "advanced": False}]
