"""Delivery: what counts as received, when a session's end is clean, and which receipts each device gets."""

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat, Message, Receipt, Session
from imcore import msgid as msgids
from imcore.errors import DatabaseUnavailable
from imcore.operations.effects import Effect, SqlQuery
from imcore.settings import Settings
from imcore.streams.keys import SEPARATOR
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.async_driver import before_effects
from tests.helpers.gateways import Audience, Clock, Requests, kill_connections, nodes_of
from tests.helpers.talk import leave_to_sql, offset, push_receipts, say
from tests.helpers.workers import drain

UIDS = ["ann", "bob", "cyd"]


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, receipt_window_ms=0, block_ms=10)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", UIDS)
    return chat


def entered(audience: Audience, *uids: str) -> list[Session]:
    """Sessions of these users, that have caught up."""
    sessions = [audience.gateway.open(uid) for uid in uids]
    audience.settled()
    return sessions


def read_by(chat: Chat, message: Message) -> list[str]:
    return [reader.uid for reader in chat.message_status("team", message.msgid).read_by]


def acks(chat: Chat) -> list[bytes]:
    """The acks that moved offsets, as the journal has them."""
    key = chat.system.client.space.group("team").journal
    return [
        fields[b"moves"] for _, fields in chat.system.client.query("XRANGE", key, "-", "+") if fields[b"kind"] == b"ack"
    ]


# Ends.


