"""How records look on a terminal of any width: every value is there, whole.

There are three layouts, and what the records need decides between them:

- a table, in whose last column a long text may go on below;
- where that would leave the text few columns, rows with the long texts on lines of their own below each;
- where even the rest does not fit, records one below the other, each value as `name: value`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cli.terminal import cells, wrap

LEAST_TEXT = 30
"""A text that is longer gets at least so many columns, or lines of its own."""

TEXTS = ("state", "what", "redis", "sql", "reason", "value", "content")
"""The columns that may hold long texts. A terminal shows them last, in this order."""

_GAP = 2
_INDENT = 4
_HEAD_ON, _HEAD_OFF = "\x1b[1;36m", "\x1b[0m"

Cell = str | int
"""What stands in a table: a text, or a number, which is aligned to the right."""


def lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, colour: bool) -> Iterator[str]:
    """Yield the lines that show the rows, each with a cell for every column, on a terminal of so many columns."""
    table = _Table.of(columns, rows, colour=colour)
    if not rows:
        return table.without_rows(width)
    long = [at for at, name in enumerate(table.names) if name in TEXTS and table.widths[at] > LEAST_TEXT]
    short = [at for at in range(len(columns)) if at not in long]
    room = width - table.width_of(short) - _GAP
    if table.width_of([*short, *long]) <= width or (len(long) == 1 and room >= LEAST_TEXT):
        return table.side_by_side([*short, *long], width)
    if short and table.width_of(short) <= width:
        return table.with_texts_below(short, long, width)
    return table.one_below_the_other(width)


@dataclass(frozen=True, slots=True)
class _Table:
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[int]
    """What each column needs, with its name."""
    is_number: Sequence[bool]
    colour: bool

    @classmethod
    def of(cls, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, colour: bool) -> "_Table":
        order = sorted(range(len(columns)), key=lambda at: _rank(columns[at]))
        names = [columns[at] for at in order]
        texts = [[str(row[at]) for at in order] for row in rows]
        widths = [max(cells(text) for text in column) for column in zip(names, *texts, strict=True)]
        is_number = [bool(rows) and all(isinstance(row[at], int) for row in rows) for at in order]
        return cls(names, texts, widths, is_number, colour)

    def width_of(self, columns: Sequence[int]) -> int:
        return sum(self.widths[at] + _GAP for at in columns) - _GAP

    def without_rows(self, width: int) -> Iterator[str]:
        yield from map(self._head, wrap((" " * _GAP).join(self.names), width))

    def side_by_side(self, columns: Sequence[int], width: int) -> Iterator[str]:
        *others, last = columns
        indent = self.width_of(others) + _GAP if others else 0
        yield self._head(self._line(self.names, columns))
        for row in self.rows:
            start = "".join(self._aligned(row[at], at) + " " * _GAP for at in others)
            text = self._aligned(row[last], last) if self.is_number[last] else row[last]
            for line in wrap(text, width - indent):
                yield (start + line).rstrip(" ")
                start = " " * indent

    def with_texts_below(self, columns: Sequence[int], texts: Sequence[int], width: int) -> Iterator[str]:
        labels = [f"{self.names[at]}: " for at in texts] if len(texts) > 1 else [""]
        yield self._head(self._line(self.names, columns))
        if len(texts) == 1:
            yield self._head(" " * _INDENT + self.names[texts[0]])
        for row in self.rows:
            yield self._line(row, columns)
            for at, label in zip(texts, labels, strict=True):
                yield from wrap(" " * _INDENT + label + row[at], width, _INDENT)

    def one_below_the_other(self, width: int) -> Iterator[str]:
        for number, row in enumerate(self.rows):
            if number:
                yield ""
            for name, text in zip(self.names, row, strict=True):
                first, *rest = wrap(f"{name}: {text}" if name else text, width, _GAP)
                yield first.replace(name, self._head(name), 1)
                yield from rest

    def _line(self, row: Sequence[str], columns: Sequence[int]) -> str:
        return (" " * _GAP).join(self._aligned(row[at], at) for at in columns).rstrip(" ")

    def _aligned(self, text: str, at: int) -> str:
        blanks = " " * (self.widths[at] - cells(text))
        return blanks + text if self.is_number[at] else text + blanks

    def _head(self, text: str) -> str:
        return f"{_HEAD_ON}{text}{_HEAD_OFF}" if self.colour and text else text


def _rank(column: str) -> int:
    return TEXTS.index(column) if column in TEXTS else -1
