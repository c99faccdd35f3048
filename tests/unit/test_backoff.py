"""Waits that grow with what fails, and warnings that do not grow with it."""

import pytest

from imcore import backoff
from imcore.backoff import Backoff, Backoffs, Trouble
from imcore.errors import RedisFull, RedisUnavailable


def test_waits_double_up_to_seconds_and_begin_short_again_after_a_success() -> None:
    wait = Backoff()
    now, waits = 100.0, []
    for _ in range(12):
        wait.failed(now)
        waits.append(wait.until - now)
        now = wait.until

    assert waits[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert waits[-3:] == pytest.approx([backoff.LONGEST_WAIT_S] * 3)
    assert sum(1 for n in range(12) if sum(waits[:n]) < 20) <= 11, "some ten tries in 20 s"

    wait.succeeded()
    assert wait.until == 0.0
    wait.failed(now)
    assert wait.until - now == pytest.approx(backoff.FIRST_WAIT_S)


def test_the_success_of_one_thing_ends_no_wait_of_another() -> None:
    waits: Backoffs[str] = Backoffs()
    for _ in range(5):
        waits.failed("team", 0.0)
        waits.failed("club", 0.0)
        waits.succeeded(["club", "nobody"])

    assert waits.until("team") == pytest.approx(0.8)
    assert waits.until("club") == waits.until("other") == 0.0
    assert waits.failed("club", 0.0) == pytest.approx(0.05)


def test_each_kind_of_error_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    trouble = Trouble(lambda: now)
    for _ in range(1200):  # two minutes
        trouble.note(RedisFull(f"full at {now}"), "acks have to wait: %s")
        if now > 30:
            trouble.note(RedisUnavailable(f"away at {now}"))
        now += 0.1

    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" at ")[0] for line in said] == [
        "acks have to wait: full",
        "away",
        "acks have to wait: full",
        "away",
    ]
    assert "acks have to wait: full at 0.0" in said
