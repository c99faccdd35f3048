"""The same core under asyncio, with another driver: no decision is written twice."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import hiredis
import pytest
from redis._parsers.base import BaseParser

from imcore import Chat, Message, NewMessage, ReceiptsChanged, Session
from imcore import msgid as msgids
from imcore.errors import ImError, RedisUnavailable
from imcore.gateway.core import Core, GatewayOptions
from imcore.gateway.request import SessionRequest
from imcore.operations.effects import (
    ChangeChannels,
    Effect,
    Effects,
    FinishCalls,
    OpenSubscription,
    PingSubscription,
    RedisCalls,
    SqlQuery,
    StartCalls,
)
from imcore.settings import Settings
from imcore.streams.calls.call import Call, command_of
from imcore.streams.calls.message_calls import trim
from imcore.streams.redis_errors import translated
from imcore.streams.wire import PONG, PUSHED, PubSubEvent
from tests.helpers.gateways import kill_connections
from tests.helpers.talk import say
from tests.helpers.workers import deliver_receipts, store

MOST_S = 20.0


class Wire:
    """One connection on asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._parser = hiredis.Reader(replyError=BaseParser.parse_error, notEnoughData=Wire)

    @classmethod
    async def to(cls, path: str) -> Self:
        try:
            return cls(*await asyncio.open_unix_connection(path))
        except OSError as error:
            raise RedisUnavailable from error

    def send(self, *commands: tuple[Any, ...]) -> None:
        self._writer.write(b"".join(hiredis.pack_command(command) for command in commands))

    async def answer(self) -> Any:
        while (answer := self._parser.gets()) is Wire:
            try:
                data = await self._reader.read(65_536)
            except OSError as error:
                raise RedisUnavailable from error
            if not data:
                raise RedisUnavailable("the connection has ended")
            self._parser.feed(data)
        return answer

    def close(self) -> None:
        self._writer.close()


class AsyncGateway:
    """Drives a core: it awaits the core's effects and waits. One task at a time is in the core."""

    def __init__(self, chat: Chat, path: str, options: GatewayOptions) -> None:
        self._chat, self._path = chat, path
        self._core = Core(chat.system.client.space, chat.system.settings, options, time.monotonic)
        self._lock = asyncio.Lock()
        self._heard: list[PubSubEvent | RedisUnavailable] = []
        self._came = asyncio.Event()
        self._wire: Wire | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, uid: str) -> Session:
        return await self._perform(self._core.open(SessionRequest.checked(uid, "unread", None)))

    async def poll(self, timeout_s: float) -> list[Any]:
        deadline = time.monotonic() + timeout_s
        async with self._lock:
            self._core.confirm()
        while True:
            await self._perform(self._core.step())
            if not self._core.has_events():
                await self._wait(min(deadline, self._core.due()) - time.monotonic())
            if self._core.has_events() or time.monotonic() >= deadline:
                return self._core.take()

    async def close(self) -> None:
        await self._perform(self._core.close())
        await self._unsubscribe()

    async def _perform(self, effects: Effects[Any]) -> Any:
        async with self._lock:
            self._hear()
            answer, error = None, None
            while True:
                try:
                    effect = effects.throw(error) if error else effects.send(answer)
                except StopIteration as end:
                    return end.value
                try:
                    answer, error = await self._perform_one(effect), None
                except ImError as trouble:
                    error = trouble

    async def _perform_one(self, effect: Effect[Any]) -> Any:
        match effect:
            case RedisCalls(calls):
                return await self._ask(calls)
            case StartCalls(calls):
                return asyncio.ensure_future(self._ask(calls))
            case FinishCalls(posted):
                return await posted
            case SqlQuery():
                return await asyncio.to_thread(effect.run, self._chat.system.database)
            case OpenSubscription():
                await self._unsubscribe()
                self._wire = await Wire.to(self._path)
                self._reading = asyncio.ensure_future(self._read(self._wire))
            case ChangeChannels(drop, add) if self._wire:
                self._wire.send(*(("SUNSUBSCRIBE", each) for each in drop), *(("SSUBSCRIBE", each) for each in add))
            case PingSubscription() if self._wire:
                self._wire.send(("PING",))
        return None

    async def _ask(self, calls: list[Call[Any]]) -> list[Any]:
        wire = await Wire.to(self._path)
        try:
            wire.send(*map(command_of, calls))
            return [_decoded(call, await wire.answer()) for call in calls]
        finally:
            wire.close()

    async def _read(self, wire: Wire) -> None:
        heard: PubSubEvent | RedisUnavailable = PubSubEvent(PONG)
        while isinstance(heard, PubSubEvent):
            try:
                kind, channel, *data = await wire.answer()
                heard = PubSubEvent(kind, channel.decode(), data[0] if kind == PUSHED else b"")
            except RedisUnavailable as error:
                heard = error
            self._heard.append(heard)
            self._came.set()

    def _hear(self) -> None:
        came, self._heard = self._heard, []
        self._came.clear()
        for heard in came:
            self._core.subscription_lost(heard) if isinstance(heard, RedisUnavailable) else self._core.handle([heard])

    async def _wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), max(0.0, timeout_s))
        async with self._lock:
            self._hear()

    async def _unsubscribe(self) -> None:
        wire, self._wire = self._wire, None
        if wire and self._reading:
            wire.close()
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._heard = []


def _decoded(call: Call[Any], answer: Any) -> Any:
    if isinstance(answer, Exception):
        return translated(answer, "Redis", call.gid)
    try:
        return call.decode(answer)
    except ImError as error:
        return error


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


def path_of(chat: Chat) -> str:
    return chat.system.settings.redis_url.removeprefix("unix://")


def test_an_asyncio_driver_delivers_messages_acks_and_receipts(chat: Chat) -> None:
    async def story() -> None:
        # Given unacked messages, some of them only in SQL
        chat.create_group("team", ["ann", "bob", "cy"])
        sent = say(chat, "1", "2")
        store(chat)
        chat.system.client.call(trim(chat.system.client.space, "team", msgids.pack(sent[0].msgid)))
        gateway = AsyncGateway(chat, path_of(chat), GatewayOptions(ack_every=2, ack_interval_s=0.05))
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
        gateway = AsyncGateway(chat, path_of(chat), GatewayOptions(ack_interval_s=0.02))
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

    asyncio.run(story())
