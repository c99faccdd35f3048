"""`im health` on real servers and workers, of which each may be missing, dead, behind or hang."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore import Chat
from imcore.admin.health import LONGEST_S, health
from imcore.settings import Settings
from imcore.streams import keys
from imcore.streams.consumers import worker_stats
from imcore.workers import jobs
from tests.helpers.commands import Im
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer, start_valkey
from tests.helpers.worker_runs import talk
from tests.helpers.workers import run_bursts, start_worker

WORKERS = ("persist", "receipts", "jobs")
ALL = ["redis", "sql", "persist", "receipts", "jobs", "dead_letters"]
SHORT_LEASE_MS = 3000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=50, partitions=4, lease_ms=SHORT_LEASE_MS)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RunningServer]:
    """Another server than that of the chat."""
    server = start_valkey(tmp_path / "own", appendonly=False)
    yield server
    server.stop()


def states(settings: Settings, **options: float) -> dict[str, tuple[bool, str]]:
    found = health(settings, **options)
    assert [each.what for each in found] == ALL
    assert all("\n" not in each.detail for each in found)
    return {each.what: (each.ok, each.detail) for each in found}


def not_well(settings: Settings, **options: float) -> list[str]:
    return [what for what, (ok, _) in states(settings, **options).items() if not ok]


def im_of(settings: Settings) -> Im:
    names = ("redis_url", "database_url", "jobs_redis_url", "data_dir")
    return Im(**{name: getattr(settings, name) for name in names})


class TestWorkers:
    def test_with_all_workers_all_is_well_and_a_killed_one_is_missed_once_its_lease_ends(
        self, settings: Settings
    ) -> None:
        # Given idle workers, of one kind two
        im = im_of(settings)
        with (
            start_worker(settings, "persist") as persist,
            start_worker(settings, "persist") as second,
            start_worker(settings, "receipts"),
            start_worker(settings, "jobs") as trims,
        ):
            wait_until(lambda: not_well(settings) == [])
            wait_until(lambda: states(settings)["persist"][1].startswith("2 alive; "))
            shown = im.json("health")
            assert [line["what"] for line in shown] == ALL
            assert {(line["what"], line["ok"]) for line in shown} == {(what, True) for what in ALL}

            # When one of two is killed, another is enough
            second.kill()
            wait_until(lambda: states(settings)["persist"][1].startswith("1 alive; "))
            assert not_well(settings) == []

            # When no other is left, or the only one is killed
            persist.kill()
            trims.kill()
            wait_until(lambda: not_well(settings) == ["persist", "jobs"])
            result = im.run("health", "--json")
        assert result.returncode == 1
        details = {line["what"]: line["detail"] for line in map(json.loads, result.stdout.splitlines())}
        assert details["persist"].startswith("none alive: run im worker persist, or im up; ")
        assert details["jobs"].startswith("none alive: run im worker jobs, or im up; ")

    @pytest.mark.parametrize("name", WORKERS)
    def test_a_worker_that_ends_in_order_is_missed_at_once(self, settings: Settings, name: str) -> None:
        settings = replace(settings, lease_ms=600_000)
        with start_worker(settings, name) as worker:
            wait_until(lambda: name not in not_well(settings))
            assert worker.end(signal.SIGTERM) == 0
        assert name in not_well(settings)

    def test_a_job_that_takes_longer_than_the_lease_keeps_its_worker_alive(self, settings: Settings) -> None:
        with closing(redis.Redis.from_url(settings.redis_url)) as connection:
            jobs.queue(connection).enqueue("time.sleep", 3 * SHORT_LEASE_MS / 1000)
            with start_worker(settings, "jobs", trim_every_ms=0):
                wait_until(lambda: connection.zcard(keys.RQ_RUNNING) == 1)
                while connection.zcard(keys.RQ_RUNNING):
                    assert "jobs" not in not_well(settings)

    def test_a_worker_is_alive_again_after_its_redis_was_emptied(self, settings: Settings) -> None:
        with (
            start_worker(settings, "jobs") as worker,
            closing(redis.Redis.from_url(settings.jobs_redis_url)) as admin,
        ):
            wait_until(lambda: "jobs" not in not_well(settings))
            admin.delete(keys.lease("jobs", 1))
            wait_until(lambda: "jobs" not in not_well(settings))
            assert worker.runs


class TestBacklogs:
    def test_the_backlog_of_a_stopped_worker_grows_older_until_it_is_not_well(
        self, chat: Chat, settings: Settings
    ) -> None:
        # Given a persist that hangs with a lease that does not end, and messages
        settings = replace(settings, lease_ms=600_000)
        with start_worker(settings, "persist") as persist:
            wait_until(lambda: "persist" not in not_well(settings))
            # Its lease comes before its consumer groups, without which it has no backlog
            wait_until(lambda: "persist" in [stats.worker for stats in worker_stats(chat.system.client)])
            persist.send(signal.SIGSTOP)
            talk(chat, count=10)

            # Then its backlog waits longer and longer
            assert "persist" not in not_well(settings, max_age_s=3600)
            wait_until(lambda: "persist" in not_well(settings, max_age_s=1))
            assert "1 alive; " in states(settings, max_age_s=1)["persist"][1]
            assert states(settings, max_age_s=1)["persist"][1].endswith(" s: too long")

            # Until it works again
            persist.send(signal.SIGCONT)
            wait_until(lambda: states(settings, max_age_s=1)["persist"] == (True, "1 alive; nothing waits"))

    def test_the_bound_is_an_option(self, chat: Chat, settings: Settings) -> None:
        run_bursts(settings, "persist", "receipts")
        talk(chat, count=10)
        im = im_of(settings)
        with start_worker(settings, "jobs"):
            wait_until(lambda: "too long" in im.run("health", "--max-age", "0.5").stdout)
            assert "too long" not in im.run("health", "--max-age", "3600").stdout

    def test_dead_letters_are_not_well(self, chat: Chat, settings: Settings) -> None:
        run_bursts(settings, "persist")
        assert states(settings)["dead_letters"] == (True, "none")
        chat.system.client.driver.xadd(chat.system.client.space.journal(0), {"kind": "nonsense"})
        run_bursts(replace(settings, max_deliveries=1), "persist")
        ok, detail = states(settings)["dead_letters"]
        assert not ok
        assert detail.startswith("1: see im dead list")

    def test_a_job_that_nobody_runs_waits_too_long(self, settings: Settings) -> None:
        with closing(redis.Redis.from_url(settings.jobs_redis_url)) as connection:
            jobs.queue(connection).enqueue(jobs.TRIM)
            detail = wait_until(lambda: (d := states(settings, max_age_s=1)["jobs"][1]).endswith("too long") and d)
        assert detail.startswith("none alive: run im worker jobs, or im up; 1 job waits, the oldest for ")


class TestServers:
    def test_nothing_is_there(self, tmp_path: Path) -> None:
        settings = Settings.from_env({}, data_dir=str(tmp_path / "nothing"))
        found = states(settings)
        assert {ok for ok, _ in found.values()} == {False}
        assert "no answer from Redis at unix:" in found["redis"][1]
        assert "run im db upgrade" in found["sql"][1]
        assert found["persist"][1] == found["dead_letters"][1] == "not known: see redis"
        assert not (tmp_path / "nothing").exists()

    def test_a_fresh_redis_says_that_it_needs_a_worker(self, settings: Settings) -> None:
        ok, detail = states(settings)["redis"]
        assert not ok
        assert "start a worker of this imcore" in detail

    def test_a_database_without_tables_is_not_well(self, chat: Chat, settings: Settings, postgres_url: str) -> None:
        run_bursts(settings, "receipts")
        for url in (postgres_url, settings.database_url):
            ok, detail = states(replace(settings, database_url=url))["sql"]
            assert not ok
            assert "im db upgrade" in detail
        chat.system.database.upgrade()
        assert states(settings)["sql"] == (True, chat.system.database.address)

    def test_jobs_may_have_a_server_of_their_own(self, settings: Settings, own_server: RunningServer) -> None:
        elsewhere = replace(settings, jobs_redis_url=own_server.url)
        with start_worker(elsewhere, "jobs"):
            wait_until(lambda: "jobs" not in not_well(elsewhere))
            assert "jobs" in not_well(settings)
            own_server.kill()
            ok, detail = states(elsewhere)["jobs"]
        assert not ok
        assert "no answer from Redis" in detail
        assert "IM_JOBS_REDIS_URL" in detail

    def test_jobs_on_a_cluster_are_not_well_and_the_rest_is_found(self, settings: Settings, cluster: str) -> None:
        on_cluster = replace(settings, redis_url=cluster, jobs_redis_url=cluster)
        with start_worker(on_cluster, "persist"):
            wait_until(lambda: "persist" not in not_well(on_cluster))
            ok, detail = states(on_cluster)["jobs"]
        assert (ok, detail.partition(":")[0]) == (False, "rq does not run on Redis Cluster")

    def test_what_hangs_is_said_in_time_and_hides_nothing_else(
        self, settings: Settings, own_server: RunningServer
    ) -> None:
        # Given a Redis that hangs, and a PostgreSQL that takes connections and says nothing
        with socket.create_server(("127.0.0.1", 0)) as mute, start_worker(settings, "jobs"):
            wait_until(lambda: "jobs" not in not_well(settings))
            url = f"postgresql://ann@127.0.0.1:{mute.getsockname()[1]}/chat"
            hanging = replace(settings, redis_url=own_server.url, database_url=url)
            os.kill(own_server.pid, signal.SIGSTOP)
            try:
                # When it is asked
                began = time.monotonic()
                found = states(hanging)
                took_s = time.monotonic() - began
            finally:
                os.kill(own_server.pid, signal.SIGCONT)
        # Then it answers in time
        assert took_s < LONGEST_S + 3
        assert [what for what, (ok, _) in found.items() if ok] == ["jobs"]
        assert found["redis"][1]
        assert found["sql"][1]

    def test_a_server_that_takes_no_writes_is_not_well(self, settings: Settings) -> None:
        run_bursts(settings, "persist")
        with closing(redis.Redis.from_url(settings.redis_url)) as admin:
            admin.config_set("min-replicas-to-write", 1)
            try:
                ok, detail = states(settings)["redis"]
            finally:
                admin.config_set("min-replicas-to-write", 0)
        assert not ok
        assert "takes no writes" in detail

    def test_it_changes_nothing(self, chat: Chat, settings: Settings) -> None:
        run_bursts(settings, "persist", "receipts")
        talk(chat, count=10)
        with closing(redis.Redis.from_url(settings.redis_url)) as admin:
            before = {key: admin.dump(key) for key in admin.keys("*")}
            states(settings)
            assert {key: admin.dump(key) for key in admin.keys("*")} == before


def test_stats_point_to_health_while_workers_are_missing(settings: Settings) -> None:
    run_bursts(settings, "persist")
    im = im_of(settings)
    result = im.run("stats")
    assert result.returncode == 0
    assert "no worker persist and no worker receipts runs: see im health" in result.stderr
    with start_worker(settings, "persist"), start_worker(settings, "receipts"):
        wait_until(lambda: {"persist", "receipts"}.isdisjoint(not_well(settings)))
        assert "im health" not in im.run("stats").stderr
