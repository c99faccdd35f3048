"""`wake` ends a poll from any thread."""

import threading
import time

import pytest

from imcore import Chat
from tests.helpers.gateways import Audience, kill_connections
from tests.helpers.talk import say

LONG_S = 60.0


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


def test_a_poll_in_progress_is_ended_from_another_thread(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        audience.settled()
        for _ in range(5):
            begun = time.monotonic()
            timer = threading.Timer(0.05, gateway.wake)
            timer.start()
            assert gateway.poll(LONG_S) == []
            assert time.monotonic() - begun < LONG_S / 2
            timer.join()


def test_a_wake_before_a_poll_ends_it_once(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        gateway.wake()
        gateway.wake()
        begun = time.monotonic()
        gateway.poll(LONG_S)
        assert time.monotonic() - begun < LONG_S / 2
        # Then the next one waits again, and hears what comes
        begun = time.monotonic()
        assert gateway.poll(0.2) == []
        assert time.monotonic() - begun >= 0.2
        say(chat, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])


def test_a_wake_brings_the_events_that_are_there(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        say(chat, "1")
        while not audience.heard(bob):
            gateway.wake()
            audience.poll(LONG_S)


def test_a_poll_is_woken_without_sessions_and_without_a_subscription(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        gateway.wake()
        gateway.poll(LONG_S)
        timer = threading.Timer(0.05, gateway.wake)
        timer.start()
        gateway.poll(LONG_S)
        timer.join()
        gateway.open("bob")
        kill_connections(other.system.client.driver, "pubsub")
        gateway.wake()
        gateway.poll(LONG_S)


def test_a_wake_after_the_end_does_nothing(chat: Chat) -> None:
    gateway = chat.gateway()
    gateway.poll(0.01)
    gateway.close()
    gateway.wake()
