"""Every table of every command on terminals of many widths: what a pipe gets is all there, and nothing is confirmed
that was not shown."""

import io
import re
import sys
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path
from unittest.mock import Mock

import fakeredis
import pytest
from click.testing import CliRunner

from imcore.admin.retention import TrimSummary
from imcore.chat import Chat
from imcore.cli.app import Invocation, app
from imcore.cli.terminal import cells
from imcore.importer.importer import ImportSummary
from imcore.model.values import Receipt
from imcore.repair.diff import Difference
from imcore.repair.rebuild import Before, RebuildSummary
from imcore.settings import Settings
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.talk import push_receipts

_KOLKATA = timezone(timedelta(hours=5, minutes=30))
WIDTHS = [1, 2, 7, 16, 30, 40, 50, 60, 79, 80, 81, 100, 120, 200]
UUID, LONG = "550e8400-e29b-41d4-a716-446655440000", "u" * 120
UIDS = ["ann", "bob", "cy", "ann ", "\u0430nn", "jose\u0301", "山田太郎", "👩\u200d💻dev", "yes", UUID, LONG]
TEXTS = [
    "Lunch at noon?",
    "Where shall we go? I thought of the small place at the corner, where we were last summer.",
    "昼食は正午にどうですか。駅前の小さなレストランで会いましょう。天気がよければ外の席に座れます。",
    "👩\u200d💻🎉🇪🇺 yes! " * 8,
    "two\nlines \x1b[2J [red]not red[/red] " + "x" * 300,
    " blanks  at both ends ",
]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    """A Chat with all kinds of names and texts, which every command gets."""
    monkeypatch.setenv("IM_DATA_DIR", str(tmp_path))
    settings = Settings.from_env({}, data_dir=str(tmp_path))
    server = fakeredis.FakeServer()

    def connect(_: Invocation | None = None) -> System:
        return System(RedisClient(fakeredis.FakeRedis(server=server)), None, settings)

    monkeypatch.setattr(Invocation, "connect", connect)
    with Chat(connect()) as chat:
        chat.system.client.upgrade()
        chat.create_group("team", UIDS)
        chat.create_group("團體", ["ann", "bob"])
        sent = [chat.send("team", text, sender_uid=UIDS[n]) for n, text in enumerate(TEXTS)]
        chat.send("團體", "x", sender_uid="bob")
        chat.send_direct("bob", "Are you coming?", sender_uid="ann")
        chat.recall("team", chat.send("team", "oops", sender_uid="bob").msgid, by="bob")
        chat.ack("cy", "team", sent[2].msgid)
        push_receipts(chat, sent[0])
        chat.begin_session("ann ")
        _put_aside(chat)
        yield chat


def _put_aside(chat: Chat) -> None:
    dead = {"dead_worker": "persist", "dead_reason": "no " * 30, "dead_entry": "1-1", "dead_deliveries": "5"}
    chat.system.client.driver.xadd(
        chat.system.client.space.dead_letters(0), dead | {"kind": "msg", "gid": "\u0430nn ", "content": TEXTS[1]}
    )


def piped(*words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code in {0, 1}
    return result.stdout


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, *words: str) -> str:
    """Return what a command writes to a terminal of this many columns."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "dumb")
        with pytest.raises(SystemExit):
            app.main(words)
    return terminal.getvalue()


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


def assert_all_is_shown(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Compare the text on a terminal with the cells in a pipe, where no line is broken."""
    piped(*words)  # what changes something has done so now
    table = piped(*words)
    piped_cells = [without_blanks(_shorter(cell)) for line in table.splitlines() for cell in line.split("\t")]
    assert len(piped_cells) > 1
    for columns in WIDTHS:
        screen = on_terminal(monkeypatch, columns, *words)
        assert [cell for cell in piped_cells if cell not in without_blanks(screen)] == []
        assert "…" not in screen
        if columns > 4:  # below, a wide letter may not fit beside its indent
            assert max(map(cells, screen.splitlines())) <= columns


