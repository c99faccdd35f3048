"""A gateway under asyncio: the live sessions of many users in one process, over one subscription connection.

`imcore.gateway.core` decides, as for `imcore.gateway.gateway`. Operations of the core run one at a time, each in a task
of its own: a caller that is cancelled never stops one half-way. Calls that need no server are done at once, or as soon
as the operation in progress ends.
"""

import asyncio
import logging
import reprlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Self, TypeVar, Unpack

from imcore.errors import InvalidInput, RedisUnavailable, TryAgain
from imcore.gateway.core import Core, GatewayOptions, SessionOptions
from imcore.gateway.fanout import Event, Session
from imcore.gateway.gateway import (
    LONGEST_WAIT_S,
    DatabaseRest,
    Gateway,
    Listener,
    check_client_acks,
    items_of,
    resume_points_of,
)
from imcore.model.limits import (
    check_handed_over,
    check_msgid,
    check_name,
    check_receipts,
    check_resume_points,
    is_number,
)
from imcore.model.values import Message, Receipt
from imcore.operations import groups
from imcore.operations.async_performer import AsyncPerformer
from imcore.operations.effects import (
    ChangeChannels,
    Effect,
    Effects,
    OpenSubscription,
    PingSubscription,
    SqlQuery,
)
from imcore.settings import Settings
from imcore.streams.aio.pubsub import AsyncSubscription
from imcore.util.documented import documented_as
from imcore.util.steps import perform_async

log = logging.getLogger(__name__)

T = TypeVar("T")


@documented_as(Gateway)
class AsyncGateway:
    """Sessions that share a connection. For the tasks of one event loop; one task at a time polls."""

    def __init__(self, performer: AsyncPerformer, settings: Settings, **options: Unpack[SessionOptions]) -> None:
        self._performer = performer
        self._settings = settings
        self._options = GatewayOptions(**options)
        self._core: Core | None = None
        self._subscription: AsyncSubscription | None = None
        self._rest = DatabaseRest()
        self._turn = asyncio.Lock()
        """Held by the operation of the core in progress."""
        self._polling = asyncio.Lock()
        self._opening: set[asyncio.Task[Session]] = set()
        self._postponed: list[Callable[[Core], None]] = []
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(clean=kind is None)

    async def open(self, uid: str, *, after: Mapping[str, str] | None = None, since_join: bool = False) -> Session:
        check_name(uid, "uid")
        known = check_resume_points(after)
        opening = asyncio.ensure_future(self._open(uid, known, since_join))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._drop_abandoned)
            raise

    async def _open(self, uid: str, known: Mapping[str, int], since_join: bool) -> Session:
        """Open a session. Several open at once, beside an operation of the core: their calls travel together."""
        space = await self._performer.client.space()
        core = self._core = self._core or Core(space, self._settings, self._options, time.monotonic)
        session = await perform_async(core.open(uid, known, since_join=since_join), self._perform_one)
        self._performer.open_early()
        self._notify()
        return session

    def _drop_abandoned(self, opening: "asyncio.Task[Session]") -> None:
        """End a session whose opener was cancelled, and does not know it."""
        if not opening.cancelled() and not opening.exception():
            self._call(lambda core: core.drop([opening.result()]))

    async def end(self, session: Session, *, clean: bool = True) -> None:
        if self._core and clean:
            await self._operate(lambda core: core.end([session]))
        else:
            self._call(lambda core: core.drop([session]))

    async def close(self, *, clean: bool = True) -> None:
        await _to_its_end(self._close(clean))

    async def _close(self, clean: bool) -> None:
        if self._opening:
            await asyncio.wait(set(self._opening))
        async with self._turn:
            try:
                if clean and self._core:
                    self._pass_on(self._core)
                    await self._perform(self._core.end(list(self._core.sessions)))
            except TryAgain as error:
                log.warning("%s; what was not acked comes again", error)
            finally:
                core, self._core = self._core, None  # so that no session is ended once more
                if core:
                    await self._perform(core.abandon())
                self._unsubscribe()
                self._notify()

    def received(self, session: Session, gid: str, msgid: str) -> None:
        check_client_acks(self._options)
        check_handed_over(gid, "gid")
        packed = check_msgid(msgid)
        self._call(lambda core: core.received(session, gid, packed))

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        check_client_acks(self._options)
        checked = check_receipts(receipts)
        self._call(lambda core: core.confirm_receipts(session, checked))

    async def poll(self, timeout_s: float = 1.0) -> list[Event]:
        if not is_number(timeout_s):
            raise InvalidInput(f"timeout_s must be seconds; it is {reprlib.repr(timeout_s)}")
        deadline = time.monotonic() + timeout_s
        async with self._polling:
            if core := self._core:
                async with self._turn:
                    core.confirm()
            return await self._poll(deadline)

    async def _poll(self, deadline: float) -> list[Event]:
        while True:
            core = self._core
            if core:
                await self._advance(core)
            now = time.monotonic()
            if (core and core.deliveries.ready) or now >= deadline:
                return core.deliveries.take() if core else []
            await self._wait((min(deadline, core.due()) if core else deadline) - now)

    def requeue(self, count: int) -> None:
        returned = self._core.deliveries.in_flight if self._core else 0
        if not 0 <= count <= returned:
            raise InvalidInput(f"{count} events cannot be taken back: {returned} were returned")
        if self._core and count:
            self._core.deliveries.requeue(count)

    # The driver of the core.

    def _call(self, change: Callable[[Core], None]) -> None:
        """Change the core, at once or after the operation in progress."""
        if self._core is None:
            return
        if self._postponed or self._turn.locked():
            self._postponed.append(change)
        else:
            change(self._core)
        self._notify()

    async def _advance(self, core: Core) -> None:
        """Pass on what has come, and do what is due."""
        if not self._turn.locked():
            self._pass_on(core)
            if core.due() > time.monotonic():
                return
        await self._operate(lambda core: core.step())

    async def _operate(self, operation: Callable[[Core], Effects[T]]) -> T:
        """Run an operation of the core when none is in progress. It goes on if the caller is cancelled."""

        async def run() -> Any:
            async with self._turn:
                if self._core is None:  # closed meanwhile
                    return None
                self._pass_on(self._core)
                return await self._perform(operation(self._core))

        return await _to_its_end(run())

    def _pass_on(self, core: Core) -> None:
        """Pass on what has come: else an ack could pass over an earlier message."""
        self._has_news = False
        postponed, self._postponed = self._postponed, []
        for change in postponed:
            change(core)
        subscription = self._subscription
        if subscription is None:
            return
        core.handle(subscription.take())
        if error := subscription.error:
            self._unsubscribe()
            if not isinstance(error, RedisUnavailable):
                raise error
            core.subscription_lost(error)

    async def _perform(self, effects: Effects[T]) -> T:
        return await perform_async(effects, self._perform_one)

    async def _perform_one(self, effect: Effect[Any]) -> Any:
        match effect:
            case OpenSubscription():
                self._unsubscribe()
                subscription = AsyncSubscription(self._performer.client, self._notify)
                await subscription.open()
                self._subscription = subscription
            case ChangeChannels(drop, add) if self._subscription:
                await self._subscription.change(drop, add)
            case PingSubscription() if self._subscription:
                self._subscription.ping()
            case SqlQuery():
                with self._rest.attempt():
                    return await self._performer.perform_one(effect)
            case _:
                return await self._performer.perform_one(effect)
        return None

    def _notify(self) -> None:
        """Let `poll` look at what has come."""
        self._has_news = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

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

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription:
            subscription.close()


