"""Figures: the values of rounds, each with its yardstick and its aim. No I/O.

A shared machine is faster at one moment than at another. So a figure and its yardstick take turns in every round, each
round in the opposite order. A ratio is taken within each round, and then the median.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from imcore.model.records import Record

COLUMNS = ("figure", "median", "spread", "unit", "yardstick", "ratio", "aim")
USUAL_ROUNDS = 5

Progress = Callable[[str], None]
"""Called with the name of the next measurement."""


class Rounds(NamedTuple):
    """The values of one figure, one of each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: "Rounds") -> "Rounds":
        """Return the ratios to another figure, round by round."""
        return Rounds(tuple(mine / yours for mine, yours in zip(self.values, other.values, strict=True)))


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The number of rounds. `quick` makes each of them smaller, and leaves out the warming up.

    `full`: as large as in the aims, where that takes long. `cases` are those of a scenario that has some; none means
    all of them.
    """

    rounds: int = USUAL_ROUNDS
    quick: bool = False
    full: bool = False
    cases: tuple[str, ...] = ()

    def size(self, usual: int, quick: int, full: int | None = None) -> int:
        if self.full and full is not None:
            return full
        return quick if self.quick else usual


Measured = Mapping[str, float]
"""The figures of one turn of a contestant, by name."""


def interleave(
    contestants: Mapping[str, Callable[[], Measured]], plan: RoundPlan, progress: Progress
) -> dict[str, dict[str, Rounds]]:
    """Let each contestant take its turn in each round; return its figures by name.

    Before the first round each runs once unmeasured, to fill caches and to open connections, unless it must be quick.
    """
    turns: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(1 if plan.quick or plan.full else 0, plan.rounds + 1):
        names = list(contestants)
        for name in reversed(names) if number % 2 else names:
            progress(f"{name}, round {number} of {plan.rounds}" if number else f"{name}, warming up")
            measured = contestants[name]()
            if number:
                turns[name].append(measured)
    return {name: _by_figure(measured) for name, measured in turns.items()}


def _by_figure(turns: Sequence[Measured]) -> dict[str, Rounds]:
    return {figure: Rounds(tuple(turn[figure] for turn in turns)) for figure in turns[0]}


@dataclass(frozen=True, slots=True)
class Aim:
    """The limit of a figure, or of its ratio to the yardstick."""

    sign: str
    """<= or >=."""
    limit: float
    of_ratio: bool = True

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}{' x' if self.of_ratio else ''}"

    def reached_by(self, value: float) -> bool:
        return value <= self.limit if self.sign == "<=" else value >= self.limit


class Yardstick(NamedTuple):
    """Another measurement from the same rounds, in the same unit, to compare a figure with."""

    name: str
    rounds: Rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. `bench`, `subject` and `what` together name it, in this run and in saved ones.

    Figures of one `table` are shown as a row for each subject and a column for each measure. `charted` figures are the
    bars.
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
        """Whether the aim is reached; None without an aim, or without the ratio that it is for."""
        rounds = self.ratio if self.aim and self.aim.of_ratio else self.rounds
        return self.aim.reached_by(rounds.median) if self.aim and rounds else None


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample that `share` (0 to 1) of all do not exceed: nearest rank, so it is one that occurred."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


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
