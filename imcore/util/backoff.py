"""Waits that grow with what fails, thing by thing, and warnings about them that do not. No I/O."""

import logging
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from imcore.errors import DatabaseOpening, ImError

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Hashable)

Clock = Callable[[], float]
"""Tells the time in seconds, and never goes back."""

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 4.0

_SILENCE_S = 60.0
"""What goes on is said again after so long."""

_MOST_ALIKE = 5
"""How many errors of one type are told within that time."""

_NAMES = re.compile(r"\b[0-9a-f]*[0-9][0-9a-f]*\b|'[^']*'")
"""What tells one thing from another in a text: numbers, ids, and what is quoted."""


class Backoff:
    """When to try again what has failed: each wait is twice the one before, up to seconds, until the thing succeeds.

    One belongs to one thing that fails. What succeeds beside it says nothing about it.
    """

    __slots__ = ("_wait_s", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """When to try again, in seconds of the clock that gave `now`."""
        self._wait_s = FIRST_WAIT_S

    def failed(self, now: float) -> None:
        """Begin the next wait."""
        self.until = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def succeeded(self) -> None:
        """Wait no longer; the next wait is a short one."""
        self.until, self._wait_s = 0.0, FIRST_WAIT_S


class Backoffs(Generic[T]):
    """A backoff for each of many things."""

    def __init__(self) -> None:
        self._waiting: dict[T, Backoff] = {}

    def failed(self, thing: T, now: float) -> float:
        """Begin the next wait of a thing; return when it ends."""
        backoff = self._waiting.setdefault(thing, Backoff())
        backoff.failed(now)
        return backoff.until

    def succeeded(self, things: Iterable[T]) -> None:
        """Wait no longer for these things, or forget them."""
        if self._waiting:
            for thing in things:
                self._waiting.pop(thing, None)

    def until(self, thing: T) -> float:
        """Return when to try a thing again."""
        return self._waiting[thing].until if thing in self._waiting else 0.0


def pauses() -> Iterator[float]:
    """Yield how long to pause between two looks at what others have to do first, in seconds: longer each time."""
    wait = Backoff()
    while True:
        wait.failed(now=0.0)
        yield wait.until


class ThrottledLog:
    """Warns of what fails again and again: of each kind of trouble at once, and then once a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._silent_until: dict[object, float] = {}

    def note(self, error: ImError, text: str = "%s; trying again") -> None:
        """Warn of an error, unless that was done lately. `text` says what comes of it, with %s for the error."""
        if self.is_news(error):
            log.warning(text, error)

    def is_news(self, error: ImError) -> bool:
        """Whether to warn of an error now: not if one that says the same of something else was told lately.

        Numbers and what is quoted make no difference. Of each type a few are told within a minute.
        """
        if isinstance(error, DatabaseOpening):  # which is no trouble
            return False
        kind = type(error)
        is_new = self.is_due((kind, _NAMES.sub("", str(error))))
        return is_new and any(self.is_due((kind, number)) for number in range(_MOST_ALIKE))

    def is_due(self, kind: object) -> bool:
        """Whether to warn of this kind of trouble now. Whoever asks does so: it is not due again for a minute."""
        now = self._clock()
        if now < self._silent_until.get(kind, -math.inf):
            return False
        self._silent_until = {each: until for each, until in self._silent_until.items() if until > now}
        self._silent_until[kind] = now + _SILENCE_S
        return True
