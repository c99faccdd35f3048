"""Tells that a database has been silent for long while somebody waits for its answer."""

import logging
import time
from collections.abc import Generator
from threading import Lock
from typing import TypeVar

log = logging.getLogger(__name__)

TOLD_AFTER_S = 10.0
TOLD_EVERY_S = 60.0
"""However many threads wait, and for however long: one line a minute."""

T = TypeVar("T")
Sent = TypeVar("Sent")
Yielded = TypeVar("Yielded")


class Waits:
    """The waits of this process for one database."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = Lock()
        self._not_before = 0.0

    def watched(self, gen: Generator[Yielded, Sent, T]) -> Generator[Yielded, Sent, T]:
        """Do what `gen`, a generator of psycopg, does. Whoever drives it sends it nothing, again and again, in vain."""
        began = time.monotonic()
        told = False
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and self._tell(began):
                    told = True
                state = gen.send(ready)
        except StopIteration as end:
            if told:
                log.info("the database %s answers again after %d s", self._address, time.monotonic() - began)
            answer: T = end.value
            return answer

    def _tell(self, began: float) -> bool:
        """Say it if it is time to; return whether it was."""
        now = time.monotonic()
        if now - began < TOLD_AFTER_S:
            return False
        with self._lock:
            if now < self._not_before:
                return False
            self._not_before = now + TOLD_EVERY_S
        log.warning(
            "the database %s has not answered for %d s: it is silent or busy, and this waits for it (see that it runs)",
            *(self._address, now - began),
        )
        return True
