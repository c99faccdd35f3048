"""Tasks wait alone when they are refused, and all together when Redis does not answer."""

import math

import pytest

from imcore.errors import ConfigurationError, ImError, RedisFull, RedisRefuses, RedisUnavailable
from imcore.gateway.scheduler import Scheduler
from imcore.operations.effects import Effects
from imcore.util.backoff import LONGEST_WAIT_S, ThrottledLog
from imcore.util.steps import perform


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountingTask:
    """A task that is always due, unless `next` says otherwise."""

    def __init__(self) -> None:
        self.done = self.tried = 0
        self.error: ImError | None = None
        self.next = 0.0

    def due(self) -> float:
        return self.next

    def step(self) -> Effects[None]:
        self.tried += 1
        if self.error:
            raise self.error
        self.done += 1
        yield from ()


def scheduler_of(*tasks: CountingTask, clock: Clock) -> Scheduler:
    return Scheduler(tasks, ThrottledLog(clock), clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("error", [RedisRefuses, RedisFull])
def test_a_refused_task_does_not_stop_the_others(clock: Clock, error: type[ImError]) -> None:
    refused, other = CountingTask(), CountingTask()
    scheduler = scheduler_of(refused, other, clock=clock)
    refused.error = error("not now")
    for _ in range(3):
        perform(scheduler.step(), print)
    refused.error = None
    perform(scheduler.step(), print)
    assert (refused.done, other.done) == (0, 4)
    clock.now += 0.1
    perform(scheduler.step(), print)
    assert (refused.done, other.done) == (1, 5)


def test_without_an_answer_from_redis_all_tasks_wait_longer_and_longer(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    first, second = CountingTask(), CountingTask()
    scheduler = scheduler_of(first, second, clock=clock)
    first.error = second.error = RedisUnavailable("nobody there")
    waits = []
    # When
    for _ in range(12):
        perform(scheduler.step(), print)
        waits.append(scheduler.due() - clock.now)
        clock.now += waits[-1]
    # Then
    assert waits[0] == pytest.approx(0.05)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)
    assert len(caplog.records) <= 2
    # And once the errors end, all continue
    first.error = second.error = None
    perform(scheduler.step(), print)
    assert first.done == 1
    clock.now += LONGEST_WAIT_S
    perform(scheduler.step(), print)
    assert second.done >= 1
    assert scheduler.due() <= clock.now


def test_a_failing_task_is_tried_less_and_less_often(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    refused, other = CountingTask(), CountingTask()
    scheduler = scheduler_of(refused, other, clock=clock)
    refused.error = RedisRefuses("too few replicas")
    # When
    for _ in range(2000):
        perform(scheduler.step(), print)
        clock.now += 0.01
    # Then
    assert other.done == 2000
    assert refused.tried <= 11
    assert len(caplog.records) == 1


def test_an_error_that_comes_and_goes_is_logged_once_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    task = CountingTask()
    scheduler = scheduler_of(task, clock=clock)
    for _ in range(100):
        task.error = RedisUnavailable("nobody there")
        perform(scheduler.step(), print)
        task.error = None
        clock.now += 0.6
        perform(scheduler.step(), print)
    assert task.done == 100
    assert len(caplog.records) == 1


def test_an_error_that_waiting_does_not_mend_is_raised(clock: Clock) -> None:
    task = CountingTask()
    task.error = ConfigurationError("no right")
    with pytest.raises(ConfigurationError):
        perform(scheduler_of(task, clock=clock).step(), print)


def test_the_scheduler_is_due_with_its_next_task(clock: Clock) -> None:
    soon, never = CountingTask(), CountingTask()
    soon.next, never.next = 107.0, math.inf
    scheduler = scheduler_of(never, soon, clock=clock)
    assert scheduler.due() == 107.0
    perform(scheduler.step(), print)
    assert soon.done == never.done == 0
