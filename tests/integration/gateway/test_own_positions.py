"""A session learns what another device of its user has read, or marked unread: once, and whatever happens meanwhile."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from imcore import Chat, PositionMoved, Session
from imcore.gateway.options import SessionOptions
from imcore.settings import Settings
from tests.helpers.gateways import Audience, kill_connections, nodes_of
from tests.helpers.processes import WorkerProcess
from tests.helpers.talk import say
from tests.helpers.workers import deliver_receipts, start_worker

CLIENT: SessionOptions = {"acks": "client", "ack_interval_s": 0.02}
WINDOW_MS = 100
SLACK_S = 0.05 + 0.25
"""What the product promises beyond the window, and what a busy machine may take more."""


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, receipt_window_ms=WINDOW_MS, block_ms=50)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def told(audience: Audience, session: Session, position: str | None) -> None:
    audience.until(lambda: audience.positions[session][-1:] == [position])


def test_the_other_device_is_told_once(chat: Chat, other: Chat) -> None:
    # Given two devices of bob, on two gateways, and one of ann
    with chat.gateway(**CLIENT) as gateway, other.gateway(**CLIENT) as elsewhere:
        audience, far = Audience(gateway), Audience(elsewhere)
        one, ann = gateway.open("bob"), gateway.open("ann")
        two = elsewhere.open("bob")
        audience.settled()  # or ann, who speaks, learns that her own offset has moved
        far.settled()
        first, second = say(other, "1", "2")
        audience.until(lambda: len(audience.messages[one]) == 2)
        far.until(lambda: len(far.messages[two]) == 2)
        # When one of them acks
        gateway.received(one, "team", first.msgid)
        audience.settled()
        deliver_receipts(other)
        told(far, two, first.msgid)
        gateway.received(one, "team", second.msgid)
        audience.settled()
        deliver_receipts(other)
        # Then the other one is told, and nobody else
        told(far, two, second.msgid)
        audience.settled()
        assert far.positions[two] == [first.msgid, second.msgid]
        assert audience.positions == {}
        # And who acks what they were told is told nothing
        elsewhere.received(two, "team", second.msgid)
        far.settled()
        deliver_receipts(other)
        far.settled()
        audience.settled()
        assert audience.positions == {}
        assert ann.known_offsets == {}, "what moves an offset by speaking is told by the message itself"


def test_sessions_that_ack_what_they_are_handed_are_told_nothing(chat: Chat, other: Chat) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        one, two = gateway.open("bob"), gateway.open("bob")
        [message] = say(other, "1")
        audience.until(lambda: audience.messages[one] and audience.messages[two])
        audience.settled()
        deliver_receipts(other)
        audience.settled()
        assert audience.positions == {}
        assert message.seq == 1


def test_all_devices_are_told_of_what_is_read_in_private_or_marked(chat: Chat, other: Chat) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one, two = gateway.open("bob"), gateway.open("bob")
        first, second = say(other, "1", "2")
        audience.until(lambda: len(audience.messages[one]) == len(audience.messages[two]) == 2)
        # In private: the offset stays
        gateway.received(one, "team", second.msgid, private=True)
        audience.settled()
        deliver_receipts(other)
        told(audience, one, None)
        told(audience, two, None)
        assert other.tally("team", second.msgid).read == 0
        assert [each.unread for each in other.unread("bob")] == [0]
        # Marked, and unmarked: at once, without a worker
        other.mark_unread("bob", "team", second.msgid)
        audience.until(lambda: len(audience.positions[one]) == len(audience.positions[two]) == 2)
        other.unmark("bob", "team")
        audience.until(lambda: len(audience.positions[one]) == len(audience.positions[two]) == 3)
        # With the worker's push of the same, nobody is told anything else
        deliver_receipts(other)
        audience.settled()
        assert {*audience.positions[one], *audience.positions[two]} == {None}
        assert first.seq == 1


def test_what_moves_while_a_session_is_paused_is_told_once_it_goes_on(chat: Chat, other: Chat) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        first, second, third = say(other, "1", "2", "3")
        audience.until(lambda: len(audience.messages[one]) == 3)
        other.ack("bob", "team", first.msgid)
        # One push is ready as it is paused, the other comes meanwhile
        deliver_receipts(other)
        audience.until(lambda: gateway._core.deliveries.ready or audience.positions[one])
        gateway.pause(one)
        other.ack("bob", "team", second.msgid)
        deliver_receipts(other)
        audience.settled()
        gateway.resume(one)
        told(audience, one, second.msgid)
        # The same of a mark
        gateway.pause(one)
        audience.settled()
        other.mark_unread("bob", "team", third.msgid)
        gateway.resume(one)
        audience.until(lambda: audience.positions[one][-2:] == [second.msgid] * 2)
        audience.settled()
        assert len(audience.positions[one]) <= 4


def test_what_moves_while_the_subscription_is_lost_is_told(chat: Chat, other: Chat) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        first, second = say(other, "1", "2")
        audience.until(lambda: len(audience.messages[one]) == 2)
        audience.settled()
        # An offset
        kill_connections(other.system.client.driver, "pubsub")
        other.ack("bob", "team", first.msgid)
        deliver_receipts(other)
        told(audience, one, first.msgid)
        # A mark that is set, and one that is removed
        kill_connections(other.system.client.driver, "pubsub")
        other.mark_unread("bob", "team", second.msgid)
        audience.until(lambda: len(audience.positions[one]) == 2)
        kill_connections(other.system.client.driver, "pubsub")
        other.unmark("bob", "team")
        audience.until(lambda: len(audience.positions[one]) == 3)
        audience.settled()
        assert audience.positions[one] == [first.msgid] * 3
        # Nothing is told of what has not changed
        kill_connections(other.system.client.driver, "pubsub")
        audience.until(lambda: one.reconnects == 4)
        audience.settled()
        assert len(audience.positions[one]) == 3


def test_what_moves_between_the_opening_and_the_subscription_is_told(chat: Chat, other: Chat) -> None:
    say(other, "1")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        acked = other.ack("bob", "team")  # no worker says so
        told(audience, one, acked.last_ack_msgid)


def test_who_joins_later_is_told_nothing_of_the_join(chat: Chat, other: Chat) -> None:
    other.create_group("late", ["ann"])
    say(other, "0", gid="late")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        audience.settled()
        other.add_members("late", ["bob"])
        [message] = say(other, "1", gid="late")
        audience.until(lambda: audience.messages[one])
        kill_connections(other.system.client.driver, "pubsub")
        audience.until(lambda: one.reconnects == 1)
        audience.settled()
        assert audience.positions == {}
        other.ack("bob", "late", message.msgid)
        deliver_receipts(other)
        told(audience, one, message.msgid)
        other.remove_members("late", ["bob"])
        audience.until(lambda: "late" not in one.known_offsets)


def test_rubbish_on_an_inbox_is_asked_for(chat: Chat, other: Chat) -> None:
    space = other.system.client.space
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        [message] = say(other, "1")
        audience.until(lambda: audience.messages[one])
        audience.settled()
        other.ack("bob", "team", message.msgid)
        for node in nodes_of(other.system.client.driver):
            node.execute_command("SPUBLISH", space.group("team").inboxes + "bob", b"p\x1fteam\x1fsoon\x1f0")
        told(audience, one, message.msgid)


# With the worker in a process of its own.


@pytest.fixture
def worker(settings: Settings, chat: Chat) -> Iterator[WorkerProcess]:
    chat.system.database.upgrade()
    with start_worker(settings, "receipts") as process:
        yield process


def test_it_is_told_within_a_window(chat: Chat, other: Chat, worker: WorkerProcess) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        took = []
        for number in range(6):
            [message] = say(other, str(number))
            audience.until(lambda count=number: len(audience.messages[one]) > count)
            began = time.monotonic()
            other.ack("bob", "team", message.msgid)
            told(audience, one, message.msgid)
            took.append(time.monotonic() - began)
        assert sorted(took)[3] < WINDOW_MS / 1000 + SLACK_S, took
        assert worker.runs


def test_it_is_told_after_the_worker_was_killed(
    chat: Chat, other: Chat, settings: Settings, worker: WorkerProcess
) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        one = gateway.open("bob")
        [message] = say(other, "1")
        audience.until(lambda: audience.messages[one])
        other.ack("bob", "team", message.msgid)
        worker.kill()
        worker.wait()
        audience.settled()
        with start_worker(settings, "receipts"):
            told(audience, one, message.msgid)
        events = [event for event in audience.poll(0.2) if isinstance(event, PositionMoved)]
        assert events == []
