"""The worker `jobs`: runs what may take long as jobs of rq, each named by its dotted path (`imcore.workers.jobs.trim`).

rq's own ways to repeat a job do not fit: its cron pickles, where this queue uses JSON; its scheduler forks a process
that outlives a killed worker, and polls every second. So each worker enqueues the job of the current period whenever rq
maintains its registries, under a name that only one of them can use (rq's `unique`).
"""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from threading import Event
from types import FrameType
from typing import Any

from redis import Redis
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import DuplicateJobError, StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer

from imcore.admin import append_only, retention, server_settings
from imcore.errors import ConfigurationError, ImError, RedisFull, TryAgain
from imcore.metrics import WorkerMetrics
from imcore.process import Stopped, WorkerSignals
from imcore.repair import rewriting
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import open_client
from imcore.streams.job_queue import JobsLease
from imcore.streams.journal import one_line
from imcore.streams.keys import QUEUE
from imcore.streams.redis_errors import address, driver_errors, translated
from imcore.system import System
from imcore.util.backoff import LONGEST_WAIT_S, Backoff, ThrottledLog
from imcore.workers.presence import Presence
from imcore.workers.runner import Retrier, check_server

log = logging.getLogger(__name__)

TRIM = "imcore.workers.jobs.trim"
_JOBS = {TRIM}
"""The jobs that are counted by name. Others are what somebody else enqueued."""

LONGEST_JOB_S = 6 * 60 * 60
LOOK_EVERY_S = 60
"""A worker checks this often whether a job is due."""
_WAIT_S = 10
"""A worker waits this long for a job at once. A silent server is noticed 10 s after that."""
_THREAD_S = 5
_RQ_LOGS = ("rq.worker", "rq.queue", "rq.job", "rq.registry")


def trim() -> dict[str, int]:
    """Trim as the settings say; return how many entries and rows were dropped."""
    with closing(System.connect(settings=Settings.from_env())) as system:
        system.client.upgrade()
        rewriting.rewrite_all(system.client)
        summary = retention.trim(system)
        rewritten = append_only.forget_withdrawn(system)
    log.info(
        "trimmed %d entries of %d groups, %d of the journals, %d rows of read times; %d append-only files rewritten",
        *(summary.entries, summary.groups, summary.journal_entries, summary.read_times, rewritten),
    )
    return asdict(summary) | {"rewritten": rewritten}


def queue(connection: Redis) -> Queue:
    return Queue(QUEUE, connection=connection, serializer=JSONSerializer, default_timeout=LONGEST_JOB_S)


def enqueue_due(jobs: Queue, every_ms: int, now_ms: int) -> bool:
    """Enqueue the trim of the current period, unless it was enqueued; return whether this call did it."""
    period = now_ms // every_ms
    keep_s = 2 * every_ms // 1000 + 1  # the job's name must be taken until the period is over
    try:
        jobs.enqueue(TRIM, job_id=f"trim-{period}", unique=True, result_ttl=keep_s, failure_ttl=keep_s)
    except DuplicateJobError:
        return False
    return True


