"""`im` on terminals: pictures of tables, of help and of bars that are gone, as processes on a pty."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imcore import Chat
from imcore.settings import Settings
from tests.acceptance.test_cli import on_a_terminal
from tests.helpers.commands import Im
from tests.helpers.terminals import on_terminal, screen

BAR = re.compile(r"[━╸╺]|\d+/(\d+|\?) groups")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "imcore.cli.main", *words]


@pytest.fixture
def im(valkey: str, tmp_path: Path) -> Im:
    with Chat.connect(settings=Settings.from_env({}, redis_url=valkey, data_dir=str(tmp_path))) as chat:
        chat.system.database.upgrade()
        chat.create_group("team", ["ann", "bob"])
    return Im(redis_url=valkey, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("columns", "given"), [(1, {}), (40, {}), (80, {"COLUMNS": "0"}), (0, {}), (80, {"COLUMNS": "-5"}), (200, {})]
)
def test_confirmed_records_were_shown_at_any_width(im: Im, columns: int, given: dict[str, str]) -> None:
    im.json("send", "team", "Where shall we go today?", "--from", "ann", "--no-local")

    environment = {**im.environment, **given}
    code, said = on_terminal(["/usr/bin/env", *_set(given), *command("pull", "bob", "--ack")], environment, columns)

    assert code == 0
    assert "Whereshallwegotoday?" in re.sub(r"\x1b\[[0-9;]*m|\s", "", said)
    assert im.json("unread", "bob") == [{"gid": "team", "unread": 0}]


def _set(given: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_pictures_fit_their_terminals(im: Im, columns: int) -> None:
    text = "Where shall we go? I thought of the small place at the corner, where we were last summer."
    [sent] = im.json("send", "team", text, "--from", "ann")
    for words in (
        ["pull", "bob", "team"],
        ["status", "team"],
        ["status", "team", str(sent["msgid"])],
        ["group", "list"],
        ["log", "ann"],
        ["stats"],
        ["check"],
        ["db", "upgrade"],
    ):
        code, said = on_terminal(command(*words), im.environment, columns)
        assert code == (words == ["check"]), said  # no worker runs: its backlog is a difference
        assert max(map(len, screen(said))) <= columns, said


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_complaints_break_between_words(im: Im, columns: int) -> None:
    for words in (["status", "there is no group of this name, nor was there ever one"], ["unread", "a", "b"], ["pul"]):
        whole = im.run(*words).stderr

        code, said = on_terminal(command(*words), im.environment, columns)

        assert code > 0
        assert max(map(len, screen(said))) <= columns, said
        assert said.split() == whole.split()


@pytest.mark.parametrize("words", [["--help"], ["import", "--help"]], ids=" ".join)
def test_help_breaks_between_words(words: list[str]) -> None:
    whole = subprocess.run(command(*words), capture_output=True, text=True, check=True).stdout

    code, said = on_terminal(command(*words), os.environ, 40)

    assert code == 0
    assert max(map(len, screen(said))) <= 40
    assert said.split() == whole.split()


def test_a_broken_example_is_the_same_command(im: Im) -> None:
    _, said = on_terminal(command("up", "--help"), os.environ, 40)
    example = "\n".join(screen(said)).split("Example:\n")[1]

    echoed = subprocess.run(
        ["/bin/sh", "-c", example.replace("im ", "echo ")], capture_output=True, text=True, check=True
    )

    assert echoed.stdout == "up --web\nup --redis-url redis://localhost:6379 --database-url postgresql:///chat\n"


def test_bars_are_gone_before_a_table_and_know_their_total(im: Im, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(
        "".join(json.dumps({"type": "join", "gid": f"g{n % 50}", "uid": f"u{n}"}) + "\n" for n in range(2000))
    )
    for words in (["import", str(chat)], ["check"]):
        code, said = on_terminal(command(*words), im.environment, 80)
        assert code == (words == ["check"])  # no worker runs: its backlog is a difference
        stands = [line.rstrip() for line in screen(said) if line.strip()]
        assert BAR.search(said), words
        assert not BAR.search("\n".join(stands)), words
        assert "/?" not in said
        assert stands[0].split()[0] in {"messages", "gid"}


def test_up_breaks_its_lines_between_words(tmp_path: Path) -> None:
    environment = {**Im(data_dir=tmp_path / "data").environment, "COLUMNS": "60", "TERM": "xterm"}

    code, said = on_a_terminal(command("up"), environment, interrupt_at=b"working")

    assert code == 0
    assert max(map(len, screen(said))) <= 60
    assert "im: starting the workers persist, receipts, jobs; Ctrl-C\r\n  ends all\r\n" in said
    assert re.search(r"receipts \| \S+ INFO receipts: SIGTERM:[\r\n]+ {11}ending after", said)
