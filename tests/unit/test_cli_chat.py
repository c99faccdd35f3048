"""The chat commands against a real Chat on fakeredis: their JSON, their tables, and what is refused."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import fakeredis
import pytest
from click.testing import CliRunner, Result

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli import output
from imcore.cli.app import app
from imcore.cli.options import Invocation
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import LocalDatabaseError, RedisFull, RedisUnavailable
from imcore.model.values import Message, Receipt
from imcore.settings import Settings
from imcore.streams.calls import receipt_calls
from imcore.streams.calls.receipt_calls import TallyChange
from imcore.streams.client import RedisClient
from imcore.streams.keys import CONFIG
from imcore.system import System

MESSAGE_KEYS = ["gid", "msgid", "seq", "sender_uid", "time", "content", "client_msgid"]
HOSTILE = "\x1b[2J[red]eve[/red]\n{0} 'x' \u202e群 👩\u200d💻 " + "x" * 3000


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    """A Chat where a worker has been, which every command gets; local databases are in a folder of the test's own."""
    monkeypatch.setenv("IM_DATA_DIR", str(tmp_path))
    settings = Settings.from_env({}, data_dir=str(tmp_path))
    server = fakeredis.FakeServer()

    def connect(_: Invocation | None = None) -> Chat:
        return Chat(System(RedisClient(fakeredis.FakeRedis(server=server)), None, settings))

    monkeypatch.setattr(Invocation, "chat", connect)
    with connect() as chat:
        chat.system.client.upgrade()
        yield chat


def im(*args: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, args, input=stdin, catch_exceptions=False)


