"""A server or database that is away stops only the sessions that need it, and nothing is lost."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from imcore.chat import Chat
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    DatabaseRejected,
    DatabaseUnavailable,
    ImError,
    RedisUnavailable,
)
from imcore.operations.effects import Effect, SqlQuery
from imcore.settings import Settings
from tests.helpers.async_driver import before_effects
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import Audience, kill_connections
from tests.helpers.servers import start_valkey
from tests.helpers.talk import leave_to_sql, offset, push_receipts, say


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "server"


def test_a_gateway_uses_a_killed_server_again_after_its_restart(folder: Path, tmp_path: Path) -> None:
    # Given
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        try:
            chat.create_group("team", ["ann", "bob"])
            with chat.gateway(ack_interval_s=0.05) as gateway:
                audience = Audience(gateway)
                bob = gateway.open("bob")
                say(chat, "1")
                audience.until(lambda: audience.heard(bob) == ["1"])
                # When
                server.kill()
                assert audience.poll(0.3) == []
                server = start_valkey(folder)
                other.create_group("news", ["ann", "bob"])
                say(other, "2")
                # Then
                audience.until(lambda: audience.heard(bob) == ["1", "2"])
                say(other, "3")
                say(other, "a", gid="news")
                audience.until(lambda: audience.heard(bob) == ["1", "2", "3"] and audience.heard(bob, "news") == ["a"])
                audience.until(lambda: [each.unread for each in other.unread("bob")] == [0, 0])
                assert other.online(["bob"]) == {"bob"}
        finally:
            server.stop()


def test_a_server_that_lost_its_last_second_gives_the_same_seqs_again(folder: Path, tmp_path: Path) -> None:
    # Given a session that has messages that were not on the disk yet, as after a power cut
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        try:
            chat.create_group("team", ["ann", "bob"])
            say(chat, "1", "2")
            with chat.gateway(ack_interval_s=0.05) as gateway:
                audience = Audience(gateway)
                bob = gateway.open("bob")
                audience.until(lambda: audience.heard(bob) == ["1", "2"])
                before = tmp_path / "before"
                shutil.copytree(folder / "appendonlydir", before)
                say(chat, "3", "4", "5")
                audience.until(lambda: audience.heard(bob) == ["1", "2", "3", "4", "5"])
                # When
                server.kill()
                shutil.rmtree(folder / "appendonlydir")
                shutil.copytree(before, folder / "appendonlydir")
                server = start_valkey(folder)
                assert [each.seq for each in say(other, "3'", "4'")] == [3, 4]
                # Then
                audience.until(lambda: audience.heard(bob)[5:] == ["3'", "4'"])
                say(other, "5'", "6'")
                audience.until(lambda: audience.heard(bob)[5:] == ["3'", "4'", "5'", "6'"])
                audience.until(lambda: [each.unread for each in other.unread("bob")] == [0])
        finally:
            server.stop()


def test_a_session_may_be_opened_while_the_server_is_away_only_by_waiting(folder: Path, tmp_path: Path) -> None:
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat:
        try:
            chat.create_group("team", ["ann", "bob"])
            with chat.gateway() as gateway:
                audience = Audience(gateway)
                ann = gateway.open("ann")
                audience.settled()
                server.kill()
                with pytest.raises(RedisUnavailable):
                    gateway.open("bob")
                server = start_valkey(folder)
                wait_until(lambda: chat.group("team"))
                say(chat, "1")
                audience.until(lambda: audience.heard(ann) == ["1"])
                assert chat.online(["ann", "bob"]) == {"ann"}
        finally:
            server.stop()


@pytest.mark.parametrize("length", [10_000, 20_000])
def test_a_gateway_that_stops_reading_is_cut_off_and_pulls(folder: Path, tmp_path: Path, length: int) -> None:
    # Given a server that keeps little for a subscriber who does not read
    server = start_valkey(folder, "--client-output-buffer-limit", "pubsub 256kb 0 0", appendonly=False)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        try:
            chat.create_group("team", ["ann", "bob"])
            with chat.gateway() as gateway:
                audience = Audience(gateway)
                bob = gateway.open("bob")
                audience.settled()
                # When
                texts = [str(number) + "x" * length for number in range(200)]
                say(other, *texts)
                wait_until(lambda: not other.system.client.driver.client_list(_type="pubsub"))
                # Then
                audience.until(lambda: len(audience.heard(bob)) == 200)
                assert audience.heard(bob) == texts
                say(other, "live again")
                audience.until(lambda: audience.heard(bob)[200:] == ["live again"])
        finally:
            server.stop()


def test_a_lost_server_is_not_asked_all_the_time(folder: Path, tmp_path: Path) -> None:
    server = start_valkey(folder, appendonly=False)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann", "bob"])
        with chat.gateway() as gateway:
            audience = Audience(gateway)
            gateway.open("bob")
            audience.settled()
            server.kill()
            before = time.process_time()
            for _ in range(10):
                assert audience.poll(0.1) == []
            assert time.process_time() - before < 0.5


@pytest.mark.parametrize("trouble", [DatabaseUnavailable, DatabaseNotReady, ConfigurationError, DatabaseRejected])
def test_a_session_that_needs_an_absent_database_does_not_hold_up_the_others(
    chat: Chat, other: Chat, trouble: type[ImError], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given bob, whose missed messages are in SQL only, and ann, whose messages were read and are there, too
    chat.create_group("team", ["ann", "bob", "dan"])
    chat.create_group("home", ["ann", "cyd"])
    sent = say(chat, "1", "2", "3")
    chat.ack("dan", "team")
    push_receipts(chat, sent[0])
    leave_to_sql(chat, sent[1].msgid)
    is_away = True

    def away(question: Effect[Any]) -> None:
        if isinstance(question, SqlQuery) and is_away:
            raise trouble

    before_effects(chat, monkeypatch, away)
    monkeypatch.setattr("imcore.util.backoff.LONGEST_WAIT_S", 0.2)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        ann, bob, cyd = (gateway.open(uid) for uid in ("ann", "bob", "cyd"))
        # When
        for number in range(1, 4):
            say(other, str(number), gid="home")
            audience.until(lambda n=number: len(audience.heard(cyd, "home")) == len(audience.heard(ann, "home")) == n)
        assert audience.heard(bob) == []
        assert audience.receipts[ann] == []
        # Then
        is_away = False
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])
        audience.until(lambda: [(each.msgid, each.read) for each in audience.receipts[ann]] == [(sent[0].msgid, 1)])


def test_a_database_that_is_silent_is_not_waited_for_all_the_time(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given bob, whose missed messages are in SQL only, in several groups
    for gid in ("a", "b", "c"):
        chat.create_group(gid, ["ann", "bob"])
        leave_to_sql(chat, say(chat, "1", "2", gid=gid)[0].msgid, gid)
    chat.create_group("home", ["ann", "cyd"])
    sql_queries = []

    def silent(question: Effect[Any]) -> None:
        if isinstance(question, SqlQuery):
            sql_queries.append(question)
            time.sleep(0.5)
            raise DatabaseUnavailable

    monkeypatch.setattr("imcore.util.backoff.LONGEST_WAIT_S", 0.1)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, cyd = (gateway.open(uid) for uid in ("bob", "cyd"))
        with monkeypatch.context() as patch:
            before_effects(chat, patch, silent)
            # When
            begun = time.monotonic()
            audience.until(lambda: sql_queries)
            for number in range(1, 6):
                say(other, str(number), gid="home")
                audience.until(lambda n=number: len(audience.heard(cyd, "home")) == n)
                audience.poll(0.1)
        # Then each next query came after five times as long as the last one took
        assert len(sql_queries) <= 1 + (time.monotonic() - begun) / 2.5
        audience.until(lambda: all(audience.heard(bob, gid) == ["1", "2"] for gid in ("a", "b", "c")))


def test_an_end_while_the_subscription_is_lost_still_acks_and_goes_offline(chat: Chat, other: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    [message] = say(other, "1")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        gateway.open("ann")
        audience.until(lambda: audience.heard(bob) == ["1"])
        kill_connections(other.system.client.driver, "pubsub")
    assert offset(chat, "bob") == message.msgid
    assert chat.online(["ann", "bob"]) == set()
