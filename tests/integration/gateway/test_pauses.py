"""Paused sessions: they get nothing, hold up nobody, keep little, and then have everything."""

import time

import pytest

from imcore import Chat, Joined, Left, Session
from imcore.settings import Settings
from tests.helpers.async_driver import cores_of, lane_of, part_of
from tests.helpers.gateways import Audience, Clock, Requests, kill_connections
from tests.helpers.talk import offset, push_receipts, say, say_many


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob", "cy"])
    return chat


def entered(audience: Audience, *uids: str) -> list[Session]:
    sessions = [audience.gateway.open(uid) for uid in uids]
    audience.settled()
    return sessions


def test_a_paused_session_gets_nothing_then_everything_once_and_in_order(chat: Chat, other: Chat) -> None:
    with chat.gateway(acks="client") as gateway:
        audience = Audience(gateway)
        bob, cy = entered(audience, "bob", "cy")
        say(other, "1")
        audience.until(lambda: audience.heard(bob) == audience.heard(cy) == ["1"])
        # When
        gateway.pause(bob)
        for number in range(2, 50):
            say(other, str(number))
            audience.poll(0)
        audience.until(lambda: len(audience.heard(cy)) == 49)
        assert audience.heard(bob) == ["1"]
        assert bob.is_paused
        gateway.resume(bob)
        say(other, "50")
        # Then
        audience.until(lambda: audience.heard(bob) == [str(number) for number in range(1, 51)])
        audience.until(lambda: bob.cursors["team"] is cy.cursors["team"])
        assert not bob.is_paused
        say(other, "51")
        audience.until(lambda: audience.heard(bob)[-1] == audience.heard(cy)[-1] == "51")


def test_what_was_ready_and_not_taken_comes_after_the_pause(chat: Chat, other: Chat) -> None:
    # Given a session that is paused while messages are ready for it, and one that is paused for a moment only
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, cy = entered(audience, "bob", "cy")
        core = lane_of(gateway, "team").core
        say(other, "1", "2")
        while len(core.deliveries.ready) < 2:
            gateway._read(0.1)
        # When
        gateway.pause(bob)
        gateway.pause(cy)
        gateway.resume(cy)
        audience.until(lambda: audience.heard(cy) == ["1", "2"])
        assert audience.heard(bob) == []
        # Then what was not handed over is not acked either
        audience.settled()
        assert offset(chat, "bob") is None
        gateway.resume(bob)
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
        audience.settled()
        assert (audience.heard(bob), audience.heard(cy)) == (["1", "2"], ["1", "2"])


def test_a_requeued_event_of_a_paused_session_comes_after_the_pause(chat: Chat, other: Chat) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, cy = entered(audience, "bob", "cy")
        say(other, "1")
        events = []
        while not events:
            events = gateway.poll(0.1)
        # When neither has got it, and one is slow
        gateway.requeue(1)
        gateway.pause(bob)
        audience.until(lambda: audience.heard(cy) == ["1"])
        assert audience.heard(bob) == []
        # Then
        gateway.resume(bob)
        audience.until(lambda: audience.heard(bob) == ["1"])


def test_a_paused_session_stays_online(chat: Chat, clock: Clock) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        [bob] = entered(audience, "bob")
        gateway.pause(bob)
        for _ in range(4):
            clock.jump(chat.system.settings.heartbeat_ms / 1000)
            audience.poll()
        requests = lane_of(gateway, "bob").core._heartbeat._next
        assert requests > time.monotonic()
        assert chat.online(["bob"]) == {"bob"}
        gateway.end(bob)
        audience.until(lambda: chat.online(["bob"]) == set())


