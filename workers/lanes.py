"""Runs a worker on a cluster: a lane for each partition, so that no silent node stops what the others have.

    process --+-- lane 0: a thread, with a client, a journal, a step, waits of its own --> partition 0
              +-- lane 1 ...
              +-- asides: threads for what has to be asked of other nodes, and may hang there

A lane sends nothing but to its own partition, but for the asides. What a lane cannot know or end for another node's
silence stays as it was, or open, and the lane goes on. All lanes share the database. On one server there are no lanes.
"""

import gc
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from imcore.errors import ImError
from imcore.metrics import WorkerMetrics
from imcore.operations import user_policies
from imcore.operations.performer import perform_in_redis
from imcore.process import Stopped, WorkerSignals, signals_blocked
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.workers.runner import BURST_BLOCK_MS, Retrier, Worker, check_server, closing_worker, opened, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imcore.repair.watch import Facts

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 0.1
"""A lane waits this long for an aside: a sound one answers sooner."""

_TICK_S = 0.1


@dataclass(frozen=True)
class PartitionLane:
    """What a worker needs to serve one partition alone."""

    partition: int
    facts: Callable[[], "Facts"]
    """What Redis says of its data as a whole: lately, or when its node answered last. Raises if it never has."""
    spread: Callable[[Hashable, str], bool]
    """Copies a user's choice to all partitions, once for each key; returns whether that is done. Ask again if not."""


LaneFactory = Callable[[RedisClient, Database, Settings, WorkerMetrics, PartitionLane], Worker]


def run(
    factory: LaneFactory,
    settings: Settings,
    signals: WorkerSignals,
    metrics: WorkerMetrics,
    *,
    burst: bool,
    checks_server: bool = True,
    needs_sql: bool = True,
) -> None:
    """Run a worker on a cluster, as `runner.run` does on one server; a burst ends when all lanes are drained.

    The start needs some node; that of `persist`, the node of the configuration, which says whether Redis is being
    rebuilt. The first error that ends a lane ends all of them, and is raised.
    """
    if burst:
        settings = replace(settings, block_ms=min(settings.block_ms, BURST_BLOCK_MS))
    retrier = Retrier(signals, metrics, ends=burst)
    lanes: list[_LaneThread] = []
    try:
        if checks_server:
            retrier.call(lambda: check_server(settings))
        with ExitStack() as stack:
            client, database = retrier.call(lambda: stack.enter_context(opened(settings, needs_sql)))
            partitions = retrier.call(lambda: _fixed_partitions(client))
            facts = _LatestFacts(stack.enter_context(closing(_Aside(settings))))
            spreads = _Spreads(stack.enter_context(closing(_Aside(settings))))
            gc.collect()
            gc.freeze()  # see `runner.run`
            ending = _Ending(signals)
            for partition in range(partitions):
                lane = PartitionLane(partition, facts.read, spreads.done)
                lanes.append(_LaneThread(factory, settings, metrics, lane, database, ending, burst=burst))
            _run_to_end(lanes)
    except Stopped:
        pass
    finally:
        log.info("ended; %d entries handled", sum(lane.handled for lane in lanes))


def _fixed_partitions(client: RedisClient) -> int:
    """Return the number of partitions of the data, which nobody can change from here on."""
    from imcore.streams.calls import journal_calls  # noqa: PLC0415

    client.prepare([journal_calls.is_held("", 0)])
    return client.space.partitions


def _run_to_end(lanes: Sequence["_LaneThread"]) -> None:
    with signals_blocked():
        for lane in lanes:
            lane.start()
    for lane in lanes:
        lane.join()  # a signal's handler runs meanwhile; it raises Stopped if a lane hangs for too long
    for lane in lanes:
        if lane.error is not None:
            raise lane.error


class _Ending:
    """Whether the lanes are to end: a signal has arrived, or one of them has failed. Takes the place of the signals."""

    def __init__(self, signals: WorkerSignals) -> None:
        self._signals = signals
        self._has_failed = Event()

    @property
    def stopping(self) -> bool:
        return self._signals.stopping or self._has_failed.is_set()

    def wait(self, seconds: float) -> None:
        while seconds > 0 and not self.stopping:
            self._has_failed.wait(min(seconds, _TICK_S))
            seconds -= _TICK_S

    def fail(self) -> None:
        self._has_failed.set()