def test_a_dead_socket_acks_nothing_and_the_others_do(chat: Chat, other: Chat) -> None:
    # Given a message that is handed over to two, and one that one of them has had for a while
    with chat.gateway(ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        bob, cyd = entered(audience, "bob", "cyd")
        [first] = say(other, "1")
        audience.until(lambda: audience.heard(bob) == audience.heard(cyd) == ["1"])
        [second] = say(other, "2")
        audience.until(lambda: audience.heard(bob) == audience.heard(cyd) == ["1", "2"])
        # When the socket of one is found dead as it is written to
        gateway.end(bob, clean=False)
        audience.settled()
        assert chat.online(["bob", "cyd"]) == {"cyd"}
    # Then
    assert read_by(chat, first) == read_by(chat, second) == ["cyd"]
    assert [message.content for message in chat.pull("bob")] == ["1", "2"]


def test_a_clean_end_acks_its_own_part_of_what_is_in_hand(chat: Chat, other: Chat) -> None:
    with chat.gateway(ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        bob, cyd = entered(audience, "bob", "cyd")
        [message] = say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
        gateway.end(bob)
        assert read_by(chat, message) == ["bob"]
        gateway.requeue(1)  # nobody has seen to cyd yet
        audience.until(lambda: audience.heard(cyd) == ["1", "1"])
    assert read_by(chat, message) == ["bob", "cyd"]


def test_sessions_may_begin_and_end_between_the_events_of_a_poll(chat: Chat, other: Chat) -> None:
    # Given events at hand, for one that is ended as the first of them is written
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob, cyd = entered(audience, "bob", "cyd")
        sent = say(other, "1", "2", "3")
        texts: list[tuple[str, str]] = []
        late: Session | None = None
        while len([each for each in texts if each[0] == "cyd"]) < 3:
            for event in gateway.poll(0.05):
                for session in event.sessions:
                    if session is bob:
                        gateway.end(bob, clean=False)
                        late = late or gateway.open("ann")
                    texts.append((session.uid, getattr(event, "message", sent[0]).content))
        # Then the others have all, and nothing of it is acked by the dead one
        assert [text for uid, text in texts if uid == "cyd"] == ["1", "2", "3"]
        audience.until(lambda: offset(chat, "cyd") == sent[-1].msgid)
        assert late
        audience.until(lambda: late.is_synced)
    assert offset(chat, "bob") is None
    assert cyd.sid != bob.sid


def test_no_end_needs_the_server(chat: Chat, other: Chat) -> None:
    with chat.gateway(ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        ann, bob, cyd = entered(audience, "ann", "bob", "cyd")
        [message] = say(other, "1")
        audience.until(lambda: audience.heard(bob) == audience.heard(cyd) == ["1"])
        other.system.client.driver.config_set("min-replicas-to-write", 9)
        try:
            gateway.end(cyd)  # which has to ack
            gateway.end(bob, clean=False)
            audience.settled()
            assert list(gateway._core.sessions) == [ann]
        finally:
            other.system.client.driver.config_set("min-replicas-to-write", 0)
        # Then both are gone, and what the clean one has received is acked once the server takes it
        audience.until(lambda: chat.online(["bob", "cyd"]) == set())
        audience.until(lambda: read_by(chat, message) == ["cyd"])
        say(other, "2")
        audience.until(lambda: audience.heard(ann) == ["1", "2"])
        assert audience.heard(bob) == audience.heard(cyd) == ["1"]


def test_a_gateway_that_closes_delivers_the_ends_that_had_to_wait(chat: Chat, other: Chat) -> None:
    with chat.gateway(ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        [bob] = entered(audience, "bob")
        [message] = say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
        other.system.client.driver.config_set("min-replicas-to-write", 9)
        gateway.end(bob)
        other.system.client.driver.config_set("min-replicas-to-write", 0)
    assert read_by(chat, message) == ["bob"]
    assert chat.online(["bob"]) == set()


def test_many_sessions_end_at_once_with_few_calls(chat: Chat, other: Chat) -> None:
    uids = [f"u{number}" for number in range(300)]
    chat.add_members("team", uids)
    gateway = chat.gateway(ack_interval_s=3600)
    audience = Audience(gateway)
    entered(audience, *uids)
    [message] = say(other, "1")
    audience.until(lambda: len(audience.messages) == 300)

    gateway.close()

    assert len(acks(other)) == 1
    assert other.tally("team", message.msgid).read == 300
    assert other.online(uids) == set()


# Acks by the client's word.


def test_only_messages_that_the_client_has_received_are_acked(chat: Chat, other: Chat) -> None:
    with chat.gateway(acks="client", ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob, cyd = entered(audience, "bob", "cyd")
        sent = say(other, "1", "2", "3")
        audience.until(lambda: len(audience.heard(bob)) == len(audience.heard(cyd)) == 3)
        audience.settled()
        assert offset(chat, "bob") is None
        # When
        gateway.received(bob, "team", sent[1].msgid)
        gateway.received(bob, "team", sent[0].msgid)
        # Then
        audience.until(lambda: offset(chat, "bob") == sent[1].msgid)
    assert offset(chat, "bob") == sent[1].msgid
    assert offset(chat, "cyd") is None


def test_acks_of_clients_travel_together(chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given many clients that receive the same message, each in its own time
    uids = [f"u{number}" for number in range(200)]
    chat.add_members("team", uids)
    clock = Clock(monkeypatch)
    with chat.gateway(acks="client", ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        sessions = entered(audience, *uids)
        [message] = say(other, "1")
        audience.until(lambda: len(audience.messages) == 200)
        # When
        for session in sessions:
            gateway.received(session, "team", message.msgid)
        clock.jump(3600)
        audience.until(lambda: other.tally("team", message.msgid).read == 200)
    # Then it is one call, and one message for all of them
    [moves] = acks(other)
    assert moves.count(b"\x1e") == 0
    assert moves.count(SEPARATOR.encode()) == 2 + 200


def test_an_ack_of_a_message_that_was_not_handed_over_is_an_ack(chat: Chat, other: Chat) -> None:
    # Given one who reads in the history, and one whose session has ended
    [ahead] = say(other, "read in the history")
    with chat.gateway(acks="client", ack_interval_s=0.0) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", start="live")
        cyd = gateway.open("cyd")
        gateway.end(cyd, clean=False)
        # When
        gateway.received(bob, "team", ahead.msgid)
        gateway.received(cyd, "team", ahead.msgid)
        # Then
        audience.until(lambda: offset(chat, "bob") == ahead.msgid)
        audience.settled()
        assert audience.messages[bob] == []
    assert offset(chat, "cyd") is None


@pytest.mark.parametrize("every", [1, 3, 10])
def test_an_ack_of_no_message_is_refused_and_takes_no_other_ack_with_it(
    chat: Chat, other: Chat, every: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Given acks of messages among acks of what is none: of the future, of a moment without a message, of other groups
    [first], [second] = say(other, "1"), say(other, "2")
    while second.msgid.split("-")[0] == first.msgid.split("-")[0]:
        [second] = say(other, "2")  # in another millisecond
    between = msgids.unpack(msgids.pack(second.msgid) - 1)
    other.create_group("home", ["ann"])
    [elsewhere] = say(other, "3", gid="home")
    future = msgids.unpack(msgids.pack(second.msgid) + (5000 << msgids.COUNTER_BITS))
    with chat.gateway(acks="client", ack_every=every, ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        bob, cyd = entered(audience, "bob", "cyd")
        for msgid in (future, between, first.msgid, future):
            gateway.received(bob, "team", msgid)
        gateway.received(bob, "home", elsewhere.msgid)
        gateway.received(bob, "nowhere", elsewhere.msgid)
        gateway.received(cyd, "team", second.msgid)
        # Then
        audience.until(lambda: offset(chat, "bob") == first.msgid)
        audience.until(lambda: offset(chat, "cyd") == second.msgid)
        audience.settled()
        assert gateway._core._acks.due() == float("inf")
    assert offset(chat, "bob") == first.msgid
    assert "an ack was refused" in caplog.text


def test_acks_of_a_client_hold_when_its_socket_dies(chat: Chat, other: Chat) -> None:
    with chat.gateway(acks="client", ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        [bob] = entered(audience, "bob")
        sent = say(other, "1", "2")
        audience.until(lambda: len(audience.heard(bob)) == 2)
        gateway.received(bob, "team", sent[0].msgid)
        gateway.end(bob, clean=False)
        gateway.open("cyd")
        audience.until(lambda: offset(chat, "bob") == sent[0].msgid)


def test_a_slow_client_may_receive_messages_that_redis_no_longer_has(chat: Chat, other: Chat) -> None:
    with chat.gateway(acks="client", ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        [bob] = entered(audience, "bob")
        sent = say(other, "1", "2", "3")
        audience.until(lambda: len(audience.heard(bob)) == 3)
        leave_to_sql(other, sent[1].msgid)
        gateway.received(bob, "team", sent[0].msgid)
        audience.until(lambda: offset(chat, "bob") == sent[0].msgid)


def test_receipts_are_confirmed_when_the_client_confirms_them(chat: Chat, other: Chat) -> None:
    [message] = say(other, "1")
    other.ack("bob", "team")
    push_receipts(other, message)
    with chat.gateway(acks="client", ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        [ann] = entered(audience, "ann")
        [receipt] = audience.receipts[ann]
        audience.settled()
        assert other.receipts("ann") == [receipt]
        gateway.confirm_receipts(ann, [receipt])
        audience.until(lambda: other.receipts("ann") == [])


# Several devices.


def test_a_device_whose_subscription_was_lost_can_be_exact(chat: Chat, other: Chat, settings: Settings) -> None:
    # Given a device that has lost its subscription, and another one that confirms the receipts meanwhile
    [message] = say(other, "1")
    with (
        closing(ReceiptsWorker(other.system.client, other.system.database, settings)) as worker,
        chat.listen("ann") as ann,
        other.listen("ann", ack_interval_s=0.0) as elsewhere,
    ):
        for live in (ann, elsewhere):
            while live.poll(0.05) or not live.session.is_synced:
                pass
        [server] = nodes_of(other.system.client.driver)
        first = min(int(each["id"]) for each in server.client_list(_type="pubsub"))
        server.client_kill_filter(_id=first)
        other.ack("bob", "team")
        drain(worker)
        events: list[Message | Receipt] = []
        while other.receipts("ann"):  # until they are confirmed
            events += elsewhere.poll(0.05)
        assert [(item.msgid, item.read) for item in events if not isinstance(item, Message)] == [(message.msgid, 1)]
        assert (ann.reconnects, elsewhere.reconnects) == (0, 0)
        # When it comes back, it sees that it has been away, and asks
        while not ann.reconnects:
            ann.poll(0.05)
        assert ann.reconnects == 1
        assert [tally.read for tally in chat.tallies("team", [message.msgid])] == [1]


def test_every_session_of_a_lost_subscription_counts_it(chat: Chat, other: Chat) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, ann = entered(audience, "bob", "ann")
        for lost in (1, 2):
            assert kill_connections(other.system.client.driver, "pubsub")
            audience.until(lambda n=lost: bob.reconnects == ann.reconnects == n)
        late = gateway.open("bob")
        audience.until(lambda: late.is_synced)
        assert (bob.reconnects, late.reconnects) == (2, 0)


def test_polled_receipts_come_once_also_without_acks(
    chat: Chat, other: Chat, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    [message] = say(other, "1")
    other.ack("bob", "team")
    push_receipts(other, message)
    requests = Requests(chat, monkeypatch)
    with chat.gateway(acks="off", receipts="poll") as gateway:
        audience = Audience(gateway)
        [ann] = entered(audience, "ann")

        def beat() -> None:
            """Let it be time for a heartbeat. A subscription that is silent until the next one would be lost."""
            asked, subscription = requests.calls["im_dirty_receipts"], gateway._core._resubscription
            clock.jump(settings.heartbeat_ms / 1000)
            audience.until(lambda: requests.calls["im_dirty_receipts"] > asked)
            audience.until(lambda: subscription.due() > time.monotonic() and not subscription._awaits_pong)

        for _ in range(10):
            beat()
        assert [each.read for each in audience.receipts[ann]] == [1]
        assert ann.reconnects == 0
        # When it changes again
        other.ack("cyd", "team")
        push_receipts(other, message)
        beat()
        audience.until(lambda: len(audience.receipts[ann]) == 2)
        assert audience.receipts[ann][1].read == 2


def test_an_ack_of_a_trimmed_message_waits_alone_for_the_database(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a database that is away, and an ack of a message that only it has
    first, second = say(other, "1", "2")
    leave_to_sql(other, first.msgid)
    is_away = False

    def away(effect: Effect[Any]) -> None:
        if isinstance(effect, SqlQuery) and is_away:
            raise DatabaseUnavailable

    before_effects(chat, monkeypatch, away)
    with chat.gateway(acks="client", ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob, cyd = (gateway.open(uid, start="live") for uid in ("bob", "cyd"))
        audience.settled()
        is_away = True
        gateway.received(bob, "team", first.msgid)
        gateway.end(bob)
        # Then others are acked
        gateway.received(cyd, "team", second.msgid)
        audience.until(lambda: offset(other, "cyd") == second.msgid)
        assert offset(other, "bob") is None
        # And it is acked once the database is back
        is_away = False
        audience.until(lambda: offset(other, "bob") == first.msgid)