def lines(*args: str, stdin: str | bytes | None = None) -> list[dict[str, object]]:
    result = im("--json", *args, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(*args: str, stdin: str | bytes | None = None) -> str:
    result = im(*args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("im: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("im: ").strip()


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
    assert list(sent) == MESSAGE_KEYS
    assert (sent["gid"], sent["seq"], sent["sender_uid"], sent["content"], sent["client_msgid"]) == (
        "team", 1, "ann", HOSTILE, "c1",
    )  # fmt: skip
    assert lines("send", "team", "again", "--from", "ann", "--client-msgid", "c1") == [sent]

    assert lines("pull", "bob", "team") == [sent]
    assert lines("unread", "bob") == [{"gid": "team", "unread": 1}]
    assert lines("ack", "bob", "team", str(sent["msgid"])) == [
        {"gid": "team", "uid": "bob", "last_ack_msgid": sent["msgid"], "advanced": True}
    ]
    assert lines("ack", "bob", "team")[0]["advanced"] is False
    assert lines("unread", "bob") == [{"gid": "team", "unread": 0}]
    assert lines("pull", "bob") == []

    assert lines("status", "team") == [{**sent, "read": 1, "unread": 1}]
    assert lines("status", "team", str(sent["msgid"])) == [
        {**sent, "read": 1, "unread": 1, "read_by": [{"uid": "bob", "read_at": None}], "unread_by": ["cleo"]}
    ]


def test_time_is_utc_with_milliseconds_and_that_of_the_msgid() -> None:
    lines("group", "create", "team", "ann")

    [sent] = lines("send", "team", "hi", "--from", "ann")

    milliseconds = int(str(sent["msgid"]).partition("-")[0]) % 1000
    assert str(sent["time"]).endswith(f".{milliseconds:03}Z")


def test_one_to_one() -> None:
    [sent] = lines("dm", "bob", "Hello", "--from", "ann")

    assert list(sent) == [*MESSAGE_KEYS, "peer"]
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


def test_a_live_session_names_the_other_of_a_one_to_one_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat.create_group("team", ["ann", "bob"])
    events = [
        chat.send_direct("bob", "Hello", sender_uid="ann"),
        Receipt("dm:3:ann:bob", "1767225600000-0", 1, 0, 1),
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


def test_one_to_one_where_the_gid_does_not_say_with_whom() -> None:
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


def test_pull_with_ack_confirms_what_it_printed_and_no_more() -> None:
    for gid in ("one", "two"):
        lines("group", "create", gid, "ann", "bob")
        for text in "abc":
            lines("send", gid, text, "--from", "ann")

    printed = lines("pull", "bob", "--limit", "2", "--ack")

    assert [f"{each['gid']} {each['content']}" for each in printed] == ["one a", "one b", "two a", "two b"]
    assert [each["content"] for each in lines("pull", "bob")] == ["c", "c"]


def test_what_a_pull_prints_is_in_the_local_database(chat: Chat, tmp_path: Path) -> None:
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


def test_what_receipts_confirms_is_in_the_local_database(chat: Chat) -> None:
    # Given
    im("group", "create", "team", "ann", "bob", "cy")
    msgid = str(lines("send", "team", "hi", "--from", "ann")[0]["msgid"])
    chat.system.client.call(
        receipt_calls.publish_receipts(
            chat.system.client.space, "team", "ann", [TallyChange("ann", msgids.pack(msgid), 0)]
        )
    )
    im("receipts", "ann")
    assert [line["state"] for line in lines("log", "ann")] == ["stored"]
    im("ack", "bob", "team")
    # When
    told = {"gid": "team", "msgid": msgid, "read": 1, "unread": 1}
    assert lines("receipts", "ann", "--ack") == [told]
    # Then
    assert [line["state"] for line in lines("log", "ann")] == ["read 1/2"]
    assert lines("receipts", "ann") == []


def test_what_is_stored_is_said_when_the_output_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
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


# The outbox.


def wait_in_the_outbox(*texts: str, gid: str = "team") -> None:
    """Write something that the server cannot take now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chat, "send", _refuse)
        for text in texts:
            [line] = lines("send", gid, text, "--from", "ann", "--queue")
            assert line["state"] == "waiting"


def _refuse(*_: object, **__: object) -> None:
    raise RedisUnavailable("no answer from Redis at nowhere")


def test_the_first_message_of_one_who_is_in_no_group_goes_out_with_a_pull(chat: Chat) -> None:
    # Given
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chat, "send_direct", _refuse)
        lines("dm", "bob", "hello", "--from", "ann", "--queue")
    # When
    assert lines("pull", "ann") == []
    # Then
    assert [each.content for each in chat.pull("bob")] == ["hello"]
    assert [line["state"] for line in lines("log", "ann")] == ["stored"]


def test_who_is_no_member_any_more_learns_by_a_pull_who_has_read(chat: Chat) -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")
    chat.ack("bob", "team")
    lines("group", "remove", "team", "ann", "--yes")
    assert refused("pull", "ann") == "'ann' is in no group: add them to one first"
    assert [line["state"] for line in lines("log", "ann")] == ["read by all"]


def test_what_is_sent_does_not_overtake_what_waits(chat: Chat) -> None:
    # Given
    lines("group", "create", "team", "ann", "bob")
    wait_in_the_outbox("one", "two")
    # When
    [third] = lines("send", "team", "three", "--from", "ann")
    # Then
    assert third["content"] == "three"
    assert [each.content for each in chat.pull("bob")] == ["one", "two", "three"]
    assert [(line["content"], line["state"]) for line in lines("log", "ann")] == [
        (text, "stored") for text in ("one", "two", "three")
    ]


def test_where_what_waits_cannot_go_out_nothing_else_does(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    lines("group", "create", "team", "ann", "bob")
    wait_in_the_outbox("one")
    send = Chat.send

    def full(self: Chat, gid: str, content: str, **options: Any) -> Message:
        if content == "one":
            raise RedisFull("nowhere has no memory left")
        return send(self, gid, content, **options)

    monkeypatch.setattr(Chat, "send", full)

    assert refused("send", "team", "two", "--from", "ann") == (
        "not sent, since what waits in the outbox comes first: nowhere has no memory left"
    )
    assert chat.pull("bob") == []
    assert lines("send", "team", "two", "--from", "ann", "--no-local")[0]["content"] == "two"


def test_what_will_never_be_taken_is_said_in_one_line_and_shown_in_the_log(chat: Chat) -> None:
    # Given
    lines("group", "create", "team", "ann", "bob")
    lines("group", "create", "theirs", "bob")
    reason = "'ann' is not a member of 'theirs'"
    # When
    assert refused("send", "theirs", "mine?", "--from", "ann", "--queue") == (
        f"the message was not sent and is refused: {reason}"
    )
    # Then
    assert [(line["content"], line["state"]) for line in lines("log", "ann")] == [("mine?", f"refused: {reason}")]
    wait_in_the_outbox("no", gid="theirs")
    wait_in_the_outbox("yes")
    result = im("send", "team", "too", "--from", "ann")
    assert result.stderr == f"im: a message that waited in the outbox was refused (see `im log`): {reason}\n"
    assert [each.content for each in chat.pull("bob", "team")] == ["yes", "too"]
    assert im("pull", "ann").stderr == ""


# Whose data it is.


@pytest.mark.parametrize(
    "words",
    [
        ["pull", "ann"],
        ["pull", "ann", "--ack"],
        ["send", "team", "hi", "--from", "ann"],
        ["send", "team", "hi", "--from", "ann", "--queue"],
        ["dm", "bob", "hi", "--from", "ann"],
        ["receipts", "ann", "--ack"],
        ["listen", "ann"],
    ],
)
def test_a_local_database_of_other_data_is_refused_before_anything_is_done(
    chat: Chat, tmp_path: Path, words: list[str]
) -> None:
    # Given a local database that was made with the data that was here before
    lines("group", "create", "team", "ann", "bob")
    [sent] = lines("send", "team", "mine", "--from", "ann")
    chat.system.client.driver.hset(CONFIG, "dataset", "another")
    lines("send", "team", "theirs", "--from", "bob")
    change = [TallyChange("ann", msgids.pack(str(sent["msgid"])), 0)]
    chat.system.client.call(receipt_calls.publish_receipts(chat.system.client.space, "team", "ann", change))
    before = (lines("log", "ann"), chat.unread("ann"), chat.receipts("ann"), chat.status("team"))
    # When
    assert "was made with other data than Redis has: set IM_REDIS_URL" in refused(*words)
    # Then
    assert (lines("log", "ann"), chat.unread("ann"), chat.receipts("ann"), chat.status("team")) == before
    assert [line["content"] for line in lines("pull", "ann", "--no-local")] == ["theirs"]


def test_a_local_database_that_cannot_be_written_says_what_to_do(chat: Chat, tmp_path: Path) -> None:
    lines("group", "create", "team", "ann", "bob")
    (tmp_path / "clients").write_text("a file, where a folder must be")

    for words in (["pull", "ann"], ["listen", "ann"], ["send", "team", "hi", "--from", "ann", "--queue"]):
        line = refused(*words)
        assert "cannot be used now" in line
        assert "IM_DATA_DIR" in line
        assert "--no-local" in line
    assert lines("pull", "ann", "--no-local") == []


def _a_file_where_the_folder_is_to_be(path: Path, _: pytest.MonkeyPatch) -> None:
    path.parent.write_text("a file")


def _damaged(path: Path, _: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)


def _of_something_else(path: Path, _: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def _of_another_user(path: Path, _: pytest.MonkeyPatch) -> None:
    LocalDatabase(path, "eve").close()


def _a_full_disk(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def full(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 3")
        return connection

    monkeypatch.setattr(sqlite3, "connect", full)


@pytest.mark.parametrize(
    "obstacle",
    [_a_file_where_the_folder_is_to_be, _damaged, _of_something_else, _of_another_user, _a_full_disk],
)
@pytest.mark.parametrize("uid", ["ann", "stranger"])
def test_what_could_not_be_kept_is_not_sent(
    chat: Chat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: Callable[[Path, pytest.MonkeyPatch], None],
    uid: str,
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    msgid = chat.send("team", "first", sender_uid="ann").msgid
    obstacle(path_of(tmp_path, uid), monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    commands = [["send", "team", "hi", "--from", uid], ["dm", "bob", "hi", "--from", uid]]
    commands += [["recall", "team", msgid, "--by", uid, "--yes"]]
    # When, then
    for words in commands:
        assert "database" in refused(*words)
        assert [(group.gid, group.messages) for group in chat.groups()] == [("team", 1)]
        assert sorted(tmp_path.rglob("*")) == before
    # And without a local database
    assert [line["content"] for line in lines("dm", "bob", "hi", "--from", uid, "--no-local")] == ["hi"]


def test_the_first_message_of_all_needs_no_worker(chat: Chat) -> None:
    chat.system.client.driver.function_flush()
    assert lines("dm", "bob", "hi", "--from", "ann")[0]["seq"] == 1
    assert [line["content"] for line in lines("log", "ann")] == ["hi"]


def test_nothing_is_left_of_a_sender_whose_name_was_mistyped(chat: Chat, tmp_path: Path) -> None:
    chat.create_group("team", ["ann", "bob"])
    assert refused("send", "team", "hi", "--from", "amn") == "'amn' is not a member of 'team'"
    assert refused("recall", "team", "1767225600000-0", "--by", "amn", "--yes").endswith("is not a message of 'team'")
    assert list(tmp_path.iterdir()) == []


def test_the_connection_that_was_opened_before_a_send_keeps_it(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a place where no database can be opened any more while something is sent
    chat.create_group("team", ["ann", "bob"])
    send = Chat.send

    def refused(*_: object, **__: object) -> NoReturn:
        raise sqlite3.OperationalError("unable to open database file")

    def send_and_refuse(self: Chat, *args: Any, **options: Any) -> Message:
        monkeypatch.setattr(sqlite3, "connect", refused)
        return send(self, *args, **options)

    monkeypatch.setattr(Chat, "send", send_and_refuse)
    # When
    assert lines("send", "team", "hi", "--from", "ann")[0]["content"] == "hi"
    # Then
    monkeypatch.undo()
    with LocalDatabase(path_of(tmp_path, "ann"), "ann", read_only=True) as local:
        assert [line.content for line in local.log()] == ["hi"]


def test_what_cannot_be_kept_after_all_is_said_to_be_stored(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LocalDatabaseError("the disk has broken")

    chat.create_group("team", ["ann", "bob"])
    monkeypatch.setattr(Device, "keep", fail)
    result = im("send", "team", "hi", "--from", "ann")
    [message] = chat.pull("bob")
    assert (result.exit_code, result.stderr) == (0, f"im: {message.msgid} is stored, but the disk has broken\n")


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
    assert im("status", "team", msgid).stdout.splitlines()[2:] == ["", "uid\tread\tread_at", "bob\tno\t-"]
    assert im("unread", "bob").stdout == "gid\tunread\nteam\t1\n"


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
def test_who_is_in_no_group_is_an_error(words: list[str], as_json: list[str], tmp_path: Path) -> None:
    command, *options = words

    assert refused(command, "nobody", *options, *as_json) == "'nobody' is in no group: add them to one first"
    assert not path_of(tmp_path, "nobody").exists()


@pytest.mark.parametrize("words", [["pull", "ann"], ["unread", "ann"], ["receipts", "ann"], ["group", "show", "team"]])
def test_who_has_nothing_is_no_error(words: list[str]) -> None:
    lines("group", "create", "team", *["ann"] * (words[0] != "group"))

    result = im(*words)

    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == (2 if words[0] == "unread" else 1)


def test_who_has_left_all_groups_still_gets_their_receipts(chat: Chat) -> None:
    # Given a sender who learns of a reader only after they have left
    lines("group", "create", "team", "ann", "bob")
    msgid = str(lines("send", "team", "hi", "--from", "ann", "--no-local")[0]["msgid"])
    lines("ack", "bob", "team")
    chat.system.client.call(
        receipt_calls.publish_receipts(
            chat.system.client.space, "team", "ann", [TallyChange("ann", msgids.pack(msgid), 0)]
        )
    )
    lines("group", "remove", "team", "ann", "--yes")
    # When
    told = lines("receipts", "ann", "--ack", "--no-local")
    # Then
    assert told == [{"gid": "team", "msgid": msgid, "read": 1, "unread": 0}]
    assert refused("receipts", "ann") == "'ann' is in no group: add them to one first"


def test_of_what_a_local_database_does_not_have_it_is_said_so() -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")
    result = im("log", "ann", "taem")
    assert (result.exit_code, result.stderr) == (0, "nothing of 'taem' is here\n")
    assert refused("log", "ann", "") == "gid is empty: give 1 to 128 bytes"


def test_a_one_to_one_chat_may_be_called_as_tables_show_it() -> None:
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


def test_a_one_to_one_chat_is_called_so_however_long_the_others_name_is() -> None:
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


def test_stats_count_everything_and_how_far_the_workers_are_behind(chat: Chat) -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")
    space = chat.system.client.space
    journal = space.journal(space.partition_of("team"))
    written = chat.system.client.query("XLEN", journal)
    chat.system.client.driver.xgroup_create(journal, "persist", "0")
    chat.system.client.driver.xreadgroup("persist", "persist-1", {journal: ">"}, count=1)
    chat.begin_session("ann")

    [found] = lines("stats")

    [worker] = found.pop("workers")  # type: ignore[misc]
    assert worker.pop("lag_ms") >= 0
    assert worker == {"worker": "persist", "backlog": written, "pending": 1}
    assert found.pop("storm") == {
        "acks": 0,
        "receipts": 0,
        "digests": 0,
        "receipts_per_digest": None,
        "messages_per_s": 0.0,
        "acks_per_s": 0.0,
    }
    assert found.pop("streams") == [
        {"kind": "groups", "streams": 1, "entries": 1, "bytes": None},
        {"kind": "journals", "streams": 8, "entries": written, "bytes": None},
    ]
    [server] = found.pop("servers")  # type: ignore[misc]
    assert (server["holds"], server["maxmemory_policy"], server["warnings"]) == ("chat", None, [])
    assert (found.pop("silent"), found.pop("rebuild"), found.pop("unseen")) == ([], None, [])
    assert found == {
        "groups": 1,
        "members": 2,
        "messages": 1,
        "online": 1,
        "journal": written,
        "dead_letters": 0,
        "jobs": None,
    }
    assert im("stats").stdout.splitlines()[3] == "worker\tbacklog\tpending\tlag_ms"
    assert "ann" not in im("stats").stdout


def test_stats_name_who_is_online_if_that_is_asked_for(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.admin.stats.CHUNK", 2)
    uids = [f"user{number}" for number in range(30)]
    lines("group", "create", "team", *uids)
    for uid in uids[:20]:
        chat.begin_session(uid)

    [found] = lines("stats", "--online")

    assert sorted(found["online_uids"]) == sorted(uids[:20])  # type: ignore[arg-type, type-var]
    assert set(uids) & set(im("stats", "--online").stdout.splitlines()) == set(uids[:20])


def test_stats_say_that_nobody_is_online_if_that_is_asked_for() -> None:
    assert im("stats", "--online").stdout.endswith("\n\nonline\n")
    assert not im("stats").stdout.endswith("online\n")


def test_stats_count_the_backlog_where_redis_has_lost_count(chat: Chat) -> None:
    client, journal = chat.system.client.driver, chat.system.client.space.journal(0)
    ids = [client.xadd(journal, {"kind": "test"}) for _ in range(5)]
    client.xgroup_create(journal, "persist", ids[0])
    client.xdel(journal, ids[2])

    [worker] = lines("stats")[0]["workers"]  # type: ignore[misc]

    assert worker["backlog"] == 3


@pytest.fixture
def dead_id(chat: Chat) -> str:
    """The id of a dead letter, whose entry says something hostile."""
    space = chat.system.client.space
    partition = space.partition_of("team")
    dead = {"dead_worker": "persist", "dead_reason": "no \x1b[31mway", "dead_entry": "1-1", "dead_deliveries": "5"}
    entry_id = chat.system.client.driver.xadd(
        space.dead_letters(partition), dead | {"kind": "msg", "gid": "[red]\x1b[2J"}
    )
    return f"{partition}:{entry_id.decode()}"


def test_dead_letters_are_listed_and_shown(dead_id: str) -> None:
    expected = {
        "id": dead_id,
        "worker": "persist",
        "reason": "no \x1b[31mway",
        "entry": "1-1",
        "deliveries": 5,
        "fields": {"kind": "msg", "gid": "[red]\x1b[2J"},
    }

    [listed] = lines("dead", "list")

    assert str(listed.pop("time")).endswith("Z")
    assert listed == expected
    assert lines("dead", "show", dead_id)[0]["fields"] == expected["fields"]
    assert im("dead", "show", dead_id).stdout.endswith("field\tvalue\nkind\tmsg\ngid\t[red]␛[2J\n")


def test_a_dead_letter_goes_back_into_the_journal(chat: Chat, dead_id: str) -> None:
    assert lines("dead", "requeue", dead_id) == [{"id": dead_id, "requeued": True}]

    assert lines("dead", "list") == []
    journal = chat.system.client.space.journal(int(dead_id.partition(":")[0]))
    assert chat.system.client.query("XLEN", journal) == 1
    assert "there is no dead letter" in refused("dead", "requeue", dead_id)


def test_a_dead_letter_is_dropped_only_if_that_is_meant(dead_id: str) -> None:
    assert "--yes" in refused("dead", "drop", dead_id)
    assert len(lines("dead", "list")) == 1

    assert lines("dead", "drop", dead_id, "--yes") == [{"id": dead_id, "dropped": True}]

    assert lines("dead", "list") == []
    assert "there is no dead letter" in refused("dead", "drop", dead_id, "--yes")
    assert "is not the id of a dead letter" in refused("dead", "show", "soon\x1b[2J")


@pytest.mark.parametrize(
    ("dead_id", "why"),
    [
        ("soon", "'soon' is not the id of a dead letter: it looks like 3:1767225600000-0"),
        ("3", "'3' is not the id of a dead letter: it looks like 3:1767225600000-0"),
        ("1767225600000-0", "'1767225600000-0' is not the id of a dead letter: it looks like 3:1767225600000-0"),
        ("8:1767225600000-0", "there is no dead letter 8:1767225600000-0: the first number, the partition, is 0 to 7"),
        ("9" * 60 + ":1-1", "there is no dead letter 999999999999...999999999:1-1: the first number"),
        (f"3:{2**64}-0", f"there is no dead letter 3:{2**64}-0: no entry has a number over {2**64 - 1}"),
        (f"3:1-{2**64}", f"there is no dead letter 3:1-{2**64}: no entry has a number over {2**64 - 1}"),
        ("3:1-" + "9" * 5000, "there is no dead letter 3:1-99999999...9999999999999: no entry has a number over"),
        (f"3:{2**64 - 1}-{2**64 - 1}", f"there is no dead letter 3:{2**64 - 1}-{2**64 - 1}: `im dead list` shows"),
        ("3:0-0", "there is no dead letter 3:0-0: `im dead list` shows them all"),
    ],
)
def test_what_is_wrong_with_the_id_of_a_dead_letter_is_said(dead_id: str, why: str) -> None:
    for words in (["show", dead_id], ["requeue", dead_id], ["drop", dead_id, "--yes"]):
        assert refused("dead", *words).startswith(why)


def test_a_dead_letter_that_somebody_has_written_hides_no_other(chat: Chat, dead_id: str) -> None:
    # Given
    letters = chat.system.client.space.dead_letters(0)
    chat.system.client.driver.xadd(letters, {"dead_deliveries": "many", b"\xff": b"\xff"}, id="5-1")
    chat.system.client.driver.xadd(letters, {"kind": "msg"}, id="99999999999999999-0")
    # When, then
    found = {line["id"]: line for line in lines("dead", "list")}
    assert {"0:5-1", "0:99999999999999999-0", dead_id} == set(found)
    assert found["0:5-1"]["deliveries"] == 0
    assert found["0:99999999999999999-0"]["time"] == "9999-12-31T23:59:59.999Z"
    assert lines("dead", "drop", "0:05-01", "--yes") == [{"id": "0:05-01", "dropped": True}]
    assert "0:5-1" not in im("dead", "list").stdout


def test_of_many_dead_letters_those_are_shown_that_were_handled(chat: Chat, dead_id: str) -> None:
    partition, _, first = dead_id.partition(":")
    letters = chat.system.client.space.dead_letters(int(partition))
    [(_, fields)] = chat.system.client.driver.xrange(letters)
    second = f"{partition}:{chat.system.client.driver.xadd(letters, fields).decode()}"
    result = im("dead", "drop", dead_id, second, "0:1-1", "--yes")
    assert result.exit_code == 1
    assert result.stdout == f"id\tdropped\n{partition}:{first}\tyes\n{second}\tyes\n"
    assert "there is no dead letter" in result.stderr
