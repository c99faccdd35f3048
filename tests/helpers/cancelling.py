"""Cancels a coroutine at each of its awaits in turn."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any


class _CancelledAt:
    """Awaits a coroutine, and cancels the task at its n-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int) -> None:
        self._coroutine, self._at = coroutine, at
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                waits_for = resume(value)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._at:
                task = asyncio.current_task()
                assert task
                task.cancel()
            try:
                resume, value = self._coroutine.send, (yield waits_for)
            except BaseException as error:
                resume, value = self._coroutine.throw, error


async def was_cancelled(coroutine: Coroutine[Any, Any, Any], at: int) -> bool:
    """Run a coroutine in a task that is cancelled at its n-th await; return False if it ended before."""

    async def run() -> None:
        await _CancelledAt(coroutine, at)

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def cancel_at_each_await(story: Callable[[int], Awaitable[bool]]) -> int:
    """Tell a story again and again, with the number of the await to cancel at, until it was not cancelled any more.

    Return how many awaits were tried.
    """
    at = 1
    while await story(at):
        at += 1
    return at - 1
