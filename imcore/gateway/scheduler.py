"""What a gateway has to do is done by parts, each with its own time, and each waiting by itself while it is refused."""

from collections.abc import Sequence
from typing import Protocol

from imcore.errors import RedisUnavailable, TryAgain
from imcore.operations.effects import Effects
from imcore.util.backoff import Backoff, Clock, ThrottledLog


class Task(Protocol):
    """Something that is to be done again and again."""

    def due(self) -> float:
        """Return when there is something to do: `inf` if not before something happens."""

    def go_on(self) -> Effects[None]:
        """Do some of it. What is refused about one thing, be it a group or a user, waits without the others.

        Raise TryAgain if all of it has to wait; then nothing of it is lost.
        """


class Scheduler:
    """Lets each part go on that is due. What one of them is refused does not stop the others."""

    def __init__(self, parts: Sequence[Task], trouble: ThrottledLog, clock: Clock) -> None:
        self._waits = {part: Backoff() for part in parts}
        self._all = Backoff()
        self._trouble = trouble
        self._clock = clock

    def due(self) -> float:
        """Return when a part is due next."""
        return max(self._all.until, min(max(part.due(), wait.until) for part, wait in self._waits.items()))

    def go_on(self) -> Effects[None]:
        """Let all go on that are due, in their order; after no answer from Redis all of them wait."""
        now = self._clock()
        for part, wait in self._waits.items():
            if self._all.until > now:
                return
            if wait.until > now or part.due() > now:
                continue
            try:
                yield from part.go_on()
            except TryAgain as error:
                now = self._clock()
                wait.failed(now)
                self._trouble.note(error)
                if isinstance(error, RedisUnavailable):
                    self._all.failed(now)
            else:
                wait.succeeded()
                self._all.succeeded()
            now = self._clock()
