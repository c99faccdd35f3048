"""Python's search for cycles of garbage, in a process that makes many objects for one long job."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = 100_000, 20, 20


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Let the search begin less often, in all threads of the process.

    Reference counts free nearly all that a check or a rebuild makes, and the usual search takes a fifth of its time.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
