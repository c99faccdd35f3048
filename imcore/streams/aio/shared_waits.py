"""Waits for durable messages under asyncio: many tasks share one barrier of a place and kind."""

import asyncio
from functools import partial
from typing import NamedTuple

from imcore.model.values import Durable
from imcore.streams.durability import Durability, Outcome, SentMessages
from imcore.util.threads import in_thread

GATHER_S = 0.25
"""While a barrier is under way, the messages of this time, or until it ends, gather for the next one."""


class _Gathering(NamedTuple):
    """Messages for one barrier that has not begun, and the task that makes it."""

    sends: list[SentMessages]
    task: "asyncio.Task[list[Outcome]]"


class SharedWaits:
    """Makes barriers in threads. A barrier that takes long holds up the next one for GATHER_S at most."""

    def __init__(self, durability: Durability) -> None:
        self._durability = durability
        self._gathering: dict[tuple[str, Durable], _Gathering] = {}
        self._under_way: dict[tuple[str, Durable], asyncio.Task[list[Outcome]]] = {}
        self._tasks: set[asyncio.Task[list[Outcome]]] = set()

    async def confirm(self, kind: Durable, sent: SentMessages) -> Outcome:
        """Wait until messages are confirmed; see `Durability.confirm`."""
        key = (self._durability.place_of(sent.gid), kind)
        gathering = self._gathering.get(key)
        if gathering is None:
            sends: list[SentMessages] = []
            gathering = self._gathering[key] = _Gathering(sends, asyncio.ensure_future(self._run(key, sends)))
            self._tasks.add(gathering.task)
            gathering.task.add_done_callback(self._tasks.discard)
        number = len(gathering.sends)
        gathering.sends.append(sent)
        return (await asyncio.shield(gathering.task))[number]  # the others wait for it, too

    async def _run(self, key: tuple[str, Durable], sends: list[SentMessages]) -> list[Outcome]:
        try:
            if before := self._under_way.get(key):
                await asyncio.wait([before], timeout=GATHER_S)
        finally:
            del self._gathering[key]
        task = self._under_way[key] = asyncio.current_task()  # type: ignore[assignment]
        try:
            return await in_thread(partial(self._durability.confirm, key[1], sends))
        finally:
            if self._under_way.get(key) is task:
                del self._under_way[key]

    def close(self) -> None:
        """Cancel what is under way. Its messages are stored."""
        for task in self._tasks:
            task.cancel()
