"""One live session under asyncio, as an async iterator."""

from collections import deque
from collections.abc import Mapping
from typing import Self

from imcore.gateway.async_gateway import AsyncGateway
from imcore.gateway.fanout import Event
from imcore.gateway.listener import Item, Listener, items_of, resume_points_of
from imcore.gateway.request import StartMode
from imcore.operations import groups
from imcore.util.documented import documented_as


@documented_as(Listener)
class AsyncListener:
    """One live session, as an async iterator of messages, receipts of the user's own, and moved positions.

    Use it in an `async with`. Leaving it normally acks what was handed over; after an error the messages come again.
    """

    def __init__(
        self, gateway: AsyncGateway, uid: str, *, start: StartMode = "unread", after: Mapping[str, str] | None = None
    ) -> None:
        self._gateway = gateway
        self._uid = uid
        self._start, self._after = start, after
        self._items: deque[tuple[Item | None, bool]] = deque()
        """The items of the last poll that were not yielded yet. The flag marks the last item of an event."""
        self._not_yielded = 0
        self._polled = 0

    async def __aenter__(self) -> Self:
        await self._gateway.performer.perform(groups.known_user(self._uid))
        self.session = await self._gateway.open(self._uid, start=self._start, after=self._after)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._requeue_not_yielded()
        await self._gateway.close(clean=kind is None)

    def __aiter__(self) -> Self:
        self._items.clear()
        return self

    async def __anext__(self) -> Item:
        while True:
            if self._items:
                item, is_last = self._items.popleft()
                self._not_yielded -= is_last
                if item:
                    return item
                continue
            events = await self._poll(1.0)
            self._not_yielded = len(events)
            for event in events:
                *items, last = items_of(event) or (None,)
                self._items += [*((item, False) for item in items), (last, True)]

    async def poll(self, timeout_s: float) -> list[Item]:
        events = await self._poll(timeout_s)
        self._polled = len(events)
        return [item for event in events for item in items_of(event)]

    def requeue(self) -> None:
        self._gateway.requeue(self._polled)
        self._polled = 0

    @property
    def reconnects(self) -> int:
        return self.session.reconnects

    def resume_points(self) -> dict[str, str]:
        return resume_points_of(self.session)

    async def _poll(self, timeout_s: float) -> list[Event]:
        self._requeue_not_yielded()
        self._polled = 0
        return await self._gateway.poll(timeout_s)

    def _requeue_not_yielded(self) -> None:
        self._items.clear()
        self._gateway.requeue(self._not_yielded)
        self._not_yielded = 0
