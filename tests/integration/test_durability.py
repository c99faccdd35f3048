"""Sends that wait until a replica or the disk has the message."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from imcore import AsyncChat, Chat
from imcore.errors import ConfigurationError, NotDurable, RedisRefuses
from imcore.model.values import Draft, Message
from imcore.settings import Settings
from imcore.streams.aio import shared_waits
from imcore.streams.durability import SentMessages
from tests.helpers.deadline import wait_until
from tests.helpers.replicated import ReplicatedServer, replicated
from tests.helpers.servers import add_replica, require_server, start_cluster, start_valkey


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ReplicatedServer]:
    with replicated(tmp_path) as servers:
        yield servers


@pytest.fixture
def settings(servers: ReplicatedServer, tmp_path: Path) -> Settings:
    return Settings.from_env({}, redis_url=servers.primary.url, data_dir=str(tmp_path), durable_ms="1000")


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def test_a_stopped_replica_confirms_nothing_until_it_goes_on(chat: Chat, servers: ReplicatedServer) -> None:
    # Given
    chat.send("team", "zero", sender_uid="ann", durable="replicated")
    os.kill(servers.replica.pid, signal.SIGSTOP)
    try:
        # When
        with pytest.raises(NotDurable, match="no replica has confirmed it within 1000 ms") as raised:
            chat.send("team", "one", sender_uid="ann", client_msgid="c-1", durable="replicated")
        [other] = chat.send_many("team", [Draft("ann", "two", "c-2")], durable="replicated")
    finally:
        os.kill(servers.replica.pid, signal.SIGCONT)
    # Then
    assert isinstance(other, NotDurable)
    stored = chat.pull("bob", "team")
    assert [message.msgid for message in stored[1:]] == [raised.value.msgid, other.msgid]
    again = chat.send("team", "one", sender_uid="ann", client_msgid="c-1", durable="replicated")
    assert again.msgid == raised.value.msgid
    assert chat.pull("bob", "team") == stored


def test_what_a_replica_has_confirmed_is_there_after_a_failover(chat: Chat, servers: ReplicatedServer) -> None:
    sent = chat.send("team", "one", sender_uid="ann", durable="replicated")
    many = chat.send_many("team", [Draft("ann", str(number)) for number in range(250)], durable="replicated")
    os.kill(servers.primary.pid, signal.SIGKILL)
    servers.promote()
    with Chat.connect(servers.replica.url) as promoted:
        assert promoted.pull("bob", "team") == [sent, *many]


def test_a_server_that_took_over_without_the_message_confirms_nothing(chat: Chat, servers: ReplicatedServer) -> None:
    # Given a server that has lost the last message, and a replica that follows it
    durability = chat.performer.durability
    sent = [SentMessages("team", [1 << 40])]
    assert durability.confirm("replicated", sent) != [[""]]
    # Then
    [[reason]] = durability.confirm("replicated", sent)
    assert reason == "another server has taken over, and does not have it"


def test_a_server_without_a_replica_is_refused_before_the_send(chat: Chat, servers: ReplicatedServer) -> None:
    servers.replica.kill()
    with redis.Redis.from_url(servers.primary.url) as client:
        wait_until(lambda: client.info("replication")["connected_slaves"] == 0)
    for send in (
        lambda: chat.send("team", "one", sender_uid="ann", durable="replicated"),
        lambda: chat.send_direct("cy", "one", sender_uid="ann", durable="replicated"),
        lambda: chat.send_many("team", [Draft("ann", "one")], durable="replicated"),
    ):
        with pytest.raises(RedisRefuses, match="no replica that could confirm"):
            send()
    assert chat.pull("bob", "team") == []
    assert chat.groups_of("cy") == []


def test_a_server_without_a_file_is_refused_before_the_send(chat: Chat) -> None:
    with pytest.raises(ConfigurationError, match="appendonly is no; set yes"):
        chat.send("team", "one", sender_uid="ann", durable="fsynced")
    assert chat.pull("bob", "team") == []


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_the_disk_confirms(tmp_path: Path, appendfsync: str) -> None:
    require_server()
    server = start_valkey(tmp_path / "server", "--appendfsync", appendfsync)
    try:
        settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path), durable="fsynced")
        with Chat.connect(settings=settings) as chat, redis.Redis.from_url(server.url) as client:
            chat.create_group("team", ["ann"])
            assert chat.send("team", "one", sender_uid="ann").seq == 1
            assert client.info("persistence")["aof_pending_bio_fsync"] == 0
            client.config_set("appendfsync", "no")
            client.config_set("appendonly", "no")
            with pytest.raises((ConfigurationError, NotDurable)):
                chat.send("team", "two", sender_uid="ann")
    finally:
        server.kill()


def test_tasks_share_a_wait(chat: Chat, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    barriers = []
    confirm = shared_waits.Durability.confirm

    def counted(self: shared_waits.Durability, kind: str, sends: list[SentMessages]) -> object:
        barriers.append(len(sends))
        return confirm(self, kind, sends)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_waits.Durability, "confirm", counted)

    async def send_all() -> list[Message]:
        async with AsyncChat.connect(settings=settings) as other:
            sends = (other.send("team", str(number), sender_uid="ann", durable="replicated") for number in range(100))
            return await asyncio.gather(*sends)

    sent = asyncio.run(send_all())
    assert chat.pull("bob", "team") == sorted(sent, key=lambda message: message.seq)
    assert sum(barriers) == 100
    assert len(barriers) < 50


def test_a_client_finds_the_server_that_took_over_though_it_only_waits(tmp_path: Path) -> None:
    # Given a cluster, and a client whose every send waits for a replica
    require_server()
    cluster = start_cluster(tmp_path / "cluster", 1)
    nodes = [*cluster.nodes]
    try:
        nodes.append(add_replica(cluster, tmp_path / "replica"))
        settings = Settings.from_env({}, redis_url=cluster.url, data_dir=str(tmp_path), durable="replicated")
        with Chat.connect(settings=settings) as chat, redis.Redis.from_url(nodes[-1].url) as replica:
            chat.create_group("team", ["ann", "bob"])
            first = chat.send("team", "one", sender_uid="ann")
            # When the replica takes over, and the old primary follows it
            replica.execute_command("CLUSTER FAILOVER")
            wait_until(lambda: replica.info("replication").get("slave0", {}).get("state") == "online")
            wait_until(lambda: not chat.performer.durability.is_checked("replicated", "team"))
            # Then
            assert chat.send("team", "two", sender_uid="ann").seq == first.seq + 1
    finally:
        for node in nodes:
            node.kill()
