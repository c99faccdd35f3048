"""Runs a worker as a process: its connections, its loop, its waits while a server is away."""

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
from imcore.process import Stopped, WorkerSignals
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.journal import one_line
from imcore.util.backoff import LONGEST_WAIT_S, Backoffs, Clock, ThrottledLog

log = logging.getLogger(__name__)

T = TypeVar("T")

BURST_BLOCK_MS = 20
"""In a burst a worker waits no longer for new entries: it looks whether the others are done."""


class Worker(Protocol):
    """What can be run. After an ImError the next call goes on where the last one stopped."""

    def step(self) -> int:
        """Handle what is there, waiting a moment for it; return how much that was."""

    def drained(self) -> bool:
        """Return whether all is done that was there when this was asked first."""

    def close(self) -> None:
        """Let others have what is not done."""


Maker = Callable[[RedisClient, Database, Settings], Worker]


class Patience:
    """Repeats what fails because a server is away, and says so once a minute.

    The waits grow with each kind of error by itself. Success ends them once it has lasted: what fails in turn with
    something that succeeds is not tried more often for that.
    """

    def __init__(self, signals: WorkerSignals, *, ends: bool = False, clock: Clock = time.monotonic) -> None:
        """With `ends`, the first failure is raised instead, unless a signal has come before it."""
        self._signals = signals
        self._ends = ends
        self._clock = clock
        self._waits: Backoffs[str] = Backoffs()
        self._well_since: dict[str, float] = {}
        """By kind of error: since when all has succeeded, `inf` if nothing has since it came."""
        self._trouble = ThrottledLog(clock)
        self._has_told = False

    def call(self, attempt: Callable[[], T]) -> T:
        """Return what the attempt returns, in the end. Raise Stopped if a signal comes before it succeeds.

        Raise ConfigurationError at once: waiting does not mend it.
        """
        while not self._signals.stopping:
            try:
                result = attempt()
            except ConfigurationError:
                raise
            except ImError as error:
                if self._ends and not self._signals.stopping:
                    raise
                self._wait(error)
            else:
                self.succeeded()
                return result
        raise Stopped

    def tell(self, error: ImError) -> None:
        """Say what is waited for, unless that was done lately."""
        if self._trouble.is_news(error):
            log.warning("waiting: %s", one_line(str(error)))
            self._has_told = True

    def succeeded(self) -> None:
        """Know that something has succeeded, also in the midst of an attempt; say that it goes on if it is news."""
        if self._has_told:
            log.info("going on")
            self._has_told = False
        if self._well_since:
            self._calm_down()

    def _calm_down(self) -> None:
        now = self._clock()
        self._well_since = {kind: min(since, now) for kind, since in self._well_since.items()}
        calm = [kind for kind, since in self._well_since.items() if now - since >= LONGEST_WAIT_S]
        self._waits.succeeded(calm)
        for kind in calm:
            del self._well_since[kind]

    def _wait(self, error: ImError) -> None:
        self.tell(error)
        now, kind = self._clock(), type(error).__name__
        self._well_since[kind] = math.inf
        longest = self._waits.failed(kind, now) - now
        # Jitter: workers that lost the same server shall not all come back in the same moment.
        self._signals.wait(longest * random.uniform(0.5, 1))  # noqa: S311 (nothing is secret here)


def run(
    make: Maker, settings: Settings, signals: WorkerSignals, *, burst: bool, looks: bool = True, needs_sql: bool = True
) -> None:
    """Run a worker until a signal comes; in a burst, until everything is done that was there.

    With `looks` it looks at the server's settings first, and says which of them break a promise.

    That includes what other processes of its kind have in hand: whoever has waited for the burst may rely on it. A
    server that is away is waited for, except in a burst, which raises what went wrong. Raise ConfigurationError.
    A worker that `needs_sql` begins by bringing the database up to date; another one begins without.

    The order of the end: no new batch is begun; the one in hand is finished, or left open if a server is away, or lets
    it hang; the name is given back, so that others can take over at once what is open; the connections are closed.
    """
    if burst:
        settings = replace(settings, block_ms=min(settings.block_ms, BURST_BLOCK_MS))
    patience = Patience(signals, ends=burst)
    handled = 0
    try:
        if looks:
            patience.call(lambda: look_at_server(settings))
        with ExitStack() as stack:
            worker = patience.call(lambda: stack.enter_context(_opened(make, settings, needs_sql)))
            # What is loaded by now stays. Out of the collector's sight it costs a busy worker a quarter less time.
            gc.collect()
            gc.freeze()
            handled += patience.call(worker.step)  # a burst too: there is more to see than entries
            while not (burst and patience.call(worker.drained)):
                handled += patience.call(worker.step)
    except Stopped:
        pass
    log.info("ended; %d entries handled", handled)


def look_at_server(settings: Settings) -> None:
    """Say which of its settings break a promise. Raise ConfigurationError for one that a worker does not work on."""
    with closing(RedisClient.connect(settings)) as client:
        servers = server_settings.chat_servers(client)
    server_settings.refuse_eviction(servers, settings)
    if warning := server_settings.warning_of(servers):
        log.warning("%s", warning)


@contextmanager
def _opened(make: Maker, settings: Settings, needs_sql: bool) -> Iterator[Worker]:
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
        worker = make(client, database, settings)
        try:
            yield worker
        finally:
            _close(worker)


def _close(worker: Worker) -> None:
    try:
        worker.close()
    except ImError as error:
        log.warning("not ended in order, which harms nothing: %s", one_line(str(error)))
