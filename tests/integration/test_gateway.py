"""Live sessions on real servers: nothing missed, nothing twice, everything in order, whatever breaks."""

import gc
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    DatabaseRejected,
    DatabaseUnavailable,
    ImError,
    RedisRefuses,
    RedisUnavailable,
    SessionExpired,
    UnknownUser,
)
from imcore.gateway.gateway import Gateway
from imcore.model.values import Draft
from imcore.operations import queries
from imcore.operations.effects import Effect, Effects, SqlQuery
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import SEPARATOR, Keyspace
from imcore.streams.wire import UNSUBSCRIBED, PubSubEvent
from imcore.system import System
from tests.deadline import wait_until
from tests.live import MOST_S, Audience, Clock, kill_connections, nodes_of, offset, say, subscriptions, tell, trim
from tests.servers import RunningCluster, move_slot, start_valkey

# The driver forgets sockets of a cluster's nodes when one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

SEEDS = int(os.environ.get("IM_LIVE_SEEDS", "3"))
"""How many random histories are played on each kind of server; for a long run set IM_LIVE_SEEDS."""


@pytest.fixture(params=["valkey", "cluster"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    found: str = request.getfixturevalue(request.param)
    yield found
    if request.param == "cluster":
        gc.collect()  # while the filter above holds


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    return Settings.from_env({}, redis_url=url, data_dir=str(tmp_path))


@pytest.fixture
def chat(settings: Settings) -> Iterator[Chat]:
    with Chat.connect(settings=settings) as chat:
        yield chat


@pytest.fixture
def other(settings: Settings) -> Iterator[Chat]:
    """Another process's connection."""
    with Chat.connect(settings=settings) as chat:
        yield chat


def short_lived(chat: Chat, *, heartbeat_ms: int = 20_000, online_ms: int = 60_000) -> Gateway:
    """A gateway with other times than usual."""
    settings = replace(chat.system.settings, heartbeat_ms=heartbeat_ms, online_ms=online_ms)
    return Gateway(chat.performer, settings)


# A session's beginning.


def test_a_session_begins_with_what_was_not_acked_and_goes_on_live(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3", "4")
    chat.ack("bob", "team", sent[1].msgid)
    # When
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.messages[bob] == sent[2:])
        sent += say(chat, "5")
        audience.until(lambda: audience.messages[bob] == sent[2:])
    # Then
    assert [each.unread for each in chat.unread("bob")] == [0]


def test_a_group_joined_in_the_moment_a_session_begins_is_not_missed(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a user who joins right after the session has asked for their groups, at its beginning and again
    chat.create_group("old", ["ann", "bob"])
    asked = queries.groups_or_errors

    def then_joins(space: Keyspace, uids: Sequence[str]) -> Effects[dict[str, list[str] | ImError]]:
        found = yield from asked(space, uids)
        if joins:
            other.create_group(joins.pop(), ["bob", "ann"])
        return found

    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("ann")
        audience.settled()
        joins = ["team", "news"]
        monkeypatch.setattr(queries, "groups_or_errors", then_joins)
        # When
        bob = gateway.open("bob")
        audience.until(lambda: not joins)
        for gid in ("team", "news"):
            say(other, "hi", gid=gid)
        # Then
        audience.until(lambda: audience.heard(bob) == ["hi"] and audience.heard(bob, "news") == ["hi"])


def test_a_digest_in_the_moment_a_session_begins_is_not_missed(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a digest right after the session has asked what waits
    chat.create_group("team", ["ann", "bob"])
    [message] = say(chat, "hi")
    asked = queries.dirty_receipts
    told = False

    def then_told(*args: Any) -> Effects[Any]:
        nonlocal told
        found = yield from asked(*args)
        if not told:
            told = True
            tell(other, message)
        return found

    with chat.gateway() as gateway:
        audience = Audience(gateway)
        monkeypatch.setattr(queries, "dirty_receipts", then_told)
        # When
        ann = gateway.open("ann")
        # Then
        audience.until(lambda: audience.receipts[ann])
    assert {each.msgid for each in audience.receipts[ann]} == {message.msgid}


def test_nobody_who_is_in_no_group_listens(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    with pytest.raises(UnknownUser, match="'eve' is in no group"):
        chat.listen("eve")
    assert chat.online(["eve"]) == set()


def test_what_is_not_acked_comes_again_whatever_the_client_has(chat: Chat) -> None:
    # Given a client that was killed after it had kept three messages, one of which it had acked
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3")
    chat.ack("bob", "team", sent[0].msgid)
    # When
    with chat.gateway(ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": sent[2].msgid, "left long ago": sent[1].msgid})
        # Then
        audience.until(lambda: audience.heard(bob) == ["2", "3"])
        audience.until(lambda: offset(chat, "bob") == sent[2].msgid)


def test_a_client_that_is_behind_what_another_device_has_acked_gets_what_it_lacks(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3")
    chat.ack("bob", "team")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": sent[0].msgid})
        begun = gateway.open("bob", after={"team": "0-0"})
        audience.until(lambda: audience.heard(bob) == ["2", "3"] and audience.heard(begun) == ["1", "2", "3"])


def test_a_place_that_lies_beyond_all_messages_acks_nothing(chat: Chat) -> None:
    # Given a client whose place is of another server, or of one that has lost its last second since
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1")
    beyond = msgids.unpack(msgids.pack(sent[0].msgid) + (5000 << msgids.COUNTER_BITS))
    # When
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": beyond})
        # Then
        audience.until(lambda: audience.heard(bob) == ["1"])
        sent += say(chat, "2")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
        audience.until(lambda: offset(chat, "bob") == sent[1].msgid)


def test_a_device_that_had_a_database_begins_new_groups_where_the_user_joined(chat: Chat) -> None:
    # Given groups that another device has read to the end, of which this one has a place in one
    chat.create_group("team", ["ann", "bob"])
    chat.create_group("news", ["ann"])
    kept = say(chat, "1", "2")
    say(chat, "before", gid="news")
    chat.add_members("news", ["bob"])
    say(chat, "a", "b", gid="news")
    chat.ack("bob", "team")
    chat.ack("bob", "news")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        # When
        known = gateway.open("bob", after={"team": kept[0].msgid}, since_join=True)
        fresh = gateway.open("bob")
        # Then
        audience.until(lambda: audience.heard(known) == ["2"] and audience.heard(known, "news") == ["a", "b"])
        audience.settled()
        assert audience.messages[fresh] == []


def test_the_offset_counts_as_of_the_opening(chat: Chat, other: Chat) -> None:
    # Given a session that is opened, and another one of the same user that acks before it polls
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as slow, other.gateway(ack_every=1) as quick:
        there = Audience(quick)
        bobs = quick.open("bob")
        there.settled()
        bob = slow.open("bob")
        # When
        say(other, "in between")
        there.until(lambda: there.heard(bobs) == ["in between"])
        there.until(lambda: [each.unread for each in other.unread("bob")] == [0])
        # Then
        here = Audience(slow)
        here.until(lambda: here.heard(bob) == ["in between"])


# Many sessions.


def test_every_session_of_a_user_gets_everything(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway, chat.gateway() as elsewhere:
        here, there = Audience(gateway), Audience(elsewhere)
        say(chat, "1")
        one, two = gateway.open("bob"), gateway.open("bob")
        three = elsewhere.open("bob")
        here.until(lambda: here.heard(one) == here.heard(two) == ["1"])
        there.until(lambda: there.heard(three) == ["1"])
        late = gateway.open("bob")
        say(chat, "2")
        here.until(lambda: here.heard(one) == here.heard(two) == here.heard(late) == ["1", "2"])
        there.until(lambda: there.heard(three) == ["1", "2"])


def test_forty_of_two_hundred_hear_a_hundred_messages(chat: Chat) -> None:
    # Given
    uids = [f"u{number}" for number in range(200)]
    chat.create_group("team", uids)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids[:40]]
        audience.settled()
        # When
        texts = [str(number) for number in range(100)]
        say(chat, *texts, sender="u199")
        # Then
        audience.until(lambda: all(audience.heard(session) == texts for session in sessions))
    assert {each.read for each in chat.status("team", limit=0)} == {40}


def test_an_ended_session_gets_nothing_more(chat: Chat) -> None:
    # Given one that has more to catch up with than one page
    chat.create_group("team", ["ann", "bob", "cyd"])
    drafts = [Draft("ann", str(number)) for number in range(700)]
    chat.system.client.call(message_calls.send(chat.system.client.space, "team", drafts, 1000))
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob, cyd = gateway.open("bob"), gateway.open("cyd")
        audience.until(lambda: audience.messages[bob])
        # When
        gateway.end(bob)
        before = len(audience.messages[bob])
        audience.until(lambda: len(audience.messages[cyd]) == 700)
        # Then
        assert len(audience.messages[bob]) == before < 700
        assert chat.online(["bob", "cyd"]) == {"cyd"}
    assert [each.unread for each in chat.unread("bob")] == [700 - before]


# Joining and leaving.


def test_who_joins_is_heard_and_who_leaves_is_not(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    chat.create_group("home", ["ann", "bob"])
    say(chat, "before")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        chat.add_members("team", ["bob"])
        say(chat, "1", "2")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
        chat.remove_members("team", ["bob"])
        say(chat, "without bob")
        say(chat, "at home", gid="home")
        audience.until(lambda: audience.heard(bob, "home") == ["at home"])
        chat.add_members("team", ["bob"])
        say(chat, "3")
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])


def test_who_leaves_and_comes_back_unseen_gets_nothing_twice(chat: Chat, other: Chat) -> None:
    # Given a session that is behind, and the news of its membership still on the way
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway(acks="off") as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
        other.remove_members("team", ["bob"])
        say(other, "without bob")
        other.add_members("team", ["bob"])
        say(other, "2")
        # When it pulls first, and hears afterwards
        core = gateway._core
        core._catch_up.fall_behind(core._channels.open_group("team"))
        gateway._perform(core.step())
        audience.until(lambda: len(audience.heard(bob)) >= 2)
        audience.settled()
        # Then
        assert audience.heard(bob) == ["1", "2"]


def test_every_session_hears_a_group_from_the_join_on(chat: Chat, other: Chat) -> None:
    # Given two sessions, and one of them acks what came before the other looks
    chat.create_group("home", ["bob"])
    with chat.gateway(ack_every=1) as quick, other.gateway() as slow:
        here, there = Audience(quick), Audience(slow)
        one, two = quick.open("bob"), slow.open("bob")
        here.settled()
        there.settled()
        chat.create_group("team", ["ann", "bob"])
        sent = say(chat, "1", "2")
        here.until(lambda: here.heard(one) == ["1", "2"])
        here.until(lambda: offset(chat, "bob") == sent[1].msgid)
        say(chat, "3", sender="bob")
        # Then
        there.until(lambda: there.heard(two) == ["1", "2", "3"])


# Acks.


def test_acks_go_out_by_count_and_by_time(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway(ack_every=3, ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        sent = say(chat, "1", "2")
        audience.until(lambda: len(audience.heard(bob)) == 2)
        audience.settled()
        assert offset(chat, "bob") is None
        sent += say(chat, "3")
        audience.until(lambda: offset(chat, "bob") == sent[2].msgid)
    with chat.gateway(ack_every=1000, ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        sent += say(chat, "4")
        audience.until(lambda: offset(chat, "bob") == sent[3].msgid)


def test_a_clean_end_acks_what_was_handed_over_and_a_kill_does_not(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2")
    # When
    gateway = chat.gateway()
    audience = Audience(gateway)
    bob = gateway.open("bob")
    audience.until(lambda: audience.heard(bob) == ["1", "2"])
    gateway.close(clean=False)
    # Then
    assert offset(chat, "bob") is None
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
    assert offset(chat, "bob") == sent[1].msgid


def test_what_was_taken_out_of_an_iterator_is_acked_and_the_rest_comes_again(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3", "4")
    # When
    with chat.listen("bob") as live:
        heard = iter(live)
        for expected in sent[:2]:
            assert next(heard) == expected
    # Then
    assert [message.content for message in chat.pull("bob")] == ["3", "4"]
    with chat.listen("bob") as live:
        assert next(iter(live)) == sent[2]
        assert live.poll(1.0) == [sent[3]]
    assert chat.pull("bob") == []


def test_acks_of_nothing_without_acks(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "1", "2", sender="bob")
    tell(chat, say(chat, "3", sender="bob")[0])
    with chat.gateway(acks="off", ack_every=1) as gateway:
        audience = Audience(gateway)
        ann, bob = gateway.open("ann"), gateway.open("bob")
        audience.until(lambda: len(audience.heard(ann)) == 3 and audience.receipts[bob])
        audience.settled()
    assert offset(chat, "ann") is None
    assert len(chat.receipts("bob")) == 1


def test_a_hundred_messages_to_forty_cost_four_hundred_acks(chat: Chat) -> None:
    uids = [f"u{number}" for number in range(40)]
    chat.create_group("team", [*uids, "ann"])
    with chat.gateway(ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids]
        for number in range(100):
            say(chat, str(number))
            audience.until(lambda n=number: all(len(audience.heard(s)) == n + 1 for s in sessions))
        audience.settled()
        # Moves, as the journal tells them: each is one ack of one member that reached Redis.
        acks = sum(len(move.split(SEPARATOR.encode())) - 3 for move in journalled_moves(chat))
    assert 40 * 10 >= acks >= 40 * 9


def journalled_moves(chat: Chat) -> list[bytes]:
    found: list[bytes] = []
    for key in chat.system.client.space.journals():
        for _, fields in chat.system.client.query("XRANGE", key, "-", "+"):
            found += fields[b"moves"].split(b"\x1e") if fields[b"kind"] == b"ack" else []
    return found


# Presence.


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


def test_a_killed_session_ends_by_itself(chat: Chat) -> None:
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
    # Given a session whose beats were of a clock that stood an hour ahead
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
    tell(chat, say(chat, "1", sender="bob")[0])
    assert [(each.read, each.unread) for each in chat.heartbeat("bob", session)] == [(0, 1)]
    chat.end_session("bob", session)
    assert chat.online(["bob"]) == set()


# Receipts.


def test_receipts_come_pushed_or_with_the_heartbeat(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    polling = Gateway(
        chat.performer,
        replace(chat.system.settings, heartbeat_ms=300),
        receipts="poll",
        ack_interval_s=0.05,
    )
    with chat.gateway(acks="off") as pushing, polling:
        one, two = Audience(pushing), Audience(polling)
        here, there = pushing.open("ann"), polling.open("ann")
        one.settled()
        two.settled()
        # When
        [message] = say(chat, "hi")
        chat.ack("bob", "team")
        tell(chat, message)
        # Then
        one.until(lambda: one.receipts[here])
        two.until(lambda: two.receipts[there])
        assert {(each.msgid, each.read, each.unread) for each in one.receipts[here] + two.receipts[there]} == {
            (message.msgid, 1, 0)
        }
        two.until(lambda: chat.receipts("ann") == [])


# Order and promptness.


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


# What breaks.


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
def test_a_lost_connection_loses_nothing(chat: Chat, other: Chat, kind: str) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        for number in range(1, 4):
            chat.group("team")
            assert kill_connections(other.system.client.driver, kind)
            say(other, str(number))
            audience.until(lambda n=number: len(audience.heard(bob)) == n)
        assert audience.heard(bob) == ["1", "2", "3"]


def test_a_connection_that_is_lost_as_a_group_is_followed_is_opened_again(chat: Chat, other: Chat) -> None:
    # Given a second session of a user, which asks for their groups at once
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        audience.settled()
        other.create_group("new", ["ann", "bob"])
        gateway.open("bob")
        # When the connection is gone by the time that it listens to the new one
        assert kill_connections(other.system.client.driver, "pubsub")
        # Then
        say(other, "1", gid="new")
        audience.until(lambda: len(audience.messages) == 2)
        assert [audience.heard(session, "new") for session in audience.messages] == [["1"], ["1"]]


def test_a_receipt_told_while_the_connection_is_lost_comes_after_it(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    [message] = say(other, "hi")
    other.ack("bob", "team")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        ann = gateway.open("ann")
        audience.settled()
        kill_connections(other.system.client.driver, "pubsub")
        tell(other, message)
        audience.until(lambda: audience.receipts[ann])
        assert (audience.receipts[ann][0].read, audience.receipts[ann][0].unread) == (1, 0)


@pytest.mark.parametrize("url", ["valkey"], indirect=True)  # with a cluster an ack's answer is waited for
def test_acks_that_are_due_while_answers_of_others_get_lost_are_sent_too(chat: Chat, other: Chat) -> None:
    # Given an ack under way that will never be carried out, and another that is due
    for gid in ("one", "two"):
        chat.create_group(gid, ["ann", "bob"])
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        [first] = say(other, "1", gid="one")
        audience.until(lambda: audience.heard(bob, "one") == ["1"])
        [second] = say(other, "2", gid="two")
        server = nodes_of(other.system.client.driver)[0]
        server.client_pause(int(1000 * MOST_S), all=False)
        audience.poll(MOST_S)
        assert audience.heard(bob, "two") == ["2"]
        # When
        assert kill_connections(server, "normal")
        server.client_unpause()
        # Then
        audience.until(lambda: offset(other, "bob", "one") == first.msgid)
        audience.until(lambda: offset(other, "bob", "two") == second.msgid)


@pytest.mark.parametrize(
    ("setting", "value"), [("min-replicas-to-write", 9), ("maxmemory", 1)], ids=["too few replicas", "full"]
)
def test_what_the_server_refuses_for_a_while_is_done_later_and_all_else_goes_on(
    chat: Chat, other: Chat, setting: str, value: int
) -> None:
    # Given acks that are due, in an event and on the way
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
        [message] = say(other, "2")
        before = subscriptions(other.system.client.driver)
        # When the server takes no writes
        for node in nodes_of(other.system.client.driver):
            node.config_set(setting, value)
        try:
            audience.until(lambda: audience.heard(bob) == ["1", "2"])
            audience.settled()
            gateway._core._heartbeat.beat_now()
            audience.settled()
        finally:
            for node in nodes_of(other.system.client.driver):
                node.config_set(setting, 0)
        # Then nothing is lost, and the subscription is the same
        audience.until(lambda: offset(other, "bob") == message.msgid)
        say(other, "3")
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])
        assert subscriptions(other.system.client.driver) == before


def test_a_gateway_may_be_closed_again_with_acks_under_way(other: Chat, settings: Settings) -> None:
    # Given a driver that would wait for a minute
    other.create_group("team", ["ann", "bob"])
    patient = replace(settings, redis_url=f"{settings.redis_url}?socket_timeout=60")
    with Chat.connect(settings=patient) as chat, chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        for text in ("1", "2"):  # an ack of 1 is under way when 2 has come
            say(other, text)
            audience.poll(MOST_S)
        assert audience.heard(bob) == ["1", "2"]
        gateway.close(clean=False)
        # When
        begun = time.monotonic()
        gateway.close()
        # Then it does not wait for an answer that has been read
        assert time.monotonic() - begun < 30


def test_what_was_closed_as_if_killed_acks_nothing_when_it_is_left(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        audience.settled()
        say(other, "1")
        assert gateway.poll(MOST_S)
        # When
        gateway.close(clean=False)
        # Then it has no sessions, but may have others
        other.create_group("home", ["ann", "bob"])
        assert gateway.poll(0.2) == []
        ann = gateway.open("ann")
        audience.settled()
        [message] = say(other, "2", sender="bob")
        audience.until(lambda: audience.heard(ann) == ["2"])
    assert (offset(other, "bob"), offset(other, "ann")) == (None, message.msgid)


def test_the_end_of_one_session_confirms_no_receipts_of_others(chat: Chat, other: Chat) -> None:
    # Given receipts of one that are at hand but not written to them yet
    chat.create_group("team", ["ann", "bob"])
    [message] = say(other, "hi")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        ann, bob = gateway.open("ann"), gateway.open("bob")
        audience.settled()
        tell(other, message)
        audience.until(lambda: audience.receipts[ann])
        # When
        gateway.end(bob)
        # Then
        assert other.receipts("ann")
    assert not other.receipts("ann")


class History:
    """Random events in some groups, and what each member has to hear of them."""

    def __init__(self, chat: Chat, audience: Audience, chance: random.Random) -> None:
        self.chat, self.audience, self.chance = chat, audience, chance
        self.uids, self.gids = ["ann", "bob", "cyd", "dan"], ["team", "home", "群"]
        self.members = {(gid, "ann") for gid in self.gids}
        self.due: dict[tuple[str, str], list[str]] = {(gid, uid): [] for gid in self.gids for uid in self.uids}
        self.number = 0
        chat.create_group("all", self.uids)
        for gid in self.gids:
            chat.create_group(gid, ["ann"])
        self.sessions = {uid: audience.gateway.open(uid) for uid in self.uids}
        audience.settled()

    def step(self) -> None:
        gid, uid = self.chance.choice(self.gids), self.chance.choice(self.uids[1:])
        events = {self.send: 50, self.join: 10, self.leave: 4, self.kill: 2, self.poll: 30}
        [event] = self.chance.choices(list(events), list(events.values()))
        event(gid, uid)

    def send(self, gid: str, _uid: str) -> None:
        self.number += 1
        say(self.chat, str(self.number), gid=gid)
        for at, uid in self.members:
            if at == gid:
                self.due[gid, uid].append(str(self.number))

    def join(self, gid: str, uid: str) -> None:
        self.chat.add_members(gid, [uid])
        self.members.add((gid, uid))

    def leave(self, gid: str, uid: str) -> None:
        # What a member has not heard when they leave is not theirs any more.
        self.audience.until(lambda: self.heard(gid, uid) == self.due[gid, uid])
        self.chat.remove_members(gid, [uid])
        self.members.discard((gid, uid))

    def kill(self, _gid: str, _uid: str) -> None:
        kill_connections(self.chat.system.client.driver, self.chance.choice(["pubsub", "normal"]), self.chance)

    def poll(self, _gid: str, _uid: str) -> None:
        self.audience.poll(self.chance.choice([0, 0, 0.05]))

    def heard(self, gid: str, uid: str) -> list[str]:
        return self.audience.heard(self.sessions[uid], gid)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_histories_with_lost_connections(chat: Chat, other: Chat, seed: int) -> None:
    with chat.gateway(ack_every=3, ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        history = History(other, audience, random.Random(seed))
        for _ in range(300):
            history.step()
        audience.until(lambda: all(history.heard(*key) == due for key, due in history.due.items()))
        audience.settled()
        assert {key: history.heard(*key) for key in history.due} == history.due
    assert {each.unread for uid in history.uids for each in chat.unread(uid)} == {0}


def test_a_gap_that_nobody_told_of_is_filled(chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given pushes that get lost unseen
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        with monkeypatch.context() as patch:
            patch.setattr(gateway._core._catch_up, "pushed", lambda *_: None)
            say(other, "1", "2")
            audience.settled()
        # When
        say(other, "3")
        # Then
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])


def test_more_than_a_page_was_missed(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    texts = [str(number) for number in range(1200)]
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        kill_connections(other.system.client.driver, "pubsub")
        drafts = [Draft("ann", text) for text in texts]
        other.system.client.call(message_calls.send(other.system.client.space, "team", drafts, 1000))
        audience.until(lambda: len(audience.heard(bob)) == 1200)
        assert audience.heard(bob) == texts


def test_a_partition_that_moves_to_another_node_is_followed(
    cluster_servers: RunningCluster, cluster: str, tmp_path: Path
) -> None:
    settings = Settings.from_env({}, redis_url=cluster, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        # Given
        chat.create_group("team", ["ann", "bob"])
        with chat.gateway() as gateway:
            audience = Audience(gateway)
            bob = gateway.open("bob")
            say(other, "1")
            audience.until(lambda: audience.heard(bob) == ["1"])
            # When it moves away, and back
            slot = key_slot(chat.system.client.space.group("team").stream.encode())
            home = move_slot(cluster_servers, slot)
            say(other, "2")
            audience.until(lambda: audience.heard(bob) == ["1", "2"])
            say(other, "3")
            audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])
            assert move_slot(cluster_servers, slot, home) != home
            say(other, "4")
            # Then
            audience.until(lambda: audience.heard(bob) == ["1", "2", "3", "4"])
        assert [each.unread for each in other.unread("bob")] == [0]


def test_a_node_that_gives_many_channels_away_is_not_waited_for_longer(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imcore.util.backoff.LONGEST_WAIT_S", 3600)
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        gateway._core.handle(PubSubEvent(UNSUBSCRIBED, f"channel {number}") for number in range(100))
        audience.until(lambda: bob.reconnects)


def refusing(chat: Chat, gid: str, function: str) -> Callable[..., list[Any]]:
    """What takes the place of `call_each` while the partition of a group moves to another node."""
    call_each = chat.system.client.call_each

    def refuse(batch: Sequence[Call[Any]], **options: bool) -> list[Any]:
        answers = call_each(batch, **options)
        refused = RedisRefuses("moves")
        return [
            refused if (call.gid, call.function) == (gid, function) else answer
            for call, answer in zip(batch, answers, strict=True)
        ]

    return refuse


def test_a_group_that_is_refused_does_not_hold_up_the_others(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two groups, of which one is in a partition that moves, and is not asked for again for an hour
    clock = Clock(monkeypatch)
    monkeypatch.setattr("imcore.util.backoff.FIRST_WAIT_S", 3600)
    for gid in ("a", "b"):
        chat.create_group(gid, ["ann", "bob"])
        say(other, *map(str, range(1200)), gid=gid)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        with monkeypatch.context() as patch:
            patch.setattr(chat.system.client, "call_each", refusing(chat, "a", "im_pull"))
            # When
            bob = gateway.open("bob")
            # Then
            audience.until(lambda: len(audience.heard(bob, "b")) == 1200)
            assert audience.heard(bob, "a") == []
        clock.jump(3600)
        audience.until(lambda: audience.heard(bob, "a") == audience.heard(bob, "b"))


def test_tallies_that_are_refused_do_not_hold_up_the_receipts_of_others(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two with receipts that wait, of whom one is asked for again in an hour only
    clock = Clock(monkeypatch)
    monkeypatch.setattr("imcore.util.backoff.FIRST_WAIT_S", 3600)
    for gid, sender in (("a", "ann"), ("b", "bob")):
        chat.create_group(gid, ["ann", "bob"])
        tell(other, *say(other, "1", gid=gid, sender=sender))
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        with monkeypatch.context() as patch:
            patch.setattr(chat.system.client, "call_each", refusing(chat, "a", "im_tally"))
            # When
            ann, bob = gateway.open("ann"), gateway.open("bob")
            # Then
            audience.until(lambda: audience.receipts[bob])
            assert not audience.receipts[ann]
            with pytest.raises(RedisRefuses):
                chat.tallies("a", [message.msgid for message in chat.pull("bob", "a")])
        clock.jump(3600)
        audience.until(lambda: audience.receipts[ann])


# What breaks at the server.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "server"


def test_a_killed_server_that_comes_back_is_gone_on_with(folder: Path, tmp_path: Path) -> None:
    # Given
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        try:
            chat.create_group("team", ["ann", "bob"])
            with chat.gateway(ack_interval_s=0.05) as gateway:
                audience = Audience(gateway)
                bob = gateway.open("bob")
                say(chat, "1")
                audience.until(lambda: audience.heard(bob) == ["1"])
                # When
                server.kill()
                assert audience.poll(0.3) == []
                server = start_valkey(folder)
                other.create_group("news", ["ann", "bob"])
                say(other, "2")
                # Then
                audience.until(lambda: audience.heard(bob) == ["1", "2"])
                say(other, "3")
                say(other, "a", gid="news")
                audience.until(lambda: audience.heard(bob) == ["1", "2", "3"] and audience.heard(bob, "news") == ["a"])
                audience.until(lambda: [each.unread for each in other.unread("bob")] == [0, 0])
                assert other.online(["bob"]) == {"bob"}
        finally:
            server.stop()


def test_a_server_that_lost_its_last_second_gives_the_same_seqs_again(folder: Path, tmp_path: Path) -> None:
    # Given a session that has heard what the disk had not yet, as after a power cut
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        try:
            chat.create_group("team", ["ann", "bob"])
            say(chat, "1", "2")
            with chat.gateway(ack_interval_s=0.05) as gateway:
                audience = Audience(gateway)
                bob = gateway.open("bob")
                audience.until(lambda: audience.heard(bob) == ["1", "2"])
                before = tmp_path / "before"
                shutil.copytree(folder / "appendonlydir", before)
                say(chat, "3", "4", "5")
                audience.until(lambda: audience.heard(bob) == ["1", "2", "3", "4", "5"])
                # When
                server.kill()
                shutil.rmtree(folder / "appendonlydir")
                shutil.copytree(before, folder / "appendonlydir")
                server = start_valkey(folder)
                assert [each.seq for each in say(other, "3'", "4'")] == [3, 4]
                # Then
                audience.until(lambda: audience.heard(bob)[5:] == ["3'", "4'"])
                say(other, "5'", "6'")
                audience.until(lambda: audience.heard(bob)[5:] == ["3'", "4'", "5'", "6'"])
                audience.until(lambda: [each.unread for each in other.unread("bob")] == [0])
        finally:
            server.stop()


def test_a_session_may_be_opened_while_the_server_is_away_only_by_waiting(folder: Path, tmp_path: Path) -> None:
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat:
        try:
            chat.create_group("team", ["ann", "bob"])
            with chat.gateway() as gateway:
                audience = Audience(gateway)
                ann = gateway.open("ann")
                audience.settled()
                server.kill()
                with pytest.raises(RedisUnavailable):
                    gateway.open("bob")
                server = start_valkey(folder)
                wait_until(lambda: chat.group("team"))
                say(chat, "1")
                audience.until(lambda: audience.heard(ann) == ["1"])
                assert chat.online(["ann", "bob"]) == {"ann"}
        finally:
            server.stop()


@pytest.mark.parametrize("length", [10_000, 20_000])
def test_who_stops_reading_is_cut_off_and_goes_on_by_pulling(folder: Path, tmp_path: Path, length: int) -> None:
    # Given a server that keeps little for a subscriber who does not read
    server = start_valkey(folder, "--client-output-buffer-limit", "pubsub 256kb 0 0", appendonly=False)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        try:
            chat.create_group("team", ["ann", "bob"])
            with chat.gateway() as gateway:
                audience = Audience(gateway)
                bob = gateway.open("bob")
                audience.settled()
                # When
                texts = [str(number) + "x" * length for number in range(200)]
                say(other, *texts)
                wait_until(lambda: not other.system.client.driver.client_list(_type="pubsub"))
                # Then
                audience.until(lambda: len(audience.heard(bob)) == 200)
                assert audience.heard(bob) == texts
                say(other, "live again")
                audience.until(lambda: audience.heard(bob)[200:] == ["live again"])
        finally:
            server.stop()


def test_a_lost_server_is_not_asked_all_the_time(folder: Path, tmp_path: Path) -> None:
    server = start_valkey(folder, appendonly=False)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann", "bob"])
        with chat.gateway() as gateway:
            audience = Audience(gateway)
            gateway.open("bob")
            audience.settled()
            server.kill()
            before = time.process_time()
            for _ in range(10):
                assert audience.poll(0.1) == []
            assert time.process_time() - before < 0.5


@pytest.mark.parametrize("trouble", [DatabaseUnavailable, DatabaseNotReady, ConfigurationError, DatabaseRejected])
def test_who_needs_a_database_that_is_away_does_not_hold_up_the_others(
    chat: Chat, other: Chat, trouble: type[ImError], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given bob, whose missed messages are in SQL only, and ann, whose messages were read and are there, too
    chat.create_group("team", ["ann", "bob", "dan"])
    chat.create_group("home", ["ann", "cyd"])
    sent = say(chat, "1", "2", "3")
    chat.ack("dan", "team")
    tell(chat, sent[0])
    trim(chat, sent[1])
    answer = chat.performer.perform_one

    def away(question: Effect[Any]) -> Any:
        if isinstance(question, SqlQuery):
            raise trouble
        return answer(question)

    monkeypatch.setattr(chat.performer, "perform_one", away)
    monkeypatch.setattr("imcore.util.backoff.LONGEST_WAIT_S", 0.2)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        ann, bob, cyd = (gateway.open(uid) for uid in ("ann", "bob", "cyd"))
        # When
        for number in range(1, 4):
            say(other, str(number), gid="home")
            audience.until(lambda n=number: len(audience.heard(cyd, "home")) == len(audience.heard(ann, "home")) == n)
        assert audience.heard(bob) == []
        assert audience.receipts[ann] == []
        # Then
        monkeypatch.setattr(chat.performer, "perform_one", answer)
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])
        audience.until(lambda: [(each.msgid, each.read) for each in audience.receipts[ann]] == [(sent[0].msgid, 1)])


def test_a_database_that_is_silent_is_not_waited_for_all_the_time(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given bob, whose missed messages are in SQL only, in several groups
    for gid in ("a", "b", "c"):
        chat.create_group(gid, ["ann", "bob"])
        trim(chat, say(chat, "1", "2", gid=gid)[0])
    chat.create_group("home", ["ann", "cyd"])
    answer = chat.performer.perform_one
    asked = []

    def silent(question: Effect[Any]) -> Any:
        if isinstance(question, SqlQuery):
            asked.append(question)
            time.sleep(0.5)
            raise DatabaseUnavailable
        return answer(question)

    monkeypatch.setattr("imcore.util.backoff.LONGEST_WAIT_S", 0.1)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, cyd = (gateway.open(uid) for uid in ("bob", "cyd"))
        with monkeypatch.context() as patch:
            patch.setattr(chat.performer, "perform_one", silent)
            # When
            begun = time.monotonic()
            audience.until(lambda: asked)
            for number in range(1, 6):
                say(other, str(number), gid="home")
                audience.until(lambda n=number: len(audience.heard(cyd, "home")) == n)
                audience.poll(0.1)
        # Then it was asked again after five times as long only, if so much time has passed
        assert len(asked) <= 1 + (time.monotonic() - begun) / 2.5
        audience.until(lambda: all(audience.heard(bob, gid) == ["1", "2"] for gid in ("a", "b", "c")))


def test_an_end_while_the_subscription_is_lost_still_acks_and_goes_offline(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    [message] = say(other, "1")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        gateway.open("ann")
        audience.until(lambda: audience.heard(bob) == ["1"])
        kill_connections(other.system.client.driver, "pubsub")
    assert offset(chat, "bob") == message.msgid
    assert chat.online(["ann", "bob"]) == set()


# Clocks.


def test_clocks_that_jump_do_no_harm(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    jumps = [0.0, 7200.0, 7200.5, 100_000.0, 100_001.0]
    ahead = jumps[:1]
    monotonic, now = time.monotonic, time.time
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    monkeypatch.setattr(time, "time", lambda: now() - 1000 * ahead[0])
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        # When
        for number, jump in enumerate(jumps, 1):
            ahead[0] = jump
            say(chat, str(number))
            audience.until(lambda n=number: len(audience.heard(bob)) == n, 100_000_000)
            audience.poll()
            audience.until(lambda: [each.unread for each in chat.unread("bob")] == [0], 100_000_000)
        assert chat.online(["bob"]) == {"bob"}
    assert audience.heard(bob) == ["1", "2", "3", "4", "5"]
