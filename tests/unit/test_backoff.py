"""Waits that grow with what fails, and warnings that do not grow with it."""

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace

import pytest

from imcore.chat import Chat
from imcore.errors import DatabaseOpening, GroupUnderWay, RedisFull, RedisUnavailable, TryAgain
from imcore.operations import creation, performer
from imcore.operations.performer import perform_in_redis
from imcore.repair import locks
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.client import RedisClient
from imcore.system import System
from imcore.util import backoff, deadlines
from imcore.util.backoff import Backoff, Backoffs, ThrottledLog


def test_waits_double_up_to_seconds_and_are_short_again_after_a_success() -> None:
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


def test_a_few_different_texts_of_one_type_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    trouble = ThrottledLog(lambda: 0.0)
    for number in range(100):
        trouble.note(RedisUnavailable(f"no answer at 10.0.0.{number}"))
        trouble.note(RedisUnavailable(f"{number}: no data of 'group{number}': run im rebuild"))
    assert caplog.messages == [
        "no answer at 10.0.0.0; trying again",
        "0: no data of 'group0': run im rebuild; trying again",
    ]

    caplog.clear()
    for letter in "ghijklmnop":
        trouble.note(RedisFull(f"{letter} is full"))
    assert len(caplog.messages) == 5


def test_the_opening_of_a_database_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    ThrottledLog(lambda: 0.0).note(DatabaseOpening())
    assert caplog.messages == []


def test_pauses_double_up_to_seconds() -> None:
    pauses = list(islice(backoff.pauses(), 9))
    assert pauses[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert pauses[-2:] == [backoff.LONGEST_WAIT_S] * 2


@pytest.mark.parametrize("who", ["creation", "claims"])
def test_waits_for_the_work_of_others_grow(who: str, client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=sleep_with(lambda: clock))
    module = {"creation": performer, "claims": deadlines}[who]
    monkeypatch.setattr(module, "time", clock)
    tried: list[float] = []

    def under_way(*_: object) -> list[str]:
        tried.append(clock.now)
        if who == "creation":
            raise GroupUnderWay
        return [GroupLock(client.space.group("team"), "token")]

    monkeypatch.setattr(creation, "_attempt", under_way)
    monkeypatch.setattr(locks, "_missing", under_way)
    chat = Chat(System(client, None))
    with pytest.raises(TryAgain):
        perform_in_redis(client, creation.create("team", ["ann"])) if who == "creation" else locks.take(
            chat.system, ["team"]
        )
    assert 8 <= len(tried) <= 12
    assert tried[-1] > {"creation": 12, "claims": 6}[who]


def sleep_with(clock: Callable[[], SimpleNamespace]) -> Callable[[float], None]:
    def sleep(seconds: float) -> None:
        clock().now += seconds

    return sleep


def test_the_success_of_one_key_ends_no_wait_of_another() -> None:
    waits: Backoffs[str] = Backoffs()
    for _ in range(5):
        waits.failed("team", 0.0)
        waits.failed("club", 0.0)
        waits.succeeded(["club", "nobody"])

    assert waits.until("team") == pytest.approx(0.8)
    assert waits.until("club") == waits.until("other") == 0.0
    assert waits.failed("club", 0.0) == pytest.approx(0.05)


def test_each_kind_of_error_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    trouble = ThrottledLog(lambda: now)
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
