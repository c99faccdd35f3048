"""SlowAnswerLog: a long wait for a database is logged, and again each minute, however many threads wait."""

import logging
from collections.abc import Generator
from contextlib import suppress

import pytest

from imcore.sql import postgres
from imcore.sql.postgres import SLOW_AFTER_S, SlowAnswerLog
from imcore.util.backoff import REPEAT_AFTER_S
from tests.helpers.clock import Clock

READY = 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(postgres, "time", clock)
    return clock


def answer() -> Generator[str, int, str]:
    """Wait for an answer, as a generator of psycopg does."""
    while not (yield "R"):
        pass
    return "answer"


Wait = Generator[str, int, str]


def begun(slow_answers: SlowAnswerLog) -> Wait:
    """Return a wait that has begun."""
    wait = slow_answers.watch(answer())
    next(wait)
    return wait


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_short_wait_is_not_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wait = begun(SlowAnswerLog("there"))
    clock.now += SLOW_AFTER_S - 0.1
    wait.send(0)

    with pytest.raises(StopIteration) as end:
        wait.send(READY)

    assert end.value.value == "answer"
    assert caplog.messages == []


def test_a_long_wait_and_its_end_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wait = begun(SlowAnswerLog("there"))
    for _ in range(250):
        clock.now += 1
        wait.send(0)
    with suppress(StopIteration):
        wait.send(READY)

    # After 10 s, and then once a minute
    assert [line.split(" for ")[1].split()[0] for line in lines(caplog)] == ["10", "70", "130", "190", "250"]
    assert caplog.messages[-1] == "the database there answers again after 250 s"


def test_many_waits_for_one_database_log_one_line_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    one, other = SlowAnswerLog("here"), SlowAnswerLog("there")
    waits = [begun(one) for _ in range(20)] + [begun(other)]
    for _ in range(int(SLOW_AFTER_S + REPEAT_AFTER_S)):
        clock.now += 1
        for wait in waits:
            wait.send(0)

    assert sorted(line.split()[2] for line in lines(caplog)) == ["here", "here", "there", "there"]


def test_an_error_ends_the_wait() -> None:
    def failing() -> Generator[str, int, str]:
        yield "R"
        raise OSError("gone")

    wait = SlowAnswerLog("there").watch(failing())
    next(wait)
    with pytest.raises(OSError, match="gone"):
        wait.send(READY)


def test_an_immediate_answer_needs_no_wait() -> None:
    def ready() -> Generator[str, int, str]:
        return "answer"
        yield

    with pytest.raises(StopIteration) as end:
        next(SlowAnswerLog("there").watch(ready()))
    assert end.value.value == "answer"
