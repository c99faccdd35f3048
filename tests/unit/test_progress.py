"""Bars: they come with the first report, make way for what is written, and leave nothing behind."""

import gc
import io
import sys
from contextlib import suppress

import pytest

from imcore.cli import output
from imcore.cli.progress import collected_rarely, progress, working
from tests.helpers.terminals import screen


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return a terminal that shows both stdout and stderr."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return terminal


def standing(terminal: io.StringIO) -> list[str]:
    return [line.rstrip() for line in screen(terminal.getvalue()) if line.strip()]


def test_a_bar_comes_with_the_first_report_and_goes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress("groups") as shown:
        assert terminal.getvalue() == ""
        shown(0, 7)
        assert "0/7 groups" in standing(terminal)[0]
    assert standing(terminal) == []
    assert "?" not in terminal.getvalue().replace("?25", "")


@pytest.mark.parametrize(("unit", "text"), [("bytes", "5 bytes"), ("groups", "5")])
def test_an_unknown_total_is_not_shown(monkeypatch: pytest.MonkeyPatch, unit: str, text: str) -> None:
    terminal = open_terminal(monkeypatch)
    with progress(unit) as shown:
        shown(5, None)
        assert text in standing(terminal)[0]
        assert "/" not in standing(terminal)[0]


def test_text_written_meanwhile_has_lines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress("groups") as shown:
        shown(1, 7)
        output.show([{"gid": "team"}], ("gid",), as_json=False)
        shown(2, 7)
        output.complain("one line")
        output.remark("another")
        output.show([{"gid": "team"}], (), as_json=True)
        output.say("the last")

    assert standing(terminal) == ["gid", "team", "im: one line", "another", '{"gid": "team"}', "the last"]


def test_a_bar_comes_back_after_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress("groups") as shown:
        shown(1, 7)
        output.complain("one line")
        shown(2, 7)
        assert standing(terminal) == ["im: one line"]
        now += 1
        shown(3, 7)
        assert "3/7" in standing(terminal)[-1]


def test_a_bar_goes_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with suppress(ValueError), progress("groups") as shown:
        shown(1, 7)
        raise ValueError("fails")
    output.say("after")

    assert standing(terminal) == ["after"]


@pytest.mark.parametrize("size", ["²", "①", "٣", "9" * 5000, "0", "-5", "", "ten"])
@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
def test_no_size_that_somebody_has_set_can_stop_a_command(
    monkeypatch: pytest.MonkeyPatch, name: str, size: str
) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv(name, size)
    with progress("groups") as shown:
        shown(0, 7)
        assert "0/7 groups" in standing(terminal)[0]
    assert standing(terminal) == []
    with working() as say:
        for what in ("storm", "[send]"):
            say(what)
            assert what in standing(terminal)[0]
    assert standing(terminal) == []


@pytest.mark.parametrize("method", ["__init__", "start", "update", "stop"])
def test_a_bar_that_cannot_be_drawn_is_left_out(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    terminal = open_terminal(monkeypatch)
    calls: list[str] = []

    def fail(*_: object, **__: object) -> None:
        calls.append(method)
        raise ValueError("fails")

    monkeypatch.setattr(f"rich.progress.Progress.{method}", fail)
    monkeypatch.setattr("imcore.cli.progress._AGAIN_S", 0.0)
    with progress("groups") as shown:
        for done in range(3):
            shown(done, 7)
            output.complain("one line")
        output.say("done")

    assert calls == [method]
    assert "im: one line\n" * 2 + "done\n" in terminal.getvalue()


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None, "DUMB"])
def test_a_terminal_that_only_writes_lines_has_no_bar(monkeypatch: pytest.MonkeyPatch, term: str | None) -> None:
    terminal = open_terminal(monkeypatch)
    if term is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", term)
    with progress("groups") as shown:
        shown(1, 7)
        output.complain("one line")
        shown(2, 7)
    output.show([{"gid": "team"}], ("gid",), as_json=False)

    assert terminal.getvalue() == "im: one line\ngid\nteam\n"


def test_the_thresholds_of_garbage_come_back_after_an_error() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), collected_rarely():
        _ = 1 // (gc.get_threshold() == before or 0)
    assert gc.get_threshold() == before
