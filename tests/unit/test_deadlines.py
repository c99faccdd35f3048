"""Attempts until a deadline."""

import pytest

from imcore.util import deadlines
from imcore.util.deadlines import attempts
from tests.helpers.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0.0)
    monkeypatch.setattr(deadlines, "time", clock)
    return clock


def test_attempts_pause_longer_and_longer_and_end_when_the_time_is_over(clock: Clock) -> None:
    assert [clock.now for _ in attempts(0.5)] == pytest.approx([0.0, 0.05, 0.15, 0.35, 0.5])


def test_there_is_one_attempt_without_any_time(clock: Clock) -> None:
    assert len(list(attempts(0.0))) == 1
    assert clock.pauses == []


def test_no_pause_between_attempts_is_longer_than_the_longest(clock: Clock) -> None:
    assert len(list(attempts(0.1, longest_pause_s=0.025))) == 5
    assert max(clock.pauses) <= 0.025
