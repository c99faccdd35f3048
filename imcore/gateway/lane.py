"""A lane: one core under asyncio, with a subscription and a turn of its own.

Operations of a core run one at a time, each in a task of its own: a caller that is cancelled never stops one half-way.
Calls that need no server are done at once, or as soon as the operation in progress ends. A single server has one lane.
A cluster has one for each partition: where a node is silent, only the lanes of its partitions wait for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from imcore.errors import RedisUnavailable, TryAgain
from imcore.gateway.core import Core
from imcore.gateway.fanout import Event, Session
from imcore.gateway.options import GatewayOptions
from imcore.gateway.request import SessionRequest
from imcore.gateway.rest import DatabaseRest
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
from imcore.streams.keys import Keyspace
from imcore.util.steps import perform_async
from imcore.util.turn import Turn

log = logging.getLogger(__name__)

T = TypeVar("T")

_OPENINGS_AT_ONCE = 200
"""More share no round trip that matters, and all other calls would wait behind theirs."""


class LiveLane:
    """Drives one core.

    `notify` is called when there is something to look at, `seen` once it was looked at. All lanes share `rest`.
    """

    patience_s: float | None = None
    """The time in seconds that a close waits for sessions that are being opened. None: it waits to their end."""

    def __init__(
        self,
        performer: AsyncPerformer,
        space: Keyspace,
        settings: Settings,
        options: GatewayOptions,
        notify: Callable[[], None],
        seen: Callable[[], None],
        rest: DatabaseRest,
    ) -> None:
        self._performer = performer
        self._space = space
        self._notify, self._seen = notify, seen
        self._rest = rest
        self.core = Core(space, settings, options, time.monotonic)
        self._subscription: AsyncSubscription | None = None
        self._turn = Turn()
        """Taken by the operation of the core in progress."""
        self._few = asyncio.Semaphore(_OPENINGS_AT_ONCE)
        self._advancing: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self.is_closed = False

    @property
    def partitions(self) -> tuple[int, ...]:
        return tuple(self._space.served)

    @property
    def is_advancing(self) -> bool:
        return self._advancing is not None

    async def open(self, request: SessionRequest, part: Session | None = None) -> Session:
        async with self._few:
            return await self._perform_beside(self.core.open(request, part))

    async def end(self, session: Session, *, clean: bool) -> None:
        await self.run(lambda core: core.end([session]) if clean else core.drop([session]))

    def confirm_now(self) -> bool:
        """Let the core confirm, unless an operation is in progress; return whether it did."""
        if self._turn.is_taken:
            return False
        self.core.confirm()
        return True

    async def confirm(self) -> None:
        async with self._turn:
            self.core.confirm()

    async def flush(self, session: Session) -> TryAgain | None:
        refusal: TryAgain | None = await self.run(lambda core: core.flush([session]))
        return refusal

    def take(self) -> list[Event]:
        return self.core.take()

    async def close(self, *, clean: bool) -> None:
        """End all sessions; log why some of them have to wait."""
        async with self._turn:
            self.is_closed = True  # so that no session is ended once more
            try:
                if clean:
                    self.pass_on()
                    refusal = await self._perform(self.core.close())
                    if refusal:
                        log.warning("%s; what was not acked comes again", refusal)
            except TryAgain as error:
                log.warning("%s; what was not acked comes again", error)
            finally:
                await self._perform(self.core.abandon())
                self.leave()

    def leave(self) -> None:
        """Hear nothing more, and let no operation go on."""
        self.is_closed = True
        self._unsubscribe()
        if self._advancing:
            self._advancing.cancel()

    async def run(self, operation: Callable[[Core], Effects[Any] | None]) -> Any:
        """Run an operation of the core when none is in progress; return its answer."""
        async with self._turn:
            if not self.is_closed:
                self.pass_on()
                if effects := operation(self.core):
                    return await self._perform(effects)
        return None

    def due(self) -> float:
        """Return when to advance: not while an operation is in progress, at whose end `notify` is called."""
        return float("inf") if self._advancing else self.core.due()

    async def advance(self) -> None:
        """Pass on what has come, and do what is due."""
        if not self._turn.is_taken:
            self._handle_news()
            if self.core.due() > time.monotonic():
                return
        if not self._turn.take():
            await self._turn.acquire()
        effects = self.core.step()
        effect = self._begin(effects)
        if effect:
            await to_its_end(self._finish(effects, effect))
        else:
            self._turn.release()

    def advance_beside(self) -> None:
        """Do as `advance` does, without waiting for the end. Raise what the last time has raised meanwhile."""
        if error := self._error:
            self._error = None
            raise error
        if self._advancing:
            return
        if not self._turn.take():
            self._advance_in_task(self.advance())
            return
        try:
            self._handle_news()
            is_due = self.core.due() <= time.monotonic()
        except BaseException:
            self._turn.release()
            raise
        effects = self.core.step() if is_due else None
        if effects and (effect := self._begin(effects)):
            self._advance_in_task(self._finish(effects, effect))
        else:
            self._turn.release()

    def _advance_in_task(self, advancing: Coroutine[Any, Any, None]) -> None:
        self._advancing = asyncio.ensure_future(advancing)
        self._advancing.add_done_callback(self._advanced)

    def _advanced(self, task: "asyncio.Task[None]") -> None:
        self._advancing = None
        if not task.cancelled():
            self._error = task.exception()
        self._notify()

    def pass_on(self) -> None:
        """Pass on all that has come: else an ack could pass over an earlier message."""
        if self._subscription:
            self._subscription.read()
        self._handle_news()

    def _handle_news(self) -> None:
        self._seen()
        subscription = self._subscription
        if subscription is None:
            return
        self.core.handle(subscription.take())
        if error := subscription.error:
            self._unsubscribe()
            self.core.subscription_lost(error)
            if not isinstance(error, RedisUnavailable):
                raise error

    def _begin(self, effects: Effects[None]) -> Effect[Any] | None:
        """Perform effects up to one that has to wait; return that one, None at the end. It spares most tasks.

        The turn is taken; after an error it is not any more.
        """
        try:
            self.pass_on()
            if self.is_closed:
                return None
            effect = next(effects)
            while answer := self._performer.perform_now(effect):
                effect = effects.send(answer)
        except StopIteration:
            return None
        except BaseException:
            self._turn.release()
            raise
        return effect

    async def _finish(self, effects: Effects[None], effect: Effect[Any]) -> None:
        """Perform effects from one on, and end the turn."""
        try:
            await perform_async(effects, self._perform_one, begun=effect)
        finally:
            self._turn.release()

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
            except asyncio.CancelledError:  # an opening, which has changed nothing yet
                effects.close()
                raise
            except BaseException as error:
                resume, answer = effects.throw, error

    async def _perform_one(self, effect: Effect[Any]) -> Any:
        match effect:
            case OpenSubscription():
                self._unsubscribe()
                subscription = AsyncSubscription(self._performer.client, self._space, self._notify)
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

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription:
            subscription.close()


async def to_its_end(operation: Coroutine[Any, Any, T]) -> T:
    """Run an operation to its end, also if the caller is cancelled."""
    task = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(log_error)
        raise


def log_error(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()):
        log.warning("%s; the caller did not wait for it", error)
