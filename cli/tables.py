"""How records look on a terminal of any width: every value is there, whole.

There are three layouts, and what the records need decides between them:

- a table, in whose last column a long text may go on below;
- where that would leave the text few columns, rows with the long texts on lines of their own;
- where even the rest does not fit, records one below the other, each value as `name: value`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from imcore.cli.terminal import cells, wrap

LEAST_TEXT = 30
"""A text that is longer gets at least so many columns, or lines of its own."""

TEXTS = {"figure", "yardstick", "state", "what", "redis", "sql", "reason", "value", "warning", "content"}
"""The columns that may hold long texts. A terminal shows `content` last, and those for which there is little room."""

_GAP = 2
_INDENT = 4
_HEAD_ON, _HEAD_OFF = "\x1b[1;36m", "\x1b[0m"

Cell = str | int | float
"""What stands in a table: a text, or a number, which is aligned to the right."""


def lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, colour: bool) -> Iterator[str]:
    """Yield the lines that show the rows, each with a cell for every column, on a terminal of so many columns."""
    whole = _Table.of(columns, rows, width, colour=colour)
    if not rows:
        return whole.without_rows()
    for table, least in product((whole, whole.narrowed()), (LEAST_TEXT, 0)):
        long = table.texts_longer_than(least)
        short = [at for at in range(len(columns)) if at not in long]
        if table.width_of(range(len(columns))) <= width:
            return table.side_by_side(range(len(columns)))
        if len(long) == 1 and long[0] and width - table.width_of(short) - _GAP >= LEAST_TEXT:
            return table.side_by_side([*short, *long])
        if short and table.width_of(short) + _INDENT * (0 in long) <= width:
            return table.with_texts_apart(short, long)
    return whole.one_below_the_other()


@dataclass(frozen=True, slots=True)
class _Table:
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_number: Sequence[bool]
    widths: Sequence[int]
    """What each column gets."""
    width: int
    colour: bool

    @classmethod
    def of(cls, columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, colour: bool) -> "_Table":
        """Return a table where each column gets what its name and its longest text need."""
        order = sorted(range(len(columns)), key=lambda at: columns[at] == "content")
        names = [columns[at] for at in order]
        texts = [[str(row[at]) for at in order] for row in rows]
        is_number = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in order]
        widths = [max(map(cells, column)) for column in zip(names, *texts, strict=True)]
        return cls(names, texts, is_number, widths, width, colour)

    def narrowed(self) -> "_Table":
        """Return the table where each column gets what its name and nine of ten texts need: few rows are longer."""
        most = (9 * len(self.rows) - 1) // 10
        typical = [sorted(map(cells, column))[most] for column in zip(*self.rows, strict=True)]
        return replace(self, widths=[max(cells(name), need) for name, need in zip(self.names, typical, strict=True)])

    def width_of(self, columns: Sequence[int]) -> int:
        return sum(self.widths[at] + _GAP for at in columns) - _GAP

    def texts_longer_than(self, least: int) -> list[int]:
        """Return the columns of longer texts; behind one that is not the first, all texts, to keep their order."""
        texts = [at for at, name in enumerate(self.names) if name in TEXTS]
        longer = [at for at in texts if self.widths[at] > least]
        first = min(filter(None, longer), default=len(self.names))
        return [at for at in texts if at in longer or at > first]

    def without_rows(self) -> Iterator[str]:
        yield from map(self._head, wrap((" " * _GAP).join(self.names), self.width))

    def side_by_side(self, columns: Sequence[int]) -> Iterator[str]:
        *others, last = columns
        indent = " " * (self.width_of(others) + _GAP if others else 0)
        yield from map(self._head, self._row(self.names, columns))
        for row in self.rows:
            if self.names[last] not in TEXTS:
                yield from self._row(row, columns)
                continue
            *above, start = self._parts(row, others)
            yield from above
            for line in wrap(row[last], self.width - len(indent)):
                yield (start + line).rstrip(" ")
                start = indent

    def with_texts_apart(self, columns: Sequence[int], texts: Sequence[int]) -> Iterator[str]:
        """Yield rows with their texts below; above, if a text is the first column: what the row is about."""
        below = [at for at in texts if at]
        is_above = len(below) < len(texts)
        indent = " " * _INDENT * is_above
        labels = [f"{self.names[at]}: " if is_above or len(below) > 1 else "" for at in below]
        hang = _INDENT + _GAP * any(labels)
        yield from map(self._head, wrap(self.names[0], self.width, _GAP) if is_above else ())
        yield from (self._head(line) for line in self._row(self.names, columns, indent))
        for at in below if len(texts) == 1 else ():
            yield from map(self._head, wrap(" " * _INDENT + self.names[at], self.width, hang))
        for row in self.rows:
            yield from wrap(row[0], self.width, _GAP) if is_above else ()
            yield from self._row(row, columns, indent)
            for at, label in zip(below, labels, strict=True):
                yield from () if not row[at] else wrap(" " * _INDENT + label + row[at], self.width, hang)

    def one_below_the_other(self) -> Iterator[str]:
        for number, row in enumerate(self.rows):
            if number:
                yield ""
            for name, text in zip(self.names, row, strict=True):
                first, *rest = wrap(f"{name}: {text}" if name else text, self.width, _GAP)
                yield first.replace(name, self._head(name), 1)
                yield from rest

    def _row(self, row: Sequence[str], columns: Sequence[int], indent: str = "") -> Iterator[str]:
        return (line for part in self._parts(row, columns, indent) if (line := part.rstrip(" ")))

    def _parts(self, row: Sequence[str], columns: Sequence[int], indent: str = "") -> Iterator[str]:
        """Yield the lines of a row, the last one with all its blanks. What is too long for its column ends a line."""
        start, line = len(indent), indent
        for at in columns:
            text = row[at]
            blanks = " " * (self.widths[at] - cells(text))
            line += (blanks + text if self.is_number[at] else text + blanks) + " " * _GAP
            begin, start = start, start + self.widths[at] + _GAP
            if cells(text) > self.widths[at]:
                yield from wrap(line, self.width, begin)
                line = " " * start
        yield line

    def _head(self, text: str) -> str:
        return f"{_HEAD_ON}{text}{_HEAD_OFF}" if self.colour and text else text
