"""A live device while the server refuses something: it tries less and less often, and logs it once a minute."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from imcore.device import device as device_module
from imcore.device.device import Device, Flushed, when_there
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import ImError, RedisFull, RedisRefuses, RedisUnavailable
from imcore.settings import Settings
from imcore.streams.client import RedisClient
from imcore.system import System
from imcore.util.backoff import LONGEST_WAIT_S
from tests.helpers.clock import Clock

POLL_S = 0.25


class ShortSleeps(Clock):
    def sleep(self, seconds: float) -> None:
        assert seconds <= POLL_S, "a longer sleep would delay a stop"
        super().sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = ShortSleeps()
    monkeypatch.setattr(device_module, "time", clock)
    return clock


@pytest.fixture
def bob(client: RedisClient, tmp_path: Path, clock: Clock) -> Iterator[Device]:
    chat = Chat(System(client, None, Settings.from_env({}, data_dir=str(tmp_path))))
    with chat, LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True) as local:
        yield Device(chat, "bob", local)


def test_waits_for_a_server_grow_and_are_logged_once_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[float] = []

    def attempt() -> str:
        tried.append(clock.now)
        if clock.now < 1110:
            raise RedisUnavailable(f"away, {len(tried)}")
        return "there"

    assert when_there(attempt, lambda: False) == "there"
    assert sum(at < 1020 for at in tried) <= 12
    assert tried[-1] < 1110 + LONGEST_WAIT_S
    assert [message.partition(",")[0] for message in caplog.messages] == ["away", "away"]


def test_the_outbox_is_tried_less_and_less_often(
    bob: Device, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[float] = []

    def refused() -> Flushed:
        tried.append(clock.now)
        return Flushed([], [], RedisFull(f"full, {len(tried)}"))

    # When the server refuses it, while events come fast
    monkeypatch.setattr(bob, "flush", refused)
    while clock.now < 1070:
        bob._try_outbox()
        clock.now += 0.01
    assert sum(at < 1020 for at in tried) <= 12
    assert [message.partition(",")[0] for message in caplog.messages] == ["the outbox waits: full"] * 2

    # And one that goes out is followed at once by the next
    monkeypatch.setattr(bob, "flush", lambda: tried.append(clock.now) or Flushed([], []))
    clock.now += LONGEST_WAIT_S
    tried.clear()
    for _ in range(3):
        bob._try_outbox()
    assert len(tried) == 3


@pytest.mark.parametrize(
    ("error", "said"), [(RedisRefuses("loading"), ["tallies wait: loading"]), (RedisUnavailable("away"), [])]
)
def test_tallies_are_asked_for_less_and_less_often(
    bob: Device,
    clock: Clock,
    error: ImError,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[float] = []

    def refused() -> None:
        tried.append(clock.now)
        raise error

    monkeypatch.setattr(bob, "_fetch_older_tallies", refused)
    bob._begin_tallies()
    while clock.now < 1020:
        assert bob._try_tallies([])
        clock.now += 0.01
    assert len(tried) <= 12
    assert caplog.messages == said

    # Then, once they can be had, all are
    monkeypatch.undo()
    monkeypatch.setattr(device_module, "time", clock)
    clock.now += LONGEST_WAIT_S
    assert bob._try_tallies([])
    assert bob._has_all_tallies
