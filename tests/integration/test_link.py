"""The link on a real server, whose answers take their time."""

import os
import signal
from typing import Any

import pytest

from imcore.errors import RedisUnavailable
from imcore.streams import client, transport
from imcore.streams.calls import group_calls
from imcore.streams.client import RedisClient, open_client
from tests.helpers.servers import RunningServer


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupted_call_leaves_no_answer_for_the_next_one(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = RedisClient(open_client(valkey), url=valkey)
    here.upgrade()
    with monkeypatch.context() as patch:
        patch.setattr(transport, "_answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            here.query_many([("BLPOP", "nothing", 1)])
    assert here.read("PING") is True
    here.close()


def test_interrupted_waiting_leaves_no_answer_for_the_next_call(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = RedisClient(open_client(valkey), url=valkey)
    here.call(group_calls.init(here.space.partitions, "test"))
    here.client.client_pause(500, all=False)
    answers = here.post([group_calls.init(here.space.partitions, "test")])
    with monkeypatch.context() as patch:
        patch.setattr(transport, "_answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answers()
    assert here.read("PING") is True
    here.close()


def test_a_silent_server_is_not_waited_for_many_times(
    valkey: str, valkey_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that takes commands, and answers none
    RedisClient(open_client(valkey), url=valkey).upgrade()
    here = RedisClient(open_client(valkey, timeout_s=0.2), url=valkey)
    monkeypatch.setattr(here, "_has_functions", True)
    asked = []
    carry = here._execute_command
    monkeypatch.setattr(here, "_execute_command", lambda *command: asked.append(command) or carry(*command))
    monkeypatch.setattr(client, "PATIENCE_S", 0.3)
    os.kill(valkey_server.pid, signal.SIGSTOP)
    # When
    try:
        with pytest.raises(RedisUnavailable):
            here.read("GET", "nothing")
    finally:
        os.kill(valkey_server.pid, signal.SIGCONT)
    # Then
    assert 1 <= len(asked) <= 2
    here.close()
