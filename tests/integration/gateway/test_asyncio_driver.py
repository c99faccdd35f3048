"""AsyncGateway: the same core under asyncio, with another driver."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest

from imcore import AsyncChat, AsyncGateway, Chat, Message, NewMessage, ReceiptsChanged, Session
from imcore import msgid as msgids
from imcore.settings import Settings
from imcore.streams.calls.message_calls import trim
from tests.helpers.gateways import kill_connections
from tests.helpers.talk import say
from tests.helpers.workers import deliver_receipts, store

MOST_S = 20.0


class Audience:
    """A gateway, and the events that each of its sessions was handed."""

    def __init__(self, gateway: AsyncGateway) -> None:
        self.gateway = gateway
        self.messages: dict[Session, list[Message]] = defaultdict(list)
        self.read: dict[Session, dict[str, int]] = defaultdict(dict)

    def heard(self, session: Session, gid: str = "team") -> list[str]:
        return [message.content for message in self.messages[session] if message.gid == gid]

    async def until(self, condition: Callable[[], object]) -> None:
        give_up = time.monotonic() + MOST_S
        while not condition():
            assert time.monotonic() < give_up, f"not so within {MOST_S} s"
            for event in await self.gateway.poll(0.02):
                for session in event.sessions:
                    if isinstance(event, NewMessage):
                        self.messages[session].append(event.message)
                    elif isinstance(event, ReceiptsChanged):
                        self.read[session].update((each.msgid, each.read) for each in event.receipts)


@pytest.fixture(autouse=True)
def driver() -> str:
    """These tests are tasks themselves."""
    return "asyncio"


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, receipt_window_ms=0, block_ms=10, heartbeat_ms=100)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


def test_an_asyncio_driver_delivers_messages_acks_and_receipts(chat: Chat) -> None:
    async def story() -> None:
        # Given unacked messages, some of them only in SQL
        chat.create_group("team", ["ann", "bob", "cy"])
        sent = say(chat, "1", "2")
        store(chat)
        chat.system.client.call(trim(chat.system.client.space, "team", msgids.pack(sent[0].msgid)))
        server = AsyncChat.connect(settings=chat.system.settings)
        gateway = server.gateway(ack_every=2, ack_interval_s=0.05)
        audience = Audience(gateway)
        ann, bob = await gateway.open("ann"), await gateway.open("bob")
        # When it continues live, over a lost subscription
        await audience.until(lambda: audience.heard(bob) == ["1", "2"])
        sent += say(chat, "3")
        await audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])
        kill_connections(chat.system.client.driver, "pubsub")
        sent += say(chat, "4")
        chat.create_group("home", ["ann", "bob"])
        say(chat, "at home", gid="home")
        await audience.until(lambda: audience.heard(bob) == ["1", "2", "3", "4"] and audience.heard(bob, "home"))
        # Then it is acked, and its sender gets the receipt
        await audience.until(lambda: {each.unread for each in chat.unread("bob")} == {0})
        deliver_receipts(chat)
        await audience.until(lambda: [audience.read[ann].get(each.msgid) for each in sent] == [1] * 4)
        await audience.until(lambda: chat.receipts("ann") == [])
        await audience.until(lambda: bob.reconnects)  # more often where the server once took longer than a heartbeat
        assert chat.online(["ann", "bob"]) == {"ann", "bob"}
        await gateway.close()
        await server.close()
        assert chat.online(["ann", "bob"]) == set()

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_many_asyncio_sessions_miss_no_message_whatever_is_lost(chat: Chat, seed: int) -> None:
    async def story() -> None:
        # Given thirty sessions in two groups; some begin while people talk
        chance = random.Random(seed)
        uids = [f"u{number}" for number in range(30)]
        for gid in ("team", "home"):
            chat.create_group(gid, ["ann", *uids])
        server = AsyncChat.connect(settings=chat.system.settings)
        gateway = server.gateway(ack_interval_s=0.02)
        audience = Audience(gateway)
        sessions: list[Session] = []
        said: dict[str, list[str]] = {"team": [], "home": []}
        # When
        for number in range(150):
            gid = chance.choice(["team", "home"])
            say(chat, str(number), gid=gid)
            said[gid].append(str(number))
            if len(sessions) < 30:
                opening = asyncio.ensure_future(gateway.open(uids[len(sessions)]))
                await audience.until(opening.done)
                sessions.append(opening.result())
            if chance.random() < 0.05:
                kill_connections(chat.system.client.driver, "pubsub")
            if chance.random() < 0.5:
                await audience.until(lambda: True)
        # Then
        for gid, texts in said.items():
            await audience.until(lambda g=gid, t=texts: all(audience.heard(each, g) == t for each in sessions))
        await audience.until(lambda: all(each.unread == 0 for uid in uids for each in chat.unread(uid)))
        await gateway.close()
        await server.close()

    asyncio.run(story())
