"""Errors for the refusals of a real server: its own word, in ours; and whether trying again can help."""

import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore.chat import Chat
from imcore.errors import ConfigurationError, ImError, RedisRefuses, RedisUnavailable, TryAgain
from imcore.settings import Settings
from imcore.streams.calls.call import Call
from imcore.streams.client import open_client
from imcore.streams.journal import Journal
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer, free_ports, require_server, start_valkey


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of the test's own, whose settings may be changed."""
    require_server()
    server = start_valkey(tmp_path / "server", appendonly=False)
    yield server
    server.stop()


@pytest.fixture
def admin(server: RunningServer) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.mark.parametrize("protocol", [2, 3])
def test_as_many_clients_as_the_server_takes(server: RunningServer, admin: "redis.Redis", protocol: int) -> None:
    # Given one who holds all connections there are
    admin.config_set("maxclients", 3)
    with ExitStack() as stack:
        held = [stack.enter_context(redis.Redis.from_url(server.url)) for _ in range(2)]
        for connection in held:
            connection.ping()
        # When, then: often, as it is a race who speaks first
        with Chat.connect(f"{server.url}?protocol={protocol}") as chat:
            for _ in range(20):
                with pytest.raises(RedisRefuses, match=r"as many clients as it takes \(maxclients\)"):
                    chat.create_group("team")
    # And once they are gone it works
    with Chat.connect(server.url) as chat:
        wait_until(lambda: int(admin.info("clients")["connected_clients"]) <= 2)
        assert chat.create_group("team").members == 0


def test_a_number_of_a_database_that_is_not_there(valkey: str) -> None:
    with Chat.connect(f"{valkey}?db=99") as chat, pytest.raises(ConfigurationError, match="no database of that number"):
        chat.unread("ann")


def test_a_text_that_is_too_long_for_the_server(server: RunningServer, admin: "redis.Redis") -> None:
    admin.config_set("proto-max-bulk-len", 1024 * 1024)
    settings = replace(Settings.from_env({}, redis_url=server.url), max_content_bytes=8 * 1024 * 1024)
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann"])
        with pytest.raises(ConfigurationError, match=r"proto-max-bulk-len.*IM_MAX_CONTENT_BYTES"):
            chat.send("team", "x" * 2 * 1024 * 1024, sender_uid="ann")
        assert chat.send("team", "short", sender_uid="ann").seq == 1


def test_a_function_that_somebody_ends(server: RunningServer, admin: "redis.Redis") -> None:
    # Given a function of ours that takes for ever, and does not write
    admin.config_set("busy-reply-threshold", 1)
    with Chat.connect(server.url) as chat:
        chat.create_group("team", ["ann"])
        admin.function_load("#!lua name=slow\nredis.register_function('slow', function() while true do end end)")
        slow = Call("slow", (), (), int, writes=True)
        errors: list[ImError] = []

        def run() -> None:
            try:
                chat.system.client.call(slow, repeatable=False)
            except ImError as error:
                errors.append(error)

        running = threading.Thread(target=run)
        running.start()
        # When others come meanwhile
        with Chat.connect(server.url) as other:
            wait_until(lambda: isinstance(refusal_of(other), RedisRefuses))
            assert "is busy" in str(refusal_of(other))
        # And somebody ends it
        with redis.Redis.from_url(server.url) as killer:
            killer.execute_command("FUNCTION KILL")
        running.join()
        assert [type(error) for error in errors] == [RedisRefuses]
        assert "FUNCTION KILL" in str(errors[0])


def refusal_of(chat: Chat) -> ImError | None:
    try:
        chat.unread("ann")
    except ImError as error:
        return error
    return None


@pytest.mark.parametrize("ended_by", ["a replica by now", "CLIENT UNBLOCK"])
def test_a_wait_that_the_server_ends(server: RunningServer, admin: "redis.Redis", ended_by: str) -> None:
    # Given a worker that waits for entries
    settings = replace(Settings.from_env({}, redis_url=server.url), block_ms=5000)
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann"])
        journal = Journal(chat.system.client, "persist", settings)
        journal.read(block_ms=0)
        errors: list[ImError] = []

        def wait() -> None:
            try:
                journal.read()
            except ImError as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: int(admin.info("clients")["blocked_clients"]) == 1)
        # When
        if ended_by == "CLIENT UNBLOCK":
            [blocked] = [each["id"] for each in admin.client_list() if each["cmd"] == "xreadgroup"]
            admin.execute_command("CLIENT UNBLOCK", blocked, "ERROR")
        else:
            admin.replicaof("127.0.0.1", 1)
        waiting.join()
        # Then it is to be tried again
        assert [type(error) for error in errors] == [RedisRefuses]
        assert "has ended a wait" in str(errors[0])


def test_no_descriptor_is_left(server: RunningServer) -> None:
    # Given a program that has as many files open as it may
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Chat.connect(server.url) as chat, ExitStack() as stack:
        chat.create_group("team", ["ann"])
        chat.system.client.driver.connection_pool.disconnect()  # type: ignore[union-attr]
        lowest = stack.enter_context(open("/dev/null")).fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        # Then
        with pytest.raises(RedisUnavailable, match=r"as many files open as it may \(raise ulimit -n\)"):
            chat.unread("ann")


def test_a_user_without_the_right_to_ask_for_cluster_nodes_is_not_told_it_is_a_single_server(tmp_path: Path) -> None:
    require_server()
    [port] = free_ports(1)
    server = start_valkey(tmp_path, "--port", str(port), "--bind", "127.0.0.1", appendonly=False)
    try:
        with closing(redis.Redis.from_url(server.url)) as admin:
            admin.execute_command("ACL SETUSER", "ann", "reset", "on", "nopass", "~*", "&*", "+@all", "-cluster")
        with pytest.raises(ConfigurationError, match="no permissions") as refused:
            open_client(f"redis+cluster://ann:any@127.0.0.1:{port}")
        assert "single server" not in str(refused.value)
    finally:
        server.stop()


def test_every_refusal_that_passes_is_of_one_branch() -> None:
    assert issubclass(RedisRefuses, TryAgain)
    assert issubclass(RedisUnavailable, TryAgain)
    assert not issubclass(ConfigurationError, TryAgain)
