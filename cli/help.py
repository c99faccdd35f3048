"""The help of a command: click's own form for a pipe, and the width of the terminal."""

import re
from collections.abc import Iterable

import click

_WIDEST = 100
_CLICKS_WIDTH = 78
_GOES_ON = " " * 4
_WORD = re.compile(r"'[^']*'|\S+")


class HelpFormatter(click.HelpFormatter):
    """Writes for a terminal of this many columns; without a number, as click does for a pipe."""

    def __init__(self, columns: int | None) -> None:
        super().__init__(width=None if columns is None else min(columns, _WIDEST))
        self._is_for_terminal = columns is not None

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write a list of options; on a narrow terminal long options get a line of their own."""
        super().write_dl(rows, col_max if self.width >= _CLICKS_WIDTH else self.width // 3, col_spacing)

    def write_example(self, line: str) -> None:
        """Write a command so that it can be copied: each break has a backslash for the shell."""
        indent = " " * self.current_indent
        parts = _broken(line, self.width - len(indent + _GOES_ON)) if self._is_for_terminal else [line]
        self.write(indent + f" \\\n{indent}{_GOES_ON}".join(parts) + "\n")


def _broken(line: str, width: int) -> list[str]:
    """Return a command broken between words, with room for a blank and a backslash after each part but the last."""
    parts: list[str] = []
    start = 0
    for word in _WORD.finditer(line):
        needed = word.end() - start + (0 if word.end() == len(line) else len(" \\"))
        if needed > width and word.start() > start:
            parts.append(line[start : word.start()].rstrip())
            start = word.start()
    return [*parts, line[start:]]
