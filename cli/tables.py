"""Records on a terminal of any width: every value is shown whole.

The needs of the records decide between three layouts:

- a table, in whose last column a long text may continue on the next lines;
- rows with the long texts on lines of their own, if the text would have few columns in a table;
- records one below the other, each value as `name: value`, if even the rest does not fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from imcore.cli.terminal import cells, wrap

LEAST_TEXT = 30
"""The columns that a longer text gets at least; with fewer it gets lines of its own."""

TEXTS = {"figure", "yardstick", "state", "what", "redis", "sql", "reason", "value", "warning", "content"}
"""The columns that may hold long texts. A terminal shows `content` last, and texts for which there is little room."""

_GAP = 2
_INDENT = 4
_HEAD_ON, _HEAD_OFF = "\x1b[1;36m", "\x1b[0m"

Cell = str | int | float
"""A text, or a number, which is aligned to the right."""


def lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, colour: bool) -> Iterator[str]:
    """Yield the lines that show the rows on a terminal of this width. A row has a cell for every column."""
    whole = _Table.of(columns, rows, width, colour=colour)
    if not rows:
        return map(whole.head, wrap((" " * _GAP).join(whole.names), width))
    every = range(len(columns))
    for table, least in product((whole, whole.narrowed()), (LEAST_TEXT, 0)):
        long = table.texts_longer_than(least)
        short = sorted({*every} - {*long})
        if table.width_of(every) <= width:
            return table.side_by_side(every)
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
    width: int
    colour: bool

    @classmethod
    def of(cls, columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, colour: bool) -> "_Table":
        """Return a table with columns as wide as their name and their longest text."""
        order = sorted(range(len(columns)), key=lambda at: columns[at] == "content")
        names = [columns[at] for at in order]
        texts = [[str(row[at]) for at in order] for row in rows]
        is_number = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in order]
        widths = [max(map(cells, column)) for column in zip(names, *texts, strict=True)]
        return cls(names, texts, is_number, widths, width, colour)

    def narrowed(self) -> "_Table":
        """Return the table with columns as wide as their name and nine of ten texts: few rows are longer."""
        most = (9 * len(self.rows) - 1) // 10
        typical = [sorted(map(cells, column))[most] for column in zip(*self.rows, strict=True)]
        return replace(self, widths=[max(cells(name), need) for name, need in zip(self.names, typical, strict=True)])

    def width_of(self, columns: Sequence[int]) -> int:
        return sum(self.widths[at] + _GAP for at in columns) - _GAP

    def texts_longer_than(self, least: int) -> list[int]:
        """Return the columns of longer texts, with all texts behind one that is not the first, to keep their order."""
        texts = [at for at, name in enumerate(self.names) if name in TEXTS]
        longer = [at for at in texts if self.widths[at] > least]
        first = min(filter(None, longer), default=len(self.names))
        return [at for at in texts if at in longer or at > first]

    def side_by_side(self, columns: Sequence[int]) -> Iterator[str]:
        *others, last = columns
        indent = " " * (self.width_of(others) + _GAP if others else 0)
        yield from map(self.head, self._row(self.names, columns))
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
        """Yield rows with their texts below. A text in the first column is above: the row is about it."""
        below = [at for at in texts if at]
        is_above, has_labels = len(below) < len(texts), len(texts) > 1
        indent, hang = " " * _INDENT * is_above, _INDENT + _GAP * has_labels
        if is_above:
            yield from map(self.head, wrap(self.names[0], self.width, _GAP))
        yield from map(self.head, self._row(self.names, columns, indent))
        if not has_labels and below:
            yield from map(self.head, wrap(" " * _INDENT + self.names[below[0]], self.width, hang))
        for row in self.rows:
            if is_above:
                yield from wrap(row[0], self.width, _GAP)
            yield from self._row(row, columns, indent)
            for at in filter(row.__getitem__, below):
                label = f"{self.names[at]}: " if has_labels else ""
                yield from wrap(" " * _INDENT + label + row[at], self.width, hang)

    def one_below_the_other(self) -> Iterator[str]:
        for number, row in enumerate(self.rows):
            if number:
                yield ""
            for name, text in zip(self.names, row, strict=True):
                first, *rest = wrap(f"{name}: {text}" if name else text, self.width, _GAP)
                yield first.replace(name, self.head(name), 1)
                yield from rest

    def _row(self, row: Sequence[str], columns: Sequence[int], indent: str = "") -> Iterator[str]:
        return (line for part in self._parts(row, columns, indent) if (line := part.rstrip(" ")))

    def _parts(self, row: Sequence[str], columns: Sequence[int], indent: str = "") -> Iterator[str]:
        """Yield the lines of a row, the last one with all its blanks. A text that is too long ends a line."""
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

    def head(self, text: str) -> str:
        return f"{_HEAD_ON}{text}{_HEAD_OFF}" if self.colour and text else text
