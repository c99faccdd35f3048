"""A subscription is opened when it is needed, and closed when it is silent."""

from typing import Any

import pytest

from imcore.errors import RedisUnavailable
from imcore.gateway.channels import Channels, Resubscription
from imcore.gateway.fanout import Session
from imcore.operations.effects import ChangeChannels, Effect, OpenSubscription, PingSubscription, RedisCalls
from imcore.streams.keys import Keyspace
from imcore.util.steps import perform

EVERY_S = 20.0


class Bench:
    """A task of its own, and its effects."""

    def __init__(self) -> None:
        self.now = 0.0
        self.effects: list[type] = []
        self.opened = 0
        self.process = "1"
        """The name of the process that answers."""
        self.channels = Channels(Keyspace(2))
        self.task = Resubscription(Keyspace(2), self.channels, EVERY_S, self.on_open, lambda: self.now)

    def on_open(self) -> None:
        self.opened += 1

    def perform_one(self, effect: Effect) -> Any:
        if isinstance(effect, RedisCalls):
            return [self.process]
        self.effects.append(type(effect))
        if isinstance(effect, ChangeChannels):
            for channel in effect.add:
                self.channels.added(channel)
        return None

    def step(self) -> list[type]:
        self.effects = []
        if self.task.due() <= self.now:
            perform(self.task.step(), self.perform_one)
        return self.effects


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_no_subscription_is_opened_without_sessions(bench: Bench) -> None:
    assert bench.step() == []
    bench.channels.open_inbox(Session("ann"))
    assert bench.step() == [OpenSubscription, ChangeChannels]
    assert bench.step() == []


def test_a_ping_goes_with_each_heartbeat_while_it_is_answered(bench: Bench) -> None:
    bench.channels.open_inbox(Session("ann"))
    bench.step()
    for _ in range(3):
        bench.now += EVERY_S
        assert bench.step() == [PingSubscription]
        bench.task.pong()
    assert bench.opened == 1


def test_without_an_answer_by_the_next_heartbeat_another_subscription_is_opened(bench: Bench) -> None:
    # Given one that does not answer
    bench.channels.open_inbox(Session("ann"))
    bench.step()
    bench.now += EVERY_S
    assert bench.step() == [PingSubscription]
    assert bench.step() == []
    # When
    bench.now += EVERY_S
    with pytest.raises(RedisUnavailable, match="silent"):
        bench.step()
    # Then
    assert bench.step() == []
    bench.now = bench.task.due()
    assert bench.step() == [OpenSubscription, ChangeChannels]
    assert bench.opened == 2


def test_after_a_failed_change_another_subscription_is_opened(bench: Bench) -> None:
    bench.channels.open_inbox(Session("ann"))
    bench.step()
    bench.channels.open_group("g")

    def fail(effect: Effect) -> Any:
        raise RedisUnavailable

    with pytest.raises(RedisUnavailable):
        perform(bench.task.step(), fail)
    assert bench.step() == []
    bench.now = bench.task.due()
    assert bench.step() == [OpenSubscription, ChangeChannels]
    assert not bench.channels.has_changes()
    subscribers = bench.channels.groups["g"]
    assert subscribers
    assert subscribers.is_subscribed


def test_when_another_process_answers_another_subscription_is_opened(bench: Bench) -> None:
    # Given a subscription to a server that is replaced, which nobody has told
    bench.channels.open_inbox(Session("ann"))
    bench.step()
    bench.process = "2"
    # When it is pinged
    bench.now += EVERY_S
    with pytest.raises(RedisUnavailable, match="another process"):
        bench.step()
    # Then
    bench.now += EVERY_S
    assert bench.step() == [OpenSubscription, ChangeChannels]
