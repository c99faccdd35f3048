"""What a benchmark answers: figures, each with its yardstick and with what it should be. No I/O."""

from dataclasses import dataclass

from imcore.cli.bench.harness.timing import Rounds
from imcore.cli.output import Record

COLUMNS = ("figure", "median", "spread", "unit", "yardstick", "ratio", "aim")


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure, or its ratio to the yardstick, should be."""

    sign: str
    """<= or >=."""
    limit: float
    of_ratio: bool = True

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}{' x' if self.of_ratio else ''}"

    def reached_by(self, value: float) -> bool:
        return value <= self.limit if self.sign == "<=" else value >= self.limit


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a figure is held against, measured in the same rounds, in the same unit."""

    name: str
    rounds: Rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. `bench`, `subject` and `what` together name it, in this run and in saved ones.

    Figures of one `table` are shown with their subjects below and their measures beside each other. `charted` ones make
    the bars.
    """

    bench: str
    what: str
    unit: str
    subject: str = ""
    table: str = ""
    charted: bool = False
    rounds: Rounds
    yardstick: Yardstick | None = None
    aim: Aim | None = None

    @property
    def name(self) -> str:
        return f"{self.subject}: {self.what}" if self.subject else self.what

    @property
    def ratio(self) -> Rounds | None:
        """The ratio to the yardstick, round by round; None without one, or where it is zero."""
        if self.yardstick is None or not all(self.yardstick.rounds.values):
            return None
        return self.rounds.over(self.yardstick.rounds)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        rounds = self.ratio if self.aim.of_ratio else self.rounds
        return None if rounds is None else self.aim.reached_by(rounds.median)


def to_record(figure: Figure) -> Record:
    yardstick = figure.yardstick
    return {
        "bench": figure.bench,
        "figure": figure.name,
        "unit": figure.unit,
        **_summary(figure.rounds),
        "yardstick": yardstick and {"name": yardstick.name, **_summary(yardstick.rounds)},
        "ratio": figure.ratio and _summary(figure.ratio),
        "aim": figure.aim and {"text": str(figure.aim), "reached": figure.reached},
    }


def to_row(figure: Figure) -> Record:
    yardstick, ratio = figure.yardstick, figure.ratio
    return {
        "figure": figure.name,
        "median": number(figure.rounds.median),
        "spread": f"{number(figure.rounds.low)} to {number(figure.rounds.high)}",
        "unit": figure.unit,
        "yardstick": f"{number(yardstick.rounds.median)} {yardstick.name}" if yardstick else "",
        "ratio": f"{number(ratio.median)} x" if ratio else "",
        "aim": f"{figure.aim} {'ok' if figure.reached else 'MISSED'}" if figure.aim else "",
    }


def number(value: float) -> str:
    """Return a number with three digits that count, and no more than it needs."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _summary(rounds: Rounds) -> dict[str, object]:
    return {
        "median": _rounded(rounds.median),
        "low": _rounded(rounds.low),
        "high": _rounded(rounds.high),
        "rounds": [_rounded(value) for value in rounds.values],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
