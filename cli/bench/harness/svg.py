"""The bars of a run as an SVG picture, for a README: readable on light and dark pages. No I/O."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from imcore.cli.bench.harness.figures import Figure, number
from imcore.cli.bench.harness.report import by_bench

WIDTH, _LABELS, _NUMBERS, _LINE, _TITLE = 900, 400, 90, 22, 34

_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 }
.ours { fill: #1a7f6b } .other { fill: #9a6700 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ours { fill: #3fb99a } .other { fill: #d29922 } }
</style>"""


def chart(figures: Sequence[Figure], caption: str) -> str:
    """Return the picture: for each benchmark a bar for each charted figure, yardsticks in another colour."""
    body, height = [], _TITLE
    for bench, charted in by_bench([figure for figure in figures if figure.charted]):
        body.append(f'<text class="title" x="10" y="{height}">{escape(bench)}, {escape(charted[0].unit)}</text>')
        body += _bars(charted, height)
        height += _LINE * len(charted) + _TITLE
    body.append(f'<text x="10" y="{height}">{escape(caption)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height + _LINE}" role="img">'
    return "\n".join([head, f"<title>{escape(caption)}</title>", _STYLE, *body, "</svg>", ""])


def _bars(charted: Sequence[Figure], top: int) -> Iterator[str]:
    longest = max(figure.rounds.median for figure in charted)
    for line, figure in enumerate(charted, 1):
        y = top + line * _LINE
        length = max(1.0, figure.rounds.median / longest * (WIDTH - _LABELS - _NUMBERS))
        kind = "ours" if figure.yardstick or figure.aim else "other"
        yield f'<text x="10" y="{y}">{escape(figure.name)}</text>'
        yield f'<rect class="{kind}" x="{_LABELS}" y="{y - 12}" width="{length:.1f}" height="14" rx="2"/>'
        yield f'<text x="{_LABELS + length + 6:.1f}" y="{y}">{number(figure.rounds.median)}</text>'
