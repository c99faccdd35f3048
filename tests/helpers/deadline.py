"""Waiting on a condition, with a deadline. Nothing else in the tests sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float = 30) -> T:
    """Ask until the answer is true, and return it. Fail after `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    is_late = False  # known before it is asked: a process that was halted right after an answer asks once more
    while not (answer := condition()):
        assert not is_late, f"not so within {timeout_s} s: {condition!r}, last answer {answer!r}"
        time.sleep(0.01)
        is_late = time.monotonic() >= give_up
    return answer
