"""A turn that the tasks of one event loop take, one after the other."""

import asyncio
from collections import deque


class Turn:
    """A lock that is handed on in order. Other than asyncio's it can be taken without waiting, if it is free."""

    def __init__(self) -> None:
        self.is_taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take the turn if it is free; return whether it was."""
        was_free, self.is_taken = not self.is_taken, True
        return was_free

    async def acquire(self) -> None:
        if self.take():
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():  # it was handed over at the same moment
                self.release()
            raise

    def release(self) -> None:
        while self._waiting:
            given = self._waiting.popleft()
            if not given.done():
                given.set_result(None)
                return
        self.is_taken = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
