"""The longest wait of a driver of the core, and the time for which it leaves a database alone that has failed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from imcore.errors import DatabaseUnavailable

LONGEST_WAIT_S = 3600.0
"""Operating systems limit one wait."""

_SQL_PAUSE_FACTOR = 5
"""After a database has failed, it is left alone for this many times as long as its answer took."""


class DatabaseRest:
    """Leaves a database alone after it has failed: while it is silent each attempt stops all sessions for seconds."""

    def __init__(self) -> None:
        self._problem, self._until = "", 0.0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Query the database in a `with`. Raise DatabaseUnavailable if that failed a moment ago."""
        begun = time.monotonic()
        if begun < self._until:
            raise DatabaseUnavailable(self._problem)
        try:
            yield
        except DatabaseUnavailable as error:
            now = time.monotonic()
            self._problem, self._until = str(error), now + _SQL_PAUSE_FACTOR * (now - begun)
            raise
