"""A node of a cluster that is silent, whichever it is: who needs the others goes on."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from imcore import AsyncChat, Chat
from imcore.errors import ImError, RedisUnavailable
from imcore.settings import Settings
from imcore.streams.aio.pubsub import AsyncSubscription
from imcore.streams.client import RedisClient
from imcore.streams.cluster import server_of
from imcore.streams.pubsub import Subscription, Waker
from imcore.streams.rounds import OTHERS_S
from tests.helpers.servers import RunningCluster, RunningServer, require_server, start_cluster

NODES = range(3)
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
    database_url = f"sqlite:///{tmp_path / 'imcore.db'}"
    url = running.url_of_all
    return Settings.from_env({}, data_dir=str(tmp_path), redis_url=url, database_url=database_url)


@cache
def port_of(node: RunningServer) -> int:
    return node.port


def gid_on(client: RedisClient, node: RunningServer, *, elsewhere: bool = False) -> str:
    """Return a gid whose data is on a node, or elsewhere."""
    port = port_of(node)
    return next(gid for gid in map(str, range(1000)) if (place_of(client, gid) == port) != elsewhere)


def place_of(client: RedisClient, gid: str) -> int:
    server = server_of(client.driver, client.space.group(gid).meta)
    return int(server.connection_pool.connection_kwargs["port"])


@pytest.mark.parametrize("silent", NODES)
def test_a_new_client_sends_to_the_nodes_that_answer(settings: Settings, running: RunningCluster, silent: int) -> None:
    # Given a group elsewhere than on the silent node
    with Chat.connect(settings=settings) as chat:
        gid = gid_on(chat.system.client, running.nodes[silent], elsewhere=True)
        chat.create_group(gid, ["ann", "bob"])
    with running.nodes[silent].halted():
        # When a client begins, which knows nothing of the cluster
        begun = time.monotonic()
        with Chat.connect(settings=settings) as chat:
            sent = chat.send(gid, "hello", sender_uid="ann")
            tally = chat.tally(gid, sent.msgid)
        # Then it is done at once
        assert tally.unread == 1
        assert time.monotonic() - begun < SOON_S


@pytest.mark.parametrize("silent", NODES)
def test_a_client_that_begins_with_an_empty_cluster_finds_its_functions_later(
    settings: Settings, running: RunningCluster, silent: int
) -> None:
    # Given a worker's client that begins while a node is silent
    client = RedisClient.connect(settings)
    with running.nodes[silent].halted():
        client.upgrade()
    # When that node is asked, after it has come back
    with Chat.connect(settings=settings) as chat:
        gid = gid_on(client, running.nodes[silent])
        chat.create_group(gid, ["ann", "bob"])
        # Then it has the functions by then
        assert chat.send(gid, "hello", sender_uid="ann").seq == 1
    client.close()


@pytest.mark.parametrize("silent", NODES)
def test_the_answers_of_others_do_not_wait_for_a_silent_node(
    settings: Settings, running: RunningCluster, silent: int
) -> None:
    client = RedisClient.connect(settings)
    client.upgrade()
    queries = [("EXISTS", journal) for journal in client.space.journals()]
    with running.nodes[silent].halted():
        begun = time.monotonic()
        answers = client.query_each(queries, others_s=OTHERS_S)
        took_s = time.monotonic() - begun
    lost = [answer for answer in answers if isinstance(answer, ImError)]
    # All who are asked at the silent node are told so, with its name; nobody else
    assert {type(error) for error in lost} == {RedisUnavailable}
    assert all(f"127.0.0.1:{port_of(running.nodes[silent])}:" in str(error) for error in lost)
    assert 0 < len(lost) < len(answers)
    assert took_s < SOON_S
    client.close()


@pytest.mark.parametrize("silent", NODES)
def test_a_call_to_a_silent_node_ends_in_its_time(settings: Settings, running: RunningCluster, silent: int) -> None:
    hasty = Settings.from_env(
        {"IM_CALL_TIMEOUT_MS": "2000"},
        data_dir=str(settings.data_dir),
        redis_url=settings.redis_url,
        database_url=settings.database_url,
    )
    with Chat.connect(settings=hasty) as chat:
        gid = gid_on(chat.system.client, running.nodes[silent])
        chat.create_group(gid, ["ann", "bob"])
        with running.nodes[silent].halted():
            begun = time.monotonic()
            with pytest.raises(RedisUnavailable, match=f"127.0.0.1:{port_of(running.nodes[silent])}"):
                chat.send(gid, "hello", sender_uid="ann", client_msgid="c-1")
            assert time.monotonic() - begun < 2 * 2 + SOON_S
        # Repeated, it is stored once
        assert chat.send(gid, "hello", sender_uid="ann", client_msgid="c-1").seq == 1


def test_a_node_that_is_down_is_passed_over_at_the_beginning(settings: Settings) -> None:
    nobody = settings.redis_url.replace("redis+cluster://", "redis+cluster://127.0.0.1:1,")
    client = RedisClient.connect(Settings.from_env({}, data_dir=str(settings.data_dir), redis_url=nobody))
    client.upgrade()
    assert client.query("EXISTS", client.space.journal(0)) == 0
    client.close()


def test_a_partition_that_was_silent_has_its_copy_of_the_configuration_later(settings: Settings) -> None:
    # Given data of which some partitions have no copy of the configuration
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann", "bob"])
        copies = [chat.system.client.space.config(p) for p in range(chat.system.client.space.partitions)]
    client = RedisClient.connect(settings)
    for copy in copies[1::2]:
        server_of(client.driver, copy).delete(copy)
    # When a worker begins
    client.upgrade()
    # Then each partition has its copy
    assert client.query_many([("HGET", copy, "partitions") for copy in copies]) == [b"8"] * len(copies)
    client.close()


def read_on(subscription: Subscription) -> None:
    with closing(Waker()) as waker:
        while True:
            subscription.read(0.1, waker)


def test_a_subscription_names_the_node_that_it_has_lost(tmp_path: Path) -> None:
    require_server()
    cluster = start_cluster(tmp_path)
    try:
        client = RedisClient.connect(Settings.from_env({}, data_dir=str(tmp_path), redis_url=cluster.url))
        client.upgrade()
        space, node = client.space, cluster.nodes[1]
        name = f"redis+cluster://127.0.0.1:{port_of(node)}"
        channel = space.group(gid_on(client, node)).channel
        sounds = space.group(gid_on(client, node, elsewhere=True)).channel
        # Given subscriptions at this node, and ones that are elsewhere
        listening, elsewhere = Subscription(client), Subscription(client)
        listening.change([], [channel])
        elsewhere.change([], [sounds])

        async def story() -> str:
            async with AsyncChat.connect(settings=Settings.from_env({}, redis_url=cluster.url)) as chat:
                heard = AsyncSubscription(chat.performer.client, space, lambda: None)
                await heard.open()
                await heard.change([], [channel])
                node.kill()
                while heard.error is None:
                    await asyncio.sleep(0.01)
                return str(heard.error)

        # When it is gone, each names it
        assert name in asyncio.run(story())
        for each in (lambda: read_on(listening), lambda: elsewhere.change([], [channel])):
            with pytest.raises(RedisUnavailable, match=f"at {re.escape(name)}:"):
                each()
        listening.close()
        elsewhere.close()
        client.close()
    finally:
        cluster.stop()
