"""Back-off: waits that double with each failure, and a log that repeats a warning once a minute at most. No I/O."""

import logging
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from threading import RLock
from typing import Generic, TypeVar

from imcore.errors import DatabaseOpening, ImError

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Hashable)

Clock = Callable[[], float]
"""Returns the time in seconds, and never goes back."""

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 4.0

REPEAT_AFTER_S = 60.0
"""A warning is repeated after this time, if its cause lasts."""

_MOST_OF_A_TYPE = 5
"""The number of different errors of one type that are logged within that time."""

_MOST_LINES = 10
"""The number of lines that `ThrottledLog.warn` logs within that time."""

_NAMES = re.compile(r"\b[0-9a-f]*[0-9][0-9a-f]*\b|'[^']*'")
"""The parts of a text that name one thing among many: numbers, ids, and quoted words."""


class Backoff:
    """When to repeat one action that failed. Each wait is twice the last one, up to seconds, until it succeeds."""

    __slots__ = ("_wait_s", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """When to try again, in seconds of the clock that gave `now`."""
        self._wait_s = FIRST_WAIT_S

    def failed(self, now: float) -> None:
        self.until = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def succeeded(self) -> None:
        self.until, self._wait_s = 0.0, FIRST_WAIT_S


class Backoffs(Generic[T]):
    def __init__(self) -> None:
        self._waiting: dict[T, Backoff] = {}

    def failed(self, key: T, now: float) -> float:
        """Begin the next wait of a key; return when it ends."""
        backoff = self._waiting.setdefault(key, Backoff())
        backoff.failed(now)
        return backoff.until

    def succeeded(self, keys: Iterable[T]) -> None:
        if self._waiting:
            for key in keys:
                self._waiting.pop(key, None)

    def until(self, key: T) -> float:
        return self._waiting[key].until if key in self._waiting else 0.0


def pauses() -> Iterator[float]:
    """Yield the pauses between two looks at the work of somebody else, in seconds: each is longer than the last one."""
    backoff = Backoff()
    while True:
        backoff.failed(now=0.0)
        yield backoff.until


class ThrottledLog:
    """Logs errors that come again and again: each kind at once, and then once a minute. Threads may share it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = RLock()  # a signal handler may log too
        self._silent_until: dict[object, float] = {}

    def note(self, error: ImError, text: str = "%s; trying again") -> None:
        """Log an error, if it is news. `text` says what follows from it, with %s for the error."""
        if self.is_news(error):
            log.warning(text, error)

    def warn(self, text: str) -> None:
        """Log a line, if few were logged in the last minute. The last line allowed says that more are left out."""
        number = next((number for number in range(_MOST_LINES) if self.is_due(("line", number))), _MOST_LINES)
        if number < _MOST_LINES - 1:
            log.warning("%s", text)
        elif number < _MOST_LINES:
            log.warning("%s; more of these are not logged for a minute", text)

    def is_news(self, error: ImError) -> bool:
        """Return whether to log an error now: no error of the same type and text was logged in the last minute.

        Numbers and quoted words do not count. A few texts of one type are logged in a minute.
        """
        if isinstance(error, DatabaseOpening):  # not a failure
            return False
        kind = type(error)
        is_new = self.is_due((kind, _NAMES.sub("", str(error))))
        return is_new and any(self.is_due((kind, number)) for number in range(_MOST_OF_A_TYPE))

    def is_due(self, kind: object) -> bool:
        """Return whether to log this kind of event now. If so, the caller logs it; it is due again in a minute."""
        with self._lock:
            now = self._clock()
            if now < self._silent_until.get(kind, -math.inf):
                return False
            self._silent_until = {other: until for other, until in self._silent_until.items() if until > now}
            self._silent_until[kind] = now + REPEAT_AFTER_S
            return True
