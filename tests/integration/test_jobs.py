"""The worker `jobs` on real servers: its queue, signals, and servers that go away."""

import logging
import os
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import redis
from rq import Queue
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from imcore import Chat
from imcore.admin import retention
from imcore.metrics import WorkerMetrics
from imcore.process import WorkerSignals
from imcore.settings import Settings
from imcore.workers import jobs
from tests.helpers.deadline import wait_until
from tests.helpers.processes import END_S
from tests.helpers.servers import require_server, start_valkey
from tests.helpers.worker_runs import talk
from tests.helpers.workers import start_worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=50, partitions=4)


class TestJobs:
    def test_a_job_that_hangs_is_cut_short_by_a_signal(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given a worker whose job hangs, after one that did not
        for name in ("redis_url", "database_url", "data_dir"):
            monkeypatch.setenv(f"IM_{name.upper()}", str(getattr(settings, name)))
        monkeypatch.setattr("imcore.process.WORKER_PATIENCE_S", 0.1)
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
            with WorkerSignals() as signals:
                asking = threading.Thread(target=ask)
                asking.start()
                jobs.run(settings, signals, WorkerMetrics("jobs"), burst=False)
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
        with start_worker(settings, "persist", "--burst") as burst:
            assert burst.wait() == 0

        # When the worker for jobs runs, all the time within one period
        with start_worker(settings, "jobs", keep_messages=10, trim_every_ms=10**12) as steady:
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
            with start_worker(settings, "jobs", "--burst") as burst:
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
        with start_worker(settings, "jobs", "--burst", jobs_redis_url=nowhere) as burst:
            assert burst.wait() == 1
        assert burst.log.splitlines()[-1].startswith("im worker jobs: no answer from Redis")

    def test_a_signal_ends_the_jobs_worker_while_redis_is_away(self, settings: Settings) -> None:
        nowhere = f"unix://{settings.data_dir}/nowhere.sock"
        with start_worker(settings, "jobs", jobs_redis_url=nowhere) as waiting:
            waiting.wait_for("waiting:")
            assert waiting.end() == 0

    def test_a_cluster_is_refused(self, cluster: str, settings: Settings) -> None:
        with start_worker(settings, "jobs", redis_url=cluster, jobs_redis_url="") as refused:
            assert refused.wait() == 1
        assert "IM_JOBS_REDIS_URL" in refused.log.splitlines()[-1]


@pytest.mark.parametrize("comes_to_unsubscribe", [True, False])
def test_no_thread_of_rq_is_left_behind_by_a_server_that_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_to_unsubscribe: bool
) -> None:
    require_server()
    server = start_valkey(tmp_path)
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    try:
        with WorkerSignals() as signals, redis.Redis.from_url(server.url) as connection:
            worker = jobs.JobsWorker(connection, signals, 0)
            worker.subscribe()
            # When
            server.kill()
            if comes_to_unsubscribe:
                with pytest.raises(redis.ConnectionError):
                    worker.unsubscribe()
            worker.leave()
            connection.close()
            # Then its thread ends without an error
            wait_until(lambda: not worker.pubsub_thread.is_alive())
            assert died == []
    finally:
        server.stop()
