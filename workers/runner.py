"""Runs a worker as a process: its connections, its loop, its waits while a server is away."""

import gc
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from imcore.admin import server_settings
from imcore.errors import ConfigurationError, ImError
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.journal import one_line
from imcore.streams.link import Link
from workers.signals import Signals, Stopped

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
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


Maker = Callable[[Link, Database, Settings], Worker]


class Patience:
    """Repeats what fails because a server is away, with growing waits, and says so once."""

    def __init__(self, signals: Signals, *, ends: bool = False) -> None:
        """With `ends`, the first failure is raised instead, unless a signal has come before it."""
        self._signals = signals
        self._ends = ends
        self._trouble = ""
        self._tries = 0

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
                self._wait(one_line(str(error)))
            else:
                self._go_on()
                return result
        raise Stopped

    def _wait(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("waiting: %s", trouble)
        self._trouble = trouble
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._tries)
        self._tries = min(self._tries + 1, 16)
        # Jitter: workers that lost the same server shall not all come back in the same moment.
        self._signals.wait(longest * random.uniform(0.5, 1))  # noqa: S311 (nothing is secret here)

    def _go_on(self) -> None:
        if self._trouble:
            log.info("going on")
        self._trouble, self._tries = "", 0


def run(
    make: Maker, settings: Settings, signals: Signals, *, burst: bool, looks: bool = True, needs_sql: bool = True
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
    with closing(Link.connect(settings)) as link:
        servers = server_settings.chat_servers(link)
    server_settings.refuse_eviction(servers, settings)
    if warning := server_settings.warning_of(servers):
        log.warning("%s", warning)


@contextmanager
def _opened(make: Maker, settings: Settings, needs_sql: bool) -> Iterator[Worker]:
    with (
        closing(Link.connect(settings)) as link,
        Database.connect(settings.database_url, data_dir=settings.data_dir) as database,
    ):
        link.upgrade()
        if needs_sql:
            database.upgrade()
        else:
            database.refuse_newer()
        link.new_partitions = database.partitions() or link.new_partitions
        log.info("started: Redis at %s, SQL at %s", link.address, database.address)
        worker = make(link, database, settings)
        try:
            yield worker
        finally:
            _close(worker)


def _close(worker: Worker) -> None:
    try:
        worker.close()
    except ImError as error:
        log.warning("not ended in order, which harms nothing: %s", one_line(str(error)))
