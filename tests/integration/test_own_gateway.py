"""A gateway of one's own, as integrators write it: with a protocol of its own, on any ASGI server."""

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect

from imcore import Chat
from tests.helpers.deadline import wait_until
from tests.helpers.processes import PythonProcess
from tests.helpers.servers import free_ports
from tests.helpers.talk import say
from tests.helpers.workers import deliver_receipts
from tests.house.sources import ROOT

MOST_S = 30.0
OWN_GATEWAY = ROOT / "tests/helpers/own_gateway.py"
MOST_LINES = 225
"""It took 271 lines and a bridge of 84 before `AsyncGateway`."""


class Tab:
    """A client. What it is told is kept by kind."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.told: list[dict[str, Any]] = []

    @classmethod
    async def open(cls, port: int, uid: str, places: dict[str, str] | None = None) -> Self:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/token/{uid}", timeout=MOST_S) as answer:
            token = answer.read().decode()
        tab = cls(await connect(f"ws://127.0.0.1:{port}/ws"))
        await tab.say(token=token, places=places or {})
        return tab

    async def say(self, **what: object) -> None:
        await self._socket.send(json.dumps(what))

    async def hears(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return the first of all that was told that is so."""
        for told in self.told:
            if condition(told):
                return told
        try:
            async with asyncio.timeout(MOST_S):
                while True:
                    self.told.append(json.loads(await self._socket.recv()))
                    if condition(self.told[-1]):
                        return self.told[-1]
        except TimeoutError as error:
            error.add_note(f"told: {self.told}")
            raise

    async def close(self) -> None:
        await self._socket.close()

    async def is_sent_away(self) -> None:
        async with asyncio.timeout(MOST_S):
            await self._socket.wait_closed()

    @property
    def texts(self) -> list[str]:
        return [told["text"] for told in self.told if told["t"] == "msg"]


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def port(chat: Chat, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a gateway that serves the chat."""
    monkeypatch.setenv("APP_JWT_SECRET", "0123456789abcdef0123456789abcdef")
    chat.system.client.upgrade()
    chat.system.database.upgrade()
    [port] = free_ports(1)
    arguments = ("tests.helpers.own_gateway:app", f"--port={port}", "--log-level=warning")
    settings: dict[str, str | int] = {"redis_url": redis_url, "database_url": chat.system.settings.database_url}
    with PythonProcess(tmp_path, "uvicorn", *arguments, **settings, heartbeat_ms=300) as own:
        wait_until(lambda: not own.runs or _answers(port), timeout_s=MOST_S)
        assert own.runs, own.log
        yield port
        assert own.runs, own.log


def test_two_people_talk_over_it_and_see_who_has_read(chat: Chat, port: int) -> None:
    async def story() -> None:
        # Given a group with a message, which bob has not read
        chat.create_group("team", ["ann", "bob", "cy"])
        say(chat, "hello")
        ann, bob = await Tab.open(port, "ann"), await Tab.open(port, "bob")
        await bob.hears(lambda told: told["t"] == "msg" and told["text"] == "hello")
        # When ann writes, and bob sees it on his screen
        await ann.say(t="send", gid="team", text="lunch?", cid="c-1", id=1)
        sent = await ann.hears(lambda told: told.get("id") == 1)
        assert sent["of"] == 2
        await bob.hears(lambda told: told.get("msgid") == sent["msgid"])
        phone = await Tab.open(port, "bob")
        await phone.hears(lambda told: told.get("msgid") == sent["msgid"])
        await bob.say(t="ack", gid="team", msgid=sent["msgid"])
        await asyncio.to_thread(wait_until, lambda: chat.tally("team", sent["msgid"]).read, timeout_s=MOST_S)
        deliver_receipts(chat)
        # Then bob's phone knows it, and ann sees the tick, and who it was
        await phone.hears(lambda told: told["t"] == "position" and told["msgid"] == sent["msgid"])
        await ann.hears(lambda told: told["t"] == "read" and ["team", sent["msgid"], 1, 1] in told["of"])
        await ann.say(t="who", gid="team", msgid=sent["msgid"], id=2)
        who = await ann.hears(lambda told: told.get("id") == 2)
        assert [uid for uid, _ in who["read_by"]] == ["bob"]
        assert who["unread_by"] == ["cy"]
        # And a stranger sees nothing
        eve = await Tab.open(port, "eve")
        await eve.say(t="history", gid="team", id=3)
        assert (await eve.hears(lambda told: told.get("id") == 3))["code"] == "NotMember"
        # And bob goes on where he was
        await bob.close()
        say(chat, "bob?")
        again = await Tab.open(port, "bob", {"team": sent["msgid"]})
        await again.hears(lambda told: told["t"] == "msg" and told["text"] == "bob?")
        assert again.texts == ["bob?"]
        # And an erased user is sent away, others are not
        chat.erase_user("eve")
        await eve.is_sent_away()
        for tab in (ann, again, phone):
            await tab.close()
        await asyncio.to_thread(wait_until, lambda: chat.online(["ann", "bob", "eve"]) == set(), timeout_s=MOST_S)

    asyncio.run(story())


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=MOST_S) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_it_is_short() -> None:
    assert len(OWN_GATEWAY.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
