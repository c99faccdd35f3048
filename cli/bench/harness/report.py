"""Reports of figures: tables, bars, changes since a saved run, and a picture. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from imcore.cli.bench.harness.figures import COLUMNS, Figure, number, to_row
from imcore.model.records import Record

_BAR_WIDTH, _LEAST_BAR_WIDTH = 40, 10

# Of the picture, in pixels; readable on light and dark pages.
_WIDTH, _LABELS, _NUMBERS, _LINE, _TITLE = 900, 400, 90, 22, 34

_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 }
.ours { fill: #1a7f6b } .other { fill: #9a6700 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ours { fill: #3fb99a } .other { fill: #d29922 } }
</style>"""

Medians = Mapping[tuple[str, str], float]
"""The medians of a saved run, by benchmark and name of the figure."""


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Record]


def tables(figures: Sequence[Figure], before: Medians | None = None) -> Iterator[Table]:
    """Yield the tables of a run; with the medians of another one, last what has changed since."""
    for bench, own in _by_bench(figures):
        for title in dict.fromkeys(figure.table for figure in own if figure.table):
            yield _pivot(f"{bench}: {title}", [figure for figure in own if figure.table == title])
        if rows := _rows(own):
            yield Table(bench, COLUMNS, rows)
    if before is not None:
        yield Table("compared", ("figure", "before", "now", "unit", "change"), list(_changes(figures, before)))


def bars(figures: Sequence[Figure], columns: int | None = None) -> Iterator[str]:
    """Yield the lines of a bar chart for each benchmark; on a terminal of few columns bars are shorter, or below."""
    for bench, charted in _by_bench([figure for figure in figures if figure.charted]):
        yield from ("", f"{bench}, {charted[0].unit}")
        yield from _chart({figure.name: figure.rounds.median for figure in charted}, columns)


def _rows(figures: Sequence[Figure]) -> list[Record]:
    return [to_row(figure) for figure in figures if not figure.table or figure.aim]


def _by_bench(figures: Sequence[Figure]) -> Iterator[tuple[str, list[Figure]]]:
    """Yield each benchmark with its figures, in their order."""
    for bench in dict.fromkeys(figure.bench for figure in figures):
        yield bench, [figure for figure in figures if figure.bench == bench]


def _chart(values: Mapping[str, float], columns: int | None) -> Iterator[str]:
    longest, name_width = max(values.values()), max(map(len, values))
    number_width = max(len(number(value)) for value in values.values())
    beside = _BAR_WIDTH if columns is None else min(_BAR_WIDTH, columns - name_width - number_width - 5)
    is_beside = beside >= _LEAST_BAR_WIDTH
    width = beside if is_beside else min(_BAR_WIDTH, max(1, beside + name_width))
    for name, value in values.items():
        bar = f"{_bar(value / longest, width)} {number(value)}"
        yield from [f"  {name.ljust(name_width)}  {bar}"] if is_beside else [f"  {name}", f"    {bar}"]


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


def picture(figures: Sequence[Figure], caption: str) -> str:
    """Return the bars as SVG: for each benchmark a bar for each charted figure, yardsticks in another colour."""
    body, height = [], _TITLE
    for bench, charted in _by_bench([figure for figure in figures if figure.charted]):
        body.append(f'<text class="title" x="10" y="{height}">{escape(bench)}, {escape(charted[0].unit)}</text>')
        body += _svg_bars(charted, height)
        height += _LINE * len(charted) + _TITLE
    body.append(f'<text x="10" y="{height}">{escape(caption)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height + _LINE}" role="img">'
    return "\n".join([head, f"<title>{escape(caption)}</title>", _STYLE, *body, "</svg>", ""])


def _svg_bars(charted: Sequence[Figure], top: int) -> Iterator[str]:
    longest = max(figure.rounds.median for figure in charted)
    for line, figure in enumerate(charted, 1):
        y = top + line * _LINE
        length = max(1.0, figure.rounds.median / longest * (_WIDTH - _LABELS - _NUMBERS))
        kind = "ours" if figure.yardstick or figure.aim else "other"
        yield f'<text x="10" y="{y}">{escape(figure.name)}</text>'
        yield f'<rect class="{kind}" x="{_LABELS}" y="{y - 12}" width="{length:.1f}" height="14" rx="2"/>'
        yield f'<text x="{_LABELS + length + 6:.1f}" y="{y}">{number(figure.rounds.median)}</text>'
