"""The outbox goes out once and in order, whatever breaks."""

import time
from pathlib import Path
from typing import Any

import pytest

from imcore import Chat
from imcore.device import device as device_module
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.errors import ConfigurationError, ImError, LocalDatabaseError, RedisUnavailable
from imcore.model.direct import gid_of
from imcore.model.values import Message
from imcore.settings import Settings
from imcore.util.backoff import LONGEST_WAIT_S
from tests.helpers.devices import listen, said, states, texts
from tests.helpers.servers import start_valkey
from tests.helpers.talk import say


def test_an_outbox_that_was_refused_is_tried_less_often_and_goes_out_soon_after(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "first")
    redis: Any = chat.system.client.driver
    monkeypatch.setattr(device_module, "_POLL_S", 0.01)
    began: list[float] = []
    refused: list[int] = []

    def is_sent() -> bool:
        if began and not refused and time.monotonic() - began[0] > 0.5:
            refused.append(redis.info("errorstats")["errorstat_NOREPLICAS"]["count"])
            redis.config_set("min-replicas-to-write", 0)
        return "stored" in states(local)

    # Given a message that is written in the midst of a session, when the server takes no writes for a while
    try:
        for _ in bob.live(is_sent, acks="off"):
            bob.queue("hi", gid="team")
            redis.config_resetstat()
            redis.config_set("min-replicas-to-write", 1)
            began.append(time.monotonic())
    finally:
        redis.config_set("min-replicas-to-write", 0)

    # Then it was not tried at every turn, and went out soon after
    assert 0 < refused[0] < 10
    assert time.monotonic() - began[0] < 0.5 + LONGEST_WAIT_S
    assert sum("the outbox waits" in message for message in caplog.messages) == 1


def test_a_server_that_has_lost_its_data_is_not_asked_to_take_the_outbox(
    bob: Device, local: LocalDatabase, chat: Chat
) -> None:
    chat.create_group("team", ["ann", "bob"])
    bob.sync()
    bob.queue("hi", gid="team")
    chat.system.client.driver.flushall()
    with pytest.raises(LocalDatabaseError, match="im rebuild"):
        Device(chat, "bob", local).flush()
    assert states(local) == ["waiting"]


def test_messages_sent_while_the_server_is_away_go_out_once_and_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    try:
        with Chat.connect(settings=settings) as chat, LocalDatabase(tmp_path / "bob", "bob") as local:
            chat.create_group("team", ["ann", "bob"])
            bob = Device(chat, "bob", local)
            server.kill()
            # When
            for number in range(5):
                bob.queue(str(number), gid="team")
            bob.queue("psst", to_uid="ann")
            assert isinstance(bob.flush().stopped_by, RedisUnavailable)
            assert states(local) == ["waiting"] * 5
            server = start_valkey(folder)
            # Then
            events = listen(bob, 6)
            assert [text for text in said(events) if text != "psst"] == list(map(str, range(5)))
            assert [message.content for message in chat.pull("ann", "team")] == [str(number) for number in range(5)]
            assert [message.content for message in chat.pull("ann", gid_of("ann", "bob"))] == ["psst"]
            assert states(local) == ["stored"] * 5
            assert bob.flush() == ([], [], None)
    finally:
        server.stop()


def test_an_answer_that_never_came_sends_nothing_twice(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.create_group("team", ["ann", "bob"])
    send = chat.send

    def lost(*args: Any, **kwargs: Any) -> Message:
        send(*args, **kwargs)
        monkeypatch.setattr(chat, "send", send)
        raise RedisUnavailable

    monkeypatch.setattr(chat, "send", lost)
    bob.queue("1", gid="team")
    bob.queue("2", gid="team")
    assert bob.flush().sent == []
    assert states(local) == ["waiting", "waiting"]
    # It is not sent again, even if the server has forgotten that it was: it is pulled
    assert [message.content for message in bob.flush().sent] == ["2"]
    assert texts(local) == ["1", "2"]
    assert states(local) == ["stored", "stored"]
    assert [message.content for message in chat.pull("ann")] == ["1", "2"]


def test_only_a_message_that_is_to_blame_is_refused(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    chat.create_group("theirs", ["ann"])
    bob.queue("no member", gid="theirs")
    bob.queue("no group", gid="nowhere")
    bob.queue("strange", gid="team")
    bob.queue("fine", gid="team")
    send = chat.send

    def locked_out(*_: Any, **__: Any) -> Message:
        raise ConfigurationError("Redis refuses this user or password")

    def odd(gid: str, content: str, **options: Any) -> Message:
        if content == "strange":
            raise ImError("it answered: ERR")
        return send(gid, content, **options)

    # When
    monkeypatch.setattr(chat, "send", locked_out)
    assert isinstance(bob.flush().stopped_by, ConfigurationError)
    assert {line.state for line in local.log()} == {"waiting"}
    monkeypatch.setattr(chat, "send", odd)
    flushed = bob.flush()
    # Then
    assert [message.content for message in flushed.sent] == ["fine"]
    assert [outgoing.content for outgoing, _ in flushed.refused] == ["no member", "no group", "strange"]
    assert states(local) == ["stored", "refused: it answered: ERR"]
    assert states(local, "theirs") == ["refused: 'bob' is not a member of 'theirs'"]
    assert states(local, "nowhere") == ["refused: there is no group 'nowhere'"]
