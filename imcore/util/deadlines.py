"""Deadlines: attempts that end when the time is over."""

import time
from collections.abc import Iterator

from imcore.util.backoff import LONGEST_WAIT_S, pauses


def attempts(timeout_s: float, *, longest_pause_s: float = LONGEST_WAIT_S) -> Iterator[None]:
    """Yield for each attempt, the first one at once and the last one when the time is over. Sleep between them."""
    give_up = time.monotonic() + timeout_s
    for pause_s in pauses():
        yield
        left_s = give_up - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(pause_s, longest_pause_s, left_s))
