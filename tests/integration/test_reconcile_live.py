"""Live sessions and devices while a Redis that came back older is reconciled with SQL."""

from dataclasses import replace

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.gateway.fanout import NewMessage, ReceiptsChanged
from imcore.gateway.gateway import Gateway
from imcore.gateway.request import StartMode
from imcore.settings import Settings
from tests.helpers.deadline import wait_until
from tests.helpers.devices import listen, texts
from tests.helpers.snapshot import Snapshot
from tests.helpers.workers import persist


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=0, retry_ms=0, partitions=2, batch_size=5)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


def hears(gateway: Gateway, contents: list[str]) -> None:
    """Poll until these texts have been handed over, in this order."""
    heard: list[str] = []

    def all_heard() -> bool:
        heard.extend(event.message.content for event in gateway.poll(0.02) if isinstance(event, NewMessage))
        return len(heard) >= len(contents)

    wait_until(all_heard)
    assert heard == contents


def lost_one(chat: Chat) -> None:
    """A message is stored and then lost by Redis, and people continue."""
    chat.create_group("g", ["ann", "bob"])
    persist(chat)
    snapshot = Snapshot.of(chat.system.client.driver)
    chat.send("g", "lost", sender_uid="ann")
    persist(chat)
    snapshot.restore(chat.system.client.driver)
    chat.send("g", "since", sender_uid="ann")


def test_live_session_gets_lost_messages(chat: Chat) -> None:
    lost_one(chat)
    with chat.gateway(ack_every=1) as gateway:
        gateway.open("bob")
        hears(gateway, ["since"])
        # When
        persist(chat)
        # Then it comes before what came after it, which comes again; and only then all is acked
        hears(gateway, ["lost", "since"])
        chat.send("g", "live", sender_uid="ann")
        hears(gateway, ["live"])
        wait_until(lambda: gateway.poll(0.02) == [] and chat.pull("bob", "g") == [])


def test_device_that_was_away_gets_lost_messages_before_its_position(chat: Chat) -> None:
    # Given a device that has what was said since, and goes
    lost_one(chat)
    with LocalDatabase(path_of(chat.system.settings.data_dir, "bob"), "bob", exclusive=True) as local:
        bob = Device(chat, "bob", local)
        bob.sync()
        assert texts(local, "g") == ["since"]
        # When it comes back after the reconciliation
        persist(chat)
        listen(bob, lambda: chat.pull("bob", "g") == [], ack_interval_s=0.01)
        # Then
        assert texts(local, "g") == ["lost", "since"]


@pytest.mark.parametrize("start", ["unread", "live"])
def test_lost_messages_that_come_back_are_not_from_before_the_start_of_a_session(chat: Chat, start: StartMode) -> None:
    # Given a session that gets what was said since, or only what comes
    lost_one(chat)
    with chat.gateway(acks="off") as gateway:
        gateway.open("bob", start=start)
        heard = {"unread": ["since"], "live": []}[start]
        if heard:
            hears(gateway, heard)
        chat.send("g", "live", sender_uid="ann")
        hears(gateway, ["live"])
        # When
        persist(chat)
        # Then
        hears(gateway, {"unread": ["lost", "since", "live"], "live": ["live"]}[start])


def test_sender_gets_tallies_of_offsets_that_redis_lost(chat: Chat) -> None:
    # Given an ack that is stored and lost, with the receipt of its sender; the sender is online
    chat.create_group("g", ["ann", "bob"])
    message = chat.send("g", "hi", sender_uid="ann")
    persist(chat)
    snapshot = Snapshot.of(chat.system.client.driver)
    chat.ack("bob", "g")
    persist(chat)
    snapshot.restore(chat.system.client.driver)
    with chat.gateway() as gateway:
        gateway.open("ann")
        assert chat.receipts("ann") == []
        # When
        persist(chat)
        # Then
        events = wait_until(lambda: [event for event in gateway.poll(0.02) if isinstance(event, ReceiptsChanged)])
        assert [(r.msgid, r.read, r.unread) for r in events[0].receipts] == [(message.msgid, 1, 0)]
        assert [(r.msgid, r.read) for r in chat.receipts("ann")] == [(message.msgid, 1)]
