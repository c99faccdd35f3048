"""A recalled text is on no disk: it leaves SQLite's files at once, append-only files once it has left the stream."""

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from imcore.admin import append_only, retention
from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.model.values import Draft
from imcore.repair import check
from imcore.settings import Settings
from imcore.sql import sqlite_file
from imcore.streams.calls import repair_calls
from imcore.streams.calls.repair_calls import GroupLock
from imcore.workers import jobs
from imcore.workers.persist import Persist
from tests.helpers.cli import im
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.servers import RunningCluster, RunningServer, start_valkey
from tests.helpers.workers import drain, run_workers

GID = "team"
SECRET = "SECRET-4711 " * 3
LONG = "SECRET-4711 " * 5000
"""So long that SQLite keeps it on pages of its own."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of its own, which keeps an append-only file."""
    server = start_valkey(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def redis_url(server: RunningServer) -> str:
    return server.url


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """`data` holds no file of the server."""
    elsewhere = Settings.from_env({}, redis_url=settings.redis_url, data_dir=str(tmp_path / "data"))
    return replace(elsewhere, block_ms=5, keep_messages=0, keep_ms=0)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    chat.create_group(GID, ["ann", "bob"])
    return chat


@pytest.fixture
def persist(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Iterator[Persist]:
    monkeypatch.setattr(sqlite_file, "EMPTY_AGAIN_S", 0.0)
    persist = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    yield persist
    persist.close()


def files_with(text: str, folder: Path) -> list[str]:
    """The files of a folder in which a text can be read."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes())


class TestSqlite:
    @pytest.mark.parametrize("text", [SECRET, LONG], ids=["short", "long"])
    def test_a_recalled_text_leaves_every_file(self, chat: Chat, persist: Persist, text: str) -> None:
        sent = chat.send(GID, text, sender_uid="ann")
        drain(persist)
        data = chat.system.settings.data_dir
        assert files_with("SECRET", data)

        chat.recall(GID, sent.msgid, by="ann")
        drain(persist)

        assert files_with("SECRET", data) == []

    def test_the_log_is_emptied_after_a_reader_ends(self, chat: Chat, persist: Persist) -> None:
        # Given somebody who reads
        sent = chat.send(GID, SECRET, sender_uid="ann")
        drain(persist)
        data = chat.system.settings.data_dir
        with closing(sqlite3.connect(data / "imcore.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM group_msgs").fetchone()

            # When the message is recalled
            chat.recall(GID, sent.msgid, by="ann")
            drain(persist)

            # Then it is stored all the same
            stored = chat.system.database.message(GID, sent_packed(chat))
            assert stored
            assert stored.content == ""
            assert files_with("SECRET", data)

        # And gone as soon as they have ended, without anything that is to be stored
        persist.step()
        assert files_with("SECRET", data) == []

    def test_the_next_worker_empties_the_log_of_a_dead_one(self, chat: Chat, persist: Persist) -> None:
        sent = chat.send(GID, SECRET, sender_uid="ann")
        drain(persist)
        chat.recall(GID, sent.msgid, by="ann")
        with closing(sqlite3.connect(chat.system.settings.data_dir / "imcore.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM group_msgs").fetchone()
            drain(persist)
            assert files_with("SECRET", chat.system.settings.data_dir)

        with Chat.connect(settings=chat.system.settings) as another:
            another.system.database.upgrade()  # as each worker begins

            assert files_with("SECRET", chat.system.settings.data_dir) == []

    def test_check_deletes_a_recalled_text(self, chat: Chat, persist: Persist) -> None:
        # Given a recalled text that SQL has all the same
        sent = chat.send(GID, SECRET, sender_uid="ann")
        drain(persist)
        chat.recall(GID, sent.msgid, by="ann")
        drain(persist)
        with closing(sqlite3.connect(chat.system.settings.data_dir / "imcore.db")) as other:
            other.execute("UPDATE group_msgs SET content = ? WHERE recalls IS NULL", (SECRET,))
            other.commit()

        # When it is repaired
        assert any(each.repaired for each in check.check(chat.system, repair=True))

        # Then it is on no disk either
        assert files_with("SECRET", chat.system.settings.data_dir) == []

    def test_the_log_is_small_after_a_reader_ends(self, chat: Chat, persist: Persist) -> None:
        log = chat.system.settings.data_dir / "imcore.db-wal"

        def talk(times: int) -> None:
            for _ in range(times):
                chat.send_many(GID, [Draft("ann", "x" * 5000) for _ in range(100)])
                drain(persist)

        with closing(sqlite3.connect(chat.system.settings.data_dir / "imcore.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM group_msgs").fetchone()
            talk(25)
            assert log.stat().st_size > 10_000_000
        talk(2)
        assert log.stat().st_size < 10_000_000


def sent_packed(chat: Chat) -> int:
    """The oldest message of the group in SQL, packed."""
    return chat.system.database.messages_after(GID, 0)[0].msgid


class TestLocalDatabase:
    def test_a_recalled_text_leaves_every_file(self, chat: Chat) -> None:
        folder = chat.system.settings.data_dir / "clients"
        sent = chat.send(GID, SECRET, sender_uid="ann")
        with LocalDatabase(path_of(chat.system.settings.data_dir, "bob"), "bob", exclusive=True) as local:
            client = Device(chat, "bob", local)
            client.keep(chat.pull("bob", GID))
            assert files_with("SECRET", folder)

            chat.recall(GID, sent.msgid, by="ann")
            client.keep(chat.pull("bob", GID))

            assert files_with("SECRET", folder) == []

    def test_the_log_is_emptied_after_a_reader_ends(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_file, "EMPTY_AGAIN_S", 0.0)
        folder, path = chat.system.settings.data_dir / "clients", path_of(chat.system.settings.data_dir, "bob")
        sent = chat.send(GID, SECRET, sender_uid="ann")
        with LocalDatabase(path, "bob", exclusive=True) as local:
            client = Device(chat, "bob", local)
            client.keep(chat.pull("bob", GID))
            with closing(sqlite3.connect(path, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM messages").fetchone()
                chat.recall(GID, sent.msgid, by="ann")
                client.keep(chat.pull("bob", GID))
                assert files_with("SECRET", folder)

            client.keep([])  # as a live session does with each of its rounds
            assert files_with("SECRET", folder) == []


class TestAppendOnlyFile:
    @pytest.fixture
    def file(self, server: RunningServer) -> Path:
        return server.server.data_dir / "appendonlydir"

    def recalled(self, chat: Chat, text: str = SECRET) -> str:
        """Send a message and recall it; workers have stored both."""
        sent = chat.send(GID, text, sender_uid="ann")
        chat.recall(GID, sent.msgid, by="ann")
        run_workers(chat)
        return sent.msgid

    def test_a_recalled_text_is_gone_after_its_trim(self, chat: Chat, settings: Settings, file: Path) -> None:
        self.recalled(chat)
        assert files_with("SECRET", file)

        where = ["--redis-url", settings.redis_url, "--database-url", settings.database_url]
        result = im("trim", "--json", "--keep-messages", "0", *where)

        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout)["rewritten"] == 1
        wait_until(lambda: files_with("SECRET", settings.data_dir) + files_with("SECRET", file) == [])

    def test_a_trim_frees_streams_that_it_does_not_shorten(self, chat: Chat, settings: Settings, file: Path) -> None:
        # Given a group that a repair has locked
        self.recalled(chat)
        client, group_lock = chat.system.client, GroupLock(chat.system.client.space.group(GID), "repair")
        assert client.call(repair_calls.lock(group_lock))

        def trim(*words: str) -> Result:
            where = ["--redis-url", settings.redis_url, "--database-url", settings.database_url]
            return im("trim", *words, *where)

        # When it is trimmed with what the defaults keep, then the text stays, and that is said
        stays = "1 recalled text stays in Redis until the worker persist rewrites the stream"
        assert trim().stderr.splitlines()[-1] == stays
        assert trim("--json").stderr == ""
        assert files_with("SECRET", file)

        # When the repair has ended, then the text alone is gone
        client.call(repair_calls.release(group_lock, done=True))
        assert "recalled" not in trim().stderr
        wait_until(lambda: files_with("SECRET", file) == [])
        assert [each.message.recalled for each in chat.status(GID)] == [True, False]
        assert client.query("XLEN", client.space.group(GID).stream) == 2

    def test_jobs_rewrite_only_files_with_recalled_texts(
        self, chat: Chat, settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("redis_url", "database_url", "data_dir"):
            monkeypatch.setenv(f"IM_{name.upper()}", str(getattr(settings, name)))

        # Nothing was recalled
        chat.send(GID, "hi", sender_uid="ann")
        run_workers(chat)
        assert jobs.trim()["rewritten"] == 0

        # A recalled text leaves the stream, and then the file
        self.recalled(chat)
        assert len(append_only.noted(chat.system.client)) == 1
        assert jobs.trim()["rewritten"] == 1
        wait_until(lambda: files_with("SECRET", file) == [])

        # Once is enough
        chat.send(GID, "more", sender_uid="ann")
        run_workers(chat)
        assert jobs.trim()["rewritten"] == 0
        assert len(append_only.noted(chat.system.client)) == 0

    def test_a_text_recalled_after_its_trim(self, chat: Chat, file: Path) -> None:
        sent = chat.send(GID, SECRET, sender_uid="ann")
        run_workers(chat)
        retention.trim(chat.system)
        chat.recall(GID, sent.msgid, by="ann")
        run_workers(chat)

        assert append_only.forget_withdrawn(chat.system) == 1
        wait_until(lambda: files_with("SECRET", file) == [])

    def test_a_rewrite_from_before_the_trim_does_not_count(
        self, chat: Chat, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a rewrite under way that still has the text, as it began before the trim
        self.recalled(chat)
        chat.system.client.driver.config_set("rdb-key-save-delay", 200_000)  # microseconds for each key
        chat.system.client.driver.bgrewriteaof()
        retention.trim(chat.system)
        chat.system.client.driver.config_set("rdb-key-save-delay", 0)

        # Then another one follows
        assert append_only.forget_withdrawn(chat.system) == 1
        wait_until(lambda: files_with("SECRET", file) == [])

    def test_a_rewrite_that_waits_for_a_save_is_logged_and_repeated(
        self, chat: Chat, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given a save that lasts longer than the wait
        self.recalled(chat)
        retention.trim(chat.system)
        chat.system.client.driver.config_set("rdb-key-save-delay", 300_000)  # microseconds for each key
        chat.system.client.driver.bgsave()
        chat.system.client.driver.config_set("rdb-key-save-delay", 0)

        # When the file is to be rewritten
        with monkeypatch.context() as patch:
            patch.setattr(append_only, "LONGEST_S", 0.3)
            assert append_only.forget_withdrawn(chat.system) == 0

        # Then that is logged
        [message] = caplog.messages
        assert "may still hold recalled texts: its rewrite still waits for a save to end after" in message

        # And done as soon as that has ended
        assert append_only.forget_withdrawn(chat.system) == 1
        wait_until(lambda: files_with("SECRET", file) == [])

    def test_a_failed_rewrite_is_logged_and_repeated(
        self, chat: Chat, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given a folder in which no file can be made
        self.recalled(chat)
        retention.trim(chat.system)
        parked = file.with_name("parked")
        file.rename(parked)
        file.touch()

        # When it is to be rewritten
        assert append_only.forget_withdrawn(chat.system) == 0
        assert ["may still hold recalled texts" in message for message in caplog.messages] == [True]

        # Then it is the next time
        file.unlink()
        parked.rename(file)
        wait_until(lambda: append_only.forget_withdrawn(chat.system) == 1)
        wait_until(lambda: files_with("SECRET", file) == [])

    def test_a_role_without_the_right_is_logged(
        self, chat: Chat, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.recalled(chat)
        client: Any = chat.system.client.driver
        for refused in ("bgrewriteaof", "info"):
            client.execute_command(
                "ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all", f"-{refused}"
            )
            url = settings.redis_url.replace("unix://", "unix://limited:pw@")
            with Chat.connect(settings=replace(settings, redis_url=url)) as limited:
                caplog.clear()
                retention.trim(limited.system)
                assert append_only.forget_withdrawn(limited.system) == 0
                [message] = caplog.messages
                assert "this role may not have it rewritten" in message
                assert "BGREWRITEAOF" in message
        assert append_only.forget_withdrawn(chat.system) == 1

    def test_a_server_without_an_append_only_file(
        self, valkey: str, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        with Chat.connect(settings=replace(settings, redis_url=valkey)) as chat:
            chat.system.database.upgrade()
            chat.create_group(GID, ["ann", "bob"])
            self.recalled(chat)
            retention.trim(chat.system)
            assert append_only.forget_withdrawn(chat.system, always=True) == 0
            assert len(append_only.noted(chat.system.client)) == 0
        assert caplog.messages == []

    def test_each_primary_of_a_cluster(
        self, cluster: str, cluster_servers: RunningCluster, settings: Settings, tmp_path: Path
    ) -> None:
        for node in cluster_servers.nodes:
            with redis.Redis.from_url(node.url) as client:
                client.config_set("appendonly", "yes")
        try:
            with Chat.connect(settings=replace(settings, redis_url=cluster)) as chat:
                chat.system.database.upgrade()
                chat.create_group(GID, ["ann", "bob"])
                self.recalled(chat)
                retention.trim(chat.system)
                done: list[tuple[int, int]] = []
                assert append_only.forget_withdrawn(chat.system, on_progress=lambda *now: done.append(now)) == 3
                assert done[-1] == (3, 3)
        finally:
            for node in cluster_servers.nodes:
                with redis.Redis.from_url(node.url) as client:
                    client.config_set("appendonly", "no")
