"""Runs a worker as a process: its connections, its loop, its retries while a server is away."""

import gc
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from imcore.admin import server_settings
from imcore.errors import ConfigurationError, ImError
from imcore.metrics import WorkerMetrics
from imcore.process import Stopped, WorkerSignals
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.journal import one_line
from imcore.util.backoff import LONGEST_WAIT_S, Backoffs, Clock, ThrottledLog

log = logging.getLogger(__name__)

T = TypeVar("T")

BURST_BLOCK_MS = 20
"""In a burst a worker waits this long for new entries, before it looks whether the others are done."""


class Worker(Protocol):
    """A worker that can be run. After an ImError the next call continues where the last one stopped."""

    def step(self) -> int:
        """Handle the entries that are there, waiting a moment for them; return how many."""

    def drained(self) -> bool:
        """Return whether all entries are done, by any process, that were there when this was asked first."""

    def close(self) -> None:
        """Give back this process's name: another process takes over its open entries at once."""


WorkerFactory = Callable[[RedisClient, Database, Settings, WorkerMetrics], Worker]


class Ends(Protocol):
    """Says when to end: the signals of the process, or what stands for them in a lane."""

    @property
    def stopping(self) -> bool:
        """Whether to begin nothing more."""

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the end."""


class Retrier:
    """Repeats calls that fail because a server is away, and logs that once a minute.

    The waits grow with each kind of error by itself. They end once all calls have succeeded for some seconds: a call
    that fails in turn with another that succeeds is not repeated more often for that.
    """

    def __init__(
        self,
        signals: Ends,
        metrics: WorkerMetrics | None = None,
        *,
        ends: bool = False,
        clock: Clock = time.monotonic,
        about: str = "",
    ) -> None:
        """With `ends`, the first failure is raised instead, unless a signal has arrived before it.

        Lines of the log begin with `about`.
        """
        self._signals = signals
        self._metrics = metrics
        self._ends = ends
        self._clock = clock
        self._about = about
        self._waits: Backoffs[str] = Backoffs()
        self._well_since: dict[str, float] = {}
        """By kind of error: since when all calls have succeeded; `inf` while none has."""
        self._trouble = ThrottledLog(clock)
        self._has_warned = False

    def call(self, attempt: Callable[[], T]) -> T:
        """Repeat the attempt until it succeeds; return its result. Raise Stopped, and ConfigurationError at once."""
        while not self._signals.stopping:
            try:
                result = attempt()
            except ConfigurationError:
                raise
            except ImError as error:
                if self._metrics:
                    self._metrics.step_failed(error)
                if self._ends and not self._signals.stopping:
                    raise
                self._wait(error)
            else:
                self.succeeded()
                return result
        raise Stopped

    def warn(self, error: ImError) -> None:
        """Log why the worker waits, unless that was logged within the last minute."""
        if self._trouble.is_news(error):
            log.warning("%swaiting: %s", self._about, one_line(str(error)))
            self._has_warned = True

    def succeeded(self) -> None:
        """Note a success, also in the midst of an attempt; log it after a warning."""
        if self._has_warned:
            log.info("%sgoing on", self._about)
            self._has_warned = False
        if not self._well_since:
            return
        now = self._clock()
        self._well_since = {kind: min(since, now) for kind, since in self._well_since.items()}
        over = [kind for kind, since in self._well_since.items() if now - since >= LONGEST_WAIT_S]
        self._waits.succeeded(over)
        for kind in over:
            del self._well_since[kind]

    def _wait(self, error: ImError) -> None:
        self.warn(error)
        now, kind = self._clock(), type(error).__name__
        self._well_since[kind] = math.inf
        longest = self._waits.failed(kind, now) - now
        # Jitter: workers that lost the same server must not all come back at the same moment.
        self._signals.wait(longest * random.uniform(0.5, 1))  # noqa: S311 (nothing is secret here)


def run(
    factory: WorkerFactory,
    settings: Settings,
    signals: WorkerSignals,
    metrics: WorkerMetrics,
    *,
    burst: bool,
    checks_server: bool = True,
    needs_sql: bool = True,
) -> None:
    """Run a worker until a signal arrives; in a burst, until all entries are done that were there at its beginning.

    These include the entries that other processes of its kind have in hand. With `checks_server` it first warns of
    settings of the server that break a promise. A worker that `needs_sql` first brings the database up to date. A
    server that is away is waited for, except in a burst, which raises the error. Raise ConfigurationError.

    The order of the end: no new batch is begun; the one in hand is finished, or left open if a server is away or
    hangs; the name is given back, so that others can take over the open entries at once; the connections are closed.
    """
    if burst:
        settings = replace(settings, block_ms=min(settings.block_ms, BURST_BLOCK_MS))
    retrier = Retrier(signals, metrics, ends=burst)
    handled = 0
    try:
        if checks_server:
            retrier.call(lambda: check_server(settings))
        with ExitStack() as stack:
            worker = retrier.call(lambda: stack.enter_context(_opened(factory, settings, metrics, needs_sql)))
            # Loaded modules stay. A collector that does not look at them takes a quarter less of a busy worker's time.
            gc.collect()
            gc.freeze()
            for count in serve(worker, retrier, metrics, burst=burst):
                handled += count
    except Stopped:
        pass
    log.info("ended; %d entries handled", handled)


def serve(worker: Worker, retrier: Retrier, metrics: WorkerMetrics, *, burst: bool) -> Iterator[int]:
    """Yield the number of entries of each step, until Stopped is raised or a burst is drained."""
    is_drained = False  # a burst steps once at least: a step does more than handle entries
    while not is_drained:
        count = retrier.call(worker.step)
        metrics.stepped(count)
        log.debug("%d entries handled in a step", count)
        yield count
        is_drained = burst and retrier.call(worker.drained)


def check_server(settings: Settings) -> None:
    """Warn of settings of the server that break a promise. Raise ConfigurationError if no worker can rely on it."""
    with closing(RedisClient.connect(settings)) as client:
        servers = server_settings.chat_servers(client)
    server_settings.refuse_eviction(servers, settings)
    if warning := server_settings.warning_of(servers):
        log.warning("%s", warning)


@contextmanager
def _opened(factory: WorkerFactory, settings: Settings, metrics: WorkerMetrics, needs_sql: bool) -> Iterator[Worker]:
    with (
        opened(settings, needs_sql) as (client, database),
        closing_worker(factory(client, database, settings, metrics)) as worker,
    ):
        yield worker


@contextmanager
def opened(settings: Settings, needs_sql: bool) -> Iterator[tuple[RedisClient, Database]]:
    """Open the servers of a worker, with functions and, if it `needs_sql`, tables as this program has them."""
    with (
        closing(RedisClient.connect(settings)) as client,
        Database.connect(settings.database_url, data_dir=settings.data_dir) as database,
    ):
        client.upgrade()
        if needs_sql:
            database.upgrade()
        else:
            database.refuse_newer()
        client.new_partitions = database.partitions() or client.new_partitions
        log.info("started: Redis at %s, SQL at %s", client.address, database.address)
        yield client, database


@contextmanager
def closing_worker(worker: Worker) -> Iterator[Worker]:
    """Close the worker at the end, in order if its server answers."""
    try:
        yield worker
    finally:
        try:
            worker.close()
        except ImError as error:
            log.warning("not ended in order, which harms nothing: %s", one_line(str(error)))
