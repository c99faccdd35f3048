"""Lost connections and refusals lose no message, hand over none twice, and stop no other session."""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from imcore.chat import Chat
from imcore.errors import (
    RedisRefuses,
)
from imcore.model.values import Draft
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.rounds import Steps
from imcore.streams.wire import UNSUBSCRIBED, PubSubEvent
from tests.helpers.async_driver import lane_of
from tests.helpers.gateways import MOST_S, Audience, Clock, kill_connections, nodes_of, subscriptions
from tests.helpers.servers import RunningCluster, move_slot
from tests.helpers.talk import offset, push_receipts, say
from tests.model.reference import Model

SEEDS = int(os.environ.get("IM_LIVE_SEEDS", "3"))
"""How many random histories are played on each kind of server; for a long run set IM_LIVE_SEEDS."""


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


def test_a_receipt_of_the_time_without_connection_comes_after_it(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    [message] = say(other, "hi")
    other.ack("bob", "team")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        ann = gateway.open("ann")
        audience.settled()
        kill_connections(other.system.client.driver, "pubsub")
        push_receipts(other, message)
        audience.until(lambda: audience.receipts[ann])
        assert (audience.receipts[ann][0].read, audience.receipts[ann][0].unread) == (1, 0)


@pytest.mark.parametrize("redis_url", ["valkey"], indirect=True)  # with a cluster an ack's answer is waited for
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
def test_refused_acks_and_heartbeats_are_repeated_later_and_all_else_continues(
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
            lane_of(gateway, "bob").core._heartbeat.beat_now()
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


def test_a_gateway_closed_as_if_killed_acks_nothing_at_its_exit(chat: Chat, other: Chat) -> None:
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
        push_receipts(other, message)
        audience.until(lambda: audience.receipts[ann])
        # When
        gateway.end(bob)
        # Then
        assert other.receipts("ann")
    assert not other.receipts("ann")


class History:
    """Random events in some groups, and the messages that each member must get."""

    def __init__(self, chat: Chat, audience: Audience, chance: random.Random) -> None:
        self.chat, self.audience, self.chance = chat, audience, chance
        self.uids, self.gids = ["ann", "bob", "cyd", "dan"], ["team", "home", "群"]
        self.model = Model()
        self.number = 0
        chat.create_group("all", self.uids)
        for gid in self.gids:
            chat.create_group(gid, ["ann"])
            self.model.create_group(gid, ["ann"])
        self.sessions = {uid: audience.gateway.open(uid) for uid in self.uids}
        audience.settled()

    def step(self) -> None:
        gid, uid = self.chance.choice(self.gids), self.chance.choice(self.uids[1:])
        events = {self.send: 50, self.join: 10, self.leave: 4, self.kill: 2, self.poll: 30}
        [event] = self.chance.choices(list(events), list(events.values()))
        event(gid, uid)

    def send(self, gid: str, _uid: str) -> None:
        self.number += 1
        [message] = say(self.chat, str(self.number), gid=gid)
        self.model.send(gid, "ann", message.content, None, message.msgid)

    def join(self, gid: str, uid: str) -> None:
        self.chat.add_members(gid, [uid])
        self.model.add_members(gid, [uid])

    def leave(self, gid: str, uid: str) -> None:
        # Messages that a member has not received when they leave are not theirs any more.
        self.audience.until(lambda: self.heard(gid, uid) == self.due(gid, uid))
        self.chat.remove_members(gid, [uid])
        self.model.remove_members(gid, [uid])

    def kill(self, _gid: str, _uid: str) -> None:
        kill_connections(self.chat.system.client.driver, self.chance.choice(["pubsub", "normal"]), self.chance)

    def poll(self, _gid: str, _uid: str) -> None:
        self.audience.poll(self.chance.choice([0, 0, 0.05]))

    def due(self, gid: str, uid: str) -> list[str]:
        return [message.content for message in self.model.group(gid).said_to(uid)]

    def heard(self, gid: str, uid: str) -> list[str]:
        return self.audience.heard(self.sessions[uid], gid)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_histories_with_lost_connections(chat: Chat, other: Chat, seed: int) -> None:
    with chat.gateway(ack_every=3, ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        history = History(other, audience, random.Random(seed))
        for _ in range(300):
            history.step()
        due = {(gid, uid): history.due(gid, uid) for gid in history.gids for uid in history.uids}
        audience.until(lambda: all(history.heard(*key) == texts for key, texts in due.items()))
        audience.settled()
        assert {key: history.heard(*key) for key in due} == due
    assert {each.unread for uid in history.uids for each in chat.unread(uid)} == {0}


def test_a_gap_in_the_seqs_is_filled(chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given pushes that get lost unseen
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        with monkeypatch.context() as patch:
            patch.setattr(lane_of(gateway, "team").core._catch_up, "pushed", lambda *_: None)
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
        lane_of(gateway, "team").core.handle(PubSubEvent(UNSUBSCRIBED, f"channel {number}") for number in range(100))
        audience.until(lambda: bob.reconnects)


def refusing(chat: Chat, gid: str, function: str) -> Callable[..., Steps[list[Any]]]:
    """Replaces `each` while the partition of a group moves to another node."""
    each = chat.system.client.each

    def refuse(batch: Sequence[Call[Any]], **options: bool) -> Steps[list[Any]]:
        answers = yield from each(batch, **options)
        refused = RedisRefuses("moves")
        return [
            refused if (call.gid, call.function) == (gid, function) else answer
            for call, answer in zip(batch, answers, strict=True)
        ]

    return refuse


def test_a_group_that_is_refused_does_not_hold_up_the_others(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two groups, one in a partition that moves; its next request is in an hour
    clock = Clock(monkeypatch)
    monkeypatch.setattr("imcore.util.backoff.FIRST_WAIT_S", 3600)
    for gid in ("a", "b"):
        chat.create_group(gid, ["ann", "bob"])
        say(other, *map(str, range(1200)), gid=gid)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        with monkeypatch.context() as patch:
            patch.setattr(chat.system.client, "each", refusing(chat, "a", "im_pull"))
            # When
            bob = gateway.open("bob")
            # Then
            audience.until(lambda: len(audience.heard(bob, "b")) == 1200)
            assert audience.heard(bob, "a") == []
        clock.jump_until(audience, lambda: audience.heard(bob, "a") == audience.heard(bob, "b"), 3600)


def test_tallies_that_are_refused_do_not_hold_up_the_receipts_of_others(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two users with receipts that wait; for one of them the next request is in an hour
    clock = Clock(monkeypatch)
    monkeypatch.setattr("imcore.util.backoff.FIRST_WAIT_S", 3600)
    for gid, sender in (("a", "ann"), ("b", "bob")):
        chat.create_group(gid, ["ann", "bob"])
        push_receipts(other, *say(other, "1", gid=gid, sender=sender))
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        with monkeypatch.context() as patch:
            patch.setattr(chat.system.client, "each", refusing(chat, "a", "im_tally"))
            # When
            ann, bob = gateway.open("ann"), gateway.open("bob")
            # Then
            audience.until(lambda: audience.receipts[bob])
            assert not audience.receipts[ann]
            with pytest.raises(RedisRefuses):
                chat.tallies("a", [message.msgid for message in chat.pull("bob", "a")])
        clock.jump_until(audience, lambda: audience.receipts[ann], 3600)
