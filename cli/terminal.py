"""The width of a terminal, the columns that a text takes there, and where lines break.

`im --help` uses this before it imports anything else, so this imports nothing heavy.
"""

import os
import unicodedata
from functools import cache

DEFAULT_WIDTH = 80
_MOST_DIGITS = 9

_ZERO_WIDTH_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
_SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_JOINING_JAMO = ("\u1160", "\u11ff")


def width_of(descriptor: int) -> int:
    """Return the number of columns: COLUMNS if it is a positive number, else the terminal's, else 80."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdecimal() and len(given) <= _MOST_DIGITS and int(given):
        return int(given)
    try:
        return os.get_terminal_size(descriptor).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def cells(text: str) -> int:
    """Return the columns that a text takes: one for a letter, two for CJK and emoji, none for a combining character.

    Terminals disagree about joined emoji: this is enough for terminals that show every part.
    """
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def wrap(text: str, width: int, hang: int = 0) -> list[str]:
    """Break a line between words, or within a word that is too long; only blanks get lost.

    The rest is indented by `hang`, at most by half of the width.
    """
    hang = min(hang, width // 2)
    lines: list[str] = []
    start, indent = 0, ""
    while True:
        end = _end_of_line(text, start, width - len(indent))
        if indent:
            indent = indent[: max(width - cells(text[start:end]), 0)]  # a wide letter needs the room
        lines.append((indent + text[start:end]).rstrip(" ") if end < len(text) else indent + text[start:])
        start, indent = _skip_blanks(text, end), " " * hang
        if start == len(text):
            return lines


def fit(line: str, width: int, hang: int | None = None) -> list[str]:
    """Break a line of text for people. The rest begins below its second column, if it has one, or a bit indented."""
    if cells(line) <= width:
        return [line]
    if hang is not None:
        return wrap(line, width, hang)
    indented = len(line) - len(line.lstrip(" "))
    gap = line.find("  ", indented)
    second = _skip_blanks(line, gap) if gap > 0 else len(line)
    return wrap(line, width, second if second <= width // 2 else indented + 2)


@cache
def _cells_of(char: str) -> int:
    if char == _EMOJI_STYLE:  # it makes a narrow sign a wide picture
        return 1
    if unicodedata.category(char) in {"Mn", "Me", "Cf"} or _JOINING_JAMO[0] <= char <= _JOINING_JAMO[1]:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def _end_of_line(text: str, start: int, width: int) -> int:
    end = _end_by_width(text, start, width)
    if end == len(text) or text[end] == " " or 2 in (_cells_of(text[end]), _cells_of(text[end - 1])):
        return end
    blank = text.rfind(" ", start, end)
    return blank if blank > start and text[start:blank].strip(" ") else end


def _end_by_width(text: str, start: int, width: int) -> int:
    """Return where the width is used up, after one character at least with all that belongs to it."""
    if text.isascii():
        return min(start + max(width, 1), len(text))
    end = start
    while end < len(text):
        after = next((at for at in range(end + 1, len(text)) if not _clings(text, at)), len(text))
        width -= cells(text[end:after])
        if width < 0 and end > start:
            break
        end = after
    return end


def _clings(text: str, at: int) -> bool:
    """Whether a character forms one picture or letter with the one before it."""
    char, before = text[at], text[at - 1]
    if char in _FLAG_LETTERS:
        flags = at - len(text[:at].rstrip(_FLAG_LETTERS))
        return flags % 2 == 1
    is_part = unicodedata.category(char) in {"Mn", "Me", "Mc", "Cf"} or _JOINING_JAMO[0] <= char <= _JOINING_JAMO[1]
    return is_part or before == _ZERO_WIDTH_JOINER or _SKIN_TONES[0] <= char <= _SKIN_TONES[1]


def _skip_blanks(text: str, at: int) -> int:
    return len(text) - len(text[at:].lstrip(" "))
