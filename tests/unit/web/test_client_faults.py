"""Clients and what fails half-way: a connect whose answer does not come about, and what must not come before it."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from imcore.errors import RedisUnavailable, TryAgain
from tests.helpers.web import T1, FakeSocket, Setup, notification, request, token, with_setup
from tests.unit.web.test_client import news


def bearer() -> dict[str, str]:
    """Headers of a handshake, with a token."""
    return {"authorization": f"Bearer {token()}"}


class Gated:
    """Answers the query for the name of the data once it may; fails as often as is said before. No user was erased."""

    def __init__(self, setup: Setup, failures: int = 0) -> None:
        self.failures = failures
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()
        setup.chat.performer = self  # type: ignore[assignment]

    async def perform(self, effects: Generator[Any, Any, Any]) -> Any:
        effects.close()
        if effects.__name__ != "dataset":
            return {}
        self.asked += 1
        await self.open.wait()
        if self.asked <= self.failures:
            raise RedisUnavailable("no answer")
        return "data"


async def begun_connect(setup: Setup, failures: int = 0) -> tuple[FakeSocket, Gated]:
    """Return a client whose session has begun, while the answer to its connect waits."""
    gated = Gated(setup, failures)
    gated.open.clear()
    socket = setup.client()
    assert socket.client
    socket.client.received(request("connect", token=token()))
    while not gated.asked:
        await asyncio.sleep(0)
    return socket, gated


def test_a_connect_that_failed_may_be_repeated_and_nothing_came_of_it() -> None:
    async def story(setup: Setup) -> None:
        # Given a connect whose session has begun, and whose answer does not come about
        socket, gated = await begun_connect(setup, failures=1)
        await setup.push(news(setup, "lost"))
        gated.open.set()
        [refused] = await setup.ask(socket)
        assert refused["error"]["data"] == {"error": "RedisUnavailable", "retry": True}
        assert setup.gateway.calls == [("end", "ann")]
        # When what its session still brings comes, and the client connects again
        await setup.push(news(setup, "lost, too"))
        setup.gateway.sessions.clear()
        [answer] = await setup.ask(socket, request("connect", token=token(), after={"team": T1}, most=5))
        # Then it is as if it were the first time
        assert answer["result"]["uid"] == "ann"
        assert setup.gateway.options["after"] == {"team": T1}
        await setup.push(news(setup, "found"))
        assert [each["params"]["content"] for each in socket.sent[2:]] == ["found"]

    with_setup(story, user_sockets=1)


def test_no_other_answer_lets_notifications_pass_before_that_of_connect() -> None:
    async def story(setup: Setup) -> None:
        # Given a client that is known by its header, and a call beside its connect
        gated = Gated(setup)
        gated.open.clear()
        socket = setup.client(bearer())
        await setup.ask(socket)
        assert socket.client
        setup.chat.gate.clear()
        socket.client.received(request("group", 1, gid="team"))
        socket.client.received(request("connect", 2))
        while not gated.asked:
            await asyncio.sleep(0)
        await setup.push(news(setup))
        # When that call is answered first
        setup.chat.gate.set()
        while not socket.frames:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        # Then the message waits for the other one
        assert [each.get("id") for each in socket.sent] == [1]
        gated.open.set()
        await setup.ask(socket)
        assert [each.get("id") for each in socket.sent] == [1, 2, None]

    with_setup(story)


def test_a_session_is_paused_while_much_waits_for_the_answer_of_connect() -> None:
    async def story(setup: Setup) -> None:
        socket, gated = await begun_connect(setup)
        await setup.push(*(news(setup, "x" * 1000) for _ in range(20)))
        assert setup.gateway.calls == [("pause", "ann")]
        gated.open.set()
        await setup.ask(socket)
        assert len(socket.frames) == 21
        assert setup.gateway.calls == [("pause", "ann"), ("resume", "ann")]

    with_setup(story, max_buffered_bytes=40_000)


def test_a_session_begins_once_its_socket_has_room() -> None:
    async def story(setup: Setup) -> None:
        socket = setup.client(bearer())
        await setup.ask(socket)
        socket.is_full = True
        await setup.ask(socket, request("group", 1, gid="team"))
        assert socket.client
        socket.client.received(request("connect", 2))
        await asyncio.sleep(0.01)
        assert socket.client.session is None
        socket.drain()
        await setup.ask(socket)
        assert [each["id"] for each in socket.sent] == [1, 2]

    with_setup(story)


def test_an_ack_of_null_is_one_without_a_msgid() -> None:
    async def story(setup: Setup) -> None:
        socket = await setup.connected()
        await setup.ask(socket, notification("ack", gid="team", msgid=None))
        assert setup.chat.log == [("ack", "ann", "team", None)]

    with_setup(story)


def test_a_client_that_is_gone_before_it_connects_leaves_nothing() -> None:
    async def story(setup: Setup) -> None:
        socket = setup.client()
        assert socket.client
        socket.client.received(request("connect", token=token()))
        socket.client.lost()
        await setup.ask(socket)
        assert setup.gateway.sessions == []
        assert socket.client._expiry._timer is None

    with_setup(story)


def test_a_client_that_comes_while_the_server_ends_is_told() -> None:
    async def story(setup: Setup) -> None:
        socket, gated = setup.client(), Gated(setup)
        setup.hub.is_stopping = True
        assert setup.client().closed == (1001, "the server ends")
        # And no session begins any more for one that was there
        assert socket.client
        with pytest.raises(TryAgain, match="the server ends"):
            await setup.hub.open(socket.client, "ann")
        assert (setup.gateway.sessions, gated.asked) == ([], 0)
        setup.hub.is_stopping = False

    with_setup(story)
