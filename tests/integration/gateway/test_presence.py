"""A user is online while any session lives, and not for long after it was killed."""

import time
from dataclasses import replace

import pytest

from imcore.chat import Chat
from imcore.errors import (
    SessionExpired,
)
from imcore.gateway.gateway import Gateway
from imcore.settings import Settings
from imcore.system import System
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import Audience
from tests.helpers.talk import push_receipts, say


def short_lived(chat: Chat, *, heartbeat_ms: int = 20_000, online_ms: int = 60_000) -> Gateway:
    """A gateway with other times than usual."""
    settings = replace(chat.system.settings, heartbeat_ms=heartbeat_ms, online_ms=online_ms)
    return Gateway(chat.performer, settings)


def test_a_user_is_online_while_any_session_lives(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        one, two = gateway.open("bob"), gateway.open("bob")
        assert chat.online(["ann", "bob"]) == {"bob"}
        assert {member.uid: member.online for member in chat.members("team")} == {"ann": False, "bob": True}
        gateway.end(one)
        assert chat.online(["bob"]) == {"bob"}
        gateway.end(two)
        assert chat.online(["bob"]) == set()


def test_a_killed_session_expires(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    for uid, online_ms in (("ann", 60_000), ("bob", 200)):
        gateway = short_lived(chat, online_ms=online_ms)
        gateway.open(uid)
        gateway.close(clean=False)
    # It was not ended by the kill, but is by the time
    assert chat.online(["ann"]) == {"ann"}
    wait_until(lambda: chat.online(["ann", "bob"]) == {"ann"})


def test_a_short_lived_session_does_not_end_a_long_lived_one(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    long_lived = chat.begin_session("bob")
    gateway = short_lived(chat, online_ms=50)
    gateway.open("bob")
    gateway.close(clean=False)
    with short_lived(chat, online_ms=50) as gateway:
        short = gateway.open("bob")
        key = chat.system.client.space.sessions("bob")
        wait_until(lambda: float(chat.system.client.query("ZSCORE", key, short.sid) or 0) % 2**42 < time.time() * 1000)
        assert chat.heartbeat("bob", long_lived) == []
    assert chat.online(["bob"]) == {"bob"}


def test_a_clock_that_is_put_right_leaves_nobody_online_who_was_killed(chat: Chat) -> None:
    # Given a session whose heartbeats were sent while the clock was an hour ahead
    chat.create_group("team", ["ann", "bob"])
    with short_lived(chat, heartbeat_ms=20, online_ms=200) as gateway:
        bob = gateway.open("bob")
        space = chat.system.client.space
        ahead = int(time.time() + 3600) * 1000
        chat.system.client.execute_once("ZADD", space.sessions("bob"), ahead, bob.sid)
        chat.system.client.execute_once("ZADD", space.online(space.partition_of("bob")), ahead, "bob")
        # When it beats by the right one, and is killed
        gateway.poll(0)

        def is_put_right() -> bool:
            gateway.poll(0.02)
            end = chat.system.client.query("ZSCORE", space.sessions("bob"), bob.sid)
            return end is not None and float(end) < ahead  # none: it has expired, and is opened again

        wait_until(is_put_right)
        gateway.close(clean=False)
        # Then
        wait_until(lambda: chat.online(["bob"]) == set())


def test_a_session_that_has_expired_is_opened_again_and_has_missed_nothing(chat: Chat, other: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    with short_lived(chat, heartbeat_ms=200, online_ms=20) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        wait_until(lambda: other.online(["bob"]) == set())
        # When
        other.create_group("news", ["ann", "bob"])
        say(other, "1")
        say(other, "a", gid="news")
        # Then
        audience.until(lambda: audience.heard(bob) == ["1"] and audience.heard(bob, "news") == ["a"])
        audience.until(lambda: other.online(["bob"]) == {"bob"})


def test_a_heartbeat_of_an_expired_session_is_refused(chat: Chat, settings: Settings) -> None:
    chat.create_group("team", ["ann", "bob"])
    brief = Chat(System(chat.system.client, None, replace(settings, online_ms=50)))
    session = brief.begin_session("bob")
    wait_until(lambda: brief.online(["bob"]) == set())
    with pytest.raises(SessionExpired, match="open a new one"):
        brief.heartbeat("bob", session)
    with pytest.raises(SessionExpired):
        brief.heartbeat("bob", "never opened")
    assert brief.online(["bob"]) == set()
    session = chat.begin_session("bob")
    assert chat.online(["bob"]) == {"bob"}
    push_receipts(chat, say(chat, "1", sender="bob")[0])
    assert [(each.read, each.unread) for each in chat.heartbeat("bob", session)] == [(0, 1)]
    chat.end_session("bob", session)
    assert chat.online(["bob"]) == set()
