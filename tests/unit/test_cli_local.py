"""The local database and the outbox of the user for whom a command acts."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import LocalDatabaseError, RedisFull, RedisUnavailable
from imcore.model.values import Message
from imcore.streams.keys import CONFIG
from tests.helpers.cli import connected_chat, im, lines, refused
from tests.helpers.talk import publish_receipts


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    yield from connected_chat(monkeypatch, tmp_path)


def wait_in_the_outbox(*texts: str, gid: str = "team") -> None:
    """Write something that the server cannot take now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chat, "send", _refuse)
        for text in texts:
            [line] = lines("send", gid, text, "--from", "ann", "--queue")
            assert line["state"] == "waiting"


def _refuse(*_: object, **__: object) -> None:
    raise RedisUnavailable("no answer from Redis at nowhere")


def test_a_pull_sends_the_first_message_of_a_user_without_groups(chat: Chat) -> None:
    # Given
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chat, "send_direct", _refuse)
        lines("dm", "bob", "hello", "--from", "ann", "--queue")
    # When
    assert lines("pull", "ann") == []
    # Then
    assert [each.content for each in chat.pull("bob")] == ["hello"]
    assert [line["state"] for line in lines("log", "ann")] == ["stored"]


def test_a_pull_brings_tallies_to_a_user_who_is_no_member_any_more(chat: Chat) -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")
    chat.ack("bob", "team")
    lines("group", "remove", "team", "ann", "--yes")
    assert refused("pull", "ann") == "'ann' is in no group: add them to one first"
    assert [line["state"] for line in lines("log", "ann")] == ["read by all"]


def test_a_sent_message_does_not_overtake_the_outbox(chat: Chat) -> None:
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


def test_no_message_is_sent_while_the_outbox_has_to_wait(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_refused_message_is_reported_in_one_line_and_shown_in_the_log(chat: Chat) -> None:
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
    publish_receipts(chat, [str(sent["msgid"])])
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
def test_a_message_that_cannot_be_kept_is_not_sent(
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


def test_a_message_that_cannot_be_kept_is_reported_as_stored(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LocalDatabaseError("the disk has broken")

    chat.create_group("team", ["ann", "bob"])
    monkeypatch.setattr(Device, "keep", fail)
    result = im("send", "team", "hi", "--from", "ann")
    [message] = chat.pull("bob")
    assert (result.exit_code, result.stderr) == (0, f"im: {message.msgid} is stored, but the disk has broken\n")
