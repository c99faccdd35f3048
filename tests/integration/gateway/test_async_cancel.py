"""A cancellation at any await of an AsyncGateway loses no event, and leaves no session behind."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from imcore import AsyncChat, AsyncGateway, Chat, NewMessage, Session
from imcore.settings import Settings
from tests.helpers.cancelling import cancel_at_each_await, was_cancelled
from tests.helpers.talk import offset, say

MOST_S = 20.0


@pytest.fixture(autouse=True)
def driver() -> str:
    """These tests are tasks themselves."""
    return "asyncio"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=10, partitions=2)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob", "cyd"])
    return chat


class Heard:
    """What the sessions of a gateway were handed."""

    def __init__(self, gateway: AsyncGateway) -> None:
        self.gateway = gateway
        self.texts: dict[Session, list[str]] = {}

    async def poll(self, timeout_s: float = 0.05) -> None:
        for event in await self.gateway.poll(timeout_s):
            if isinstance(event, NewMessage):
                for session in event.sessions:
                    self.texts.setdefault(session, []).append(event.message.content)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(MOST_S):
            while not condition():
                await self.poll()


def tell(settings: Settings, story: Callable[[AsyncGateway, int], Awaitable[bool]], **options: Any) -> int:
    """Tell a story on fresh connections for each await; return how many there are."""

    async def on_fresh_connections(at: int) -> bool:
        async with AsyncChat.connect(settings=settings) as chat:
            gateway = chat.gateway(**options)
            cancelled = await story(gateway, at)
            await asyncio.wait_for(gateway.close(), MOST_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return cancelled

    return asyncio.run(cancel_at_each_await(on_fresh_connections))


def test_a_cancelled_poll_loses_no_event(chat: Chat, settings: Settings) -> None:
    number = 0

    async def story(gateway: AsyncGateway, at: int) -> bool:
        nonlocal number
        heard = Heard(gateway)
        bob = await gateway.open("bob")
        [before, after] = [str(number), str(number + 1)]
        number += 2
        say(chat, before)

        async def polls() -> None:
            for _ in range(6):
                await heard.poll(0.02)

        # When a poll is cancelled that subscribes, catches up, acks, or only waits
        cancelled = await was_cancelled(polls(), at)
        say(chat, after)
        # Then
        await heard.until(lambda: after in heard.texts.get(bob, []))
        assert heard.texts[bob] == [before, after]
        return cancelled

    assert tell(settings, story, ack_every=1) >= 6
    assert [each.unread for each in chat.unread("bob")] == [0]


def test_a_poll_that_is_cancelled_again_and_again_hands_over_all(chat: Chat, settings: Settings) -> None:
    async def story() -> None:
        async with AsyncChat.connect(settings=settings) as fresh, fresh.gateway(ack_every=2) as gateway:
            heard = Heard(gateway)
            bob = await gateway.open("bob")
            texts = [str(number) for number in range(60)]
            for number, text in enumerate(texts):
                await fresh.send("team", text, sender_uid="ann")
                poll = asyncio.ensure_future(heard.poll())
                for _ in range(number % 13):
                    await asyncio.sleep(0)
                poll.cancel()
                await asyncio.wait([poll])
            await heard.until(lambda: len(heard.texts.get(bob, [])) >= 60)
            assert heard.texts[bob] == texts

    asyncio.run(story())
    assert [each.unread for each in chat.unread("bob")] == [0]


def test_a_cancelled_open_leaves_no_session(chat: Chat, settings: Settings) -> None:
    async def story(gateway: AsyncGateway, at: int) -> bool:
        heard = Heard(gateway)
        await gateway.open("ann")
        # When
        cancelled = await was_cancelled(gateway.open("bob"), at)
        # Then
        if cancelled:
            await heard.until(lambda: not gateway._opening and len(gateway._core.sessions) == 1)  # type: ignore[union-attr]
            await heard.until(lambda: chat.online(["ann", "bob"]) == {"ann"})
        bob = await gateway.open("bob")
        say(chat, "hi")
        await heard.until(lambda: "hi" in heard.texts.get(bob, []))
        return cancelled

    assert tell(settings, story) >= 1


def test_a_cancelled_end_ends_the_session_all_the_same(chat: Chat, settings: Settings) -> None:
    async def story(gateway: AsyncGateway, at: int) -> bool:
        heard = Heard(gateway)
        ann, bob = await gateway.open("ann"), await gateway.open("bob")
        [message] = say(chat, "hi")
        await heard.until(lambda: "hi" in heard.texts.get(bob, []) and "hi" in heard.texts.get(ann, []))
        # When
        cancelled = await was_cancelled(gateway.end(bob), at)
        # Then what was handed over is acked
        await heard.until(lambda: chat.online(["ann", "bob"]) == {"ann"})
        await heard.until(lambda: offset(chat, "bob") == message.msgid)
        return cancelled

    assert tell(settings, story, ack_interval_s=3600) >= 1


def test_a_cancelled_close_ends_all_sessions_all_the_same(chat: Chat, settings: Settings) -> None:
    async def story(gateway: AsyncGateway, at: int) -> bool:
        heard = Heard(gateway)
        bob = await gateway.open("bob")
        [message] = say(chat, "hi")
        await heard.until(lambda: "hi" in heard.texts.get(bob, []))
        # When
        cancelled = await was_cancelled(gateway.close(), at)
        # Then
        async with asyncio.timeout(MOST_S):
            while chat.online(["bob"]) or offset(chat, "bob") != message.msgid:
                await asyncio.sleep(0.01)
        return cancelled

    assert tell(settings, story, ack_interval_s=3600) >= 1


def test_many_open_poll_and_end_at_once_while_some_are_cancelled(chat: Chat, settings: Settings) -> None:
    # Given
    uids = [f"u{number}" for number in range(60)]
    chat.create_group("many", ["ann", *uids])

    async def live(gateway: AsyncGateway, uid: str, sessions: dict[Session, str]) -> None:
        session = await gateway.open(uid)
        sessions[session] = uid
        await asyncio.sleep(3600)

    async def story() -> None:
        async with AsyncChat.connect(settings=settings) as fresh, fresh.gateway(ack_every=1) as gateway:
            heard = Heard(gateway)
            sessions: dict[Session, str] = {}
            # When every third one gives up at once or a little later
            tasks = [asyncio.ensure_future(live(gateway, uid, sessions)) for uid in uids]
            for number, task in enumerate(tasks):
                if number % 3 == 0:
                    for _ in range(number % 5):
                        await asyncio.sleep(0)
                    task.cancel()
            await heard.until(lambda: len([uid for uid in sessions.values() if int(uid[1:]) % 3]) == 40)
            stay = {session for session, uid in sessions.items() if int(uid[1:]) % 3}
            await fresh.send("many", "hi", sender_uid="ann")
            # Then the others hear all
            await heard.until(lambda: all(heard.texts.get(session) == ["hi"] for session in stay))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    asyncio.run(story())
    assert chat.online(uids) == set()
