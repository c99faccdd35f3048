"""The loops of the workers, as processes on a real server: signals, bursts, servers that go away and come back."""

import signal
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
import redis

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin import retention
from imcore.process import STOP_S
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.client import RedisClient, open_client
from imcore.streams.events import SpanBegun
from imcore.streams.journal import Journal
from imcore.streams.keys import CONFIG, lease
from imcore.streams.rounds import Client
from imcore.system import System
from imcore.workers.persist import KIND
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.processes import PythonProcess
from tests.helpers.servers import RunningCluster, require_server, start_valkey
from tests.helpers.worker_runs import UIDS, count, talk
from tests.helpers.workers import start_worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=50, partitions=4)


def has(database: Database, messages: int) -> bool:
    return count(database) == messages


def open_entries(chat: Chat) -> int:
    """How many entries workers have taken and not done."""
    return sum(chat.system.client.driver.xpending(key, KIND)["pending"] for key in chat.system.client.space.journals())


class TestBurst:
    def test_a_burst_stores_all_and_ends(self, chat: Chat, settings: Settings) -> None:
        talk(chat, count=1000)
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        assert count(chat.system.database) == 1000
        assert open_entries(chat) == 0

    @pytest.mark.parametrize("name", ["persist", "receipts", "trim"])
    def test_an_empty_redis_gets_the_partitions_of_the_data_in_sql(
        self, chat: Chat, settings: Settings, name: str
    ) -> None:
        # Given data of 4 partitions, by now only in SQL, and a worker without that setting
        chat.system.database.upgrade()
        chat.system.database.set_meta("partitions", "4")
        if name == "trim":
            with Chat.connect(settings=replace(settings, partitions=None)) as other:
                other.system.client.upgrade()
                retention.trim(other.system)
        else:
            with start_worker(settings, name, "--burst", partitions="") as burst:
                assert burst.wait() == 0
        # Then a rebuild will not change it under those who are there already
        assert chat.system.client.driver.hget(CONFIG, "partitions") == b"4"

    def test_a_burst_takes_over_entries_of_dead_workers(self, chat: Chat, settings: Settings) -> None:
        # Given a worker that died with entries in hand
        talk(chat)
        dead = Journal(chat.system.client, KIND, settings)
        assert dead.read()
        chat.system.client.driver.delete(lease(KIND, 1))

        # Then a burst stores them too
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        assert count(chat.system.database) == 100

    def test_a_burst_waits_for_entries_in_other_workers_hands(self, chat: Chat, settings: Settings) -> None:
        # Given a living worker with entries in hand that is silent while the burst starts
        chat.system.database.upgrade()
        talk(chat)
        other = new_persist(chat.system.client, chat.system.database, replace(settings, lease_ms=600_000))
        other._take()

        # When a burst has nothing left to do itself
        with start_worker(settings, "persist", "--burst") as burst:
            burst.wait_for("working as persist-2")
            wait_until(lambda: consumers(chat) == {"persist-1", "persist-2"})
            assert burst.runs

            # Then it ends once the other has done its part
            while other.step():
                pass
            assert burst.wait() == 0
        assert count(chat.system.database) == 100

    def test_a_burst_ends_when_failed_entries_are_done_or_dead(self, chat: Chat, settings: Settings) -> None:
        # Given an entry that nobody can handle, and some behind it
        chat.create_group("g", UIDS)
        chat.system.client.driver.xadd(chat.system.client.space.group("g").journal, {"kind": "feast"})
        talk(chat, "g", count=10)

        # When a burst tries it, after waits of 50, 100 and 200 ms: longer than it waits for new entries
        began = time.monotonic()
        with start_worker(settings, "persist", "--burst", retry_ms=50, max_deliveries=4) as burst:
            assert burst.wait() == 0

        # Then all is out of the way
        assert time.monotonic() - began > 0.35
        assert count(chat.system.database) == 10
        assert [letter.deliveries for letter in dead_letters.list_dead(chat.system.client)] == [4]
        assert open_entries(chat) == 0

    def test_a_burst_notices_a_redis_that_has_lost_all(self, chat: Chat, settings: Settings) -> None:
        talk(chat)
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        chat.system.client.driver.flushall()
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 1
        assert "run im rebuild" in burst.log.splitlines()[-1]

    def test_a_burst_without_a_server_prints_one_line(self, settings: Settings) -> None:
        nowhere = f"unix://{settings.data_dir}/nowhere.sock"
        with start_worker(settings, "persist", "--burst", redis_url=nowhere) as burst:
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
    def test_a_signal_ends_a_worker_cleanly(self, chat: Chat, settings: Settings, number: signal.Signals) -> None:
        # Given a worker with nothing to do
        with start_worker(settings, block_ms=1000) as idle:
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
        with start_worker(settings, batch_size=5) as busy:
            wait_until(lambda: count(chat.system.database))

            # When it is asked to end
            assert busy.end() == 0

        # Then it has done a part, and another one does the rest
        done = count(chat.system.database)
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        assert 0 < done <= count(chat.system.database) == 20_000
        assert open_entries(chat) == 0

    @pytest.mark.parametrize("arguments", [[], ["--burst"]], ids=["loop", "burst"])
    def test_a_signal_while_the_database_hangs_ends_a_worker_soon(
        self, chat: Chat, settings: Settings, postgres_url: str, arguments: list[str]
    ) -> None:
        # Given a worker that waits for somebody's lock
        settings = replace(settings, database_url=postgres_url)
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0
        talk(chat, count=10)
        with (
            closing(psycopg.connect(postgres_url)) as holder,
            Database.connect(postgres_url) as database,
            start_worker(settings, "persist", *arguments) as stuck,
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
            with start_worker(settings, "persist", "--burst") as burst:
                assert burst.wait() == 0
            assert count(database) == 10
        assert open_entries(chat) == 0

    def test_a_signal_ends_a_worker_whose_closing_hangs(self, chat: Chat, settings: Settings) -> None:
        # Given a worker that neither ends a step nor closes
        chat.system.database.upgrade()
        with PythonProcess(
            settings.data_dir / "workers",
            "tests.helpers.hanging_worker",
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
        with start_worker(settings):
            for number in range(1, 6):
                talk(chat, f"g{number}", count=1)
                wait_until(partial(has, chat.system.database, number))

    def test_an_idle_loop_does_not_spin(self, chat: Chat, settings: Settings) -> None:
        # Given a worker with nothing to do
        with start_worker(settings, block_ms=200) as idle:
            idle.wait_for("working as")
            server = chat.system.client.driver
            wait_until(lambda: server.info("clients")["blocked_clients"])  # it has begun: that reads each partition

            # Then five reads of new entries take about five waits
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
            with Chat.connect(settings=settings) as chat, start_worker(settings) as steady:
                talk(chat, "g", count=10)
                steady.wait_for("working as")
                wait_until(lambda: count(chat.system.database) == 10)

                # When the server crashes and comes back
                server.kill()
                steady.wait_for("waiting: no answer from Redis")
                server = start_valkey(tmp_path / "valkey")
                wait_until(chat.system.client.driver.ping)
                talk(chat, "h", count=10)

                # Then the worker continues by itself, and has logged each thing once
                wait_until(lambda: count(chat.system.database) == 20)
                assert steady.end() == 0
            assert steady.log.count("waiting:") == steady.log.count("going on") == 1
        finally:
            server.stop()

    def test_sql_away_and_back(self, chat: Chat, settings: Settings, postgres_url: str) -> None:
        # Given a database that lets nobody in, and a worker that uses it only when there is something to store
        settings = replace(settings, database_url=postgres_url)
        talk(chat, "g", count=10)
        with Database.connect(postgres_url) as database, start_worker(settings, lease_ms=600_000) as steady:
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
        with start_worker(settings) as early:
            early.wait_for("waiting: no answer from Redis")
            server = start_valkey(folder)
            try:
                early.wait_for("working as persist-1")
                assert early.end() == 0
            finally:
                server.stop()

    def test_a_signal_ends_a_worker_that_waits(self, settings: Settings) -> None:
        with start_worker(settings, redis_url=f"unix://{settings.data_dir}/nowhere.sock") as waiting:
            waiting.wait_for("waiting: no answer from Redis")
            assert waiting.end() == 0

    def test_a_configuration_error_ends_a_worker(self, chat: Chat, settings: Settings) -> None:
        chat.create_group("g")
        with start_worker(settings, partitions=99) as wrong:
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
    """Behaviour in which fakeredis differs."""

    def test_more_joins_than_a_millisecond_has_ids_have_ids_that_can_be_packed(
        self, chat: Chat, settings: Settings
    ) -> None:
        # Given a clock that has been put back: the journal continues in the millisecond that it had come to
        chat.create_group("g")
        ahead = time.time_ns() // 1_000_000 + 60_000
        chat.system.client.driver.xadd(
            chat.system.client.space.group("g").journal, {"kind": "group", "gid": "g"}, id=f"{ahead}-0"
        )
        chat.add_members("g", [f"user{number}" for number in range(10_000)])
        journal = Journal(chat.system.client, KIND, replace(settings, batch_size=20_000))

        # Then each has its own version, in their order
        versions = [entry.version for entry in journal.read() if isinstance(entry.event, SpanBegun)]
        assert len(versions) == len(set(versions)) == 10_000
        assert versions == sorted(versions)

    def test_after_redis_lost_its_data_nothing_is_stored_until_it_is_rebuilt(
        self, chat: Chat, settings: Settings
    ) -> None:
        chat.system.database.upgrade()
        with start_worker(settings) as steady:
            talk(chat, "g", count=1)
            wait_until(lambda: count(chat.system.database) == 1)
            # When all is lost, and people begin anew
            chat.system.client.driver.flushall()
            talk(chat, "h", count=1)
            # Then the worker says what to do, and continues once that is done
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
        with start_worker(settings, max_deliveries=2) as steady:
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
            with start_worker(settings, block_ms=1000) as steady:
                steady.wait_for("working as")
                wait_until(lambda: count(chat.system.database) == 120)
                talk(chat, "late", count=10)
                wait_until(lambda: count(chat.system.database) == 130)

                # And is in no hurry when nothing comes: each partition is waited for by itself, for a second
                start, looks = time.monotonic(), all_reads(cluster_servers)
                wait_until(lambda: all_reads(cluster_servers) >= looks + 4 * 6)
                assert time.monotonic() - start > 2
                assert steady.end() == 0
            with start_worker(settings, "persist", "--burst") as burst:
                assert burst.wait() == 0


def all_reads(cluster: RunningCluster) -> int:
    total = 0
    for node in cluster.nodes:
        with closing(redis.Redis.from_url(node.url)) as client:
            total += reads(client)
    return total


def wait_for_locks(url: str) -> int:
    """How many wait for a lock in a database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url) as connection:
        [waiting] = connection.execute(query).fetchone() or (0,)
    return int(waiting)


def test_an_unknown_worker_is_wrong_usage(settings: Settings) -> None:
    with start_worker(settings, "sleeper") as wrong:
        assert wrong.wait() == 2


def test_entries_that_come_while_the_clock_is_put_back_can_be_told_apart(chat: Chat) -> None:
    # Given a clock that is an hour behind the newest entry, so that all are of one millisecond for an hour
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
