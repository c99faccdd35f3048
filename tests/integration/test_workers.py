"""The loops of the workers, as processes on a real server: signals, bursts, servers that go away and come back."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
import redis
from rq import Queue
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin import retention
from imcore.cli.supervisor import STOP_S
from imcore.model.values import Draft
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.calls.message_calls import AckTarget, ack, send
from imcore.streams.client import Client, RedisClient, open_client
from imcore.streams.events import Joined
from imcore.streams.journal import CLUSTER_BLOCK_MS, Journal
from imcore.streams.keys import CONFIG, lease
from imcore.system import System
from imcore.workers import jobs
from imcore.workers.persist import KIND, Persist
from imcore.workers.signals import Signals
from tests.deadline import wait_until
from tests.processes import END_S, PythonProcess, WorkerProcess
from tests.servers import RunningCluster, require_server, start_valkey

UIDS = [f"user{number}" for number in range(20)]


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return replace(Settings.from_env({}, data_dir=str(tmp_path), redis_url=valkey), block_ms=50, partitions=4)


@pytest.fixture
def chat(settings: Settings) -> Iterator[Chat]:
    with Chat.connect(settings=settings) as chat:
        yield chat


def talk(chat: Chat, gid: str = "g", count: int = 100) -> None:
    """Have a group of twenty say so much, and one of them ack it."""
    chat.create_group(gid, UIDS)
    for start in range(0, count, 100):
        drafts = [Draft(UIDS[number % 20], f"{number}") for number in range(start, min(count, start + 100))]
        chat.system.client.call(send(chat.system.client.space, gid, drafts, 1000))
    chat.system.client.call(ack(chat.system.client.space, gid, [AckTarget(None, [UIDS[0]])]))


def count(database: Database, table: str = "group_msgs") -> int:
    with database.connection() as connection:
        found: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    return found


def has(database: Database, messages: int) -> bool:
    return count(database) == messages


def open_entries(chat: Chat) -> int:
    """How many entries workers have taken and not done."""
    return sum(chat.system.client.driver.xpending(key, KIND)["pending"] for key in chat.system.client.space.journals())


def worker(settings: Settings, name: str = "persist", *arguments: str, **others: str | int) -> WorkerProcess:
    same = {name: getattr(settings, name) or "" for name in ("redis_url", "database_url", "partitions")}
    return WorkerProcess(settings.data_dir / "workers", name, *arguments, **{**same, **others})


class TestBurst:
    def test_it_stores_all_and_ends(self, chat: Chat, settings: Settings) -> None:
        talk(chat, count=1000)
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        assert count(chat.system.database) == 1000
        assert open_entries(chat) == 0

    @pytest.mark.parametrize("name", ["persist", "receipts", "trim"])
    def test_a_redis_that_has_lost_all_is_begun_as_the_data_was(
        self, chat: Chat, settings: Settings, name: str
    ) -> None:
        # Given data of 4 partitions, which only SQL has by now, and one whom nobody has told of it
        chat.system.database.upgrade()
        chat.system.database.set_meta("partitions", "4")
        if name == "trim":
            with Chat.connect(settings=replace(settings, partitions=None)) as other:
                other.client.upgrade()
                retention.trim(other)
        else:
            with worker(settings, name, "--burst", partitions="") as burst:
                assert burst.wait() == 0
        # Then a rebuild will not change it under those who are there already
        assert chat.system.client.driver.hget(CONFIG, "partitions") == b"4"

    def test_it_takes_over_what_the_dead_left(self, chat: Chat, settings: Settings) -> None:
        # Given a worker that died with entries in hand
        talk(chat)
        dead = Journal(chat.system.client, KIND, settings)
        assert dead.take()
        chat.system.client.driver.delete(lease(KIND, 1))

        # Then a burst stores them too
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        assert count(chat.system.database) == 100

    def test_it_waits_for_what_others_have_in_hand(self, chat: Chat, settings: Settings) -> None:
        # Given a living worker with entries in hand, which is not heard of while the burst starts
        chat.system.database.upgrade()
        talk(chat)
        other = Persist(chat.system.client, chat.system.database, replace(settings, lease_ms=600_000))
        other._in_hand = other._journal.take()

        # When a burst has nothing left to do itself
        with worker(settings, "persist", "--burst") as burst:
            burst.wait_for("working as persist-2")
            wait_until(lambda: consumers(chat) == {"persist-1", "persist-2"})
            assert burst.runs

            # Then it ends once the other has done its part
            while other.step():
                pass
            assert burst.wait() == 0
        assert count(chat.system.database) == 100

    def test_it_ends_only_when_what_failed_is_done_or_dead(self, chat: Chat, settings: Settings) -> None:
        # Given an entry that nobody can handle, and some behind it
        chat.create_group("g", UIDS)
        chat.system.client.driver.xadd(chat.system.client.space.group("g").journal, {"kind": "feast"})
        talk(chat, "g", count=10)

        # When a burst tries it, after waits of 50, 100 and 200 ms: longer than it waits for new entries
        began = time.monotonic()
        with worker(settings, "persist", "--burst", retry_ms=50, max_deliveries=4) as burst:
            assert burst.wait() == 0

        # Then all is out of the way
        assert time.monotonic() - began > 0.35
        assert count(chat.system.database) == 10
        assert [letter.deliveries for letter in dead_letters.list_dead(chat.system.client)] == [4]
        assert open_entries(chat) == 0

    def test_it_notices_a_redis_that_has_lost_all(self, chat: Chat, settings: Settings) -> None:
        talk(chat)
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        chat.system.client.driver.flushall()
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 1
        assert "run im rebuild" in burst.log.splitlines()[-1]

    def test_without_a_server_it_says_so_in_one_line(self, settings: Settings) -> None:
        nowhere = f"unix://{settings.data_dir}/nowhere.sock"
        with worker(settings, "persist", "--burst", redis_url=nowhere) as burst:
            assert burst.wait() == 1
        [line] = [line for line in burst.log.splitlines() if not line.startswith("20")]
        assert line.startswith("im worker persist: ")
        assert "nowhere.sock" in line


def consumers(chat: Chat) -> set[str]:
    return {
        info["name"].decode()
        for key in chat.system.client.space.journals()
        for info in chat.system.client.driver.xinfo_consumers(key, KIND)
    }


class TestLoop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_cleanly(self, chat: Chat, settings: Settings, number: signal.Signals) -> None:
        # Given a worker with nothing to do
        with worker(settings, block_ms=1000) as idle:
            idle.wait_for("working as persist-1")

            # When it is asked to end, twice, as Ctrl-C does
            idle.send(number)
            assert idle.end(number) == 0

        # Then its name is free, and it said so in plain lines
        assert not chat.system.client.driver.exists(lease(KIND, 1))
        assert "Traceback" not in idle.log
        assert idle.log.endswith("ended; 0 entries handled\n")

    def test_a_signal_under_load_leaves_nothing_half_done(self, chat: Chat, settings: Settings) -> None:
        # Given a worker in the middle of much to do
        chat.system.database.upgrade()
        for number in range(20):
            talk(chat, f"g{number}", count=1000)
        with worker(settings, batch_size=5) as busy:
            wait_until(lambda: count(chat.system.database))

            # When it is asked to end
            assert busy.end() == 0

        # Then it has done a part, and another one does the rest
        done = count(chat.system.database)
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        assert 0 < done <= count(chat.system.database) == 20_000
        assert open_entries(chat) == 0

    @pytest.mark.parametrize("arguments", [[], ["--burst"]], ids=["loop", "burst"])
    def test_a_signal_while_the_database_hangs_ends_it_soon(
        self, chat: Chat, settings: Settings, postgres_url: str, arguments: list[str]
    ) -> None:
        # Given a worker that waits for somebody's lock
        settings = replace(settings, database_url=postgres_url)
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        talk(chat, count=10)
        with (
            closing(psycopg.connect(postgres_url)) as holder,
            Database.connect(postgres_url) as database,
            worker(settings, "persist", *arguments) as stuck,
        ):
            holder.execute("LOCK TABLE group_msgs, group_spans, chat_groups IN ACCESS EXCLUSIVE MODE")
            wait_until(lambda: wait_for_locks(postgres_url))

            # When it is asked to end, and again
            stuck.send(signal.SIGTERM)
            began = time.monotonic()
            assert stuck.end() == 0

            # Then it ends before `im up` would kill it, says what becomes of its entries, and nothing else
            assert time.monotonic() - began < STOP_S
            assert "what is in hand stays open for the next worker" in stuck.log
            assert "Traceback" not in stuck.log
            assert all(" persist: " in line for line in stuck.log.splitlines())
            assert not chat.system.client.driver.exists(lease(KIND, 1))
            assert open_entries(chat)

            # And the next one stores them
            holder.rollback()
            with worker(settings, "persist", "--burst") as burst:
                assert burst.wait() == 0
            assert count(database) == 10
        assert open_entries(chat) == 0

    def test_it_ends_too_where_closing_hangs(self, chat: Chat, settings: Settings) -> None:
        # Given a worker that neither ends a step nor closes
        chat.system.database.upgrade()
        with PythonProcess(
            settings.data_dir / "workers",
            "tests.hanging",
            "hanging",
            redis_url=settings.redis_url,
            database_url=settings.database_url,
            partitions=4,
        ) as hanging:
            hanging.wait_for("in a step")
            # When
            assert hanging.end() == 0
        # Then
        assert hanging.log.splitlines()[-1] == "closing hangs, too: leaving without it"

    def test_messages_are_stored_as_they_come(self, chat: Chat, settings: Settings) -> None:
        chat.system.database.upgrade()
        with worker(settings):
            for number in range(1, 6):
                talk(chat, f"g{number}", count=1)
                wait_until(partial(has, chat.system.database, number))

    def test_an_idle_loop_does_not_spin(self, chat: Chat, settings: Settings) -> None:
        # Given a worker with nothing to do
        with worker(settings, block_ms=200) as idle:
            idle.wait_for("working as")
            server = chat.system.client.driver

            # Then five looks for new entries take about five waits
            start, looks = time.monotonic(), reads(server)
            wait_until(lambda: reads(server) >= looks + 5)
            assert time.monotonic() - start > 4 * 0.2


def reads(client: Client) -> int:
    """How often a server was asked for new entries."""
    calls: int = client.info("commandstats").get("cmdstat_xreadgroup", {}).get("calls", 0)
    return calls


class TestServersAway:
    def test_redis_away_and_back(self, tmp_path: Path) -> None:
        # Given a server of our own, and a worker that has stored something
        require_server()
        server = start_valkey(tmp_path / "valkey")
        settings = Settings.from_env({}, data_dir=str(tmp_path), redis_url=server.url)
        try:
            with Chat.connect(settings=settings) as chat, worker(settings) as steady:
                talk(chat, "g", count=10)
                steady.wait_for("working as")
                wait_until(lambda: count(chat.system.database) == 10)

                # When the server crashes and comes back
                server.kill()
                steady.wait_for("waiting: no answer from Redis")
                server = start_valkey(tmp_path / "valkey")
                wait_until(chat.system.client.driver.ping)
                talk(chat, "h", count=10)

                # Then the worker goes on by itself, and has said each thing once
                wait_until(lambda: count(chat.system.database) == 20)
                assert steady.end() == 0
            assert steady.log.count("waiting:") == steady.log.count("going on") == 1
        finally:
            server.stop()

    def test_sql_away_and_back(self, chat: Chat, settings: Settings, postgres_url: str) -> None:
        # Given a database that lets nobody in, and a worker that looks into it only when there is something to store
        settings = replace(settings, database_url=postgres_url)
        talk(chat, "g", count=10)
        with Database.connect(postgres_url) as database, worker(settings, lease_ms=600_000) as steady:
            steady.wait_for("working as")
            wait_until(lambda: count(database) == 10)
            database.close()
            allow_connections(postgres_url, allowed=False)

            # When there is something to store
            talk(chat, "h", count=10)
            steady.wait_for("waiting: the database")
            assert open_entries(chat)

            # Then it is stored once the database is back
            allow_connections(postgres_url, allowed=True)
            wait_until(lambda: count(database) == 20)
            assert steady.end() == 0
            assert not open_entries(chat)
        assert "password" not in steady.log

    def test_started_before_its_servers_it_waits_for_them(self, tmp_path: Path) -> None:
        require_server()
        folder = tmp_path / "valkey"
        settings = Settings.from_env({}, data_dir=str(tmp_path), redis_url=f"unix://{folder}/redis.sock")
        with worker(settings) as early:
            early.wait_for("waiting: no answer from Redis")
            server = start_valkey(folder)
            try:
                early.wait_for("working as persist-1")
                assert early.end() == 0
            finally:
                server.stop()

    def test_asked_to_end_while_it_waits_it_ends(self, settings: Settings) -> None:
        with worker(settings, redis_url=f"unix://{settings.data_dir}/nowhere.sock") as waiting:
            waiting.wait_for("waiting: no answer from Redis")
            assert waiting.end() == 0

    def test_what_waiting_does_not_mend_ends_it(self, chat: Chat, settings: Settings) -> None:
        chat.create_group("g")
        with worker(settings, partitions=99) as wrong:
            assert wrong.wait() == 1
        assert "IM_PARTITIONS=4" in wrong.log.splitlines()[-1]
        assert "Traceback" not in wrong.log


def allow_connections(url: str, *, allowed: bool) -> None:
    name = url.split("/")[3].partition("?")[0]
    with psycopg.connect(url.replace(name, "postgres"), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {allowed}')
        if not allowed:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


class TestOnRealServers:
    """What fakeredis does otherwise."""

    def test_more_joins_than_a_millisecond_has_ids_have_ids_that_can_be_packed(
        self, chat: Chat, settings: Settings
    ) -> None:
        # Given a clock that has been put back: the journal goes on in the millisecond that it had come to
        chat.create_group("g")
        ahead = time.time_ns() // 1_000_000 + 60_000
        chat.system.client.driver.xadd(
            chat.system.client.space.group("g").journal, {"kind": "group", "gid": "g"}, id=f"{ahead}-0"
        )
        chat.add_members("g", [f"user{number}" for number in range(10_000)])
        journal = Journal(chat.system.client, KIND, replace(settings, batch_size=20_000))

        # Then each has its own version, in their order
        versions = [entry.version for entry in journal.take() if isinstance(entry.event, Joined)]
        assert len(versions) == len(set(versions)) == 10_000
        assert versions == sorted(versions)

    def test_after_redis_lost_its_data_nothing_is_stored_until_it_is_rebuilt(
        self, chat: Chat, settings: Settings
    ) -> None:
        chat.system.database.upgrade()
        with worker(settings) as steady:
            talk(chat, "g", count=1)
            wait_until(lambda: count(chat.system.database) == 1)
            # When all is lost, and people begin anew
            chat.system.client.driver.flushall()
            talk(chat, "h", count=1)
            # Then the worker says what to do, and goes on once that is done
            steady.wait_for("run im rebuild")
            assert count(chat.system.database) == 1
            rebuild(chat.system, yes=True)
            wait_until(lambda: count(chat.system.database) == 2)
            assert steady.end() == 0
        assert list(check(chat.system)) == []

    def test_poison_becomes_a_dead_letter_and_blocks_nothing(self, chat: Chat, settings: Settings) -> None:
        chat.system.database.upgrade()
        chat.create_group("g", UIDS)
        for _ in range(3):
            chat.system.client.driver.xadd(chat.system.client.space.group("g").journal, {"kind": "feast"})
        with worker(settings, max_deliveries=2) as steady:
            talk(chat, "g", count=10)
            wait_until(lambda: count(chat.system.database) == 10)
            wait_until(lambda: len(list(dead_letters.list_dead(chat.system.client))) == 3)
            assert steady.log.count("failed 1 times") == 3
            assert steady.end() == 0
        assert open_entries(chat) == 0

    def test_persist_on_a_cluster(self, cluster: str, cluster_servers: RunningCluster, tmp_path: Path) -> None:
        # Given a cluster, where no command reaches over partitions
        settings = Settings.from_env({}, data_dir=str(tmp_path), redis_url=cluster)
        client = open_client(cluster)
        with Chat(System(RedisClient(client, partitions=6), Database.connect(settings.database_url), settings)) as chat:
            for number in range(12):
                talk(chat, f"g{number}", count=10)

            # Then a worker stores what was there and what comes
            with worker(settings, block_ms=1000) as steady:
                steady.wait_for("working as")
                wait_until(lambda: count(chat.system.database) == 120)
                talk(chat, "late", count=10)
                wait_until(lambda: count(chat.system.database) == 130)

                # And is in no hurry when nothing comes: a round is one look at each of 6 partitions, and a wait at one
                start, looks = time.monotonic(), all_reads(cluster_servers)
                wait_until(lambda: all_reads(cluster_servers) >= looks + 10 * 7)
                assert time.monotonic() - start > 8 * CLUSTER_BLOCK_MS / 1000
                assert steady.end() == 0
            with worker(settings, "persist", "--burst") as burst:
                assert burst.wait() == 0


def all_reads(cluster: RunningCluster) -> int:
    total = 0
    for node in cluster.nodes:
        with closing(redis.Redis.from_url(node.url)) as client:
            total += reads(client)
    return total


def wait_for_locks(url: str) -> int:
    """How many wait for a lock in a database."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url) as connection:
        [found] = connection.execute(asked).fetchone() or (0,)
    return int(found)


