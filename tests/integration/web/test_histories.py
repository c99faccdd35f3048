"""Random histories of several clients over sockets, while sockets break and the server is killed: all of it is there,
once and in order, and each tally is what a plain list of who has shown what gives."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import WebSocketException

from imcore import Chat, Message
from imcore.msgid import pack
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer
from tests.helpers.web_server import WebClient, WebServer

UIDS = ("ann", "bob", "cy", "群")
STEPS = 120


class Person:
    """A client with a database of its own: what it has of each group, what it has shown, and what waits to be sent."""

    def __init__(self, uid: str, url: str, gids: list[str]) -> None:
        self.uid, self.url, self.gids = uid, url, gids
        self.has: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.shown: dict[str, str] = {}
        self.outbox: list[tuple[str, str, str]] = []
        self.sent: list[tuple[str, str]] = []
        self._client: WebClient | None = None
        self._taken = 0

    async def online(self) -> WebClient:
        """Connect, if not connected, from what it has; and repeat its acks."""
        if self._client and not self._client.closed:
            return self._client
        await self.offline()
        for _ in range(200):
            client = WebClient(self.url, self.uid)
            try:
                await client.__aenter__()
                after = {gid: self.has[gid][-1]["msgid"] if self.has[gid] else "0-0" for gid in self.gids}
                await client.connect(after=after)
            except (OSError, AssertionError, TimeoutError, WebSocketException):
                await asyncio.sleep(0.05)
                continue
            self._client, self._taken = client, 0
            for gid, msgid in self.shown.items():
                await client.notify("ack", gid=gid, msgid=msgid)
            return client
        raise AssertionError("the server does not come back")

    async def offline(self) -> None:
        """Lose the connection."""
        client, self._client = self._client, None
        if client:
            self._take(client)
            client.transport.abort()
            await client.__aexit__(None, None, None)

    def take(self) -> None:
        """Keep what has come."""
        if self._client:
            self._take(self._client)

    def _take(self, client: WebClient) -> None:
        for message in client.notices("message")[self._taken :]:
            self._taken += 1
            if message["gid"] not in self.gids:  # another test's
                continue
            messages = self.has[message["gid"]]
            assert not messages or pack(messages[-1]["msgid"]) < pack(message["msgid"]), "a double, or out of order"
            messages.append(message)

    async def flush(self) -> None:
        """Send what waits, until the server has confirmed it."""
        while self.outbox:
            gid, content, client_msgid = self.outbox[0]
            client = await self.online()
            try:
                await client.call("send", gid=gid, content=content, client_msgid=client_msgid)
            except (AssertionError, WebSocketException):
                if not client.closed:
                    raise
                continue
            self.sent.append((gid, content))
            self.outbox.pop(0)

    def has_as_many(self, messages: Mapping[str, Sequence[Message]]) -> bool:
        self.take()
        return all(len(self.has[gid]) >= len(of) for gid, of in messages.items())

    def has_shown(self, message: Message) -> bool:
        return message.gid in self.shown and pack(self.shown[message.gid]) >= pack(message.msgid)

    async def show(self, chance: random.Random) -> None:
        """Show a message of a group, and say so."""
        self.take()
        for gid, messages in self.has.items():
            if messages and chance.random() < 0.5:
                msgid = chance.choice(messages)["msgid"]
                if pack(msgid) > pack(self.shown.get(gid, "1577836800000-1")):
                    self.shown[gid] = msgid
                if self._client:
                    await self._client.notify("ack", gid=gid, msgid=msgid)


class Play:
    """People in two groups, and a server that is killed now and then."""

    def __init__(self, web: WebServer, chat: Chat, gids: list[str], seed: int) -> None:
        self.web, self.chat, self.gids = web, chat, gids
        self.chance = random.Random(seed)
        self.people = [Person(uid, web.url, gids) for uid in UIDS]

    async def step(self, number: int) -> None:
        person, step = self.chance.choice(self.people), self.chance.random()
        if step < 0.5:
            person.outbox.append((self.chance.choice(self.gids), f"{number}", f"{person.uid}-{number}"))
            await person.flush()
        elif step < 0.75:
            await person.show(self.chance)
        elif step < 0.95:
            await person.offline()
        else:
            self.web.kill()
            self.web = await asyncio.to_thread(self.web.again)

    async def check(self) -> None:
        """Compare what everybody has with what the server has stored, and the tallies with what everybody has shown."""
        messages = {gid: self.chat.history("ann", gid, limit=500).messages for gid in self.gids}
        for person in self.people:
            client = await person.online()
            await client.until(lambda p=person: p.has_as_many(messages))
            for gid in self.gids:
                assert [each["msgid"] for each in person.has[gid]] == [each.msgid for each in messages[gid]]
            said = [each for of in messages.values() for each in of if each.sender_uid == person.uid]
            assert sorted((each.gid, each.content) for each in said) == sorted(person.sent)
        for message in [each for of in messages.values() for each in of]:
            readers = sum(person.has_shown(message) for person in self.people if person.uid != message.sender_uid)
            tally = partial(self.chat.tally, message.gid, message.msgid)
            await asyncio.to_thread(wait_until, lambda t=tally, r=readers: t().read == r)

    async def end(self) -> None:
        for person in self.people:
            await person.offline()
        self.web.kill()


@pytest.mark.parametrize("seed", range(3))
def test_many_clients_miss_nothing_whatever_is_killed(
    tmp_path: Path, redis: RunningServer, chat: Chat, seed: int
) -> None:
    gids = [f"h{seed}-{number}" for number in range(2)]
    for gid in gids:
        chat.create_group(gid, UIDS)

    async def story(play: Play) -> None:
        try:
            for person in play.people:
                await person.online()
            for number in range(STEPS):
                await play.step(number)
            await play.check()
        finally:
            await play.end()

    asyncio.run(story(Play(WebServer(tmp_path, redis.url), chat, gids, seed)))
