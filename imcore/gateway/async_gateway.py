"""A gateway under asyncio: the live sessions of many users in one process, over one subscription connection.

`imcore.gateway.core` decides, as for `imcore.gateway.gateway`. Operations of the core run one at a time, each in a task
of its own: a caller that is cancelled never stops one half-way. Calls that need no server are done at once, or as soon
as the operation in progress ends.
"""

import asyncio
import logging
import reprlib
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Self, TypeVar, Unpack

from imcore.errors import InvalidInput, RedisUnavailable, TryAgain
from imcore.gateway.confirmations import Confirmations
from imcore.gateway.core import Core
from imcore.gateway.fanout import Event, Session
from imcore.gateway.gateway import LONGEST_WAIT_S, DatabaseRest, Gateway
from imcore.gateway.options import GatewayOptions, SessionOptions
from imcore.gateway.request import SessionRequest, StartMode
from imcore.model.limits import is_number
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

_OPENINGS_AT_ONCE = 200
"""More share no round trip that matters, and all other calls would wait behind theirs."""


@documented_as(Gateway)
class AsyncGateway(Confirmations):
    """Sessions that share a connection. For the tasks of one event loop; one task at a time polls."""

    def __init__(self, performer: AsyncPerformer, settings: Settings, **options: Unpack[SessionOptions]) -> None:
        super().__init__(GatewayOptions(**options))
        self.performer = performer
        self._settings = settings
        self._subscription: AsyncSubscription | None = None
        self._rest = DatabaseRest()
        self._turn = asyncio.Lock()
        """Held by the operation of the core in progress."""
        self._polling = asyncio.Lock()
        self._opening: set[asyncio.Task[Any]] = set()
        self._few = asyncio.Semaphore(_OPENINGS_AT_ONCE)
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
        space = await self.performer.client.space()
        core = self._core = self._core or Core(space, self._settings, self._options, time.monotonic)
        async with self._few:
            session = await self._perform_beside(core.open(request))
        self.performer.open_early()
        self._notify()
        return session

    def _drop_abandoned(self, opening: "asyncio.Task[Session]") -> None:
        """End a session whose opener was cancelled, and does not know it."""
        if not opening.cancelled() and not opening.exception():
            dropping = asyncio.ensure_future(self._end(opening.result(), clean=False))
            self._opening.add(dropping)
            dropping.add_done_callback(self._opening.discard)

    async def end(self, session: Session, *, clean: bool = True) -> None:
        await _to_its_end(self._end(session, clean))

    async def _end(self, session: Session, clean: bool) -> None:
        await self._run(lambda core: core.end([session]) if clean else core.drop([session]))
        self._notify()  # channels are to be dropped

    async def close(self, *, clean: bool = True) -> None:
        await _to_its_end(self._close(clean))

    async def _close(self, clean: bool) -> None:
        while self._opening:
            await asyncio.wait(set(self._opening))
        async with self._turn:
            core, self._core = self._core, None  # so that no session is ended once more
            try:
                if clean and core:
                    self._pass_on(core)
                    refusal = await self._perform(core.close())
                    if refusal:
                        log.warning("%s; what was not acked comes again", refusal)
            except TryAgain as error:
                log.warning("%s; what was not acked comes again", error)
            finally:
                if core:
                    await self._perform(core.abandon())
                self._unsubscribe()
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
        refusal: TryAgain | None = await _to_its_end(self._run(lambda core: core.flush([session])))
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
            if self._core:
                async with self._turn:
                    self._core.confirm()
            return await self._poll(deadline)

    async def _poll(self, deadline: float) -> list[Event]:
        while True:
            core = self._core
            if core:
                await self._advance(core)
            now = time.monotonic()
            if self._is_awake or (core and core.has_events()) or now >= deadline:
                self._is_awake = False
                return core.take() if core else []
            await self._wait((min(deadline, core.due()) if core else deadline) - now)

    def requeue(self, count: int) -> None:
        if self._core:
            self._core.requeue(count)
        elif count:
            raise InvalidInput(f"{count} events cannot be taken back: 0 were returned")

    # The driver of the core.

    async def _advance(self, core: Core) -> None:
        """Pass on what has come, and do what is due."""
        if not self._turn.locked():
            self._handle_news(core)
            if core.due() > time.monotonic():
                return
        await self._turn.acquire()
        effects = core.step()
        try:
            self._pass_on(core)
            effect = self._begin(effects) if core is self._core else None  # else it was closed meanwhile
        except BaseException:
            self._turn.release()
            raise
        if effect:
            await _to_its_end(self._finish(effects, effect))
        else:
            self._turn.release()

    def _begin(self, effects: Effects[None]) -> Effect[Any] | None:
        """Perform effects up to one that has to wait; return that one, None at the end. It spares most tasks."""
        try:
            effect = next(effects)
            while answer := self.performer.perform_now(effect):
                effect = effects.send(answer)
        except StopIteration:
            return None
        return effect

    async def _finish(self, effects: Effects[None], effect: Effect[Any]) -> None:
        """Perform effects from one on, and end the turn."""
        try:
            await perform_async(effects, self._perform_one, begun=effect)
        finally:
            self._turn.release()

    async def _run(self, operation: Callable[[Core], Effects[Any] | None]) -> Any:
        """Run an operation of the core when none is in progress; return its answer."""
        async with self._turn:
            if self._core:  # else the gateway was closed meanwhile
                self._pass_on(self._core)
                if effects := operation(self._core):
                    return await self._perform(effects)
        return None

    def _pass_on(self, core: Core) -> None:
        """Pass on all that has come: else an ack could pass over an earlier message."""
        if self._subscription:
            self._subscription.read()
        self._handle_news(core)

    def _handle_news(self, core: Core) -> None:
        self._has_news = False
        subscription = self._subscription
        if subscription is None:
            return
        core.handle(subscription.take())
        if error := subscription.error:
            self._unsubscribe()
            core.subscription_lost(error)
            if not isinstance(error, RedisUnavailable):
                raise error

    async def _perform(self, effects: Effects[T]) -> T:
        return await perform_async(effects, self._perform_one)

    async def _perform_beside(self, effects: Effects[T]) -> T:
        """Perform an operation beside others: it has its turn only while it is in the core, not while it waits.

        So many sessions open at once, and their calls travel together.
        """
        resume: Callable[[Any], Effect[Any]] = effects.send
        answer: Any = None
        while True:
            async with self._turn:
                try:
                    effect = resume(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
            try:
                resume, answer = effects.send, await self._perform_one(effect)
            except BaseException as error:
                resume, answer = effects.throw, error

    async def _perform_one(self, effect: Effect[Any]) -> Any:
        match effect:
            case OpenSubscription():
                self._unsubscribe()
                subscription = AsyncSubscription(self.performer.client, self._notify)
                await subscription.open()
                self._subscription = subscription
            case ChangeChannels(drop, add) if self._subscription:
                await self._subscription.change(drop, add)
            case PingSubscription() if self._subscription:
                self._subscription.ping()
            case SqlQuery():
                with self._rest.attempt():
                    return await self.performer.perform_one(effect)
            case _:
                return await self.performer.perform_one(effect)
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
