"""A wait for a database is told once it is long, and then once a minute, however many wait."""

import logging
from collections.abc import Generator
from contextlib import suppress

import pytest

from imcore.sql import waits
from imcore.sql.waits import TOLD_AFTER_S, TOLD_EVERY_S, Waits

READY = 1


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waits, "time", clock)
    return clock


def answer() -> Generator[str, int, str]:
    """Wait until somebody says that there is something to read, as a generator of psycopg does."""
    while not (yield "R"):
        pass
    return "answer"


Wait = Generator[str, int, str]


def begun(waits: Waits) -> Wait:
    """Begin to wait."""
    wait = waits.watched(answer())
    next(wait)
    return wait


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_short_wait_is_not_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wait = begun(Waits("there"))
    clock.now += TOLD_AFTER_S - 0.1
    wait.send(0)

    with pytest.raises(StopIteration) as end:
        wait.send(READY)

    assert end.value.value == "answer"
    assert caplog.messages == []


def test_a_long_one_is_told_and_that_it_is_over(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wait = begun(Waits("there"))
    for _ in range(250):
        clock.now += 1
        wait.send(0)
    with suppress(StopIteration):
        wait.send(READY)

    # After 10 s, and then once a minute
    assert [line.split(" for ")[1].split()[0] for line in lines(caplog)] == ["10", "70", "130", "190", "250"]
    assert caplog.messages[-1] == "the database there answers again after 250 s"


def test_however_many_wait_it_is_one_line_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    of_one_server, of_another = Waits("here"), Waits("there")
    some = [begun(of_one_server) for _ in range(20)] + [begun(of_another)]
    for _ in range(int(TOLD_AFTER_S + TOLD_EVERY_S)):
        clock.now += 1
        for wait in some:
            wait.send(0)

    assert sorted(line.split()[2] for line in lines(caplog)) == ["here", "here", "there", "there"]


def test_what_goes_wrong_comes_through() -> None:
    def failing() -> Generator[str, int, str]:
        yield "R"
        raise OSError("gone")

    wait = Waits("there").watched(failing())
    next(wait)
    with pytest.raises(OSError, match="gone"):
        wait.send(READY)


def test_an_answer_that_is_there_already() -> None:
    def ready() -> Generator[str, int, str]:
        return "answer"
        yield

    with pytest.raises(StopIteration) as end:
        next(Waits("there").watched(ready()))
    assert end.value.value == "answer"
