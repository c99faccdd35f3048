"""How wide a terminal is, what a text takes there, and where its lines break."""

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore.cli.terminal import cells, fit, width_of, wrap

WORDS = st.text(st.sampled_from([*"abc  é", "山", "\u0301", "👩", "\u200d", "💻", "\ufe0f", "🇪", "🇺", "👍", "🏿"]))


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal of 33 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 33, 0, 0))
    yield slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(("columns", "width"), [("1", 1), ("200", 200), ("000000080", 80)])
def test_the_width_is_that_of_columns_if_it_is_a_positive_number(
    terminal: int, monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width_of(terminal) == width


@pytest.mark.parametrize(
    "columns", ["", "0", "-1", "80.5", "wide", "٨٠", "²", " 80", "1e3", "9" * 20, "9" * 5000, "\udcff"]
)
def test_an_invalid_width_is_ignored(terminal: int, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width_of(terminal) == 33
    assert width_of(-1) == 80


def test_a_terminal_without_a_size_has_80_columns(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width_of(terminal) == 33
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    assert width_of(terminal) == 80


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("ann", 3),
        ("анна", 4),
        ("山田", 4),
        ("\uff71", 1),
        ("\uff21", 2),
        ("e\u0301", 1),
        ("ก\u0e48", 1),
        ("🎉", 2),
        ("❤\ufe0f", 2),
        ("🇪🇺", 4 // 2),
        ("ᄒ\u1161\u11ab", 2),
    ],
)
def test_cells(text: str, columns: int) -> None:
    assert cells(text) == columns


@given(WORDS, st.integers(1, 40), st.integers(0, 20))
@example("a" * 50, 1, 0)
@example("   ", 1, 0)
def test_wrapping_loses_nothing_but_blanks_and_keeps_to_the_width(text: str, width: int, hang: int) -> None:
    lines = wrap(text, width, hang)

    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for line in lines:
        # What cannot be broken is as wide as it is: one picture of many characters, on a line of its own
        assert cells(line.rstrip(" ")) <= width or len(wrap(line.strip(" "), 1)) == 1


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1), st.integers(10, 30))
def test_a_line_breaks_between_words(words: list[str], width: int) -> None:
    lines = wrap(" ".join(words), width)

    assert " ".join(lines) == " ".join(words)
    assert [word for line in lines for word in line.split()] == words


@pytest.mark.parametrize(
    ("text", "width", "hang", "lines"),
    [
        ("one two three", 7, 0, ["one two", "three"]),
        ("one two three", 9, 2, ["one two", "  three"]),
        ("one  two", 4, 0, ["one", "two"]),
        ("  one two", 6, 0, ["  one", "two"]),
        ("abcdefgh", 3, 1, ["abc", " de", " fg", " h"]),
        ("山田太郎", 5, 0, ["山田", "太郎"]),
        ("ab 山田太郎", 6, 0, ["ab 山", "田太郎"]),
        ("👩\u200d💻👩\u200d💻", 4, 0, ["👩\u200d💻", "👩\u200d💻"]),
        ("🇪🇺🇩🇪", 3, 0, ["🇪🇺", "🇩🇪"]),
        ("ae\u0301e\u0301", 2, 0, ["ae\u0301", "e\u0301"]),
        ("", 5, 0, [""]),
    ],
)
def test_where_lines_break(text: str, width: int, hang: int, lines: list[str]) -> None:
    assert wrap(text, width, hang) == lines


def test_a_line_for_people_goes_on_below_its_second_column() -> None:
    assert fit("  ok     every member had every message", 26) == [
        "  ok     every member had",
        "         every message",
    ]
    assert fit("  send  Send a message", 13) == ["  send  Send", "    a message"]
    assert fit("im: starting the workers", 16) == ["im: starting the", "  workers"]
    assert fit("as it is", 8) == ["as it is"]
    assert fit("jobs | ended in order", 14, 7) == ["jobs | ended", "       in", "       order"]
