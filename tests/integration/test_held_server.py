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
from imcore.streams.calls import Draft
from imcore.values import Message
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


def commands_of(server: "redis.Redis", call: Callable[[], object]) -> int:
    """Return how many commands the server runs meanwhile, those within functions included."""
    server.config_resetstat()
    call()
    return sum(each["calls"] for each in server.info("commandstats").values())


def unread(chat: Chat) -> list[int]:
    return [each.unread for each in chat.unread("ann")]


def test_an_ack_past_many_own_messages_makes_the_next_send_no_longer(chat: Chat, server: "redis.Redis") -> None:
    # Given somebody who has sent many messages without an ack, and then acks all but the last
    chat.send("team", "for ann", sender_uid="bob")
    sent = [each for each in chat.send_many("team", [Draft("ann", "x")] * 5000) if isinstance(each, Message)]
    chat.ack("ann", "team", sent[-2].msgid)
    before = unread(chat)
    # When they send the next one
    took = commands_of(server, lambda: chat.send("team", "one more", sender_uid="ann"))
    # Then it is one of few steps, and nothing counts but those past the offset
    assert took < 50
    assert unread(chat) == before
    assert server.llen(chat.link.space.group("team").own("ann")) == 2


def test_more_own_messages_than_go_at_once(chat: Chat, server: "redis.Redis") -> None:
    # Given a list of own messages of which the offset has passed more than one call forgets
    chat.send("team", "for ann", sender_uid="bob")
    last = chat.send("team", "x", sender_uid="ann")
    chat.send("team", "for ann", sender_uid="bob")
    chat.send("team", "x", sender_uid="ann")
    chat.ack("ann", "team", last.msgid)
    own = chat.link.space.group("team").own("ann")
    for _ in range(5):
        server.lpush(own, *([1] * 50_000))
    # When they send, then the rest goes with the message after that, and counts are right all the time
    for left in (50_003, 3):
        assert unread(chat) == [1]
        chat.send("team", "y", sender_uid="ann")
        assert server.llen(own) == left
    assert unread(chat) == [1]