class JobsWorker(SimpleWorker):
    """An rq worker that runs a job in its own process: one with threads and connections should not fork."""

    max_connection_wait_time = LONGEST_WAIT_S
    """rq's own waits for a server that is away grow from 1 s to this."""

    def __init__(
        self,
        connection: Redis,
        signals: WorkerSignals,
        trim_every_ms: int,
        *,
        retrier: Retrier | None = None,
        on_birth: Callable[[], None] = lambda: None,
    ) -> None:
        """`retrier` hears of each success of the server; `on_birth` is called when rq can work."""
        self._signals = signals
        self._trim_every_ms = trim_every_ms
        self._retrier = retrier or Retrier(signals)
        self._on_birth = on_birth
        self._unsubscribing = Event()
        self._is_logging = False
        self._held_signal: int | None = None
        self._pubsub_wait = Backoff()
        self.metrics = WorkerMetrics("jobs")
        super().__init__(
            [queue(connection)],
            connection=connection,
            serializer=JSONSerializer,
            maintenance_interval=LOOK_EVERY_S,
            worker_ttl=_WAIT_S + 15,  # rq stops waiting for a job 15 s before
            log_job_description=False,
        )

    def _set_ip_address(self, _connection: Redis) -> None:
        # rq asks the server, and the driver cannot read the answer where the socket's path has a space or `=` in it, as
        # the default data directory of macOS has.
        self.ip_address = "unknown"

    def register_birth(self) -> None:
        super().register_birth()  # type: ignore[no-untyped-call]
        self._on_birth()

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Show a sign of life. rq does so before and after each wait for a job."""
        super().heartbeat(timeout, pipeline)
        if pipeline is None:
            self._is_logging = True
            try:
                self._retrier.succeeded()
            finally:
                self._is_logging = False
            if self._held_signal is not None:
                super().request_stop(self._held_signal, None)  # type: ignore[no-untyped-call]

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        if self._trim_every_ms:
            enqueue_due(self.queues[0], self._trim_every_ms, time.time_ns() // 1_000_000)

    def unsubscribe(self) -> None:
        """End the thread that receives rq's commands. While Redis is away, rq leaves it behind, trying for ever."""
        self.leave()  # first, or it would wait for the next subscription once this one is gone
        if self.pubsub_thread:
            try:
                self.pubsub.unsubscribe()  # the answer ends its wait; then it closes the connection itself
            finally:
                self.pubsub_thread.join(_THREAD_S)

    def leave(self) -> None:
        """End that thread without `unsubscribe`: its connection is about to be closed."""
        self._unsubscribing.set()
        if self.pubsub_thread:
            self.pubsub_thread.stop()

    def _pubsub_exception_handler(self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread) -> None:
        # Its connection may be closed before it has ended: that is not logged.
        if self._unsubscribing.is_set():
            pubsub_thread.stop()
        elif isinstance(exc, RedisError | OSError):
            # This is not logged: the worker itself waits for the same server. rq lets the thread die of a timeout.
            # It waits longer each time, until it has received commands for a minute.
            now = time.monotonic()
            if now - self._pubsub_wait.until > LOOK_EVERY_S:
                self._pubsub_wait.succeeded()
            self._pubsub_wait.failed(now)
            self._unsubscribing.wait(self._pubsub_wait.until - now)
        else:
            super()._pubsub_exception_handler(exc, pubsub, pubsub_thread)

    def perform_job(self, job: Job, *args: Any, **options: Any) -> bool:
        """Run a job; return whether it has succeeded, and count that."""
        is_done: bool = super().perform_job(job, *args, **options)
        name = job.func_name if job.func_name in _JOBS else "other"
        self.metrics.jobs.add(1, name.rpartition(".")[2], "done" if is_done else "failed")
        return is_done

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log why a job failed, unless a signal has cut it short."""
        error = exc_info[1]
        if isinstance(error, ImError):  # in one line: it is no fault of the program
            log.error("job %s failed: %s", job.id, one_line(str(error)))
        elif not isinstance(error, Stopped):
            super().handle_exception(job, *exc_info)

    def _install_signal_handlers(self) -> None:
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        # An earlier signal went to the earlier handlers, which rq does not know.
        self._stop_requested = self._signals.stopping

    def request_stop(self, signum: Any, frame: FrameType | None) -> None:
        """Stop, after the job in hand if there is one. rq's handler, which ends its wait for jobs, too."""
        self._signals.stop(signum)
        self._stop_requested = True
        if self._is_logging:  # logging would swallow what rq raises, and a wait would begin
            self._held_signal = signum
        else:
            super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


def run(
    settings: Settings, signals: WorkerSignals, metrics: WorkerMetrics, *, burst: bool, checks_server: bool = True
) -> None:
    """Work off jobs until a signal arrives, or, in a burst, until none is left.

    With `checks_server` it first warns of settings of the server that break a promise. After a signal the job in hand
    may end, for a while: cut short, it has failed, and the next trim does the rest. A Redis that is away is waited for,
    except in a burst. Raise ConfigurationError where rq cannot run.
    """
    loop = _RqLoop(settings, signals, metrics, burst)
    for name in _RQ_LOGS:
        logging.getLogger(name).addFilter(loop.lets_pass)
    try:
        with suppress(Stopped):
            if checks_server:
                loop.retrier.call(lambda: _check_server(settings))
            loop.retrier.call(loop.run_worker)
    finally:
        for name in _RQ_LOGS:
            logging.getLogger(name).removeFilter(loop.lets_pass)
    log.info("ended")


