"""Output on a terminal: no text of a user may control it, and no text may get lost."""

import io
import json
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TextIO
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore.cli import output
from imcore.cli.app import Invocation, app
from imcore.cli.output import safe, show, to_json
from imcore.model.records import Record
from tests.helpers.outputs import FAILING, STANDING, Output, disk_full, nobody_reads

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
_CONTROLS = ["\x1b[2J", "\x9b31m", "\r", "\n", "\t", "\x7f", "\u2028", "\u202e", "\u2066", "\ud800", "\u3164"]
_JOINERS = [
    "\u200b",
    "\u200c",
    "\u200d",
    "\ufe0f",
    "\U000e0067",
    "\U000e007f",
    "\U0001f3f4",
    "\U0001f469",
    "\U0001f4bb",
]
HOSTILE = st.lists(st.sampled_from([*_CONTROLS, *_JOINERS, "[red]", "a", "\u0646", "\u0995", "1"]), max_size=12).map(
    "".join
)
TEXT = ANY_TEXT | HOSTILE


@given(TEXT)
def test_safe_text_is_one_line_without_anything_that_acts(text: str) -> None:
    shown = safe(text)

    assert len(shown.splitlines()) <= 1
    shown.encode()  # no lone surrogates
    for char in shown:
        assert unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"}
        assert unicodedata.bidirectional(char) not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        assert char not in "\u200b\u200e\u200f\u2060\ufeff\u061c\xad"


@given(TEXT)
def test_safe_text_is_left_alone(text: str) -> None:
    assert safe(safe(text)) == safe(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\u115f\u1160\u3164\uffa0")))
def test_visible_characters_stay_as_they_are(text: str) -> None:
    assert safe(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "#ubuntu a[b]c {x} {0} o'neil [red]eve[/red] C:\\new \\o/",
        "群主 Ελλάδα שלום مرحبا 日本　語 a\xa0b café cafe\u0301",
        "\u0645\u06cc\u200c\u062e\u0648 \u0995\u09cd\u200d\u09b7",
        "👩\u200d💻 👨🏽\u200d🦰 ❤\ufe0f\u200d🔥 🏳\ufe0f\u200d🌈 1\ufe0f\u20e3 ☎\ufe0e 🇪🇺 👍🏿 🙂\u200d↔\ufe0f",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\U0001fae8 \U0001f6dc",  # newer than the Unicode tables of some Python
    ],
)
def test_names_scripts_and_emoji_are_kept(text: str) -> None:
    assert safe(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\n", "two␊lines␍␊"),
        ("\x1b[31mred\x07\x00\x7f", "␛[31mred␇␀␡"),
        ("\x9b2J\x85", "<U+009B>2J<U+0085>"),
        ("exe\u202egpj", "exe<U+202E>gpj"),
        ("al\u200bice a\u200db a\u200cb", "al<U+200B>ice a<U+200D>b a<U+200C>b"),
        ("x\ufe0f\u200d👩", "x<U+FE0F><U+200D>👩"),
        ("hi\U000e0068\U000e0069", "hi<U+E0068><U+E0069>"),
        ("a\u2028b\u2029", "a<U+2028>b<U+2029>"),
        ("\udcff.txt", "<U+DCFF>.txt"),
    ],
)
def test_acting_characters_are_shown_as_pictures_or_numbers(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(TEXT)
@example("\x7f\x85\u2028\U000e0001")
def test_json_is_exact_one_line_and_does_not_act_on_a_terminal(text: str) -> None:
    line = to_json({"content": text})

    assert json.loads(line) == {"content": text}
    assert safe(line) == line
    line.encode()


def test_json_is_readable() -> None:
    assert to_json({"uid": "群主", "content": "👩\u200d💻 é"}) == '{"uid": "群主", "content": "👩\u200d💻 é"}'


ROWS = [
    {"gid": "a\tb", "n": None, "ok": True, "hidden": 1},
    {"gid": "[red]群[/red] :smile:", "n": "x" * 300, "ok": False, "hidden": 2},
]


def test_a_pipe_gets_columns_between_tabs_whole_and_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, ("gid", "n", "ok"), as_json=False)

    assert capsys.readouterr().out == f"gid\tn\tok\na␉b\t-\tyes\n[red]群[/red] :smile:\t{'x' * 300}\tno\n"