def _shorter(cell: str) -> str:
    """Return a time as terminals have it."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{3}Z$", r"\1 \2Z", cell)


@pytest.mark.parametrize(
    "words",
    [
        ["pull", "bob", "--no-local"],
        ["pull", "bob", "team", "--limit", "2", "--no-local"],
        ["status", "team"],
        ["group", "list"],
        ["group", "show", "team"],
        ["group", "create", "team", *UIDS],
        ["ack", "bob", "dm:ann"],
        ["unread", "bob"],
        ["receipts", "ann"],
        ["stats", "--online"],
        ["dead", "list"],
        ["acl"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_terminal_shows_whatever_a_pipe_gets(chat: Chat, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    if words == ["acl"]:  # rules are there to be copied, as they are
        assert on_terminal(monkeypatch, 40, *words) == piped(*words)
    else:
        assert_all_is_shown(monkeypatch, *words)


def test_a_terminal_shows_all_of_one_message_or_letter(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    [letter] = [line.split("\t")[0] for line in piped("dead", "list").splitlines()[1:]]
    msgid = chat.status("team")[1].message.msgid

    assert_all_is_shown(monkeypatch, "dead", "show", letter)
    assert_all_is_shown(monkeypatch, "status", "team", msgid)
    assert_all_is_shown(monkeypatch, "recall", "team", msgid, "--by", "bob", "--yes", "--no-local")


def test_a_local_database_is_shown(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    piped("pull", "bob")

    assert_all_is_shown(monkeypatch, "log", "bob")
    assert_all_is_shown(monkeypatch, "log", "bob", "team")


@pytest.mark.parametrize("columns", [1, 20, 40, 80, 200])
def test_a_pull_confirms_only_shown_messages(chat: Chat, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    texts = [without_blanks(text) for text in (TEXTS[0], TEXTS[1], TEXTS[2], "Are you coming?")]

    screen = without_blanks(on_terminal(monkeypatch, columns, "pull", "bob", "--ack", "--no-local"))

    assert [text for text in texts if text not in screen] == []
    assert chat.pull("bob") == []


@pytest.mark.parametrize("columns", [1, 20, 40, 80, 200])
def test_receipts_confirms_only_shown_receipts(chat: Chat, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    [receipt] = chat.receipts("ann")

    screen = without_blanks(on_terminal(monkeypatch, columns, "receipts", "ann", "--ack", "--no-local"))

    assert receipt.msgid in screen
    assert chat.receipts("ann") == []


@pytest.mark.parametrize("columns", [1, 20, 40, 80, 200])
def test_a_terminal_shows_all_events_of_a_session(chat: Chat, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    events = [*chat.pull("bob"), Receipt("team", "1767225600000-0", 10, 20, 10, 1)]
    monkeypatch.setattr("imcore.device.device.watch", lambda *_, **__: iter(events))
    piped_lines = [without_blanks(line) for line in piped("listen", "bob", "--no-local").splitlines()]
    piped_lines = [re.sub(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{3}Z", r"\1\2Z", line) for line in piped_lines]

    screen = without_blanks(on_terminal(monkeypatch, columns, "listen", "bob", "--no-local"))

    assert "".join(piped_lines) == screen
    assert len(piped_lines) == len(events)


def test_a_terminal_shows_all_of_operators_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Difference(f"text of message {n} of {'u' * n!r}", "a " * n, "b" * n, gid="team") for n in range(1, 60, 7)]
    found.append(Difference("journal: no worker persist runs", "3 entries", "not stored"))
    system = Mock(**{"client.address": "client", "database.address": "database"})
    monkeypatch.setattr(Invocation, "connect", lambda _: system)
    monkeypatch.setattr("imcore.admin.server_settings.all_servers", lambda *_: ())
    monkeypatch.setattr("imcore.repair.check.check", lambda *_, on_progress, **__: on_progress(0, 1) or found)
    monkeypatch.setattr("imcore.admin.retention.trim", lambda *_, **__: TrimSummary(1, 20, 3))
    monkeypatch.setattr("imcore.admin.append_only.forget_withdrawn", lambda *_, **__: 1)
    monkeypatch.setattr("imcore.admin.append_only.count_kept", lambda _: 0)
    monkeypatch.setattr("imcore.repair.rewriting.rewrite_all", lambda _: 0)
    monkeypatch.setattr("imcore.repair.rebuild.look_before", lambda _: Before(7, 9, 8, "a", "a", False))
    monkeypatch.setattr("imcore.repair.rebuild.rebuild", lambda *_, **__: RebuildSummary(groups=2, messages=10**9))
    monkeypatch.setattr("imcore.importer.importer.import_events", lambda *_, **__: ImportSummary(messages=10**7))

    for words in (["check"], ["check", "--repair"], ["trim"], ["rebuild", "--yes"], ["import", "/dev/null"]):
        assert_all_is_shown(monkeypatch, *words)


def test_differences_about_no_group_have_a_line_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Difference("journal: no worker persist runs", "3 entries " * 5, "not stored")]
    monkeypatch.setattr(Invocation, "connect", lambda _: Mock())
    monkeypatch.setattr("imcore.admin.server_settings.all_servers", lambda *_: ())
    monkeypatch.setattr("imcore.repair.check.check", lambda *_, **__: found)

    assert "\n-  " in on_terminal(monkeypatch, 120, "check")


def test_names_are_marked_wherever_they_are_shown(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.send_direct("\u0430nn", "hi", sender_uid="ann ")
    shown = [
        on_terminal(monkeypatch, 80, "group", "show", "team"),
        piped("group", "show", "team"),
        piped("status", "team"),
        piped("stats", "--online"),
    ]
    assert all('"ann "' in table for table in shown)
    assert 'dm:"ann "' in piped("unread", "\u0430nn")
    assert "dm:\u0430<Cyrillic>nn" in piped("unread", "ann ")
    letter = piped("dead", "list").splitlines()[1].split("\t")[0]
    assert '\ngid\t"\u0430<Cyrillic>nn "\n' in piped("dead", "show", letter)


def test_names_are_marked_in_complaints_and_questions(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _stderr("unread", "jose\u0301") == ""
    assert _stderr("unread", "jos\u00e9") == "im: 'jos\u00e9' is in no group: add them to one first\n"
    assert _stderr("unread", "e\u0301") == "im: 'e<U+0301>' is in no group: add them to one first\n"
    assert _stderr("unread", "a  b ") == "im: 'a  b ' is in no group: add them to one first\n"
    assert _stderr("group", "remove", "team", "ann ", "\u0430nn").startswith(
        'im: Remove "ann ", \u0430<Cyrillic>nn from team?'
    )
    monkeypatch.setattr("imcore.cli.output.is_terminal", lambda _: True)
    assert _stderr("group", "remove", "team", "jose\u0301", stdin="n\n").startswith("Remove jose<U+0301> from team?")
    assert _stderr("recall", "\u0430nn", "1-1", "--by", "ann", stdin="n\n").startswith(
        "Recall message 1-1 of \u0430<Cyrillic>nn?"
    )


def _stderr(*words: str, stdin: str | None = None) -> str:
    return CliRunner().invoke(app, words, input=stdin, catch_exceptions=False).stderr


def test_json_is_exact(chat: Chat) -> None:
    assert '"uid": "ann "' in piped("group", "show", "team", "--json")
    assert '"uid": "\u0430nn"' in piped("group", "show", "team", "--json")


@pytest.mark.parametrize("where", ["--local-time status team", "status team --local-time"])
def test_local_time_is_for_people_alone(chat: Chat, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr("imcore.cli.records._in_zone", lambda moment: moment.astimezone(_KOLKATA))
    words = where.split()

    assert "+05:30\t" in piped(*words)
    assert re.search(r"\d\d:\d\d:\d\d\+05:30", on_terminal(monkeypatch, 120, *words))
    assert piped(*words, "--json") == piped("status", "team", "--json")
    assert "Z\t" in piped("status", "team")