def _check_server(settings: Settings) -> None:
    if settings.jobs_redis_url == settings.redis_url:
        check_server(settings)
    elif warning := server_settings.warning_of(server_settings.jobs_servers(settings)):
        log.warning("%s", warning)


class _RqLoop:
    """Runs one rq worker after the other: an rq worker ends when the server refuses a command."""

    def __init__(self, settings: Settings, signals: WorkerSignals, metrics: WorkerMetrics, burst: bool) -> None:
        self.retrier = Retrier(signals, metrics, ends=burst)
        self._metrics = metrics
        self._settings = settings
        self._signals = signals
        self._burst = burst
        self._trim_not_before = 0.0
        self._mistakes = ThrottledLog(time.monotonic)
        self._was_born = False
        self._ended_by: ImError | None = None
        """The error that has ended rq's worker: it logs that, and raises nothing."""

    def run_worker(self) -> None:
        """Run a worker until a signal arrives; in a burst until no job is left. Raise the error that ends it."""
        url = self._settings.jobs_redis_url
        with Database.connect(self._settings.database_url, data_dir=self._settings.data_dir) as database:
            database.refuse_newer()
        connection = open_client(url, block_ms=self._settings.block_ms)
        if not isinstance(connection, Redis):
            raise ConfigurationError("rq does not run on Redis Cluster: set IM_JOBS_REDIS_URL to a Redis that is none")
        try:
            with driver_errors(url, variable=self._settings.jobs_variable), suppress(StopRequested):
                self._work(connection)  # the handler of its signals may raise that at any point
        except RedisFull:
            self._make_room()
            raise
        finally:
            self._signals.handle()  # rq has installed its own handlers
            connection.close()
        if self._signals.stopping:
            return
        if self._ended_by:
            raise self._ended_by
        if not self._burst:
            raise TryAgain("the rq worker ended by itself")

    def _work(self, connection: Redis) -> None:
        # A burst adds no job.
        trim_every_ms = 0 if self._burst else self._settings.trim_every_ms
        self._ended_by = None
        worker = JobsWorker(connection, self._signals, trim_every_ms, retrier=self.retrier, on_birth=self._born)
        worker.metrics = self._metrics
        try:
            with Presence(JobsLease(connection, self._settings.lease_ms), self._settings.lease_ms):
                worker.work(burst=self._burst, logging_level=None)
        finally:
            worker.leave()

    def _born(self) -> None:
        if not self._was_born:
            log.info("started: Redis at %s", address(self._settings.jobs_redis_url))
        self._was_born = True

    def _make_room(self) -> None:
        """Trim here, at most once a minute: in a Redis that is full no job can be enqueued that would do so."""
        if time.monotonic() < self._trim_not_before:
            return
        self._trim_not_before = time.monotonic() + LOOK_EVERY_S
        try:
            trim()
        except ImError as error:
            log.warning("Redis is full, and could not be trimmed: %s", error)

    def lets_pass(self, record: logging.LogRecord) -> bool:
        """Filter rq's logs: a record about a server in trouble becomes our own warning, now and then.

        rq makes these records while it handles the error. Tracebacks of other errors pass now and then, too: rq's
        worker ends with one, and the next one may do so.
        """
        error = sys.exception()
        if record.levelno < logging.WARNING or error is None:
            return True
        if not isinstance(error, RedisError | OSError | ImError | Stopped):
            return not record.exc_info or self._mistakes.is_due(type(error))
        if isinstance(error, RedisError | OSError):
            error = translated(error, self._settings.jobs_redis_url, variable=self._settings.jobs_variable)
        if isinstance(error, ImError):
            if "quitting" in str(record.msg):
                self._ended_by = error
            if not isinstance(error, ConfigurationError):  # no waiting helps against that one
                self.retrier.warn(error)
        return False
