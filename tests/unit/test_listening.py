"""A subscription is opened when it is needed, and given up when it is silent."""

from typing import Any

import pytest

from imcore.errors import RedisUnavailable
from imcore.gateway.channels import Channels
from imcore.gateway.fanout import Session
from imcore.gateway.resubscribe import Resubscription
from imcore.operations.effects import ChangeChannels, Effect, OpenSubscription, PingSubscription, perform
from imcore.streams.keys import Keyspace

EVERY_S = 20.0


class Bench:
    """A part of its own, and what it asks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[type] = []
        self.anew = 0
        self.channels = Channels(Keyspace(2))
        self.listening = Resubscription(self.channels, EVERY_S, self.begun, lambda: self.now)

    def begun(self) -> None:
        self.anew += 1

    def answer(self, question: Effect) -> Any:
        self.asked.append(type(question))
        if isinstance(question, ChangeChannels):
            for channel in question.add:
                self.channels.added(channel)

    def go_on(self) -> list[type]:
        self.asked = []
        if self.listening.due() <= self.now:
            perform(self.listening.go_on(), self.answer)
        return self.asked


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_is_opened_for_nobody(bench: Bench) -> None:
    assert bench.go_on() == []
    bench.channels.open_inbox(Session("ann"))
    assert bench.go_on() == [OpenSubscription, ChangeChannels]
    assert bench.go_on() == []


def test_a_ping_goes_with_each_heartbeat_while_it_is_answered(bench: Bench) -> None:
    bench.channels.open_inbox(Session("ann"))
    bench.go_on()
    for _ in range(3):
        bench.now += EVERY_S
        assert bench.go_on() == [PingSubscription]
        bench.listening.answered()
    assert bench.anew == 1


def test_without_an_answer_by_the_next_heartbeat_another_subscription_is_opened(bench: Bench) -> None:
    # Given one that does not answer
    bench.channels.open_inbox(Session("ann"))
    bench.go_on()
    bench.now += EVERY_S
    assert bench.go_on() == [PingSubscription]
    assert bench.go_on() == []
    # When
    bench.now += EVERY_S
    with pytest.raises(RedisUnavailable, match="silent"):
        bench.go_on()
    # Then
    assert bench.go_on() == []
    bench.now = bench.listening.due()
    assert bench.go_on() == [OpenSubscription, ChangeChannels]
    assert bench.anew == 2


def test_a_change_that_failed_begins_all_anew(bench: Bench) -> None:
    bench.channels.open_inbox(Session("ann"))
    bench.go_on()
    bench.channels.open_room("g")

    def fail(question: Effect) -> Any:
        raise RedisUnavailable

    with pytest.raises(RedisUnavailable):
        perform(bench.listening.go_on(), fail)
    assert bench.go_on() == []
    bench.now = bench.listening.due()
    assert bench.go_on() == [OpenSubscription, ChangeChannels]
    assert not bench.channels.has_changes()
    room = bench.channels.room("g")
    assert room
    assert room.stands
