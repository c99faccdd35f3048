"""Things to be done in turn, some of them not before a time. No I/O."""

import math
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Todo(Generic[T]):
    """Each thing is there once. What is postponed waits for its time (of the monotonic clock, in seconds)."""

    def __init__(self) -> None:
        self._now: dict[T, None] = {}
        self._later: dict[T, float] = {}

    def __contains__(self, thing: T) -> bool:
        return thing in self._now or thing in self._later

    def add(self, things: Iterable[T]) -> None:
        """Put things at the end; one that is postponed stays so."""
        self._now.update((thing, None) for thing in things if thing not in self._later)

    def postpone(self, thing: T, until: float) -> None:
        """Let a thing wait; every wait is as long as the others, so they end in the order in which they began."""
        self._now.pop(thing, None)
        self._later[thing] = until

    def discard(self, thing: T) -> None:
        """Take a thing out that needs not be done any more."""
        self._now.pop(thing, None)
        self._later.pop(thing, None)

    def take(self, most: int, now: float) -> list[T]:
        """Take out the next things, at most so many."""
        while self._later:
            thing, until = next(iter(self._later.items()))
            if until > now:
                break
            del self._later[thing]
            self._now[thing] = None
        taken = list(islice(self._now, most))
        for thing in taken:
            del self._now[thing]
        return taken

    def due(self) -> float:
        """Return when there is something to do; `inf` if there is nothing."""
        if self._now:
            return 0.0
        return next(iter(self._later.values())) if self._later else math.inf