def test_json_lines_have_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, ("gid",), as_json=True)

    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_a_terminal_gets_a_table_that_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")

    show(ROWS, ("gid", "n"), as_json=False)

    shown = terminal.getvalue()
    assert "[red]群[/red] :smile:" in shown
    assert shown.count("x") == 300
    assert "…" not in shown


def test_utf8_is_written_whatever_the_locale_says(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

    output.use_utf8()
    output.say("群")
    output.flush()

    assert raw.getvalue() == "群\n".encode()


@pytest.fixture
def stdout_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], TextIO]]:
    """Makes a copy of a descriptor stdout, and returns the stream."""
    with ExitStack() as stack:

        def make(descriptor: int) -> TextIO:
            copy = os.dup(descriptor)
            stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(copy, "w", closefd=False)))
            stack.callback(os.close, copy)
            stack.callback(stream.detach)  # what is in its buffer, it keeps
            monkeypatch.setattr(sys, "stdout", stream)
            return stream

        yield make


@pytest.mark.parametrize("kind", [*STANDING, *FAILING], ids=lambda kind: kind.__name__)
def test_the_log_on_stdout_is_best_effort(kind: Output, stdout_to: Callable[[int], TextIO]) -> None:
    with kind() as descriptor:
        stdout_to(descriptor)

        output.report("one", "two")
        output.flush()


def test_the_log_on_stdout_is_written_as_it_comes(stdout_to: Callable[[int], TextIO]) -> None:
    reader, writer = os.pipe()
    stdout_to(writer)

    output.report("one", "t\x1bwo")

    assert os.read(reader, 100).decode() == "one\nt␛wo\n"
    os.close(reader)
    os.close(writer)


def test_nothing_for_people_is_written_to_stdout_where_stderr_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    output.remark("lost")
    output.complain("lost")

    assert capsys.readouterr().out == ""


def test_a_stopped_command_waits_only_a_moment_for_a_reader(stdout_to: Callable[[int], TextIO]) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with nobody_reads() as descriptor:
        stream = stdout_to(descriptor)
        output.say("lost")

        assert output.interrupted() == output.INTERRUPTED
        stream.flush()

    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_stopped_command_writes_its_last_records_to_a_reader(stdout_to: Callable[[int], TextIO]) -> None:
    reader, writer = os.pipe()
    stdout_to(writer)
    output.say("kept")

    output.end_records()

    assert os.read(reader, 100) == b"kept\n"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("as_json", [True, False])
def test_no_record_is_fetched_after_one_that_could_not_be_written(
    as_json: bool, stdout_to: Callable[[int], TextIO]
) -> None:
    done: list[int] = []

    def records() -> Iterator[Record]:
        for number in range(3):
            done.append(number)
            yield {"number": number}

    with disk_full() as descriptor:
        stdout_to(descriptor)
        with pytest.raises(output.OutputError, match="No space left"):
            show(output.handed_over(records()), ("number",), as_json=as_json)

    assert done == [0]


def test_a_closed_stdout_is_an_error_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    with pytest.raises(output.OutputError, match="stdout is closed"):
        output.say("lost")
    output.flush()


@pytest.mark.parametrize("kind", FAILING, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("as_json", [True, False])
def test_records_are_out_before_anything_more_is_said(
    kind: Output, as_json: bool, stdout_to: Callable[[int], TextIO]
) -> None:
    with kind() as descriptor:
        stdout_to(descriptor)

        with pytest.raises(output.OutputError):
            show(ROWS, ("gid",), as_json=as_json)


def test_a_check_has_no_verdict_where_its_table_is_not_out(
    monkeypatch: pytest.MonkeyPatch, stdout_to: Callable[[int], TextIO], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Invocation, "connect", lambda _: Mock())
    monkeypatch.setattr("imcore.admin.server_settings.all_servers", lambda *_: ())
    monkeypatch.setattr("imcore.repair.check.check", lambda *_, **__: [])
    with disk_full() as descriptor:
        stdout_to(descriptor)

        with pytest.raises(SystemExit):
            app.main(["check"])

    assert capsys.readouterr().err == "im: the output could not be written: No space left on device\n"
