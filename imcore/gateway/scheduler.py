"""Runs the tasks of a gateway, each with a back-off of its own, and queues things that may have to wait. No I/O."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, islice
from typing import Generic, Protocol, TypeVar

from imcore.errors import ImError, RedisUnavailable, TryAgain
from imcore.operations.effects import Effects
from imcore.util.backoff import Backoff, Backoffs, Clock, ThrottledLog

T = TypeVar("T", bound=Hashable)


class Task(Protocol):
    """Work that comes up again and again."""

    def due(self) -> float:
        """Return when there is work: `inf` if nothing is to do before something happens."""

    def step(self) -> Effects[None]:
        """Do some of the work. Raise TryAgain if all of it has to wait; then none of it is lost."""


class Scheduler:
    """Steps the tasks that are due, in order. A task that fails waits, and does not stop the others."""

    def __init__(self, tasks: Sequence[Task], throttled_log: ThrottledLog, clock: Clock) -> None:
        self._backoffs = {task: Backoff() for task in tasks}
        self._all = Backoff()
        self._log = throttled_log
        self._clock = clock

    @property
    def is_waiting(self) -> bool:
        """Whether Redis did not answer, and is left alone for a while."""
        return self._all.until > self._clock()

    def due(self) -> float:
        first = math.inf
        for task, backoff in self._backoffs.items():  # in plain steps: this is asked several times for each message
            due = task.due()
            if due < first:
                first = min(first, max(due, backoff.until))
        return max(self._all.until, first)

    def step(self) -> Effects[None]:
        """Step every task that is due. If Redis does not answer, all tasks wait."""
        now = self._clock()
        for task, backoff in self._backoffs.items():
            if self._all.until > now:
                return
            if backoff.until > now or task.due() > now:
                continue
            try:
                yield from task.step()
            except TryAgain as error:
                now = self._clock()
                backoff.failed(now)
                self._log.note(error)
                if isinstance(error, RedisUnavailable):
                    self._all.failed(now)
            else:
                backoff.succeeded()
                self._all.succeeded()
            now = self._clock()


@dataclass(eq=False)
class DelayQueue(Generic[T]):
    """A task: runs one operation for the things of a queue, which has each once; for `limit` of them in one step.

    The operation returns the errors of the things that were refused. Each is logged with `text`, and its thing waits
    alone, longer each time (seconds, monotonic clock). If the operation raises, all things stay.
    """

    _operation: Callable[[Sequence[T]], Effects[dict[T, ImError]]]
    _text: str
    _log: ThrottledLog
    _clock: Clock
    limit: int | None = None
    _now: dict[T, None] = field(default_factory=dict)
    _later: dict[T, float] = field(default_factory=dict)
    _ends: list[tuple[float, int, T]] = field(default_factory=list)
    """A heap of the ends of waits; an end that `_later` does not have is void."""
    _numbers: Iterator[int] = field(default_factory=count)
    _backoffs: Backoffs[T] = field(default_factory=Backoffs)

    def __len__(self) -> int:
        return len(self._now) + len(self._later)

    def add(self, things: Iterable[T]) -> None:
        """Put things at the end. A thing that waits goes on waiting."""
        self._now.update((thing, None) for thing in things if thing not in self._later)

    def discard(self, thing: T) -> None:
        self._now.pop(thing, None)
        self._later.pop(thing, None)
        self._backoffs.succeeded([thing])

    def due(self) -> float:
        return 0.0 if self._now else self._next_end()

    def step(self) -> Effects[None]:
        yield from self.run(self._clock())

    def run(self, now: float) -> Effects[dict[T, ImError]]:
        """Run the operation for the next things; `inf` for those that wait, too. Return the errors of those refused."""
        things = self.take(self.limit, now)
        try:
            refused = yield from self._operation(things)
        except BaseException:
            self.add(things)
            raise
        self.succeeded(thing for thing in things if thing not in refused)
        for thing, error in refused.items():
            self._log.note(error, self._text)
            self.postpone(thing, self._clock())
        return refused

    def postpone(self, thing: T, now: float) -> None:
        """Let a thing wait that was refused: longer than the last time, unless it has `succeeded` since."""
        until = self._backoffs.failed(thing, now)
        self._now.pop(thing, None)
        self._later[thing] = until
        heappush(self._ends, (until, next(self._numbers), thing))

    def succeeded(self, things: Iterable[T]) -> None:
        """Note that things were not refused: their next wait is the shortest one."""
        self._backoffs.succeeded(things)

    def take(self, limit: int | None, now: float) -> list[T]:
        """Take out the next things whose waits are over, at most `limit`."""
        while self._next_end() <= now and self._ends:
            _, _, thing = heappop(self._ends)
            del self._later[thing]
            self._now[thing] = None
        taken = list(islice(self._now, limit))
        for thing in taken:
            del self._now[thing]
        return taken

    def _next_end(self) -> float:
        while self._ends and self._later.get(self._ends[0][2]) != self._ends[0][0]:
            heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf
