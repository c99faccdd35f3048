"""`im export`: what is written where, and what becomes of outputs that fail."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore import Chat
from imcore.importer.event import parse
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.cli import connected_chat, im, let_commands_use, lines, refused


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    for chat in connected_chat(monkeypatch, tmp_path):
        chat.create_group("team", ["ann", "bob"])
        chat.send("team", "Lunch?\u202e", sender_uid="ann", client_msgid="c-1")
        chat.ack("bob", "team")
        yield chat


def test_writes_events_that_import_reads(chat: Chat) -> None:
    result = im("export", "team")

    assert (result.exit_code, result.stderr) == (0, "")
    events = [parse(line.encode(), max_content_bytes=1000) for line in result.stdout.splitlines()]
    assert [(event.type, event.uid) for event in events] == [
        *[("group", ""), ("join", "ann"), ("join", "bob"), ("message", "ann")],
        *[("ack", "ann"), ("ack", "bob")],
    ]
    assert lines("export", "team") == [json.loads(line) for line in result.stdout.splitlines()]
    assert "\u202e" not in result.stdout


def test_writes_a_file_which_only_its_owner_can_read(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "team.jsonl"
    file.write_text("old")

    assert im("export", "team", "--output", str(file)).stdout == ""
    assert file.read_text() == im("export", "team").stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "team" in path.name] == ["team.jsonl"]


def test_file_that_cannot_be_written_stays_as_it_was(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    file = tmp_path / "team.jsonl"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    # When
    reason = refused("export", "team", "--output", str(file))
    # Then
    assert reason == f"{file} could not be written: No space left on device"
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if "team" in path.name] == ["team.jsonl"]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("/dev/full", "No space left on device"),
        ("/no/such/folder/x", "No such file or directory"),
        ("/", "Is a directory"),
    ],
)
def test_bad_files_are_named(chat: Chat, file: str, reason: str) -> None:
    assert refused("export", "team", "--output", file) == f"{file} could not be written: {reason}"


def test_pipe_is_written_as_it_is(chat: Chat) -> None:
    assert im("export", "team", "--output", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_unknown_group_is_refused(chat: Chat) -> None:
    assert refused("export", "nobody") == "there is no group 'nobody'"


def test_unknown_user_is_refused_and_leaves_no_file(
    client: RedisClient, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client.upgrade()
    let_commands_use(System(client, database, settings), monkeypatch)

    assert refused("export", "--user", "nobody", "--output", str(tmp_path / "file")) == (
        "'nobody' is in no group, and was in none"
    )
    assert not list(tmp_path.glob("file*"))


@pytest.mark.parametrize("words", [[], ["team", "--user", "ann"]])
def test_needs_a_group_or_a_user(chat: Chat, words: list[str]) -> None:
    result = im("export", *words)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "im: give a GID, or --user UID (see im export --help)\n"


def test_counts_messages_with_a_client_msgid_that_others_have(chat: Chat) -> None:
    msgid = chat.send("team", "Yes", sender_uid="bob", client_msgid="c-1").msgid

    result = im("export", "team")

    assert result.exit_code == 0
    assert "client_msgid another one of their group has: 1;" in result.stderr
    assert [event["client_msgid"] for event in map(json.loads, result.stdout.splitlines()) if "content" in event] == [
        "c-1",
        msgid,
    ]