def test_joins_and_leaves_of_a_paused_session_come_with_its_resumption(chat: Chat, other: Chat) -> None:
    other.create_group("old", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        [bob] = entered(audience, "bob")
        gateway.pause(bob)
        audience.poll(0)
        # When
        other.remove_members("old", ["bob"])
        other.create_group("new", ["ann", "bob"])
        say(other, "hi", gid="new")
        for _ in range(5):
            audience.poll(0.02)
        assert audience.changes[bob] == []
        gateway.resume(bob)
        # Then
        audience.until(lambda: audience.heard(bob, "new") == ["hi"])
        audience.settled()
        assert {(type(each), each.gid) for each in audience.changes[bob]} == {(Left, "old"), (Joined, "new")}
        assert len(audience.changes[bob]) == 2


def test_receipts_of_a_paused_session_come_after_the_pause(chat: Chat, other: Chat) -> None:
    # Given receipts that are ready when the session is paused, and others that change while it is
    first, second = say(other, "1", "2")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        [ann] = entered(audience, "ann")
        other.ack("bob", "team", first.msgid)
        push_receipts(other, first)
        while not any(True for event in lane_of(gateway, "team").core.deliveries.ready):
            gateway._read(0.1)
        gateway.pause(ann)
        audience.poll(0)
        other.ack("bob", "team", second.msgid)
        other.ack("cy", "team", second.msgid)
        push_receipts(other, first, second)
        for _ in range(5):
            audience.poll(0.02)
        assert audience.receipts[ann] == []
        # When
        gateway.resume(ann)
        # Then
        audience.until(
            lambda: (
                {(each.msgid, each.read) for each in audience.receipts[ann]}
                == {
                    (first.msgid, 2),
                    (second.msgid, 2),
                }
            )
        )
        audience.until(lambda: other.receipts("ann") == [])


def test_a_lost_subscription_leaves_a_paused_session_alone(chat: Chat, other: Chat) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, cy = entered(audience, "bob", "cy")
        gateway.pause(bob)
        audience.poll(0)
        kill_connections(other.system.client.driver, "pubsub")
        say(other, "1")
        audience.until(lambda: audience.heard(cy) == ["1"] and cy.reconnects)
        assert audience.heard(bob) == []
        gateway.resume(bob)
        audience.until(lambda: audience.heard(bob) == ["1"])


def test_a_thousand_paused_sessions_hold_up_nobody_and_keep_little(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    # Given a thousand sessions that are paused at once, while messages are ready for all
    uids = [f"u{number}" for number in range(1000)]
    other.add_members("team", uids)
    with chat.gateway(acks="client") as gateway:
        audience = Audience(gateway)
        slow = entered(audience, *uids)
        quick, also_quick = entered(audience, "bob", "cy")
        say(other, "0")
        while not gateway._core.has_events():
            gateway._read(0.1)
        for session in slow:
            gateway.pause(session)
        audience.until(lambda: audience.heard(quick) == audience.heard(also_quick) == ["0"])
        # When people go on talking
        requests = Requests(chat, monkeypatch)
        for _ in range(4):
            say_many(other, 500)
            audience.until(lambda: gateway.poll(0) == [] and quick.cursors["team"].seq % 500 == 1)
        # Then nothing is pulled for them or kept
        assert requests.calls["im_pull"] == 0
        kept = {(len(each.resume_points), len(each.cursors), str(part_of(each, "team").paused_gids)) for each in slow}
        assert kept == {(1, 0, "{'team'}")}
        assert lane_of(gateway, "team").core.deliveries.ready == []
        # When they are resumed
        for session in slow:
            gateway.resume(session)
        audience.until(lambda: all(len(audience.messages[session]) == 2001 for session in slow))
        # Then they have caught up together
        audience.settled()
        assert requests.calls["im_pull"] <= 20
        assert {id(session.cursors["team"]) for session in slow} == {id(quick.cursors["team"])}
        assert all(audience.messages[session] == audience.messages[slow[0]] for session in slow)


def test_a_session_that_has_ended_is_neither_paused_nor_resumed(chat: Chat) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        [bob] = entered(audience, "bob")
        gateway.pause(bob)
        gateway.end(bob)
        gateway.resume(bob)
        gateway.pause(bob)
        audience.settled()
        for core in cores_of(gateway):
            assert core._channels.groups == core._to_switch == {}
    gateway.pause(bob)
    gateway.resume(bob)
