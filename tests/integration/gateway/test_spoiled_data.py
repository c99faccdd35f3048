"""Data of one group or user that was spoiled by hand waits alone: the live sessions of others continue."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import pytest
import redis

from imcore.chat import Chat
from imcore.errors import ImError, TryAgain
from imcore.gateway.gateway import Gateway
from imcore.settings import Settings
from imcore.streams import library
from imcore.streams.keys import GroupKeys, Keyspace
from tests.helpers.gateways import Audience, Clock
from tests.helpers.talk import offset, push_receipts, say

HEARTBEAT_S = 20


pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, partitions=1)


@pytest.fixture
def other(other: Chat) -> Chat:
    """Another process: ann talks to bob in two groups, and to cy in one of them."""
    other.create_group("team", ["ann", "bob"])
    other.create_group("home", ["ann", "bob", "cy"])
    return other


@pytest.fixture
def server(valkey: str, other: Chat) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(valkey) as client:
        yield client


Spoil = Callable[["redis.Redis", str], object]


def by_another_type(server: "redis.Redis", key: str) -> None:
    server.set(key, "by hand")


def by_a_list(server: "redis.Redis", key: str) -> None:
    server.delete(key)
    server.rpush(key, "by hand")


def by_a_word(server: "redis.Redis", key: str) -> None:
    """Put a word where a number is to be: a fault in the function itself."""
    server.hset(key, mapping={"seq": "many", "last": "far", "trimmed": "gone"})


SPOILED: dict[str, tuple[Callable[[GroupKeys], str], Spoil]] = {
    "stream": (lambda k: k.stream, by_another_type),
    "meta": (lambda k: k.meta, by_another_type),
    "meta's numbers": (lambda k: k.meta, by_a_word),
    "acked": (lambda k: k.acked, by_another_type),
    "joined": (lambda k: k.joined, by_a_list),
    "recalled": (lambda k: k.recalled, by_another_type),
}
"""What may be spoiled of a group, and how."""


@pytest.mark.parametrize("kind", SPOILED)
def test_a_group_that_is_spoiled_waits_alone(
    chat: Chat, other: Chat, server: "redis.Redis", clock: Clock, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given bob and cy, who are live and owe acks, and receipts that wait for ann
    key_of, spoil = SPOILED[kind]
    key = key_of(other.system.client.space.group("team"))
    with chat.gateway(ack_interval_s=5) as gateway:
        audience = Audience(gateway)
        ann, bob, cy = (gateway.open(uid) for uid in ("ann", "bob", "cy"))
        audience.settled()
        say(other, "1"), say(other, "1", gid="home")
        audience.until(
            lambda: audience.heard(bob) == audience.heard(bob, "home") == audience.heard(cy, "home") == ["1"]
        )
        # When one of the groups is spoiled, and the subscription is lost: all have to catch up, ack and get receipts
        kept = server.dump(key)
        spoil(server, key)
        gateway._core.subscription_lost(TryAgain("lost"))  # type: ignore[arg-type]
        say(other, "2", gid="home")
        clock.jump(5)
        late = gateway.open("bob")
        # Then the others continue
        audience.until(lambda: audience.heard(bob, "home") == audience.heard(cy, "home") == ["1", "2"])
        audience.until(lambda: audience.heard(late, "home")[-1:] == ["2"])
        clock.jump(5)
        audience.until(lambda: offset(other, "cy", "home") == audience.messages[cy][-1].msgid)
        clock.jump(HEARTBEAT_S)
        for _ in range(5):
            audience.poll()
        assert len([record for record in caplog.records if "team" in record.getMessage()]) < 10
        # And once the group is whole again, it continues, too
        server.delete(key)
        if kept is not None:
            server.restore(key, 0, kept)
        clock.jump(5)
        sent = say(other, "2")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
        audience.poll()  # what was handed over is taken as acked from here on
        clock.jump(5)
        audience.until(lambda: offset(other, "bob") == sent[-1].msgid)
        assert ann.is_synced


@pytest.mark.parametrize("kind", ["groups_of", "sessions", "dirty"])
def test_a_user_who_is_spoiled_waits_alone(
    chat: Chat, other: Chat, server: "redis.Redis", clock: Clock, kind: str
) -> None:
    # Given ann and bob, who are live, and messages of both that bob and ann have read
    space = other.system.client.space
    key = {"groups_of": space.groups_of(0, "ann"), "sessions": space.sessions("ann"), "dirty": space.dirty(0, "ann")}[
        kind
    ]
    with chat.gateway(ack_interval_s=0) as gateway:
        audience = Audience(gateway)
        ann, bob = gateway.open("ann"), gateway.open("bob")
        audience.settled()
        [by_ann], [by_bob] = say(other, "1"), say(other, "2", sender="bob")
        audience.until(lambda: len(audience.messages[ann]) == len(audience.messages[bob]) == 2)
        # When what Redis has of ann is spoiled, and all begins anew
        kept = server.dump(key)
        by_a_list(server, key)
        gateway._core.subscription_lost(TryAgain("lost"))  # type: ignore[arg-type]
        audience.until(lambda: bob.reconnects == 1)
        if kind != "dirty":
            push_receipts(other, by_ann)
        push_receipts(other, by_bob)
        # Then bob gets messages and receipts, and stays online
        audience.until(lambda: [receipt.msgid for receipt in audience.receipts[bob]] == [by_bob.msgid])
        clock.jump(HEARTBEAT_S)
        audience.poll()
        say(other, "3")
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])
        assert other.online(["bob"]) == {"bob"}
        # And so does ann, once it is whole again
        server.delete(key)
        if kept is not None:
            server.restore(key, 0, kept)
        clock.jump(5)
        audience.until(lambda: ann.reconnects == 1)
        audience.until(lambda: audience.heard(ann) == ["1", "2", "3"])


@pytest.mark.parametrize(
    "data", [b"", b"m", b"m\x1fteam", b"m\x1fteam\x1fx-y\x1f1\x1fann\x1f\x1f\x1fhi", b"d\x1f\xff\x1f1\x1f1"]
)
def test_a_push_published_by_hand_stops_no_session(chat: Chat, other: Chat, server: "redis.Redis", data: bytes) -> None:
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        space: Keyspace = other.system.client.space
        for channel in (space.group("team").channel, *space.inboxes("bob")):
            server.execute_command("SPUBLISH", channel, data)
        say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
        say(other, "2")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])


def test_sessions_outlive_functions_that_are_flushed_again_and_again(
    chat: Chat, other: Chat, server: "redis.Redis", clock: Clock
) -> None:
    # Given somebody who removes the functions as fast as he can
    stop = Event()

    def flush() -> None:
        while not stop.is_set():
            server.function_flush("SYNC")

    flushing = Thread(target=flush)
    with chat.gateway(ack_every=1, ack_interval_s=0) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        flushing.start()
        try:
            # When messages come, acks go, and heartbeats are due
            for number in range(30):
                with suppress(TryAgain):
                    say(other, str(number))
                clock.jump(HEARTBEAT_S / 2)
                audience.poll()
        finally:
            stop.set()
            flushing.join()
        # Then all continues once they stay
        sent = say(other, "last")
        audience.until(lambda: audience.heard(bob)[-1:] == ["last"])
        audience.until(lambda: offset(other, "bob") == sent[-1].msgid)
        audience.until(lambda: other.online(["bob"]) == {"bob"})
    assert [len(audience.heard(bob))] == [len(set(audience.heard(bob)))]


def test_functions_that_do_not_stay_are_to_be_tried_again(
    chat: Chat, other: Chat, server: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given functions that are gone as soon as they are loaded
    load = library.Library._load

    def load_and_lose(self: Any, *args: Any, **options: Any) -> None:
        load(self, *args, **options)
        server.function_flush("SYNC")

    monkeypatch.setattr(library.Library, "_load", load_and_lose)
    server.function_flush("SYNC")
    # Then
    with pytest.raises(TryAgain, match="loses the functions of imcore"):
        other.send("team", "hi", sender_uid="ann")


def test_a_gateway_closes_in_order_where_a_group_is_spoiled(chat: Chat, other: Chat, server: "redis.Redis") -> None:
    # Given bob, who owes acks in two groups
    gateway: Gateway
    with chat.gateway(ack_interval_s=60, ack_every=100) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        say(other, "1")
        [home] = say(other, "1", gid="home")
        audience.until(lambda: audience.heard(bob) == audience.heard(bob, "home") == ["1"])
        by_another_type(server, other.system.client.space.group("team").acked)
    # Then what can be acked is
    assert offset(other, "bob", "home") == home.msgid
    assert other.online(["bob"]) == set()


def test_a_call_about_spoiled_data_says_so(other: Chat, server: "redis.Redis") -> None:
    by_another_type(server, other.system.client.space.group("team").stream)
    with pytest.raises(ImError, match="answered about 'team': WRONGTYPE"):
        other.send("team", "hi", sender_uid="ann")
    server.hset(other.system.client.space.group("home").meta, "seq", "many")
    with pytest.raises(ImError, match="holds what cannot be read about 'home'"):
        other.pull("bob", "home")
