"""On a cluster a silent node holds up the partitions that it has, and no others."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from redis.cluster import RedisCluster

from imcore import AsyncChat, AsyncGateway, Chat, Ended, Joined, NewMessage, Session
from imcore import msgid as msgids
from imcore.errors import InvalidInput, TryAgain
from imcore.settings import Settings
from imcore.streams.calls import group_calls
from tests.helpers.servers import RunningCluster
from tests.helpers.talk import say_many

MOST_S = 30.0
PROMPT_S = 5.0
"""What is not held up is much faster, and what is held up takes longer; a busy machine lies between."""
UIDS = [f"u{number}" for number in range(5)]


@pytest.fixture(autouse=True)
def driver() -> str:
    """Only the gateway under asyncio has several lanes."""
    return "asyncio"


@dataclass
class Halves:
    """A group in each partition, by the node that one stops: those of the others, and its own."""

    pid: int
    sound: list[str]
    silent: list[str]
    silent_partitions: tuple[int, ...]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def other(cluster: str, tmp_path: Path) -> Iterator[Chat]:
    """The chat of another process, whose connections are open."""
    with Chat.connect(settings=Settings.from_env({}, redis_url=cluster, data_dir=str(tmp_path))) as chat:
        for gid in group_names(chat).values():
            chat.create_group(gid, UIDS)
        yield chat


@pytest.fixture(params=range(3))
def halves(request: pytest.FixtureRequest, cluster_servers: RunningCluster, other: Chat) -> Halves:
    server = cluster_servers.nodes[request.param]
    with redis.Redis.from_url(server.url) as node:
        port = int(node.config_get("port")["port"])
    driver, space = other.system.client.driver, other.system.client.space
    assert isinstance(driver, RedisCluster)
    silent = {p for p in range(space.partitions) if driver.get_node_from_key(space.journal(p)).port == port}
    gids = group_names(other)
    return Halves(
        server.pid,
        [gid for p, gid in gids.items() if p not in silent],
        [gid for p, gid in gids.items() if p in silent],
        tuple(sorted(silent)),
    )


def group_names(chat: Chat) -> dict[int, str]:
    """Return the name of a group for each partition."""
    space = chat.system.client.space
    names = {space.partition_of(f"g{number}"): f"g{number}" for number in range(200)}
    return dict(sorted(names.items()))


class Heard:
    """What sessions of a gateway were handed; how long its longest poll took."""

    def __init__(self, gateway: AsyncGateway) -> None:
        self.gateway = gateway
        self.msgids: dict[Session, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.joined: dict[Session, set[str]] = defaultdict(set)
        self.longest_s = 0.0

    async def poll(self) -> None:
        begun = time.monotonic()
        events = await self.gateway.poll(0.1)
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        for event in events:
            for session in event.sessions:
                if isinstance(event, NewMessage):
                    self.msgids[session][event.message.gid].append(event.message.msgid)
                elif isinstance(event, Joined):
                    self.joined[session].add(event.gid)

    async def until(self, condition: Callable[[], object], most_s: float = MOST_S) -> None:
        give_up = time.monotonic() + most_s
        while not condition():
            assert time.monotonic() < give_up, f"not so within {most_s} s"
            await self.poll()

    def has(self, session: Session, sent: dict[str, list[str]]) -> bool:
        """Return whether a session has exactly these messages of these groups, in order."""
        return all(self.msgids[session][gid] == own for gid, own in sent.items())


def story_of(cluster: str, tmp_path: Path, story: Callable[[AsyncChat], Awaitable[Any]]) -> None:
    async def whole() -> None:
        settings = Settings.from_env({}, redis_url=cluster, data_dir=str(tmp_path))
        async with AsyncChat.connect(settings=settings) as chat:
            await story(chat)

    asyncio.run(whole())


async def promptly(work: Awaitable[Any]) -> Any:
    begun = time.monotonic()
    try:
        return await work
    finally:
        assert time.monotonic() - begun < PROMPT_S


def offsets(chat: Chat, gid: str) -> set[int | None]:
    client = chat.system.client
    return {client.call(group_calls.offset(client.space, gid, uid)) for uid in UIDS}


def test_sound_partitions_go_on_while_a_node_is_silent(
    cluster: str, tmp_path: Path, other: Chat, halves: Halves
) -> None:
    sent: dict[str, list[str]] = defaultdict(list)

    def say(gids: list[str]) -> None:
        for gid in gids:
            sent[gid] += say_many(other, 3, gid=gid, sender="u0")

    async def story(chat: AsyncChat) -> None:
        async with chat.gateway(ack_interval_s=0.05) as gateway:
            # Given sessions whose acks are due
            heard = Heard(gateway)
            sessions = [await gateway.open(uid) for uid in UIDS]
            assert all(session.silent == () for session in sessions)
            say(halves.sound + halves.silent)
            await heard.until(lambda: all(heard.has(session, sent) for session in sessions))
            say(halves.silent)
            heard.longest_s = 0.0
            # When
            with halves.stopped():
                for _ in range(3):
                    say(halves.sound)
                    now = {gid: sent[gid] for gid in halves.sound}
                    await heard.until(lambda now=now: all(heard.has(each, now) for each in sessions), PROMPT_S)  # type: ignore[misc]
                # Then
                for gid in halves.sound:
                    await heard.until(lambda gid=gid: len(offsets(other, gid)) == 1, PROMPT_S)  # type: ignore[misc]
                await promptly(gateway.end(sessions[-1]))
                assert heard.longest_s < PROMPT_S
            # And what was silent catches up
            ended = sessions.pop()
            before = {gid: list(own) for gid, own in heard.msgids[ended].items()}
            say(halves.sound + halves.silent)
            await heard.until(lambda: all(heard.has(session, sent) for session in sessions))
            assert heard.msgids[ended] == before
            await heard.poll()
            assert all(heard.has(session, sent) for session in sessions)

    story_of(cluster, tmp_path, story)


def test_a_session_that_begins_while_a_node_is_silent_gets_its_groups_later(
    cluster: str, tmp_path: Path, other: Chat, halves: Halves
) -> None:
    space = other.system.client.space
    uid = next(uid for uid in UIDS if space.partition_of(uid) not in halves.silent_partitions)
    sent: dict[str, list[str]] = {}

    async def story(chat: AsyncChat) -> None:
        async with chat.gateway() as gateway:
            heard = Heard(gateway)
            first = await gateway.open(UIDS[0])
            sender = next(each for each in UIDS if each != uid)
            for gid in halves.sound + halves.silent:
                sent[gid] = say_many(other, 3, gid=gid, sender=sender)
            await heard.until(lambda: heard.has(first, sent))
            with halves.stopped():
                # When
                session = await promptly(gateway.open(uid))
                # Then
                assert session.silent == halves.silent_partitions
                assert set(session.starts) == set(halves.sound)
                now = {gid: sent[gid] for gid in halves.sound}
                await heard.until(lambda: heard.has(session, now), PROMPT_S)
                assert not heard.joined[session]
            await heard.until(lambda: heard.has(session, sent))
            assert session.silent == ()
            assert heard.joined[session] == set(halves.silent)
            assert set(session.starts) == set(sent)

    story_of(cluster, tmp_path, story)


def test_acks_of_sound_partitions_are_sent_at_once(cluster: str, tmp_path: Path, other: Chat, halves: Halves) -> None:
    sound, silent = halves.sound[0], halves.silent[0]

    async def story(chat: AsyncChat) -> None:
        async with chat.gateway(acks="client", ack_interval_s=60.0) as gateway:
            heard = Heard(gateway)
            session = await gateway.open("u1")
            sent = {gid: say_many(other, 2, gid=gid, sender="u0") for gid in (sound, silent)}
            await heard.until(lambda: heard.has(session, sent))
            with halves.stopped():
                gateway.received(session, sound, sent[sound][-1])
                await promptly(gateway.send_acks(session))
                assert len(offsets(other, sound)) == 2
                gateway.received(session, silent, sent[silent][-1])
                with pytest.raises(TryAgain, match="partition"):
                    await promptly(gateway.send_acks(session))
            await gateway.send_acks(session)
            assert len(offsets(other, silent)) == 2

    story_of(cluster, tmp_path, story)


def test_a_gateway_closes_while_a_node_is_silent(
    cluster: str, tmp_path: Path, other: Chat, halves: Halves, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(chat: AsyncChat) -> None:
        gateway = chat.gateway(ack_interval_s=60.0)
        heard = Heard(gateway)
        session = await gateway.open("u1")
        gids = [halves.sound[0], halves.silent[0]]
        sent = {gid: say_many(other, 2, gid=gid, sender="u0") for gid in gids}
        await heard.until(lambda: heard.has(session, sent))
        with halves.stopped():
            await promptly(gateway.close())
            assert len(offsets(other, halves.sound[0])) == 2
        assert "what was not acked comes again" in caplog.text

    story_of(cluster, tmp_path, story)


def test_events_of_several_lanes_are_taken_back_together(cluster: str, tmp_path: Path, other: Chat) -> None:
    gids = list(group_names(other).values())

    async def story(chat: AsyncChat) -> None:
        async with chat.gateway(ack_interval_s=60.0) as gateway:
            session = await gateway.open("u1")
            heard = Heard(gateway)
            sent = {gid: say_many(other, 2, gid=gid, sender="u0") for gid in gids}
            await heard.until(lambda: heard.has(session, sent))
            await gateway.poll(0.0)
            more = {gid: say_many(other, 2, gid=gid, sender="u0") for gid in gids}
            events: list[Any] = []
            while len(events) < 2 * len(gids):
                gateway.requeue(len(events))
                events = await gateway.poll(0.1)
            # When all but the first are taken back, they come again, and in order
            with pytest.raises(InvalidInput):
                gateway.requeue(len(events) + 1)
            gateway.requeue(5)
            gateway.requeue(len(events) - 6)
            assert await gateway.poll(0.1) == events[1:]
            gateway.requeue(len(events) - 1)
            await gateway.end(session)
            # Then those are not acked
            [first] = [event.message for event in events[:1]]
            client = other.system.client
            acked = {gid: client.call(group_calls.offset(client.space, gid, "u1")) for gid in gids}
            assert acked == {gid: msgids.pack(first.msgid if gid == first.gid else sent[gid][-1]) for gid in gids}
            assert more[first.gid][0] == first.msgid

    story_of(cluster, tmp_path, story)


def test_a_session_of_an_erased_user_ends_in_all_lanes(cluster: str, tmp_path: Path, other: Chat) -> None:
    gids = list(group_names(other).values())

    async def story(chat: AsyncChat) -> None:
        async with chat.gateway() as gateway:
            session, stays = await gateway.open("u1"), await gateway.open("u2")
            heard = Heard(gateway)
            await heard.until(lambda: session.is_synced and stays.is_synced)
            # When the lane of the user learns of it with a heartbeat
            core, lanes = cast("Any", gateway._core), cast("Any", gateway._lanes)
            home = lanes._lanes[other.system.client.space.partition_of("u1")]
            await home.run(lambda own: own._erased(core.home(session)))
            sent = {gid: say_many(other, 2, gid=gid, sender="u0") for gid in gids}
            ended: list[Session] = []
            while not ended:
                events = await gateway.poll(0.1)
                ended += [each for event in events if isinstance(event, Ended) for each in event.sessions]
                for event in events:
                    if isinstance(event, NewMessage):
                        for each in event.sessions:
                            heard.msgids[each][event.message.gid].append(event.message.msgid)
            # Then nothing comes after that
            before = {gid: list(own) for gid, own in heard.msgids[session].items()}
            assert ended == [session]
            await heard.until(lambda: heard.has(stays, sent))
            await heard.until(lambda: all(len(each.sessions) == 1 for each in core._cores))
            assert heard.msgids[session] == before
            assert list(core.sessions) == [stays]
            await gateway.end(session)

    story_of(cluster, tmp_path, story)