def _end_wait(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _to_its_end(operation: Coroutine[Any, Any, T]) -> T:
    """Run an operation to its end, also if the caller is cancelled."""
    task = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_error)
        raise


def _log_error(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()):
        log.warning("%s; the caller did not wait for it", error)


@documented_as(Listener)
class AsyncListener:
    """One live session, as an async iterator of messages, and receipts of the user's own. Use it in an `async with`.

    Leaving it normally acks what was handed over; after an error the messages come again.
    """

    def __init__(
        self, gateway: AsyncGateway, uid: str, *, after: Mapping[str, str] | None = None, since_join: bool = False
    ) -> None:
        self._gateway = gateway
        self._uid = uid
        self._after, self._since_join = after, since_join
        self._items: deque[tuple[Message | Receipt, bool]] = deque()
        """What was polled and not yielded; whether it is the last item of an event."""
        self._not_yielded = 0
        self._polled = 0

    async def __aenter__(self) -> Self:
        await self._gateway._performer.perform(groups.known_user(self._uid))
        self.session = await self._gateway.open(self._uid, after=self._after, since_join=self._since_join)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._requeue_not_yielded()
        await self._gateway.close(clean=kind is None)

    def __aiter__(self) -> Self:
        self._items.clear()
        return self

    async def __anext__(self) -> Message | Receipt:
        while not self._items:
            events = await self._poll(1.0)
            self._not_yielded = len(events)
            for event in events:
                *items, last = items_of(event)
                self._items += [*((item, False) for item in items), (last, True)]
        item, is_last = self._items.popleft()
        self._not_yielded -= is_last
        return item

    async def poll(self, timeout_s: float) -> list[Message | Receipt]:
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
