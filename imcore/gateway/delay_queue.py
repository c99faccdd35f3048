"""Things to be done in turn, each of them waiting longer and longer while it is refused. No I/O."""

import math
from collections.abc import Hashable, Iterable
from heapq import heappop, heappush
from itertools import count, islice
from typing import Generic, TypeVar

from imcore.util.backoff import Backoffs

T = TypeVar("T", bound=Hashable)


class DelayQueue(Generic[T]):
    """Each thing is there once. What is postponed waits for its time (of the monotonic clock, in seconds)."""

    def __init__(self) -> None:
        self._now: dict[T, None] = {}
        self._later: dict[T, float] = {}
        self._ends: list[tuple[float, int, T]] = []
        """A heap of when waits end; those that `_later` does not have are over."""
        self._numbers = count()
        self._waits: Backoffs[T] = Backoffs()

    def __len__(self) -> int:
        return len(self._now) + len(self._later)

    def __contains__(self, thing: T) -> bool:
        return thing in self._now or thing in self._later

    def add(self, things: Iterable[T]) -> None:
        """Put things at the end; one that is postponed stays so."""
        self._now.update((thing, None) for thing in things if thing not in self._later)

    def postpone(self, thing: T, now: float) -> None:
        """Let a thing wait that was refused: longer than the last time, unless it was `done` since."""
        until = self._waits.failed(thing, now)
        self._now.pop(thing, None)
        self._later[thing] = until
        heappush(self._ends, (until, next(self._numbers), thing))

    def done(self, things: Iterable[T]) -> None:
        """Note that things were not refused: should they be, they wait for a moment only."""
        self._waits.succeeded(things)

    def discard(self, thing: T) -> None:
        """Take a thing out that needs not be done any more."""
        self._now.pop(thing, None)
        self._later.pop(thing, None)
        self._waits.succeeded([thing])

    def take(self, most: int, now: float) -> list[T]:
        """Take out the next things, at most so many."""
        while self._next_end() <= now and self._ends:
            _, _, thing = heappop(self._ends)
            del self._later[thing]
            self._now[thing] = None
        taken = list(islice(self._now, most))
        for thing in taken:
            del self._now[thing]
        return taken

    def due(self) -> float:
        """Return when there is something to do; `inf` if there is nothing."""
        return 0.0 if self._now else self._next_end()

    def _next_end(self) -> float:
        while self._ends and self._later.get(self._ends[0][2]) != self._ends[0][0]:
            heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf
