"""How rounds become figures."""

import pytest

from imcore.cli.bench.harness.figures import RoundPlan, Rounds, interleave, percentile
from imcore.cli.bench.scenarios.growth import CASES
from imcore.cli.commands.bench import GROWTH_CASES


def test_rounds_have_a_median_and_a_spread() -> None:
    rounds = Rounds((5.0, 1.0, 100.0, 2.0, 3.0))

    assert (rounds.median, rounds.low, rounds.high) == (3.0, 1.0, 100.0)


def test_a_ratio_is_taken_in_each_round_before_the_median() -> None:
    """A machine that is slow in one round is slow for both."""
    ours, yardstick = Rounds((2.0, 20.0, 4.0)), Rounds((1.0, 10.0, 1.0))

    assert ours.over(yardstick).values == (2.0, 2.0, 4.0)
    assert ours.over(yardstick).median == 2.0
    assert ours.median / yardstick.median == 4.0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.9, 9), (0.99, 10), (1.0, 10)], ids=str
)
def test_a_percentile_is_a_sample_that_occurred(share: float, expected: float) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_a_percentile_of_one_sample_is_that_sample() -> None:
    assert percentile([7.0], 0.99) == 7.0


def test_every_contestant_takes_its_turn_in_every_round_in_alternating_order() -> None:
    turns: list[str] = []
    said: list[str] = []

    def contestant(name: str) -> dict[str, float]:
        turns.append(name)
        return {"us": float(len(turns)), "bytes": 1.0}

    measured = interleave(
        {"a": lambda: contestant("a"), "b": lambda: contestant("b")}, RoundPlan(rounds=2, quick=False), said.append
    )

    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert measured["a"] == {"us": Rounds((4.0, 5.0)), "bytes": Rounds((1.0, 1.0))}  # the warming up does not count
    assert measured["b"]["us"] == Rounds((3.0, 6.0))
    assert said[0] == "a, warming up"
    assert said[-1] == "b, round 2 of 2"


def test_a_quick_run_does_not_warm_up_and_measures_less() -> None:
    plan, turns = RoundPlan(rounds=5, quick=True), []

    measured = interleave({"a": lambda: turns.append("a") or {"us": 1.0}}, plan, lambda _: None)

    assert len(turns) == len(measured["a"]["us"].values) == 5
    assert (plan.size(1000, 10), RoundPlan().size(1000, 10)) == (10, 1000)


def test_a_full_run_is_as_large_as_the_aims_and_does_not_warm_up() -> None:
    plan, turns = RoundPlan(rounds=2, full=True), []

    interleave({"a": lambda: turns.append("a") or {"us": 1.0}}, plan, lambda _: None)

    assert len(turns) == 2
    assert (plan.size(1000, 10, 50_000), plan.size(1000, 10)) == (50_000, 1000)


def test_the_command_knows_every_case_of_growth() -> None:
    assert tuple(CASES) == GROWTH_CASES
