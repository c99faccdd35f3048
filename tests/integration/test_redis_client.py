"""The Redis client on a real server that answers late, or not at all."""

import os
import signal
from typing import Any

import pytest

from imcore.errors import RedisUnavailable
from imcore.streams import transport
from imcore.streams.calls import group_calls
from imcore.streams.client import RedisClient, open_client
from imcore.streams.rounds import Limits
from tests.helpers.servers import RunningServer


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_interrupted_call_leaves_no_answer_for_the_next_one(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_client = RedisClient(open_client(valkey), url=valkey)
    redis_client.upgrade()
    with monkeypatch.context() as patch:
        patch.setattr(transport, "_answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            redis_client.query_many([("BLPOP", "nothing", 1)])
    assert redis_client.query("PING") is True
    redis_client.close()


def test_interrupted_answers_leave_none_for_the_next_call(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_client = RedisClient(open_client(valkey), url=valkey)
    redis_client.call(group_calls.init(redis_client.space.partitions, "test"))
    redis_client.driver.client_pause(500, all=False)
    answers = redis_client.start([group_calls.init(redis_client.space.partitions, "test")])
    with monkeypatch.context() as patch:
        patch.setattr(transport, "_answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answers()
    assert redis_client.query("PING") is True
    redis_client.close()


def test_calls_to_a_silent_server_are_not_repeated_for_long(
    valkey: str, valkey_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that takes commands, and answers none
    RedisClient(open_client(valkey), url=valkey).upgrade()
    redis_client = RedisClient(open_client(valkey, timeout_s=0.2), url=valkey)
    monkeypatch.setattr(redis_client, "_has_functions", True)
    commands = []
    execute = redis_client._execute_command
    monkeypatch.setattr(
        redis_client, "_execute_command", lambda *command: commands.append(command) or execute(*command)
    )
    monkeypatch.setattr(redis_client, "_limits", Limits(0.3))
    os.kill(valkey_server.pid, signal.SIGSTOP)
    # When
    try:
        with pytest.raises(RedisUnavailable):
            redis_client.query("GET", "nothing")
    finally:
        os.kill(valkey_server.pid, signal.SIGCONT)
    # Then
    assert 1 <= len(commands) <= 2
    redis_client.close()
