"""What a gateway has to do is done by parts, each with its own time, and each waiting by itself while it is refused."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from imcore.asking import Asking
from imcore.errors import ImError, RedisUnavailable, TryAgain

log = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Tells the time in seconds, and never goes back."""

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0

_SILENCE_S = 60.0
"""What goes on is said again after so long."""


class Part(Protocol):
    """Something that is to be done again and again."""

    def due(self) -> float:
        """Return when there is something to do: `inf` if not before something happens."""

    def go_on(self) -> Asking[None]:
        """Do some of it. Raise TryAgain if that has to wait; then nothing of it is lost."""


class _Pause:
    """How long to wait after a failure: longer each time, until something succeeds."""

    def __init__(self) -> None:
        self.until = 0.0
        self._wait_s = FIRST_WAIT_S

    def begin(self, now: float) -> bool:
        """Begin to wait; return whether this is the first time."""
        is_first = self._wait_s == FIRST_WAIT_S
        self.until = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        return is_first

    def over(self) -> None:
        """Something has succeeded."""
        self._wait_s = FIRST_WAIT_S


class Parts:
    """Lets each part go on that is due. What one of them is refused does not stop the others."""

    def __init__(self, parts: Sequence[Part], clock: Clock) -> None:
        self._parts = {part: _Pause() for part in parts}
        self._all = _Pause()
        self._clock = clock
        self._said = ""

    def due(self) -> float:
        """Return when a part is due next."""
        return max(self._all.until, min(max(part.due(), pause.until) for part, pause in self._parts.items()))

    def go_on(self) -> Asking[None]:
        """Let all go on that are due, in their order; after no answer from Redis all of them wait."""
        now = self._clock()
        for part, pause in self._parts.items():
            if self._all.until > now:
                return
            if pause.until > now or part.due() > now:
                continue
            try:
                yield from part.go_on()
            except TryAgain as error:
                self.wait(part, error)
                if isinstance(error, RedisUnavailable):
                    self._all.begin(self._clock())
            else:
                pause.over()
                self._all.over()
                self._said = ""
            now = self._clock()

    def wait(self, part: Part, error: TryAgain) -> None:
        """Let a part wait that has failed. What has been said is not said again before one succeeds."""
        if self._parts[part].begin(self._clock()) and str(error) != self._said:
            self._said = str(error)
            log.warning("%s; trying again", error)


class Trouble:
    """Says now and then that something has to wait for the database, however many it is that wait."""

    def __init__(self, what: str, clock: Clock) -> None:
        self._what = what
        self._clock = clock
        self._silent_until = 0.0

    def note(self, error: ImError) -> None:
        """Say it, unless that was done lately."""
        now = self._clock()
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE_S
            log.warning("%s to wait: %s", self._what, error)
