"""The Redis client when a server goes without a word, or stops being the primary."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.cluster import RedisCluster

from imcore import Chat
from imcore.errors import RedisRefuses
from imcore.model.values import Draft
from imcore.streams.calls import message_calls
from imcore.streams.client import open_client
from imcore.streams.rounds import Client
from tests.helpers.servers import require_server, start_valkey


def options_of(client: Client) -> dict[str, object]:
    cluster_kwargs = client.nodes_manager.connection_kwargs if isinstance(client, RedisCluster) else None
    return dict(cluster_kwargs or client.connection_pool.connection_kwargs)


def test_connections_over_tcp_probe_a_silent_peer(cluster: str) -> None:
    for url in ("redis://127.0.0.1:1", "rediss://127.0.0.1:1", cluster):
        client = open_client(url)
        options = options_of(client)
        client.close()
        assert options["socket_keepalive"] is True
        assert options["socket_keepalive_options"].get(socket.TCP_KEEPINTVL) == 10
    assert "socket_keepalive" not in options_of(open_client("unix:///tmp/none.sock"))


def say(chat: Chat) -> object:
    return chat.system.client.call_many(
        [message_calls.send(chat.system.client.space, "team", [Draft("ann", "hi")], 1000)]
    )


@pytest.mark.parametrize("write", [lambda chat: chat.create_group("new", ["ann"]), say], ids=["alone", "with others"])
def test_a_primary_that_became_a_replica_is_left_for_the_new_one(
    tmp_path: Path, write: Callable[[Chat], object]
) -> None:
    # Given two servers, and a name that leads to the one that is the primary
    require_server()
    one, two = (start_valkey(tmp_path / name, appendonly=False) for name in ("one", "two"))
    name = tmp_path / "primary.sock"
    name.symlink_to(one.url.removeprefix("unix://"))
    try:
        with Chat.connect(f"unix://{name}") as chat, Chat.connect(two.url) as other:
            for connected in (chat, other):
                connected.create_group("team", ["ann"])
            # When it becomes a replica
            chat.system.client.driver.replicaof("127.0.0.1", 1)
            with pytest.raises(RedisRefuses, match="new primary"):
                write(chat)
            name.unlink()
            name.symlink_to(two.url.removeprefix("unix://"))
            # Then
            write(chat)
            assert chat.group("team").members == 1
    finally:
        one.stop()
        two.stop()
