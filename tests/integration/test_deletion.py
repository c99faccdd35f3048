"""Deleted groups on real servers: live sessions, large groups, kills, repair in between, and both databases."""

import asyncio
import signal
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore import AsyncChat, Chat, Draft
from imcore.admin import append_only
from imcore.errors import DatabaseUnavailable, GroupDeleted, GroupUnderWay, ImError, UnknownGroup
from imcore.gateway.fanout import Joined, Left, NewMessage
from imcore.model.rows import Batch, GroupRow, MessageRow
from imcore.model.values import DeletedGroup
from imcore.operations import deletion
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.sql import deletion as sql_deletion
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from tests.helpers.deadline import wait_until
from tests.helpers.deletions import GID, UIDS, assert_gone, begin_and_die, talk
from tests.helpers.persist_runs import new_persist
from tests.helpers.processes import PythonProcess
from tests.helpers.rows import stored
from tests.helpers.workers import persist, run_workers

MOST_COMMANDS = 6_000
"""A step may run this many commands: these take the server less than 10 ms."""


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url, block_ms=1, receipt_window_ms=0, partitions=2, lease_ms=200)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of three, and another one, where a worker has been."""
    chat.system.database.upgrade()
    for gid in (GID, "other"):
        chat.create_group(gid, UIDS)
    run_workers(chat)
    return chat


class TestSessions:
    def test_members_are_told_that_they_left(self, chat: Chat) -> None:
        talk(chat)
        with chat.gateway() as gateway:
            sessions = [gateway.open(uid, start="live") for uid in ("ann", "bob")]
            wait_until(lambda: gateway.poll(0.05) is not None and all(session.is_synced for session in sessions))
            chat.delete_group(GID)
            heard: list[Any] = []
            wait_until(lambda: heard.extend(gateway.poll(0.05)) or len(heard) >= 2)
            assert all(isinstance(event, Left) and event.gid == GID for event in heard)
            sent = chat.send("other", "hi", sender_uid="ann")
            more: list[Any] = []
            wait_until(lambda: more.extend(gateway.poll(0.05)) or more)
            assert [event.message for event in more if isinstance(event, NewMessage)] == [sent]

            # And a new group is a new one for them, too
            chat.create_group(GID, ["ann"])
            chat.send(GID, "anew", sender_uid="ann")
            anew: list[Any] = []
            wait_until(lambda: anew.extend(gateway.poll(0.05)) or len(anew) >= 2)
            assert [type(event) for event in anew] == [Joined, NewMessage]

    def test_asyncio(self, chat: Chat, settings: Settings) -> None:
        async def story() -> DeletedGroup:
            async with AsyncChat.connect(settings=settings) as other:
                return await other.delete_group(GID)

        talk(chat)
        assert asyncio.run(story()) == DeletedGroup(GID, 21)
        run_workers(chat)
        assert_gone(chat)


class TestDatabases:
    @pytest.fixture
    def database_url(self, database_url: str, request: pytest.FixtureRequest) -> str:
        return database_url

    @pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
    def test_rows_go_in_steps(
        self, request: pytest.FixtureRequest, settings: Settings, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deletion, "ROWS", 7)
        url = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgres_url")
        with Chat.connect(settings=replace(settings, database_url=url)) as chat:
            chat.system.database.upgrade()
            for gid in (GID, "other"):
                chat.create_group(gid, UIDS)
                talk(chat, gid, 50)
            run_workers(chat)
            assert chat.delete_group(GID).messages == 51
            assert_gone(chat)
            assert len([row for row in stored(chat.system.database).messages if row.gid == "other"]) == 51

    def test_a_writer_of_before_writes_nothing(self, database: Database) -> None:
        # Given a writer that has looked which groups are deleted, and stalls
        late = Batch(groups=[GroupRow(GID, 1)], messages=[MessageRow(GID, 5, 1, "ann", 0, "hi", None, None)])
        late.known_deletions = {}

        # When the group is deleted meanwhile
        database.write(late)
        sql_deletion.begin(database, GID, 9)
        while sql_deletion.step(database, GID, 9, 100):
            pass
        assert not stored(database).gids

        # Then it writes nothing, before it has looked again
        with pytest.raises(GroupDeleted):
            database.write(late)
        assert not stored(database).gids
        late.known_deletions = {gid: each.entry for gid, each in sql_deletion.known(database, [GID]).items()}
        database.write(late)
        assert stored(database).gids == [GID]

        # And the same deletion takes nothing of the new group
        sql_deletion.begin(database, GID, 9)
        assert sql_deletion.step(database, GID, 9, 100) == 0
        assert stored(database).gids == [GID]

    def test_postgresql_waits_for_writers_under_way(self, postgres_url: str) -> None:
        with Database.connect(postgres_url) as database:
            database.upgrade()
            with database.writing() as connection:
                connection.execute(sql_deletion.text("SELECT gid FROM deleted_groups"))
                with pytest.raises(DatabaseUnavailable):
                    sql_deletion.begin(database, GID, 9)
            sql_deletion.begin(database, GID, 9)


class TestWorkers:
    def test_a_worker_with_entries_in_hand(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a worker that has read all, and is about to write
        talk(chat)
        worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
        write = chat.system.database.write

        def delete_first(batch: Batch) -> None:
            monkeypatch.undo()
            chat.delete_group(GID)
            write(batch)

        monkeypatch.setattr(chat.system.database, "write", delete_first)

        # When the group is deleted meanwhile
        with pytest.raises(GroupDeleted):
            worker.step()
        while worker.step():
            pass
        worker.close()

        # Then nothing of it is stored
        assert_gone(chat)

    def test_a_worker_ends_what_a_dead_process_began(self, chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
        talk(chat)
        begin_and_die(chat)
        with pytest.raises(UnknownGroup):
            chat.group(GID)
        persist(chat)
        assert "group 'team': its deletion had begun, and is ended" in caplog.messages
        assert_gone(chat)

    def test_a_worker_takes_a_while_for_a_large_group_and_works_on(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("imcore.repair.deletion._LONGEST_LOOK_S", 0.0)
        monkeypatch.setattr(deletion, "ROWS", 5)
        talk(chat, messages=60)
        run_workers(chat)
        begin_and_die(chat)
        worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
        worker.step()
        assert GID in stored(chat.system.database).gids
        sent = chat.send("other", "hi", sender_uid="ann")
        wait_until(lambda: worker.step() is not None and not chat.system.client.query("HGET", _deleting(chat), GID))
        worker.close()
        assert chat.system.database.messages_after("other", 0)[0].seq == sent.seq
        assert_gone(chat)

    def test_texts_leave_the_append_only_file(self, chat: Chat) -> None:
        chat.send(GID, "hi", sender_uid="ann")
        run_workers(chat)
        chat.delete_group(GID)
        assert append_only.count_kept(chat.system) == 0
        assert len(append_only.noted(chat.system.client)) == 1
        append_only.forget_withdrawn(chat.system)
        assert len(append_only.noted(chat.system.client)) == 0


def _deleting(chat: Chat) -> str:
    return chat.system.client.space.deleting(chat.system.client.space.partition_of(GID))


class TestKills:
    def test_a_command_that_is_killed_is_repeated(self, chat: Chat, settings: Settings, tmp_path: Path) -> None:
        # Given a large group, and commands that are killed as they delete it
        chat.create_group("crowd", [f"user{number}" for number in range(3000)])
        for _ in range(30):
            chat.send_many("crowd", [Draft("user1", "hi") for _ in range(100)])
        run_workers(chat)
        where = {"redis_url": settings.redis_url, "database_url": settings.database_url, "partitions": 2}
        command = ("imcore.cli.main", "group", "delete", "crowd", "--yes", "--json")
        k, killed = chat.system.client.space.group("crowd"), 0
        for bound in (2900, 1500):
            with PythonProcess(tmp_path / "killed", *command, **where) as process:
                joined = k.joined
                wait_until(
                    lambda key=joined, most=bound, run=process: (
                        chat.system.client.query("ZCARD", key) < most or not run.runs
                    )
                )
                killed += process.end(signal.SIGKILL) == -signal.SIGKILL
            assert "crowd" not in [group.gid for group in chat.groups()]
            assert list(check(chat.system)) == []
        assert killed

        # When it is repeated, then all is gone
        with PythonProcess(tmp_path / "last", *command, **where) as process:
            assert process.wait() == 0
            assert '"messages": 3000' in process.log or '"messages":3000' in process.log
        assert_gone(chat, "crowd")


class TestBounds:
    def test_no_step_is_larger_in_a_larger_group(self, chat: Chat) -> None:
        # Given a large group whose members all have receipts and own messages
        uids = [f"user{number}" for number in range(2000)]
        chat.create_group("crowd", uids)
        for start in range(0, 2000, 100):
            chat.send_many("crowd", [Draft(uid, "x" * 100, f"c-{uid}") for uid in uids[start : start + 100]])
        chat.ack_many("crowd", [(uid, None) for uid in uids[:50]])
        run_workers(chat)
        driver: Any = chat.system.client.driver
        calls: list[int] = []

        class Counting(RedisClient):
            def call_each(self, batch: Any, **options: Any) -> list[Any]:
                driver.config_resetstat()
                answers = super().call_each(batch, **options)
                stats = driver.info("commandstats")
                calls.append(sum(each["calls"] for name, each in stats.items() if "fcall" not in name) // len(batch))
                return answers

        # When it is deleted
        client = Counting(driver, partitions=2)
        with Chat(type(chat.system)(client, chat.system.database, chat.system.settings)) as counted:
            assert counted.delete_group("crowd").messages == 2000
            # Then each step runs few commands, and there are as many as it takes
            assert max(calls) < MOST_COMMANDS
            assert len(calls) > 2000 / deletion.SPANS * 2
        assert client is not None

    def test_a_cluster(self, cluster: str, settings: Settings) -> None:
        with Chat.connect(settings=replace(settings, redis_url=cluster, partitions=None)) as chat, ExitStack():
            chat.system.database.upgrade()
            chat.create_group(GID, UIDS)
            talk(chat)
            run_workers(chat)
            assert chat.delete_group(GID).messages == 21
            run_workers(chat)
            assert chat.groups_of("ann") == []
            assert list(check(chat.system)) == []

    def test_two_at_once(self, chat: Chat, other: Chat) -> None:
        talk(chat, messages=200)
        run_workers(chat)
        answers: list[object] = []

        def delete(one: Chat) -> None:
            try:
                answers.append(one.delete_group(GID))
            except ImError as error:
                answers.append(type(error))

        threads = [threading.Thread(target=delete, args=(one,)) for one in (chat, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert DeletedGroup(GID, 201) in answers
        assert {DeletedGroup(GID, 201), UnknownGroup, GroupUnderWay} >= set(answers)
        assert_gone(chat)
