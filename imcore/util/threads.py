"""Runs blocking functions beside an event loop."""

import asyncio
import contextvars
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from imcore.errors import TryAgain

T = TypeVar("T")


async def in_thread(function: Callable[[], T], *, discard: Callable[[T], object] | None = None) -> T:
    """Return the result of a blocking function, which runs in a daemon thread of its own.

    An ending process does not wait for a daemon, and a pool of threads could be full of functions that wait. After a
    cancellation the function goes on, and `discard` is called with its result. Raise TryAgain without a free thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(set_outcome: Callable[[], None], dropped: Callable[[], object]) -> None:
        dropped() if future.done() else set_outcome()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            failure, outcome = error, lambda: future.set_exception(failure)
            dropped: Callable[[], object] = _nothing
        else:
            outcome = lambda: future.set_result(result)  # noqa: E731
            dropped = (lambda: discard(result)) if discard else _nothing
        try:
            loop.call_soon_threadsafe(finish, outcome, dropped)
        except RuntimeError:  # the loop is closed
            dropped()

    context = contextvars.copy_context()
    try:
        Thread(target=context.run, args=(run,), name="imcore-beside-loop", daemon=True).start()
    except RuntimeError as error:
        raise TryAgain("this process has as many threads as it may: raise its limit, or try again") from error
    return await future


def _nothing() -> None:
    pass
