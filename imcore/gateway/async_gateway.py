"""A gateway under asyncio: the live sessions of many users in one process, over one subscription connection.

On a cluster there is one for each partition. `imcore.gateway.core` decides, as for `imcore.gateway.gateway`; a
`imcore.gateway.lane` drives it.
"""

import asyncio
import reprlib
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self, Unpack

from imcore.errors import InvalidInput, TryAgain
from imcore.gateway.confirmations import Confirmations
from imcore.gateway.core import Core
from imcore.gateway.fanout import Event, Session
from imcore.gateway.gateway import Gateway
from imcore.gateway.lane import LiveLane, to_its_end
from imcore.gateway.lanes import Lanes
from imcore.gateway.options import GatewayOptions, SessionOptions
from imcore.gateway.request import SessionRequest, StartMode
from imcore.gateway.rest import LONGEST_WAIT_S, DatabaseRest
from imcore.gateway.spanning import SpanningCore
from imcore.model.limits import is_number
from imcore.operations.async_performer import AsyncPerformer
from imcore.settings import Settings
from imcore.streams.keys import Keyspace
from imcore.util.documented import documented_as


@documented_as(Gateway)
class AsyncGateway(Confirmations[Core | SpanningCore]):
    """Sessions that share a connection. For the tasks of one event loop; one task at a time polls."""

    def __init__(self, performer: AsyncPerformer, settings: Settings, **options: Unpack[SessionOptions]) -> None:
        super().__init__(GatewayOptions(**options))
        self.performer = performer
        self._settings = settings
        self._lanes: LiveLane | Lanes | None = None
        """Drives the core."""
        self._polling = asyncio.Lock()
        self._opening: set[asyncio.Task[Any]] = set()
        self._has_news = self._is_awake = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """Known once somebody has polled: until then there is no wait that `wake` could end."""
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(clean=kind is None)

    async def open(
        self,
        uid: str,
        *,
        start: StartMode = "unread",
        after: Mapping[str, str] | None = None,
        most: int | None = None,
        tag: Any = None,
    ) -> Session:
        request = SessionRequest.checked(uid, start, after, most, tag)
        opening = asyncio.ensure_future(self._open(request))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._drop_abandoned)
            raise

    async def _open(self, request: SessionRequest) -> Session:
        lanes = self._lanes or await self._begin()
        session = await lanes.open(request)
        self.performer.open_early()
        self._notify()
        return session

    async def _begin(self) -> LiveLane | Lanes:
        space = await self.performer.client.space()
        if self._lanes is None:  # else another task has begun meanwhile
            rest = DatabaseRest()

            def lane(space: Keyspace) -> LiveLane:
                return LiveLane(self.performer, space, self._settings, self._options, self._notify, self._seen, rest)

            if self.performer.client.client.is_cluster and space.partitions > 1:
                self._lanes = Lanes(space, [lane(space.lane(p)) for p in range(space.partitions)])
            else:
                self._lanes = lane(space)
            self._core = self._lanes.core
        return self._lanes

    def _drop_abandoned(self, opening: "asyncio.Task[Session]") -> None:
        """End a session whose opener was cancelled, and does not know it."""
        if not opening.cancelled() and not opening.exception():
            dropping = asyncio.ensure_future(self._end(opening.result(), clean=False))
            self._opening.add(dropping)
            dropping.add_done_callback(self._opening.discard)

    async def end(self, session: Session, *, clean: bool = True) -> None:
        await to_its_end(self._end(session, clean))

    async def _end(self, session: Session, clean: bool) -> None:
        if self._lanes:
            await self._lanes.end(session, clean=clean)
            self._notify()  # channels are to be dropped

    async def close(self, *, clean: bool = True) -> None:
        await to_its_end(self._close(clean))

    async def _close(self, clean: bool) -> None:
        patience_s = self._lanes.patience_s if self._lanes else None
        late: set[asyncio.Task[Any]] = set()
        while self._opening - late:
            late = (await asyncio.wait(set(self._opening), timeout=patience_s))[1]
        lanes, self._lanes = self._lanes, None
        if lanes:
            await lanes.close(clean=clean)
        if lanes is None or self._core is lanes.core:
            self._core = None
        self._notify()

    def pause(self, session: Session) -> None:
        if self._core:
            self._core.pause(session)
            self._notify()

    def resume(self, session: Session) -> None:
        if self._core:
            self._core.resume(session)
            self._notify()

    async def send_acks(self, session: Session) -> None:
        refusal: TryAgain | None = await to_its_end(self._lanes.flush(session)) if self._lanes else None
        if refusal:
            raise refusal

    @property
    def ack_calls(self) -> int:
        return self._core.ack_calls if self._core else 0

    def wake(self) -> None:
        self._is_awake = True
        if loop := self._loop:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._notify)

    async def poll(self, timeout_s: float = 1.0) -> list[Event]:
        if not is_number(timeout_s):
            raise InvalidInput(f"timeout_s must be seconds; it is {reprlib.repr(timeout_s)}")
        deadline = time.monotonic() + timeout_s
        async with self._polling:
            self._loop = asyncio.get_running_loop()
            if self._lanes and not self._lanes.confirm_now():
                await self._lanes.confirm()
            return await self._poll(deadline)

    async def _poll(self, deadline: float) -> list[Event]:
        while True:
            lanes = self._lanes
            if lanes:
                self._has_news = False
                await lanes.advance()
            now = time.monotonic()
            if self._is_awake or (lanes and lanes.core.has_events()) or now >= deadline:
                self._is_awake = False
                return lanes.take() if lanes else []
            await self._wait((min(deadline, lanes.due()) if lanes else deadline) - now)

    def requeue(self, count: int) -> None:
        if self._core:
            self._core.requeue(count)
        elif count:
            raise InvalidInput(f"{count} events cannot be taken back: 0 were returned")

    def _notify(self) -> None:
        """Let `poll` look at what has come."""
        self._has_news = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _seen(self) -> None:
        self._has_news = False

    async def _wait(self, timeout_s: float) -> None:
        """Wait for news, for so long at most."""
        if self._has_news or timeout_s <= 0:
            return
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(min(timeout_s, LONGEST_WAIT_S), _end_wait, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None


def _end_wait(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
