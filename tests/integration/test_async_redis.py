"""The Redis client under asyncio: each kind of connection, and servers that go away, fall silent or change."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore import AsyncChat, Chat, Draft, NewMessage
from imcore.errors import ConfigurationError, ImError, RedisRefuses, RedisUnavailable
from imcore.settings import Settings
from tests.helpers.async_driver import LoopChat
from tests.helpers.deadline import wait_until
from tests.helpers.fake_server import hanging_up
from tests.helpers.gateways import kill_connections, nodes_of
from tests.helpers.servers import (
    RunningCluster,
    RunningServer,
    add_replica,
    free_ports,
    move_slot,
    require_server,
    start_cluster,
    start_valkey,
)
from tests.helpers.tls_proxy import CERTIFICATES, TlsProxy

# The driver forgets sockets of a cluster's nodes when one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

MOST_S = 30.0
PASSWORD = "correct-horse"
AUTHORITY = f"ssl_ca_certs={CERTIFICATES / 'ca.pem'}"
PLACES = [
    "unix",
    "unix?db=3",
    "unix?protocol=3",
    "unix as ann",
    "tls",
    "tls?protocol=3",
    "cluster",
    "cluster?protocol=3",
]


@pytest.fixture
def a_user(valkey: str) -> Iterator[None]:
    with redis.Redis.from_url(valkey) as admin:
        admin.execute_command("ACL", "SETUSER", "ann", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        yield
        admin.execute_command("ACL", "DELUSER", "ann")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, valkey: str, valkey_server: RunningServer) -> Iterator[str]:
    """The URL of a server or cluster, reached in one of several ways."""
    kind, _, options = request.param.partition("?")
    if kind == "tls":
        with TlsProxy(str(valkey_server.server.socket)) as proxy:
            yield f"rediss://127.0.0.1:{proxy.port}?{AUTHORITY}" + (f"&{options}" if options else "")
    elif kind == "unix as ann":
        request.getfixturevalue("a_user")
        yield f"{valkey}?username=ann&password={PASSWORD}"
    else:
        yield f"{valkey if kind == 'unix' else request.getfixturevalue('cluster')}?{options}".rstrip("?")


def settings_of(url: str, tmp_path: Path) -> Settings:
    return Settings.from_env({}, redis_url=url, data_dir=str(tmp_path))


def test_each_kind_of_connection_carries_calls_and_pushes(place: str, tmp_path: Path) -> None:
    texts = [f"{number}" + "x" * 50_000 for number in range(30)]

    async def story() -> None:
        async with AsyncChat.connect(settings=settings_of(place, tmp_path)) as chat:
            # Given a live session
            await chat.create_group("team", ["ann", "bob"])
            async with chat.gateway(ack_every=10) as gateway:
                bob = await gateway.open("bob")
                # When much is sent at once
                sends = [asyncio.ensure_future(chat.send("team", text, sender_uid="ann")) for text in texts]
                heard: list[str] = []
                async with asyncio.timeout(MOST_S):
                    while len(heard) < len(texts):
                        for event in await gateway.poll():
                            if isinstance(event, NewMessage):
                                heard.append(event.message.content)
                sent = await asyncio.gather(*sends)
            # Then
            by_seq = sorted(sent, key=lambda message: message.seq)
            assert heard == [message.content for message in by_seq]
            assert bob.reconnects == 0
            assert [each.unread for each in await chat.unread("bob")] == [0]
            assert [tally.read for tally in await chat.status("team", limit=0)] == [1] * len(texts)

    asyncio.run(story())


def refusal(act: Callable[[], object]) -> tuple[type[ImError], str]:
    with pytest.raises(ImError) as refused:
        act()
    return type(refused.value), str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://127.0.0.1:PORT", "redis+cluster://127.0.0.1:PORT", "unix:///nowhere/redis.sock"),
        *("redis://127.0.0.1:FAKE", "rediss://127.0.0.1:TLS", "VALKEY?username=nobody&password=wrong", "VALKEY?db=999"),
    ],
)
def test_errors_are_those_of_the_synchronous_client(
    url: str, valkey: str, valkey_server: RunningServer, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    with hanging_up(b"SSH-2.0-OpenSSH_9.2\r\n") as fake, TlsProxy(str(valkey_server.server.socket)) as proxy:
        for name, value in (("PORT", port), ("VALKEY", valkey), ("TLS", proxy.port), ("FAKE", fake)):
            url = url.replace(name, str(value))
        settings = settings_of(url, tmp_path)
        with Chat.connect(settings=settings) as chat, LoopChat(settings) as asynchronous:
            expected = refusal(lambda: chat.unread("ann"))
            assert refusal(lambda: asynchronous.unread("ann")) == expected
            assert refusal(lambda: asynchronous.send("team", "hi", sender_uid="ann")) == expected


def test_a_connection_asks_for_nothing_before_the_first_call(tmp_path: Path) -> None:
    AsyncChat.connect("redis+cluster://127.0.0.1:1")
    with pytest.raises(ConfigurationError):
        AsyncChat.connect("http://127.0.0.1:1")


def test_lost_functions_are_loaded_again(valkey: str, tmp_path: Path) -> None:
    with LoopChat(settings_of(valkey, tmp_path)) as chat, redis.Redis.from_url(valkey) as admin:
        chat.create_group("team", ["ann"])
        for text in ("1", "2"):
            admin.execute_command("FUNCTION FLUSH")
            chat.send("team", text, sender_uid="ann")
        assert [message.content for message in chat.pull("ann")] == []
        assert chat.group("team").messages == 2


def test_many_first_calls_at_once_fix_the_data_once(valkey: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with AsyncChat.connect(settings=settings_of(valkey, tmp_path)) as chat:
            groups = await asyncio.gather(*(chat.create_group(f"g{number}", ["ann"]) for number in range(50)))
            assert {group.members for group in groups} == {1}
            assert len(await chat.groups_of("ann")) == 50

    asyncio.run(story())


def test_what_may_be_repeated_is_repeated_over_a_lost_connection(valkey: str, tmp_path: Path) -> None:
    with Chat.connect(valkey) as admin, LoopChat(settings_of(valkey, tmp_path)) as chat:
        chat.create_group("team", ["ann"])
        for number in range(5):
            kill_connections(admin.system.client.driver, "normal")
            chat.send("team", str(number), sender_uid="ann", client_msgid=str(number))
            kill_connections(admin.system.client.driver, "normal")
            assert chat.group("team").messages == number + 1


def test_what_may_not_be_repeated_is_sent_once(valkey: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with AsyncChat.connect(settings=settings_of(valkey, tmp_path)) as chat:
            await chat.create_group("team", ["ann"])
            # Given sends under way
            with Chat.connect(valkey) as admin:
                server = nodes_of(admin.system.client.driver)[0]
                server.client_pause(int(1000 * MOST_S), all=False)
                once = asyncio.ensure_future(chat.send("team", "once", sender_uid="ann"))
                again = asyncio.ensure_future(chat.send("team", "again", sender_uid="ann", client_msgid="1"))
                await asyncio.sleep(0.2)
                # When their connection is lost
                assert kill_connections(server, "normal")
                server.client_unpause()
            # Then
            with pytest.raises(RedisUnavailable):
                await once
            assert (await again).content == "again"
            assert [tally.message.content for tally in await chat.status("team", limit=0)][-1] == "again"
            assert (await chat.group("team")).messages == 1

    asyncio.run(story())


def test_a_silent_server_keeps_nobody_from_the_loop(valkey: str, valkey_server: RunningServer, tmp_path: Path) -> None:
    async def story() -> None:
        async with AsyncChat.connect(settings=settings_of(f"{valkey}?socket_timeout=2", tmp_path)) as chat:
            await chat.create_group("team", ["ann"])
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticking = asyncio.ensure_future(tick())
            # When
            os.kill(valkey_server.pid, signal.SIGSTOP)
            begun = time.monotonic()
            try:
                with pytest.raises(RedisUnavailable):
                    await chat.send("team", "hi", sender_uid="ann")
            finally:
                os.kill(valkey_server.pid, signal.SIGCONT)
            # Then
            assert 1.5 < time.monotonic() - begun < MOST_S
            assert ticks > 20
            ticking.cancel()
            assert (await chat.group("team")).members == 1

    asyncio.run(story())


def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    require_server()
    server = start_valkey(tmp_path / "server", appendonly=True)
    try:
        with LoopChat(settings_of(server.url, tmp_path)) as chat:
            chat.create_group("team", ["ann"])
            server.kill()
            with pytest.raises(RedisUnavailable):
                chat.group("team")
            server = start_valkey(tmp_path / "server", appendonly=True)
            assert chat.group("team").members == 1
    finally:
        server.stop()


def test_a_primary_that_became_a_replica_is_left_for_the_new_one(tmp_path: Path) -> None:
    # Given two servers, and a name that leads to the one that is the primary
    require_server()
    one, two = (start_valkey(tmp_path / name, appendonly=False) for name in ("one", "two"))
    name = tmp_path / "primary.sock"
    name.symlink_to(one.url.removeprefix("unix://"))
    try:
        with LoopChat(settings_of(f"unix://{name}", tmp_path)) as chat, Chat.connect(two.url) as other:
            for connected in (chat, other):
                connected.create_group("team", ["ann"])
            # When it becomes a replica
            with redis.Redis.from_url(one.url) as admin:
                admin.replicaof("127.0.0.1", 1)
            with pytest.raises(RedisRefuses, match="new primary"):
                chat.send("team", "hi", sender_uid="ann")
            name.unlink()
            name.symlink_to(two.url.removeprefix("unix://"))
            # Then
            chat.send("team", "hi", sender_uid="ann")
            assert other.group("team").messages == 1
    finally:
        one.stop()
        two.stop()


def contents(chat: LoopChat, gid: str = "team") -> list[str]:
    return [tally.message.content for tally in chat.status(gid, limit=0)]


def test_moved_slots_are_found(cluster: str, cluster_servers: RunningCluster, tmp_path: Path) -> None:
    with LoopChat(settings_of(cluster, tmp_path)) as chat:
        chat.create_group("team", ["ann", "bob"])
        chat.send("team", "1", sender_uid="ann")
        client = chat.system.client
        slot = client.driver.keyslot(client.space.group("team").stream)
        refused: list[object] = []

        def meanwhile() -> None:
            # Some keys are at the one node, some at the other: what needs both is refused for now
            try:
                refused.append(chat.unread("bob")[0].unread)
            except RedisRefuses as error:
                refused.append(type(error))

        former = move_slot(cluster_servers, slot, meanwhile=meanwhile)
        try:
            assert refused in ([1], [RedisRefuses])
            chat.send_many("team", [Draft("ann", "2"), Draft("bob", "3")])
            chat.send("team", "4", sender_uid="ann")
            assert contents(chat) == ["1", "2", "3", "4"]
            assert [each.unread for each in chat.unread("bob")] == [3]
        finally:
            move_slot(cluster_servers, slot, former)


def test_a_replica_that_takes_over_is_gone_on_with(tmp_path: Path) -> None:
    # Given a primary with a replica
    servers = start_cluster(tmp_path / "cluster", 1)
    replica = add_replica(servers, tmp_path / "replica")
    try:
        with LoopChat(settings_of(servers.url, tmp_path)) as chat, redis.Redis.from_url(replica.url) as client:
            chat.create_group("team", ["ann"])
            chat.send("team", "before", sender_uid="ann")
            with redis.Redis.from_url(servers.nodes[0].url) as primary:
                assert primary.wait(1, 30_000) == 1
            # When the primary dies, and the replica takes over
            servers.nodes[0].kill()
            with pytest.raises(RedisUnavailable):
                chat.send("team", "meanwhile", sender_uid="ann")
            client.execute_command("CLUSTER FAILOVER TAKEOVER")
            wait_until(lambda: client.info("replication")["role"] == "master")
            # Then the client finds it
            chat.send("team", "after", sender_uid="ann", client_msgid="c")
            assert contents(chat) == ["before", "after"]
    finally:
        replica.stop()
        servers.stop()


def test_much_at_once_is_bounded_in_flight(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.streams.aio.connection.MOST_BYTES_IN_FLIGHT", 100_000)
    most = 0

    async def story() -> None:
        nonlocal most
        async with AsyncChat.connect(settings=replace(settings_of(valkey, tmp_path))) as chat:
            await chat.create_group("team", ["ann"])
            sends = [chat.send("team", "x" * 5000, sender_uid="ann", client_msgid=str(n)) for n in range(400)]
            tasks = [asyncio.ensure_future(send) for send in sends]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                [pipeline] = chat.performer.client._pipelines.values()
                most = max(most, pipeline._bytes_in_flight)
            assert {(await task).content for task in tasks} == {"x" * 5000}
            assert (await chat.group("team")).messages == 400

    asyncio.run(story())
    assert 50_000 < most < 120_000
