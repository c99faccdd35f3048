"""The Redis client on a cluster: each command is sent once, to whichever node has the keys by now."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.exceptions import MovedError
from redis.exceptions import TimeoutError as RedisTimeoutError

from imcore.chat import Chat
from imcore.errors import ConfigurationError, RedisRefuses, RedisUnavailable
from imcore.model.values import Draft
from imcore.streams import transport
from imcore.streams.calls import session_calls
from imcore.streams.calls.message_calls import send
from imcore.streams.client import RedisClient, open_client
from imcore.system import System
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningCluster, add_replica, free_ports, move_slot, start_cluster, start_valkey

# The driver forgets sockets of a cluster's nodes when one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def redis_url(cluster: str) -> str:
    return cluster


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def contents(chat: Chat, gid: str = "team") -> list[str]:
    return [tally.message.content for tally in chat.status(gid, limit=0)]


def lose_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one answer get lost, after the server has done what was asked."""
    lost: list[Any] = []
    read = transport._answer

    def losing(connection: Any) -> Any:
        answer = read(connection)
        if not lost:
            lost.append(answer)
            raise RedisTimeoutError("Timeout reading from socket")
        return answer

    monkeypatch.setattr(transport, "_answer", losing)


class TestALostAnswer:
    def test_of_a_send_that_may_not_be_repeated(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            lose_next_answer(patch)
            with pytest.raises(RedisUnavailable):
                chat.send("team", "once", sender_uid="ann")
        assert contents(chat) == ["once"]

    def test_of_several_that_may_not_be_repeated(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            lose_next_answer(patch)
            answers = chat.send_many("team", [Draft("ann", "once"), Draft("bob", "too")])
        assert {type(answer) for answer in answers} == {RedisUnavailable}
        assert contents(chat) == ["once", "too"]

    def test_of_sends_that_may_be_repeated(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        for client_msgid in ("1", "2"):
            with monkeypatch.context() as patch:
                lose_next_answer(patch)
                if client_msgid == "1":
                    chat.send("team", client_msgid, sender_uid="ann", client_msgid=client_msgid)
                else:
                    chat.send_many("team", [Draft("ann", client_msgid, client_msgid)])
        assert contents(chat) == ["1", "2"]


def test_a_node_without_functions_lets_nothing_happen_twice_at_the_others(chat: Chat) -> None:
    # Given groups at several nodes, and one node that has lost the functions
    gids = [f"g{number}" for number in range(12)]
    space, client = chat.system.client.space, chat.system.client.driver
    nodes = {gid: client.get_node_from_key(space.group(gid).stream).name for gid in gids}
    assert len(set(nodes.values())) > 1
    for gid in gids:
        chat.create_group(gid, ["ann"])
    lost = nodes[gids[0]]
    client.execute_command("FUNCTION FLUSH", target_nodes=client.get_node(node_name=lost))
    # When
    chat.system.client.call_many([send(space, gid, [Draft("ann", "once")], 1000) for gid in gids], repeatable=False)
    # Then
    assert [contents(chat, gid) for gid in gids] == [["once"]] * len(gids)


def test_moved_slots_are_found(chat: Chat, cluster_servers: RunningCluster) -> None:
    # Given a client that knows where everything is, and a slot that moves
    chat.send("team", "1", sender_uid="ann")
    stream = chat.system.client.space.group("team").stream
    slot = chat.system.client.driver.keyslot(stream)
    lengths: list[int] = []
    former = move_slot(
        cluster_servers, slot, meanwhile=lambda: lengths.extend(chat.system.client.query_many([("XLEN", stream)] * 2))
    )
    assert lengths == [1, 1]
    try:
        # Then what is sent, by itself or with others, comes once
        chat.send_many("team", [Draft("ann", "2"), Draft("bob", "3")])
        chat.send("team", "4", sender_uid="ann")
        assert contents(chat) == ["1", "2", "3", "4"]
        assert [each.unread for each in chat.unread("bob")] == [3]
    finally:
        move_slot(cluster_servers, slot, former)


def test_many_calls_share_one_wait_for_a_slot_under_way(
    chat: Chat, cluster_servers: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given calls for a slot that is under way: of their keys, some are to be made where the others are not
    space = chat.system.client.space
    key = space.online(space.partition_of("ann"))
    uids = [uid for uid in map(str, range(800)) if space.online(space.partition_of(uid)) == key]
    beats = [session_calls.heartbeat(space, uid, "s", 60_000, opens=True) for uid in uids]
    answers: list[Any] = []
    waits: list[float] = []

    def ask() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(transport, "time", SimpleNamespace(sleep=waits.append))
            answers.extend(chat.system.client.call_each(beats))

    # When
    slot = chat.system.client.driver.keyslot(key)
    former = move_slot(cluster_servers, slot, meanwhile=ask)
    move_slot(cluster_servers, slot, former)

    # Then all are refused for now, soon
    assert len(uids) > 50
    assert {type(answer) for answer in answers} == {RedisRefuses}
    assert 0 < sum(waits) < 5


def test_a_slot_that_no_node_has_may_be_tried_again(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given nodes that do not agree yet who has a slot
    slot = chat.system.client.driver.keyslot(chat.system.client.space.group("team").stream)
    read = transport._answer

    def elsewhere(connection: Any) -> MovedError:
        read(connection)
        return MovedError(f"{slot} {connection.host}:{connection.port}")

    # When, then
    with monkeypatch.context() as patch:
        patch.setattr(transport, "_answer", elsewhere)
        with pytest.raises(RedisRefuses, match="another node"):
            chat.status("team")
    assert contents(chat) == []


def test_a_replica_that_takes_over_is_gone_on_with(tmp_path: Path) -> None:
    # Given a primary with a replica
    servers = start_cluster(tmp_path / "cluster", 1)
    replica = add_replica(servers, tmp_path / "replica")
    try:
        with closing(RedisClient(open_client(servers.url), url=servers.url)) as redis_client:
            chat = Chat(System(redis_client, None))
            chat.create_group("team", ["ann"])
            chat.send("team", "before", sender_uid="ann")
            with redis.Redis.from_url(replica.url) as client:
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
            chat.send_many("team", [Draft("ann", "at last")])
            assert contents(chat) == ["before", "after", "at last"]
    finally:
        replica.stop()
        servers.stop()


def test_an_unusable_cluster_is_an_error_with_its_reason(tmp_path: Path) -> None:
    # Given a single server
    [port] = free_ports(1)
    server = start_valkey(tmp_path, "--port", str(port), "--bind", "127.0.0.1", appendonly=False)
    try:
        with pytest.raises(ConfigurationError, match="is a single server, no cluster"):
            open_client(f"redis+cluster://127.0.0.1:{port}")

        # Or one that wants a password
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "s3cret")
        for user, said in (("", "wants a password"), (":wrong@", "refuses this user or password")):
            with pytest.raises(ConfigurationError, match=said):
                open_client(f"redis+cluster://{user}127.0.0.1:{port}")
    finally:
        server.stop()
