"""Gateways under load, and on connections that die silently: bounded, and with few requests."""

import socket
from collections import Counter
from pathlib import Path

import pytest

from imcore import Chat, NewMessage
from imcore.gateway.options import DEFAULT_PAGE_BYTES
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.settings import Settings
from tests.helpers.async_driver import cores_of, lane_of
from tests.helpers.gateways import Audience, Clock, Requests, kill_connections, subscriptions
from tests.helpers.servers import start_valkey
from tests.helpers.silent_proxy import SilentProxy
from tests.helpers.talk import leave_to_sql, push_receipts, say

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def requests(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(chat, monkeypatch)


HEARTBEAT_S = 20
"""By the clock that jumps: however slow the machine is, an answer comes before the next heartbeat."""


# Connections that die without a word.


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_subscription_that_falls_silent_is_opened_anew(
    valkey: str, tmp_path: Path, clock: Clock, protocol: int
) -> None:
    with SilentProxy(tmp_path / "proxy.sock", valkey) as proxy, Chat.connect(valkey) as other:
        other.create_group("team", ["ann", "bob"])
        settings = Settings.from_env({}, redis_url=f"{proxy.url}?protocol={protocol}&socket_timeout=3")
        with Chat.connect(settings=settings) as chat, chat.gateway() as gateway:
            audience = Audience(gateway)
            bob = gateway.open("bob")
            audience.settled()
            # When
            assert proxy.fall_silent()
            say(other, "1")
            for _ in range(2):
                clock.jump(HEARTBEAT_S)
                audience.poll()
            # Then
            audience.until(lambda: audience.heard(bob) == ["1"])
            say(other, "2")
            audience.until(lambda: audience.heard(bob) == ["1", "2"])
            audience.until(lambda: bob.reconnects == 1)


@pytest.mark.parametrize("server", ["valkey", "cluster"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_subscription_that_lives_is_kept(
    request: pytest.FixtureRequest, server: str, protocol: int, tmp_path: Path, clock: Clock
) -> None:
    url = f"{request.getfixturevalue(server)}?protocol={protocol}"
    with Chat.connect(settings=Settings.from_env({}, redis_url=url, data_dir=str(tmp_path))) as chat:
        for gid in ("team", "home", "news"):
            chat.create_group(gid, ["ann", "bob"])
        with chat.gateway() as gateway:
            audience = Audience(gateway)
            bob = gateway.open("bob")
            audience.settled()
            before = subscriptions(chat.system.client.driver)
            for number in range(12):
                say(chat, str(number), gid=("team", "home", "news")[number % 3])
                clock.jump(HEARTBEAT_S)
                audience.poll()
                audience.until(lambda: not any(core._resubscription._awaits_pong for core in cores_of(gateway)))
            audience.until(lambda: len(audience.messages[bob]) == 12)
            assert subscriptions(chat.system.client.driver) == before
            assert bob.reconnects == 0


@pytest.mark.parametrize("driver", ["synchronous"], indirect=True)  # it exchanges a socket below the driver
def test_one_silent_node_of_a_cluster_is_noticed(cluster: str, tmp_path: Path, clock: Clock) -> None:
    # Given a connection to one node that brings nothing, and takes all that is written
    with Chat.connect(settings=Settings.from_env({}, redis_url=cluster, data_dir=str(tmp_path))) as chat:
        chat.create_group("team", ["ann", "bob"])
        with chat.gateway() as gateway:
            audience = Audience(gateway)
            bob = gateway.open("bob")
            audience.settled()
            connections = lane_of(gateway, "team")._subscription._connections
            node = chat.system.client.driver.get_node_from_key(chat.system.client.space.group("team").channel)  # type: ignore[union-attr]
            connection = connections[node.name]
            client_end, server_end = socket.socketpair()
            with client_end, server_end:
                connection._sock.close()
                connection._sock = connection._parser._sock = client_end
                # When
                say(chat, "1")
                for _ in range(2):
                    clock.jump(HEARTBEAT_S)
                    audience.poll()
                # Then
                audience.until(lambda: audience.heard(bob) == ["1"])
            audience.until(lambda: bob.reconnects == 1)


# Bounds.


def test_very_many_channels_are_subscribed_to_over_a_small_buffer(tmp_path: Path) -> None:
    # Given a server that keeps little for a subscriber who does not read
    server = start_valkey(tmp_path / "server", "--client-output-buffer-limit", "pubsub 512kb 0 0", appendonly=False)
    settings = Settings.from_env({"IM_PARTITIONS": "64"}, redis_url=server.url, data_dir=str(tmp_path))
    try:
        with Chat.connect(settings=settings) as chat:
            uids = [f"user-{number}" for number in range(400)]
            chat.create_group("team", uids)
            gateway = chat.gateway()
            audience = Audience(gateway)
            sessions = [gateway.open(uid) for uid in uids]
            # When 25,600 inboxes are to be listened to
            audience.until(lambda: all(session.is_synced for session in sessions))
            say(chat, "hi", sender=uids[0])
            audience.until(lambda: len(audience.messages) == 400)
            # Then
            assert {session.reconnects for session in sessions} == {0}
            gateway.close(clean=False)
    finally:
        server.stop()


@pytest.mark.parametrize("trimmed", [0, 30, 60])
@pytest.mark.parametrize("page_bytes", [1, 5_000, 70_000, 10_000_000])
def test_a_page_is_as_large_as_was_asked_for(chat: Chat, page_bytes: int, trimmed: int) -> None:
    # Given groups whose messages are in Redis, in SQL, or in both
    long = 2000
    gids = [f"team{number}" for number in range(3)]
    for gid in gids:
        chat.create_group(gid, ["ann", "bob"])
        sent = say(chat, *(f"{number:02}" + "é" * (long // 2) for number in range(60)), gid=gid)
        if trimmed:
            leave_to_sql(chat, sent[trimmed - 1].msgid, gid)
    with chat.gateway(acks="off", page_bytes=page_bytes) as gateway:
        gateway.open("bob")
        pages = []
        # When one user catches up
        while sum(map(len, pages)) < 180:
            events = gateway.poll(30)
            assert events
            pages.append([event.message for event in events if isinstance(event, NewMessage)])
    # Then each page has as much as was asked for, and one text of each group more
    for gid in gids:
        got = [message.content[:2] for page in pages for message in page if message.gid == gid]
        assert got == [f"{number:02}" for number in range(60)]
    largest = max(sum(len(message.content.encode()) for message in page) for page in pages)
    assert largest <= page_bytes + 3 * (long + 2)


@pytest.mark.parametrize("trimmed", [False, True])
def test_who_has_missed_much_does_not_keep_others_waiting(chat: Chat, trimmed: bool) -> None:
    uids = [f"u{number}" for number in range(24)]
    for uid in uids:
        chat.create_group(f"team-{uid}", ["ann", uid])
        sent = say(chat, *["x" * 60_000] * 12, gid=f"team-{uid}")
        if trimmed:
            leave_to_sql(chat, sent[-1].msgid, f"team-{uid}")
    with chat.gateway(acks="off", page_bytes=400_000) as gateway:
        for uid in uids:
            gateway.open(uid)
        got: Counter[str] = Counter()
        most_ahead = 0
        while sum(got.values()) < 24 * 12:
            events = gateway.poll(5)
            got.update(session.uid for event in events for session in event.sessions)
            most_ahead = max(most_ahead, max(got.values()) - min(got[uid] for uid in uids))
    assert most_ahead <= 2


def test_catching_up_takes_bounded_bytes_at_once(chat: Chat, other: Chat, requests: Requests) -> None:
    # Given sessions at places of their own, and long texts
    uids = [f"u{number}" for number in range(40)]
    chat.create_group("team", ["ann", *uids])
    texts = [f"{number:03}" + "x" * 60_000 for number in range(80)]
    sent = [message for text in texts for message in say(other, text)]
    for number, uid in enumerate(uids):
        other.ack(uid, "team", sent[number].msgid)
    with chat.gateway(acks="off") as gateway:
        sessions = [gateway.open(uid) for uid in uids]
        got: Counter[str] = Counter()
        largest = 0
        # When
        while sum(got.values()) < sum(80 - number - 1 for number in range(40)):
            events = [event for event in gateway.poll(0.5) if isinstance(event, NewMessage)]
            largest = max(largest, sum(len(event.message.content) for event in events))
            got.update(session.uid for event in events for session in event.sessions)
        # Then
        assert got == {uid: 80 - number - 1 for number, uid in enumerate(uids)}
        assert largest <= DEFAULT_PAGE_BYTES + 40 * 60_003
        assert {cursor.behind for session in sessions for cursor in session.cursors.values()} == {False}


# Costs.


def test_sessions_at_one_point_pull_together(chat: Chat, other: Chat, requests: Requests) -> None:
    # Given many sessions of a group, at its end
    uids = [f"u{number}" for number in range(200)]
    chat.create_group("team", ["ann", *uids])
    say(other, "before")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids]
        requests.clear()
        audience.settled()
        assert requests.calls["im_pull"] <= 3
        # When all lose their subscription
        requests.clear()
        assert kill_connections(other.system.client.driver, "pubsub")
        say(other, *(str(number) for number in range(700)))
        audience.until(lambda: all(len(audience.heard(session)) == 701 for session in sessions))
        # Then they are few who ask, and not one by one
        audience.until(lambda: all(session.reconnects == 1 for session in sessions))
        assert requests.calls["im_pull"] <= 5
        assert requests.calls["SMEMBERS"] == 200 * chat.system.client.space.partitions
        assert requests.trips < 60


def test_a_shared_pull_finds_members_who_left_or_joined_again(chat: Chat, other: Chat) -> None:
    # Given sessions at one point; some of their users leave unseen, and one comes back
    uids = [f"u{number}" for number in range(6)]
    chat.create_group("team", ["ann", *uids])
    chat.create_group("home", uids)
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        sessions = {uid: gateway.open(uid) for uid in uids}
        audience.settled()
        kill_connections(other.system.client.driver, "pubsub")
        say(other, "1")
        other.remove_members("team", ["u0", "u1"])
        say(other, "2")
        other.add_members("team", ["u1"])
        # When
        say(other, "3")
        # Then
        audience.until(lambda: all(audience.heard(sessions[uid]) == ["1", "2", "3"] for uid in uids[2:]))
        audience.until(lambda: audience.heard(sessions["u1"]) == ["3"])
        audience.settled()
        assert audience.heard(sessions["u0"]) == []
        say(other, "4")
        audience.until(lambda: all(audience.heard(sessions[uid])[-1:] == ["4"] for uid in uids[1:]))
        assert audience.heard(sessions["u0"]) == []
    assert {other.unread(uid)[-1].unread for uid in uids[1:]} == {0}


def test_acks_and_beats_of_many_sessions_travel_in_one_trip(chat: Chat, other: Chat, requests: Requests) -> None:
    # Given many senders with receipts that wait, some of them of trimmed messages
    uids = [f"u{number}" for number in range(100)]
    chat.create_group("team", ["rd", *uids])
    sent = list(map(raised, other.send_many("team", [Draft(uid, "hi") for uid in uids])))
    for message in sent:
        push_receipts(other, message)
    leave_to_sql(other, sent[49].msgid)
    with chat.gateway(ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids]
        requests.clear()
        audience.until(lambda: all(audience.receipts[session] for session in sessions))
        audience.until(lambda: requests.calls["im_confirm"] >= 100)
        # Then they are asked for together, and confirmed together
        assert requests.sql <= 8
        assert not any(other.receipts(uid) for uid in uids)
        assert requests.calls["im_confirm"] == 100
        assert requests.trips < 40


def test_sessions_that_expired_are_opened_again_together(chat: Chat, requests: Requests) -> None:
    uids = [f"u{number}" for number in range(100)]
    chat.create_group("team", uids)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids]
        audience.settled()
        for session in sessions:
            chat.system.client.execute_once("DEL", chat.system.client.space.sessions(session.uid))
        requests.clear()
        gateway._core._heartbeat.beat_now()
        audience.settled()
        assert requests.calls["im_heartbeat"] == 200
        assert requests.trips <= 3
        assert chat.online(uids) == set(uids)


def test_ended_sessions_leave_no_state_behind(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("ann")
        for number in range(50):
            gateway.end(gateway.open(f"once{number % 7}"), clean=number % 2 == 0)
            gateway.end(gateway.open("bob"), clean=False)
            audience.poll(0)
        audience.settled()
        core = gateway._core
        audience.until(lambda: core._channels._dropping + core._channels._adding == {})
        assert len(core._channels.owners) == chat.system.client.space.partitions + 1
        assert core._receipts._cursors == {}
        assert len(core._channels.groups) == 1
        assert core._acks._take(None) == []
        assert core._positions._now == core._positions._later == {}
        channels = chat.system.client.query("PUBSUB", "SHARDCHANNELS")
        assert len(channels) == len(core._channels.owners)
