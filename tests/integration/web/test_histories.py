"""Random histories of several clients over sockets, while sockets break and the server is killed: all of it is there,
once and in order, and each tally is what a plain list of who has shown what gives."""

import asyncio
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import WebSocketException

from imcore import Chat
from imcore.msgid import pack
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer
from tests.helpers.web_server import WebClient, WebServer

UIDS = ("ann", "bob", "cy", "群")
STEPS = 120


class Person:
    """A client with a database of its own: what it has of each group, what it has shown, and what waits to be sent."""

    def __init__(self, uid: str, url: str) -> None:
        self.uid, self.url = uid, url
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
                after = {gid: messages[-1]["msgid"] for gid, messages in self.has.items()}
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


@pytest.mark.parametrize("seed", range(3))
def test_many_clients_miss_nothing_whatever_is_killed(
    tmp_path: Path, redis: RunningServer, chat: Chat, seed: int
) -> None:
    chance = random.Random(seed)
    gids = [f"h{seed}-{number}" for number in range(2)]
    for gid in gids:
        chat.create_group(gid, UIDS)

    async def story(web: WebServer) -> None:
        # Given
        people = [Person(uid, web.url) for uid in UIDS]
        for person in people:
            await person.online()
        # When
        for number in range(STEPS):
            person = chance.choice(people)
            step = chance.random()
            if step < 0.5:
                person.outbox.append((chance.choice(gids), f"{number}", f"{person.uid}-{number}"))
                await person.flush()
            elif step < 0.75:
                await person.show(chance)
            elif step < 0.95:
                await person.offline()
            else:
                web.kill()
                web = await asyncio.to_thread(web.again)
        # Then each has all, in the one order
        messages = {gid: chat.history("ann", gid, limit=500).messages for gid in gids}
        for person in people:
            await (await person.online()).until(lambda p=person: has_all(p, messages))
            assert {gid: [each["msgid"] for each in person.has[gid]] for gid in gids} == {
                gid: [each.msgid for each in of] for gid, of in messages.items()
            }
            stored = [(gid, each.content) for gid in gids for each in messages[gid] if each.sender_uid == person.uid]
            assert sorted(stored) == sorted(person.sent)
        # And each tally is the number of those who have shown it
        for gid in gids:
            for message in messages[gid]:
                readers = sum(
                    pack(person.shown[gid]) >= pack(message.msgid)
                    for person in people
                    if gid in person.shown and person.uid != message.sender_uid
                )
                await asyncio.to_thread(
                    wait_until, lambda g=gid, m=message, r=readers: chat.tally(g, m.msgid).read == r
                )
        for person in people:
            await person.offline()
        web.kill()

    def has_all(person: Person, messages: dict[str, Any]) -> bool:
        person.take()
        return all(len(person.has[gid]) == len(messages[gid]) for gid in gids)

    with WebServer(tmp_path, redis.url) as web:
        asyncio.run(story(web))
