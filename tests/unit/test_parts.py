"""Parts wait by themselves when they are refused, and all together when nobody answers."""

import math

import pytest

from imcore.errors import ConfigurationError, ImError, RedisFull, RedisRefuses, RedisUnavailable
from imcore.gateway.scheduler import Scheduler
from imcore.operations.effects import Effects, perform
from imcore.util.backoff import LONGEST_WAIT_S, ThrottledLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Doing:
    """A part that is always due, unless it is told otherwise."""

    def __init__(self) -> None:
        self.done = self.tried = 0
        self.error: ImError | None = None
        self.next = 0.0

    def due(self) -> float:
        return self.next

    def go_on(self) -> Effects[None]:
        self.tried += 1
        if self.error:
            raise self.error
        self.done += 1
        yield from ()


def parts_of(*parts: Doing, clock: Clock) -> Scheduler:
    return Scheduler(parts, ThrottledLog(clock), clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("error", [RedisRefuses, RedisFull])
def test_one_that_is_refused_does_not_stop_the_others(clock: Clock, error: type[ImError]) -> None:
    refused, other = Doing(), Doing()
    parts = parts_of(refused, other, clock=clock)
    refused.error = error("not now")
    for _ in range(3):
        perform(parts.go_on(), print)
    refused.error = None
    perform(parts.go_on(), print)
    assert (refused.done, other.done) == (0, 4)
    clock.now += 0.1
    perform(parts.go_on(), print)
    assert (refused.done, other.done) == (1, 5)


def test_where_nobody_answers_nobody_is_asked_for_longer_and_longer(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    first, second = Doing(), Doing()
    parts = parts_of(first, second, clock=clock)
    first.error = second.error = RedisUnavailable("nobody there")
    waits = []
    # When
    for _ in range(12):
        perform(parts.go_on(), print)
        waits.append(parts.due() - clock.now)
        clock.now += waits[-1]
    # Then
    assert waits[0] == pytest.approx(0.05)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)
    assert len(caplog.records) <= 2
    # And once somebody does, all go on
    first.error = second.error = None
    perform(parts.go_on(), print)
    assert first.done == 1
    clock.now += LONGEST_WAIT_S
    perform(parts.go_on(), print)
    assert second.done >= 1
    assert parts.due() <= clock.now


def test_one_that_goes_on_failing_beside_others_is_tried_less_and_less_often(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    refused, other = Doing(), Doing()
    parts = parts_of(refused, other, clock=clock)
    refused.error = RedisRefuses("too few replicas")
    # When
    for _ in range(2000):
        perform(parts.go_on(), print)
        clock.now += 0.01
    # Then
    assert other.done == 2000
    assert refused.tried <= 11
    assert len(caplog.records) == 1


def test_trouble_that_comes_and_goes_is_said_once_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    part = Doing()
    parts = parts_of(part, clock=clock)
    for _ in range(100):
        part.error = RedisUnavailable("nobody there")
        perform(parts.go_on(), print)
        part.error = None
        clock.now += 0.6
        perform(parts.go_on(), print)
    assert part.done == 100
    assert len(caplog.records) == 1


def test_what_waiting_does_not_mend_is_raised(clock: Clock) -> None:
    part = Doing()
    part.error = ConfigurationError("no right")
    with pytest.raises(ConfigurationError):
        perform(parts_of(part, clock=clock).go_on(), print)


def test_the_next_one_due_is_told(clock: Clock) -> None:
    soon, never = Doing(), Doing()
    soon.next, never.next = 107.0, math.inf
    parts = parts_of(never, soon, clock=clock)
    assert parts.due() == 107.0
    perform(parts.go_on(), print)
    assert soon.done == never.done == 0
