"""A worker's retries: failing steps are repeated less and less often, logged once a minute, while others succeed."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, cycle, repeat

import pytest

from imcore.errors import ConfigurationError, DatabaseUnavailable, ImError, RedisRefuses, RedisUnavailable
from imcore.process import WorkerSignals
from imcore.util.backoff import FIRST_WAIT_S, LONGEST_WAIT_S
from imcore.workers.runner import Retrier

STEP_S = 0.01
"""How long a step takes that succeeds."""


class Run:
    """A worker's steps for some seconds of a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.failed_at: list[float] = []
        self.signals = WorkerSignals()
        monkeypatch.setattr(self.signals, "wait", self.wait)
        self.retrier = Retrier(self.signals, clock=lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def step(self, outcome: ImError | None) -> None:
        self.now += STEP_S
        if outcome:
            self.failed_at.append(self.now)
            raise outcome

    def steps(self, outcomes: Iterable[ImError | None], seconds: float) -> None:
        """Take steps with these outcomes, and then steps that succeed, for these seconds."""
        outcome, end = chain(outcomes, repeat(None)), self.now + seconds
        while self.now < end:
            self.retrier.call(lambda: self.step(next(outcome) if self.now < end else None))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    caplog.set_level(logging.INFO)
    run = Run(monkeypatch)
    with run.signals:
        yield run


def test_a_call_that_fails_in_turn_with_a_success_is_repeated_less_and_less_often(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.steps(cycle([RedisRefuses("no writes"), None]), 120)

    assert sum(at < 1020 for at in run.failed_at) <= 14, "some ten tries in 20 s"
    gaps = [later - at for at, later in zip(run.failed_at, run.failed_at[1:], strict=False)]
    assert min(gaps[12:]) >= LONGEST_WAIT_S / 2
    assert caplog.messages == ["waiting: no writes", "going on"] * 2 + ["waiting: no writes"] * (
        len(caplog.messages) % 2
    )


def test_changing_numbers_in_an_error_are_no_news(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.steps((RedisRefuses(f"Command {number} was refused\nin two lines") for number in count()), 50)

    assert caplog.messages == ["waiting: Command 0 was refused", "going on"]


def test_kinds_of_errors_that_come_in_turn_wait_and_are_logged_each_by_itself(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.steps(cycle([RedisUnavailable("no Redis"), DatabaseUnavailable("no SQL")]), 50)

    assert caplog.messages == ["waiting: no Redis", "waiting: no SQL", "going on"]
    assert sum(at < 1020 for at in run.failed_at) <= 20


def test_the_end_of_a_trouble_is_logged_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.steps([RedisUnavailable("away")] * 2, 10)

    assert caplog.messages == ["waiting: away", "going on"]


def test_after_a_time_without_trouble_the_first_wait_is_short(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.steps([RedisUnavailable("away")] * 10, 40)
    waits: list[float] = []
    monkeypatch.setattr(run.signals, "wait", waits.append)
    run.retrier.call(_failing_once())

    assert max(waits) <= FIRST_WAIT_S


def _failing_once() -> Callable[[], None]:
    outcomes = iter([RedisUnavailable("away again"), None])

    def attempt() -> None:
        if error := next(outcomes):
            raise error

    return attempt


def test_a_configuration_error_is_raised_at_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError):
        run.retrier.call(lambda: run.step(ConfigurationError("a right is missing")))
    assert caplog.messages == []
