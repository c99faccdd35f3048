"""The worker `jobs`: signals at any moment, and a server in trouble, about which rq logs nothing in its own words."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis
from rq.exceptions import StopRequested
from rq.worker import base

from imcore.errors import RedisUnavailable
from imcore.metrics import WorkerMetrics
from imcore.process import WorkerSignals
from imcore.settings import Settings
from imcore.util.backoff import LONGEST_WAIT_S
from imcore.workers import jobs
from imcore.workers.jobs import JobsWorker
from imcore.workers.runner import Retrier


def test_a_signal_before_rq_handles_signals_is_not_forgotten() -> None:
    with WorkerSignals() as signals:
        # Given a job, and a worker that is about to work
        connection = fakeredis.FakeRedis()
        queue = jobs.queue(connection)
        job = queue.enqueue(jobs.TRIM)
        worker = jobs.JobsWorker(connection, signals, 0)

        # When it is asked to end before rq has put its handlers in place
        signal.raise_signal(signal.SIGTERM)
        worker.work(burst=True, logging_level=None)

    # Then it begins nothing, and signs off
    assert queue.job_ids == [job.id]
    assert not jobs.JobsWorker.all(connection)


def test_a_signal_while_rq_waits_ends_the_wait() -> None:
    with WorkerSignals() as signals:
        connection = fakeredis.FakeRedis()
        worker = jobs.JobsWorker(connection, signals, 0)

        # Given a signal at the first moment at which rq handles it
        def ask_to_end(burst: bool) -> None:
            signal.raise_signal(signal.SIGTERM)

        worker.check_for_suspension = ask_to_end  # type: ignore[method-assign]
        worker.work(logging_level=None)

        # Then the worker knows why it ended
        assert signals.stopping


class Killing(logging.Handler):
    """Sends this process a signal in the middle of a line, and ignores the error, as logging does."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # Python runs the handler between two steps
                pass
        except Exception:
            self.handleError(record)


@pytest.fixture
def signals() -> Iterator[WorkerSignals]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield WorkerSignals()
    for number, handler in before:
        signal.signal(number, handler)


def test_a_signal_in_the_midst_of_a_line_ends_the_worker_before_it_waits(
    signals: WorkerSignals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    retrier = Retrier(signals)
    worker = JobsWorker(fakeredis.FakeRedis(), signals, 0, retrier=retrier)
    worker._install_signal_handlers()
    monkeypatch.setattr(retrier, "_has_warned", True)  # so that it logs that it continues
    log, killing = logging.getLogger("imcore.workers.runner"), Killing()
    log.addHandler(killing)
    try:
        with caplog.at_level(logging.INFO, logger=log.name), pytest.raises(StopRequested):
            worker.heartbeat()
    finally:
        log.removeHandler(killing)
    assert signals.stopping


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(Settings.from_env({}, data_dir=str(tmp_path)), trim_every_ms=0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """The server that the worker finds."""
    server = fakeredis.FakeServer()
    monkeypatch.setattr(jobs, "open_client", lambda *_, **__: fakeredis.FakeRedis(server=server))
    monkeypatch.setattr(jobs.JobsWorker, "subscribe", lambda _: None)
    return server


def test_while_redis_is_away_one_line_says_so(
    server: fakeredis.FakeServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="imcore")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        """Let it be back after ten waits of rq, and then ask the worker to end."""
        waits.append(seconds)
        server.connected = len(waits) == 10

    def is_back(*_: Any, **__: Any) -> None:
        if len(waits) > 9:
            signal.raise_signal(signal.SIGTERM)
        server.connected = False
        raise redis.ConnectionError(f"Error {len(waits)} connecting")

    monkeypatch.setattr(base.time, "sleep", sleep)
    monkeypatch.setattr(jobs.JobsWorker.queue_class, "dequeue_any", is_back)
    with WorkerSignals() as signals:
        jobs.run(settings, signals, WorkerMetrics("jobs"), burst=False, checks_server=False)

    # Then it was logged once, and its end; rq's waits grow to seconds
    ours = [record for record in caplog.records if record.levelno > logging.INFO or record.name.startswith("imcore.")]
    beginnings = [record.getMessage().partition(":")[0] for record in ours]
    assert beginnings == ["started", "waiting", "going on", "SIGTERM", "ended"]
    assert "Traceback" not in caplog.text
    assert waits[:4] == [1, 2, 4, 4]
    assert max(waits) == LONGEST_WAIT_S


def test_a_server_that_refuses_is_logged_once_whatever_its_words(
    server: fakeredis.FakeServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    waits: list[float] = []
    births: list[str] = []

    def refused(worker: jobs.JobsWorker) -> None:
        births.append(worker.name)
        if len(births) % 2:  # rq ends in order, and says in its log alone why
            monkeypatch.setattr(worker, "check_for_suspension", _refuse)
        else:
            _refuse(f"Command # 1 (DEL rq:worker:{worker.name}) of pipeline caused error: ")

    def _refuse(before: object = "") -> None:
        before = before if isinstance(before, str) else ""
        raise redis.ResponseError(f"{before}NOREPLICAS Not enough good replicas to write.")

    monkeypatch.setattr(jobs.JobsWorker, "register_birth", refused)
    with WorkerSignals() as signals:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            signals.stopping = len(waits) == 12

        monkeypatch.setattr(signals, "wait", wait)
        jobs.run(settings, signals, WorkerMetrics("jobs"), burst=False, checks_server=False)

    assert len(births) == 12
    [line] = caplog.messages
    assert line.startswith("waiting: ")
    assert line.endswith("takes no writes while too few replicas follow it (min-replicas-to-write)")
    assert min(waits[8:]) >= LONGEST_WAIT_S / 2
    assert "Traceback" not in caplog.text


def test_an_error_of_the_program_keeps_its_traceback(
    server: fakeredis.FakeServer, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mistake(_: object, signals: WorkerSignals) -> None:
        signals.stopping = True
        raise ZeroDivisionError

    with WorkerSignals() as signals:
        monkeypatch.setattr(jobs.JobsWorker, "check_for_suspension", lambda worker, _: mistake(worker, signals))
        jobs.run(settings, signals, WorkerMetrics("jobs"), burst=False, checks_server=False)
    assert "ZeroDivisionError" in caplog.text


def test_a_server_that_is_silent_is_noticed_within_seconds() -> None:
    with WorkerSignals() as signals:
        worker = jobs.JobsWorker(fakeredis.FakeRedis(), signals, 0)
    assert worker.dequeue_timeout == 10
    assert worker.connection_timeout <= 20


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), redis.TimeoutError("silent"), OSError("gone")])
def test_the_thread_for_rq_commands_waits_and_logs_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WorkerSignals() as signals:
        worker = jobs.JobsWorker(fakeredis.FakeRedis(), signals, 0)
        waits: list[float] = []
        monkeypatch.setattr(worker._unsubscribing, "wait", waits.append)
        pubsub = worker.connection.pubsub()
        for _ in range(12):
            worker._pubsub_exception_handler(error, pubsub, threading.current_thread())  # type: ignore[arg-type]

    assert waits == sorted(waits)
    assert waits[0] < 0.1
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)
    assert caplog.messages == []


def test_a_job_that_fails_over_a_server_is_logged_in_one_line(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with WorkerSignals() as signals:
        connection = fakeredis.FakeRedis()
        worker = jobs.JobsWorker(connection, signals, 0)
        job = jobs.queue(connection).enqueue(jobs.TRIM)
        error = RedisUnavailable("no answer")
        worker.handle_exception(job, type(error), error, None)
    assert caplog.messages == [f"job {job.id} failed: no answer"]