class _LaneThread(Thread):
    """Serves one partition until the end. One that hangs holds up nobody: the process ends without it."""

    def __init__(
        self,
        factory: LaneFactory,
        settings: Settings,
        metrics: WorkerMetrics,
        lane: PartitionLane,
        database: Database,
        ending: _Ending,
        *,
        burst: bool,
    ) -> None:
        super().__init__(name=f"partition {lane.partition}", daemon=True)
        self.handled = 0
        self.error: BaseException | None = None
        self._new_worker: Callable[[RedisClient], Worker] = lambda client: factory(
            client, database, settings, metrics, lane
        )
        self._settings = settings
        self._metrics = metrics
        self._ending = ending
        self._burst = burst

    def run(self) -> None:
        retrier = Retrier(self._ending, self._metrics, ends=self._burst, about=f"{self.name}: ")
        try:
            with ExitStack() as stack:
                worker = retrier.call(lambda: stack.enter_context(self._opened()))
                for count in serve(worker, retrier, self._metrics, burst=self._burst):
                    self.handled += count
        except Stopped:
            pass
        except BaseException as error:  # the main thread raises it
            self.error = error
            self._ending.fail()

    @contextmanager
    def _opened(self) -> "Iterator[Worker]":
        """Open a client that this lane alone waits for: the driver's holds up all threads while it looks for slots."""
        with closing(RedisClient.connect(self._settings)) as client:
            client.upgrade()
            with closing_worker(self._new_worker(client)) as worker:
                yield worker


# What hangs on other nodes than a lane's own.


class _Aside:
    """Does one thing after the other in a thread, with a client of its own; the thread begins with the first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wanted: SimpleQueue[tuple[Future[Any], Callable[[RedisClient], Any]] | None] = SimpleQueue()
        self._lock = Lock()
        self._has_begun = False

    def ask(self, what: Callable[[RedisClient], T]) -> Future[T]:
        answer: Future[T] = Future()
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                with signals_blocked():
                    Thread(target=self._run, name="aside", daemon=True).start()
        self._wanted.put((answer, what))
        return answer

    def close(self) -> None:
        self._wanted.put(None)

    def _run(self) -> None:
        with closing(RedisClient.connect(self._settings)) as client:
            while wanted := self._wanted.get():
                answer, what = wanted
                try:
                    answer.set_result(what(client))
                except BaseException as error:  # whoever asked raises it
                    answer.set_exception(error)


class _LatestFacts:
    """What Redis says of its data as a whole, for all lanes."""

    def __init__(self, aside: _Aside) -> None:
        self._aside = aside
        self._lock = Lock()
        self._asked: Future[Facts] | None = None
        self._known: Facts | None = None

    def read(self) -> "Facts":
        """Ask, and wait a moment; return the last answer. Raise an ImError if there is none."""
        from imcore.repair.watch import facts_of  # noqa: PLC0415 (the worker `receipts` does not need it)

        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = self._aside.ask(facts_of)
            asked = self._asked
        try:
            self._known = asked.result(None if self._known is None else PATIENCE_S)
        except (TimeoutError, ImError):
            if self._known is None:
                raise
        return self._known


class _Spreads:
    """Copies of users' choices, which go to all partitions."""

    def __init__(self, aside: _Aside) -> None:
        self._aside = aside
        self._lock = Lock()
        self._asked: dict[Hashable, Future[None]] = {}

    def done(self, key: Hashable, uid: str) -> bool:
        with self._lock:
            asked = self._asked.get(key)
            if asked is None:
                asked = self._asked[key] = self._aside.ask(lambda c: perform_in_redis(c, user_policies.spread(uid)))
        with suppress(TimeoutError):
            error = asked.exception(PATIENCE_S)
            with self._lock:
                self._asked.pop(key, None)
            if error is None:
                return True
            if not isinstance(error, ImError):
                raise error
        return False
