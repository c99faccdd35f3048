"""Warnings of one kind, each by itself as long as they are few."""

import logging
import math
import time

MOST_IN_A_WINDOW = 10
WINDOW_S = 60.0


class RateLimitedWarnings:
    """Logs at most ten warnings in a minute. The tenth one says that others may be left out."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._began = -math.inf
        self._count = 0

    def warn(self, text: str) -> None:
        """Log a warning, unless there were ten in this minute."""
        now = time.monotonic()
        if now >= self._began + WINDOW_S:
            self._began, self._count = now, 0
        self._count += 1
        if self._count < MOST_IN_A_WINDOW:
            self._log.warning("%s", text)
        elif self._count == MOST_IN_A_WINDOW:
            self._log.warning("%s; more of these are not logged for a minute", text)