class TestJobs:
    def test_a_job_that_hangs_is_cut_short_by_a_signal(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given a worker whose job hangs, after one that did not
        for name in ("redis_url", "database_url", "data_dir"):
            monkeypatch.setenv(f"IM_{name.upper()}", str(getattr(settings, name)))
        monkeypatch.setattr("imcore.workers.signals.PATIENCE_S", 0.1)
        began = threading.Event()

        def hang(_chat: Chat) -> NoReturn:
            began.set()
            while True:
                time.sleep(0.01)  # a signal may come in any thread, and ends no longer one in this

        def ask() -> None:
            began.wait(END_S)
            os.kill(os.getpid(), signal.SIGTERM)

        with closing(redis.Redis.from_url(settings.redis_url)) as connection:
            first = jobs.queue(connection).enqueue("time.time")
            monkeypatch.setattr(retention, "trim", hang)

            # When it is asked to end
            with Signals() as signals:
                asking = threading.Thread(target=ask)
                asking.start()
                jobs.run(settings, signals, burst=False)
                asking.join()

            # Then it ends, and keeps no job to itself
            assert first.get_status() == JobStatus.FINISHED
            assert not jobs.JobsWorker.all(connection)
            assert len(jobs.queue(connection).failed_job_registry) == 1
        assert [record for record in caplog.records if record.levelno > logging.WARNING] == []

    def test_trim_is_due_once_a_period(self, valkey: str) -> None:
        with closing(redis.Redis.from_url(valkey)) as connection:
            queue = jobs.queue(connection)
            assert [jobs.enqueue_due(queue, 60_000, now_ms) for now_ms in (60_000, 60_001, 119_999, 120_000)] == [
                *(True, False, False),
                True,
            ]
            assert queue.job_ids == ["trim-1", "trim-2"]

    def test_the_worker_trims_by_itself_and_ends_cleanly(self, chat: Chat, settings: Settings) -> None:
        # Given something stored that need not be kept
        talk(chat, count=100)
        with worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0

        # When the worker for jobs runs, all the time within one period
        with worker(settings, "jobs", keep_messages=10, trim_every_ms=10**12) as steady:
            steady.wait_for("trimmed 90 entries of 1 groups")

            # Then it has done that once, and ends when asked to
            assert steady.end() == 0
        assert steady.log.count("trimmed") == 1
        assert "Traceback" not in steady.log
        assert len(chat.status("g", limit=0)) == 100

    def test_a_burst_works_off_the_queue_and_adds_nothing(self, chat: Chat, settings: Settings) -> None:
        # Given a job that somebody has enqueued by name, as JSON
        chat.system.database.upgrade()
        with closing(redis.Redis.from_url(settings.redis_url)) as connection:
            job = Queue(jobs.QUEUE, connection=connection, serializer=JSONSerializer).enqueue(jobs.TRIM)

            # When the queue is worked off
            with worker(settings, "jobs", "--burst") as burst:
                assert burst.wait() == 0

            # Then that is all that was done
            assert job.return_value() == {
                "groups": 0,
                "entries": 0,
                "journal_entries": 0,
                "read_times": 0,
                "rewritten": 0,
            }
        assert burst.log.count("trimmed") == 1

    def test_a_burst_without_redis_says_so_in_one_line(self, settings: Settings) -> None:
        nowhere = f"unix://{settings.data_dir}/nowhere.sock"
        with worker(settings, "jobs", "--burst", jobs_redis_url=nowhere) as burst:
            assert burst.wait() == 1
        assert burst.log.splitlines()[-1].startswith("im worker jobs: no answer from Redis")

    def test_asked_to_end_while_redis_is_away_it_ends(self, settings: Settings) -> None:
        nowhere = f"unix://{settings.data_dir}/nowhere.sock"
        with worker(settings, "jobs", jobs_redis_url=nowhere) as waiting:
            waiting.wait_for("waiting:")
            assert waiting.end() == 0

    def test_a_cluster_is_refused(self, cluster: str, settings: Settings) -> None:
        with worker(settings, "jobs", redis_url=cluster) as refused:
            assert refused.wait() == 1
        assert "IM_JOBS_REDIS_URL" in refused.log.splitlines()[-1]


def test_an_unknown_worker_is_wrong_usage(settings: Settings) -> None:
    with worker(settings, "sleeper") as wrong:
        assert wrong.wait() == 2


@pytest.mark.parametrize("comes_to_unsubscribe", [True, False])
def test_no_thread_of_rq_is_left_behind_by_a_server_that_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_to_unsubscribe: bool
) -> None:
    require_server()
    server = start_valkey(tmp_path)
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    try:
        with Signals() as signals, redis.Redis.from_url(server.url) as connection:
            worker = jobs.JobsWorker(connection, signals, 0)
            worker.subscribe()
            # When
            server.kill()
            if comes_to_unsubscribe:
                with pytest.raises(redis.ConnectionError):
                    worker.unsubscribe()
            worker.leave()
            connection.close()
            # Then it ends, and has nothing to tell
            wait_until(lambda: not worker.pubsub_thread.is_alive())
            assert died == []
    finally:
        server.stop()


def test_entries_that_come_while_the_clock_is_put_back_can_be_told_apart(chat: Chat) -> None:
    # Given a clock that stands an hour behind the newest entry, so that all are of one millisecond for an hour
    chat.create_group("g", ["ann", "bob"])
    journal = chat.system.client.space.group("g").journal
    newest = chat.system.client.driver.xinfo_stream(journal)["last-generated-id"].decode().partition("-")[0]
    chat.system.client.driver.execute_command("XSETID", journal, f"{int(newest) + 3_600_000}-8190")
    # When
    for number in range(3):
        chat.send("g", f"message {number}", sender_uid="ann")
        chat.ack("bob", "g")
    # Then each has a number of its own, in order
    packed = [msgids.pack_id(entry_id) for entry_id, _ in chat.system.client.driver.xrange(journal)]
    assert packed == sorted(set(packed))
    assert all(msgids.pack_id(msgids.unpack(number).encode()) == number for number in packed)
