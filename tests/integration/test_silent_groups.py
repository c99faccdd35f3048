"""What a user is told of all their groups while a node of a cluster is silent."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imcore import Chat
from imcore.settings import Settings
from imcore.streams import configuration
from imcore.streams.client import RedisClient
from imcore.streams.cluster import server_of
from imcore.streams.keys import CONFIG
from imcore.system import System
from tests.helpers.cli import im, let_commands_use
from tests.helpers.servers import RunningCluster, RunningServer, require_server, start_cluster
from tests.helpers.web_server import WebClient, WebServer

SOON_S = 8.0
"""Less than the 10 s for which a silent node holds up a call, and long enough for a busy machine."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    require_server()
    cluster = start_cluster(tmp_path_factory.mktemp("silent"))
    yield cluster
    cluster.stop()


@pytest.fixture
def settings(running: RunningCluster, tmp_path: Path) -> Settings:
    """Settings for an empty cluster, whose URL names all nodes."""
    running.flush()
    return Settings.from_env({}, data_dir=str(tmp_path), redis_url=running.url_of_all)


@pytest.fixture
def chat(settings: Settings) -> Iterator[Chat]:
    """A user `ann` has a group in each partition, with one unread message of bob."""
    with Chat.connect(settings=settings) as chat:
        chat.system.client.upgrade()
        space = chat.system.client.space
        for gid in {space.partition_of(gid): gid for gid in map(str, range(200))}.values():
            chat.create_group(gid, ["ann", "bob"])
            chat.send(gid, "hello", sender_uid="bob")
        yield chat


@dataclass
class Halves:
    """The groups by the node that one stops: those of the others, and its own."""

    node: RunningServer
    sound: set[str]
    silent: set[str]
    partitions: tuple[int, ...]


@pytest.fixture(params=range(3))
def halves(request: pytest.FixtureRequest, running: RunningCluster, chat: Chat) -> Halves:
    node, space = running.nodes[request.param], chat.system.client.space
    port = node.port
    partitions = tuple(p for p in range(space.partitions) if _port_of_key(chat, space.journal(p)) == port)
    assert 0 < len(partitions) < space.partitions
    gids = set(chat.groups_of("ann"))
    silent = {gid for gid in gids if space.partition_of(gid) in partitions}
    return Halves(node, gids - silent, silent, partitions)


def _port_of_key(chat: Chat, key: str) -> int:
    return int(server_of(chat.system.client.driver, key).connection_pool.connection_kwargs["port"])


def test_unread_and_the_inbox_say_what_is_missing(settings: Settings, chat: Chat, halves: Halves) -> None:
    with halves.node.halted():
        begun = time.monotonic()
        # A client that is there, and one that begins now
        with Chat.connect(settings=settings) as new:
            for each in (chat, new):
                counts = each.unread("ann")
                assert counts.silent == halves.partitions
                assert {one.gid: one.unread for one in counts} == dict.fromkeys(halves.sound, 1)
                page = each.inbox("ann")
                assert page.silent == halves.partitions
                assert {entry.gid for entry in page.entries} == halves.sound
                assert (page.groups, page.unread) == (len(halves.sound), len(halves.sound))
        assert time.monotonic() - begun < 2 * SOON_S
    counts, page = chat.unread("ann"), chat.inbox("ann")
    assert counts.silent == page.silent == ()
    assert {one.gid for one in counts} == {entry.gid for entry in page.entries} == halves.sound | halves.silent


def test_commands_show_what_there_is_and_fail(
    settings: Settings, halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    with halves.node.halted():
        for command in ("unread", "inbox"):
            let_commands_use(System(RedisClient.connect(settings), None, settings), monkeypatch)
            result = im("--json", command, "ann")
            assert result.exit_code == 1
            assert all(f'"gid": "{gid}"' in result.stdout for gid in halves.sound)
            assert not any(f'"gid": "{gid}"' in result.stdout for gid in halves.silent)
            assert f"partition {', '.join(map(str, halves.partitions))}" in result.stderr
            assert result.stderr.count("\n") == 1


def test_a_socket_begins_with_the_groups_that_answer(
    settings: Settings, chat: Chat, halves: Halves, tmp_path: Path
) -> None:
    after = {gid: chat.history("ann", gid).messages[-1].msgid for gid in halves.sound | halves.silent}
    uid_node = next(
        uid
        for uid in ("ann", "bob", "cat", "dan")
        if chat.system.client.space.partition_of(uid) not in halves.partitions
    )
    for gid in halves.sound | halves.silent:
        chat.add_members(gid, [uid_node])

    async def story(server: WebServer) -> None:
        with halves.node.halted():
            begun = time.monotonic()
            async with WebClient(server.url, uid_node) as client:
                # When a client connects that has messages of all groups
                answer = await client.connect(after=after)
                # Then it is told of those that answer, at once, and what is missing
                assert answer["silent"] == list(halves.partitions)
                assert {group["gid"] for group in answer["groups"]} == halves.sound
                assert answer["dataset"]
                assert {one["gid"] for one in (await client.call("unread"))[:-1]} == halves.sound
                assert (await client.call("unread"))[-1] == {"silent": list(halves.partitions)}
                assert (await client.call("inbox"))[-1]["silent"] == list(halves.partitions)
                assert time.monotonic() - begun < 2 * SOON_S
                os.kill(halves.node.pid, signal.SIGCONT)
                # When the node is back: of each group
                await client.until(lambda: {each["gid"] for each in client.notices("joined")} == halves.silent)
        async with WebClient(server.url, uid_node) as client:
            answer = await client.connect(after=after)
            assert answer["silent"] == []
            assert {group["gid"]: group["after"] for group in answer["groups"]} == after

    with WebServer(tmp_path, settings.redis_url) as server:
        asyncio.run(story(server))


def test_any_node_knows_the_name_of_the_data(settings: Settings, chat: Chat, halves: Halves) -> None:
    name = configuration.dataset(chat.system.client)
    assert name
    with halves.node.halted():
        client = RedisClient.connect(settings)
        begun = time.monotonic()
        assert configuration.dataset(client) == name
        assert time.monotonic() - begun < SOON_S
        client.close()


def test_data_that_is_lost_is_not_named_by_a_copy(settings: Settings, chat: Chat) -> None:
    client = chat.system.client
    server_of(client.driver, CONFIG).delete(CONFIG)
    assert configuration.dataset(client) is None
    assert configuration.dataset(RedisClient.connect(settings)) is None
