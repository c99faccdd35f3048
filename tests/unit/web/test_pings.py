"""Pings: the pong of a client shows that it has what was sent before, and nothing else does."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from imcore import msgid as msgids
from imcore.gateway.fanout import NewMessage
from imcore.web import pings
from tests.helpers.web import T1, T2, FakeSocket, Setup, message, notification, request, with_setup

DELAY_S = 0.02


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pings, "EVERY_S", 3 * DELAY_S)


def play(story: Callable[[Setup], Awaitable[None]]) -> None:
    async def quick(setup: Setup) -> None:
        setup.hub.pings = pings.Pings(DELAY_S)
        await story(setup)

    with_setup(quick)


async def push(setup: Setup, *given: str) -> None:
    recipients = setup.recipients()
    await setup.push(*(NewMessage(recipients, message(msgid), msgids.pack(msgid)) for msgid in given))


async def pinged(socket: FakeSocket, count: int) -> bytes:
    for _ in range(500):
        if len(socket.pings) >= count:
            return socket.pings[-1]
        await asyncio.sleep(DELAY_S / 10)
    raise AssertionError(f"{socket.pings} is less than {count} pings")


def pong(socket: FakeSocket, payload: bytes) -> None:
    assert socket.client
    socket.client.ponged(payload)


def test_a_pong_confirms_what_was_sent_before_its_ping() -> None:
    async def story(setup: Setup) -> None:
        socket = await setup.connected()
        await push(setup, T1)
        payload = await pinged(socket, 1)
        await push(setup, T2)
        assert setup.gateway.arrived == [], "that a write has succeeded is no delivery"
        pong(socket, payload)
        assert setup.gateway.arrived == [("ann", "team", T1)]
        second = await pinged(socket, 2)
        pong(socket, payload)  # again: it says nothing about the second ping
        assert len(setup.gateway.arrived) == 1
        pong(socket, second)
        assert setup.gateway.arrived[1:] == [("ann", "team", T2)]
        await asyncio.sleep(10 * DELAY_S)
        assert len(socket.pings) == 2

    play(story)


def test_a_client_that_confirms_gets_no_pings() -> None:
    async def story(setup: Setup) -> None:
        by_delivered, by_ack = await setup.connected("ann"), await setup.connected("bob")
        private = await setup.connected("ann")
        await push(setup, T2)
        await setup.ask(by_delivered, notification("delivered", gid="team", msgid=T2))
        setup.gateway.sessions[1].known_offsets["team"] = msgids.pack(T2)  # as the gateway notes an ack
        await setup.ask(private, notification("ack", gid="team", msgid=T2, private=True))
        await pinged(private, 1)
        assert (by_delivered.pings, by_ack.pings) == ([], [])
        assert setup.gateway.arrived == [("ann", "team", T2)]
        assert setup.gateway.acked_privately == [("ann", "team", T2)]

    play(story)


def test_who_reads_in_private_gets_pings_as_if_they_had_not_read() -> None:
    async def story(setup: Setup) -> None:
        socket = await setup.connected()
        session = setup.gateway.sessions[0]
        session.known_offsets["team"], session.acks_privately = msgids.pack(T2), True
        await push(setup, T2)
        await pinged(socket, 1)

    play(story)


def test_pings_are_rare_and_end_where_no_pong_comes() -> None:
    async def story(setup: Setup) -> None:
        socket, good = await setup.connected(), await setup.connected("bob")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 15 * DELAY_S:
            await push(setup, T1, T2)
            if good.pings:
                pong(good, good.pings[-1])
            await asyncio.sleep(DELAY_S / 10)
        assert len(socket.pings) == 1
        assert 2 <= len(good.pings) <= 6
        # A pong that comes late counts, and pings go on
        pong(socket, socket.pings[0])
        await pinged(socket, 2)

    play(story)


def test_no_ping_passes_messages_that_wait() -> None:
    async def story(setup: Setup) -> None:
        socket = await setup.connected()
        socket.is_full = True
        await push(setup, T1, T2)
        await asyncio.sleep(5 * DELAY_S)
        assert socket.pings == []
        socket.drain()
        await pinged(socket, 1)

    play(story)


def test_other_pongs_and_those_of_the_dead_say_nothing() -> None:
    async def story(setup: Setup) -> None:
        stranger = setup.client()
        pong(stranger, b"1")
        socket = await setup.connected()
        pong(socket, b"")
        pong(socket, b"0")
        await push(setup, T1)
        payload = await pinged(socket, 1)
        pong(socket, payload + b"0")
        socket.close(1000, "")
        await asyncio.sleep(0.01)
        pong(socket, payload)
        assert setup.gateway.arrived == []

    play(story)


def test_the_methods_about_positions_answer_as_the_commands() -> None:
    async def story(setup: Setup) -> None:
        socket = await setup.connected()
        answers = await setup.ask(
            socket,
            request("mark_unread", 1, gid="team", msgid=T2),
            request("unmark", 2, gid="team"),
            request("ack", 3, gid="team", msgid=T1, private=True),
            request("history", 4, gid="team", before=T2),
            notification("delivered", gid="team", msgid=T1, colour=1),
            notification("ack", gid="team", msgid=T1, private=1),
            notification("mark_unread", gid="team", msgid=T1),
        )
        results = {each["id"]: each.get("result") for each in answers}
        assert set(results) == {1, 2, 3, 4}
        assert results[1] == {"gid": "team", "uid": "ann", "unread": 1}
        assert results[2] == {"gid": "team", "uid": "ann", "unread": 0}
        assert results[3]["last_ack_msgid"] is None
        assert setup.gateway.fetches == [("ann", "team", T2)]
        assert setup.chat.log[-1] == ("mark", "ann", "team", T1)
        assert setup.gateway.arrived == setup.gateway.acked == []

    play(story)


def test_many_clients_that_confirm_the_same_are_taken_together() -> None:
    async def story(setup: Setup) -> None:
        sockets = [await setup.connected(uid) for uid in ("ann", "bob")]
        for _ in range(2):
            for socket in sockets:
                assert socket.client
                socket.client.received(notification("delivered", gid="team", msgid=T1))
        assert setup.gateway.arrived == []
        await asyncio.sleep(0.01)
        assert sorted(setup.gateway.arrived) == [("ann", "team", T1)] * 2 + [("bob", "team", T1)] * 2

    play(story)
