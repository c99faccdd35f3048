"""For how long calls hold the server, by its SLOWLOG: what they do in one step is bounded, however much there is.

The limits are generous, and the least of some tries counts, as the machine may be busy. Without a bound each of these
would take several times as long.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from imcore.chat import Chat
from imcore.settings import Settings
from tests.servers import require_server, start_valkey

MOST_MS = 10
MANY = 100_000


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    require_server()
    server = start_valkey(tmp_path / "server", appendonly=False)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path), partitions="1")
    try:
        with Chat.connect(settings=settings) as chat:
            chat.database.upgrade()
            chat.create_group("team", ["ann", "bob"])
            yield chat
    finally:
        server.stop()


@pytest.fixture
def server(chat: Chat) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(chat.settings.redis_url) as client:
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 10_000)
        yield client


def longest_ms(server: "redis.Redis", function: str, call: Callable[[], object]) -> float:
    """Return the longest of the calls of a function that something makes."""
    server.slowlog_reset()
    call()
    found = [each["duration"] / 1000 for each in server.slowlog_get(10_000) if function.encode() in each["command"]]
    return max(found)


def least_ms(server: "redis.Redis", function: str, call: Callable[[], object]) -> float:
    """Return the least of some tries."""
    return min(longest_ms(server, function, call) for _ in range(5))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_session_of_a_user_who_has_many(chat: Chat, server: "redis.Redis") -> None:
    space = chat.link.space
    one, other = chat.begin_session("guest"), chat.begin_session("guest")
    server.zadd(space.sessions("guest"), {f"{number:032x}": now_ms() + 60_000 for number in range(MANY)})
    assert least_ms(server, "im_beat", lambda: chat.heartbeat("guest", one)) < MOST_MS
    assert least_ms(server, "im_bye", lambda: chat.end_session("guest", other)) < MOST_MS
