"""How a figure comes about: rounds in which everything that is compared takes its turn. No I/O.

A machine that others use too is faster at one moment than at another. So what is compared runs close together, in
every round anew, in the opposite order each time; a ratio is taken within each round, and only then the median.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

LEAST_ROUNDS = 5

Progress = Callable[[str], None]
"""Called with what is measured next, once for each measurement."""


class Rounds(NamedTuple):
    """The values of one figure, one of each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The lowest one."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest one."""
        return max(self.values)

    def over(self, other: "Rounds") -> "Rounds":
        """Return the ratios to another figure, round by round."""
        return Rounds(tuple(mine / yours for mine, yours in zip(self.values, other.values, strict=True)))


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """How long to measure: so many rounds; `quick` makes each of them smaller, and leaves out the warming up."""

    rounds: int = LEAST_ROUNDS
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return how much of something one measurement takes."""
        return quick if self.quick else full


Measured = Mapping[str, float]
"""The figures of one turn of a contestant, by name."""


def interleave(
    contestants: Mapping[str, Callable[[], Measured]], plan: RoundPlan, progress: Progress
) -> dict[str, dict[str, Rounds]]:
    """Let each contestant take its turn in each round; return its figures by name.

    Before the first round each runs once unmeasured, to fill caches and to open connections, unless it must be quick.
    """
    turns: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(1 if plan.quick else 0, plan.rounds + 1):
        names = list(contestants)
        for name in reversed(names) if number % 2 else names:
            progress(f"{name}, round {number} of {plan.rounds}" if number else f"{name}, warming up")
            measured = contestants[name]()
            if number:
                turns[name].append(measured)
    return {name: _by_figure(measured) for name, measured in turns.items()}


def _by_figure(turns: Sequence[Measured]) -> dict[str, Rounds]:
    return {figure: Rounds(tuple(turn[figure] for turn in turns)) for figure in turns[0]}


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample that `share` (0 to 1) of all do not exceed: nearest rank, so it is one that occurred."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
