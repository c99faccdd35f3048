"""A primary behind a name: where Sentinels watch it, everybody goes on by themselves after a promotion."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import RedisUnavailable, TryAgain
from imcore.settings import Settings
from imcore.streams.urls import open_client
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import Audience
from tests.helpers.sentinels import NAME, WatchedServers, watched
from tests.helpers.workers import new_persist

MOST_S = 60.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[WatchedServers]:
    with watched(tmp_path / "watched") as servers:
        yield servers


@pytest.fixture
def settings(servers: WatchedServers, tmp_path: Path) -> Settings:
    database_url = f"sqlite:///{tmp_path / 'imcore.db'}"
    environment = {"IM_CALL_TIMEOUT_MS": "2000", "IM_BLOCK_MS": "50"}
    return Settings.from_env(environment, data_dir=str(tmp_path), redis_url=servers.url, database_url=database_url)


def repeat_until_sent(chat: Chat, text: str) -> None:
    def is_sent() -> bool:
        try:
            chat.send("team", text, sender_uid="ann", client_msgid=text)
        except TryAgain:
            return False
        return True

    wait_until(is_sent, timeout_s=MOST_S)


def replicated(servers: WatchedServers) -> None:
    """Wait until the replica has all."""
    with redis.Redis.from_url(servers.primary.url) as client:
        wait_until(lambda: client.wait(1, 1000) == 1, timeout_s=MOST_S)


def stored_after(chat: Chat, step: Callable[[], object]) -> list[str]:
    """Let a worker take a step, which may fail for now; return the texts that SQL has then."""
    with suppress(TryAgain):
        step()
    return [row.content for row in chat.system.database.messages_after("team", 0, until=msgids.HIGHEST, limit=10)]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_all_go_on_by_themselves_after_a_promotion(chat: Chat, servers: WatchedServers, fault: signal.Signals) -> None:
    # Given a session and a worker
    chat.system.database.upgrade()
    chat.create_group("team", ["ann", "bob"])
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        repeat_until_sent(chat, "first")
        audience.until(lambda: audience.heard(bob) == ["first"])
        worker.step()
        replicated(servers)
        # When the primary dies, or is stopped
        os.kill(servers.primary.pid, fault)
        try:
            repeat_until_sent(chat, "second")
            # Then all reach the new one
            audience.until(lambda: audience.heard(bob) == ["first", "second"], MOST_S)
            wait_until(lambda: stored_after(chat, worker.step) == ["first", "second"], timeout_s=MOST_S)
        finally:
            if fault is signal.SIGSTOP:
                os.kill(servers.primary.pid, signal.SIGCONT)
        # And so they do where the former one is back, as a replica
        repeat_until_sent(chat, "third")
        audience.until(lambda: audience.heard(bob) == ["first", "second", "third"], MOST_S)
        audience.until(lambda: [each.unread for each in chat.unread("bob")] == [0], MOST_S)
    worker.close()


def test_sentinels_that_are_down_are_passed_over(servers: WatchedServers) -> None:
    down = "127.0.0.1:1"
    with open_client(servers.url.replace("://", f"://{down},")) as client:
        assert client.ping()
        assert client.connection_pool.get_connection().port == servers.ports[0]


def test_an_error_names_what_does_not_answer(servers: WatchedServers, tmp_path: Path) -> None:
    # Given a primary that is stopped, and Sentinels that have not noticed it
    for port in servers.sentinels:
        with redis.Redis(port=port) as sentinel:
            sentinel.sentinel_set(NAME, "down-after-milliseconds", 600_000)
    environment = {"IM_BLOCK_MS": "10", "IM_CALL_TIMEOUT_MS": "1100"}
    settings = Settings.from_env(environment, data_dir=str(tmp_path), redis_url=servers.url)
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann"])
        os.kill(servers.primary.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisUnavailable, match=f"no answer from Redis at redis://127.0.0.1:{servers.ports[0]}"):
                chat.group("team")
        finally:
            os.kill(servers.primary.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (
            "redis+sentinel://127.0.0.1:1,127.0.0.1:2/mine",
            "no Sentinel answers at redis.sentinel://127.0.0.1:1,127.0.0.1:2/mine: start one",
        ),
        ("redis+sentinel://{known}/other", "the Sentinels of redis.sentinel://.* know no primary called 'other'"),
    ],
)
def test_a_name_that_leads_nowhere(servers: WatchedServers, tmp_path: Path, url: str, line: str) -> None:
    known = f"127.0.0.1:{servers.sentinels[0]}"
    settings = Settings.from_env({}, data_dir=str(tmp_path), redis_url=url.format(known=known))
    with Chat.connect(settings=settings) as chat, pytest.raises(RedisUnavailable, match=line):
        chat.group("team")
