"""What people see of figures: tables, bars, and what has changed since a saved run. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from imcore.cli.bench.harness.figures import COLUMNS, Figure, number, to_row
from imcore.cli.output import Record

_BAR_WIDTH, _LEAST_BAR_WIDTH = 40, 10

Medians = Mapping[tuple[str, str], float]
"""What a saved run found, by benchmark and name of the figure."""


class Table(NamedTuple):
    """A table to show."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Record]


def tables(figures: Sequence[Figure], before: Medians | None = None) -> Iterator[Table]:
    """Yield the tables of a run; with the medians of another one, last what has changed since."""
    for bench, own in by_bench(figures):
        yield from _tables_of(bench, own)
    if before is not None:
        yield Table("compared", ("figure", "before", "now", "unit", "change"), list(_changes(figures, before)))


def by_bench(figures: Sequence[Figure]) -> Iterator[tuple[str, list[Figure]]]:
    """Yield each benchmark with its figures, in their order."""
    for bench in dict.fromkeys(figure.bench for figure in figures):
        yield bench, [figure for figure in figures if figure.bench == bench]


def bars(figures: Sequence[Figure], columns: int | None = None) -> Iterator[str]:
    """Yield the lines of a bar chart for each benchmark; on a terminal of few columns bars are shorter, or below."""
    for bench, charted in by_bench([figure for figure in figures if figure.charted]):
        yield from ("", f"{bench}, {charted[0].unit}")
        yield from _chart({figure.name: figure.rounds.median for figure in charted}, columns)


def _tables_of(bench: str, figures: Sequence[Figure]) -> Iterator[Table]:
    for title in dict.fromkeys(figure.table for figure in figures if figure.table):
        yield _pivot(f"{bench}: {title}", [figure for figure in figures if figure.table == title])
    if listed := [figure for figure in figures if not figure.table or figure.aim]:
        yield Table(bench, COLUMNS, [to_row(figure) for figure in listed])


def _chart(values: Mapping[str, float], columns: int | None) -> Iterator[str]:
    longest, name_width = max(values.values()), max(map(len, values))
    number_width = max(len(number(value)) for value in values.values())
    beside = _BAR_WIDTH if columns is None else min(_BAR_WIDTH, columns - name_width - number_width - 5)
    if beside >= _LEAST_BAR_WIDTH:
        for name, value in values.items():
            yield f"  {name.ljust(name_width)}  {_bar(value / longest, beside)} {number(value)}"
        return
    for name, value in values.items():
        yield f"  {name}"
        yield f"    {_bar(value / longest, min(_BAR_WIDTH, max(1, beside + name_width)))} {number(value)}"


def _bar(share: float, width: int) -> str:
    eighths = max(1, round(share * width * 8))
    return "█" * (eighths // 8) + "▏▎▍▌▋▊▉"[eighths % 8 - 1 : eighths % 8]


def _pivot(title: str, figures: Sequence[Figure]) -> Table:
    rows: dict[str, dict[str, object]] = {}
    for figure in figures:
        column = f"{figure.what}, {figure.unit}" if figure.unit else figure.what
        rows.setdefault(figure.subject, {})[column] = number(figure.rounds.median)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return Table(
        title,
        ("", *columns),
        [{"": subject, **{column: row.get(column, "") for column in columns}} for subject, row in rows.items()],
    )


def _changes(figures: Sequence[Figure], before: Medians) -> Iterator[Record]:
    for figure in figures:
        then, now = before.get((figure.bench, figure.name)), figure.rounds.median
        if then is not None:
            yield {
                "figure": f"{figure.bench}: {figure.name}",
                "before": number(then),
                "now": number(now),
                "unit": figure.unit,
                "change": f"{now / then - 1:+.0%}" if then else "",
            }
