"""The first session of README, run line by line as real commands, with what its comments say."""

import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import END_S, Im, Line, Listening
from tests.helpers.deadline import wait_until
from tests.helpers.documents import README
from tests.helpers.servers import require_server

[SESSION] = README.blocks_in("console")


def session_lines() -> Mapping[str, tuple[list[str], str]]:
    """Return, by the command's name, the arguments and the comment of each line."""
    lines = [line.removeprefix("$ im ").partition(" # ") for line in SESSION.lines]
    parsed = [(shlex.split(command), comment.strip()) for command, _, comment in lines]
    assert len({words[0] for words, _ in parsed}) == len(parsed)
    return {words[0]: (words, comment) for words, comment in parsed}


class Session:
    """`im up` in the background; the other lines, given in README's order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.im = Im(data_dir=folder)
        self.lines = session_lines()
        self._waiting = iter(self.lines)
        assert next(self._waiting) == "up"
        self.up = self.im.start(*self.lines["up"][0])

    def next(self, name: str, says: str = "") -> list[str]:
        """Return the arguments of the next line of README, which has to be this command with this in its comment."""
        words, comment = self.lines[next(self._waiting)]
        assert words[0] == name
        assert says in comment
        return words

    def run(self, name: str, says: str = "") -> list[Line]:
        """Run the next line of README and return what it prints as JSON."""
        return self.im.json(*self.next(name, says))

    def is_over(self) -> bool:
        return next(self._waiting, None) is None


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    require_server()
    session = Session(tmp_path)
    try:
        yield session
    finally:
        session.up.terminate()
        session.up.communicate(timeout=END_S)


def answers(im: Im) -> bool:
    return im.run("--json", "group", "list").returncode == 0


def picked(lines: list[Line], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(line[name] for name in names) for line in lines]


def test_the_session_of_readme(session: Session) -> None:
    im = session.im
    wait_until(lambda: answers(im), timeout_s=END_S)

    assert session.run("group") == [{"gid": "team", "members": 3}]
    [lunch] = session.run("send")
    assert (lunch["content"], lunch["sender_uid"]) == ("Lunch at noon?", "ann")
    assert picked(session.run("pull", "what bob has not acked; --ack confirms what was printed"), "msgid") == [
        (lunch["msgid"],)
    ]
    assert im.json("pull", "bob") == []
    tallies = session.run("status", "read 1, unread 1")
    assert picked(tallies, "msgid", "read", "unread") == [(lunch["msgid"], 1, 1)]
    *page, ends = session.run("history", "what cy may see, read or not; --before MSGID shows the page before")
    assert picked(page, "msgid", "content") == [(lunch["msgid"], "Lunch at noon?")]
    assert (ends["older"], ends["newer"]) == (False, False)

    [question] = session.run("dm", "one-to-one; where a gid is expected, ann calls this chat dm:bob")
    assert picked(im.json("status", question["gid"]), "read", "unread") == [(0, 1)]
    assert im.json("ack", "ann", "dm:bob")[0]["last_ack_msgid"] == question["msgid"]

    words = session.next("receipts", "ann's messages whose tallies changed since she last confirmed them")
    confirmed: list[Line] = []

    def has_come() -> bool:
        confirmed.extend(im.json(*words))
        return bool(confirmed)

    wait_until(has_come, timeout_s=END_S)
    assert picked(confirmed, "gid", "msgid", "read", "unread") == [("team", lunch["msgid"], 1, 1)]
    assert im.json(*words) == []

    words = session.next("listen", "messages and receipts as they come, until Ctrl-C")
    with Listening(im, session.folder / "listening", *words[1:]) as listening:
        listening.wait_for(1)
        assert picked(listening.messages, "content") == [("Lunch at noon?",)]
        listening.send(signal.SIGINT)
        wait_until(lambda: not listening.runs, timeout_s=END_S)
        assert listening.errors == ""

    words = session.next("log", "ann's local database: waiting, refused, stored, read 1/2, read by all")
    assert picked(im.json(*words), "gid", "content", "state") == [
        ("team", "Lunch at noon?", "read 1/2"),
        (question["gid"], "Are you coming?", "stored"),
    ]
    assert "dm:bob" in im.run(*words).stdout
    assert session.is_over()

    assert session.lines["up"][1].endswith("embedded server, all workers; Ctrl-C ends all")
    session.up.send_signal(signal.SIGINT)
    assert session.up.wait(END_S) == 0
    assert "im up" in im.refusal("unread", "cy")


def test_the_quick_start_and_the_session_are_one_section() -> None:
    section = README.text.split("\n## Quick start\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"```(\w+)\n", section) == ["sh", "sh", "console"]
    assert SESSION.text in section
