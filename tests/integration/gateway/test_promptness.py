"""Messages come at once, in order, and waiting costs nothing."""

import os
import resource
import time
from collections.abc import Iterator

import pytest

from imcore.chat import Chat
from tests.helpers.gateways import Audience
from tests.helpers.talk import say


def test_a_message_is_there_at_once_wherever_its_partition_is(chat: Chat, other: Chat) -> None:
    # Given a group in each partition
    gids = [f"g{number}" for number in range(12)]
    for gid in gids:
        chat.create_group(gid, ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        # When, each while the gateway waits for as long as a minute
        took = []
        for gid in gids:
            message = say(other, gid, gid=gid)[0]
            began = time.monotonic()
            events = audience.poll(60)
            took.append(time.monotonic() - began)
            assert [(event.sessions, getattr(event, "message", None)) for event in events] == [((bob,), message)]
    # Then
    assert max(took) < 30


def test_waiting_costs_no_processor_time(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        audience.settled()
        before = time.process_time()
        audience.poll(1.0)
        assert time.process_time() - before < 0.3


@pytest.fixture
def crowd() -> Iterator[None]:
    """A process in which descriptors below 1024 are taken, as by the sockets of many users."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < 1024:
        taken.append(os.dup(taken[0]))
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("crowd")
def test_a_gateway_may_have_the_sockets_of_many_users(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
