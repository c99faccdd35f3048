"""The lanes of a cluster: one for each partition. A silent node holds up those of its own partitions, and no others."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from imcore.errors import ImError, RedisUnavailable, TryAgain
from imcore.gateway.fanout import Event, Session
from imcore.gateway.request import SessionRequest
from imcore.gateway.spanning import SpanningCore
from imcore.streams.keys import Keyspace
from imcore.util.backoff import pauses

if TYPE_CHECKING:
    from imcore.gateway.lane import LiveLane

log = logging.getLogger(__name__)

PATIENCE_S = 0.2
"""The time for which the others wait for a lane that does not answer."""
_CLOSING_S = 0.5


class Lanes:
    """Lanes by partition. An operation acts on all of them, and does not wait for those that are held up."""

    patience_s: float | None = _CLOSING_S

    def __init__(self, space: Keyspace, lanes: "Sequence[LiveLane]") -> None:
        self._lanes = lanes
        self.core = SpanningCore(space, [lane.core for lane in lanes])
        self._tasks: set[asyncio.Task[Any]] = set()
        """Those that nobody waits for."""
        self._late: dict[Session, asyncio.Task[None]] = {}
        """By part: what opens it once its node answers."""

    async def open(self, request: SessionRequest) -> Session:
        """Begin a session in all lanes that answer at once; the others follow. Raise what the user's own lane raises.

        What no wait mends is raised from any lane.
        """
        whole = self.core.begin(request)
        home = self.core.home(whole)
        openings = {
            part: self._begun(lane.open(request, part)) for lane, part in zip(self._lanes, whole.parts, strict=True)
        }
        try:
            await openings[home]  # first: where all are slow, none is taken to be silent
            await asyncio.wait(openings.values(), timeout=PATIENCE_S)
            late = [part for part, opening in openings.items() if not _is_open(opening)]
        except BaseException:
            for opening in openings.values():
                opening.cancel()
            self._end_beside(whole, clean=False)
            raise
        for part in late:
            part.is_late = True
        whole.silent = tuple(part for part, each in enumerate(whole.parts) if each in late)
        self.core.there(whole)
        for partition in whole.silent:
            part = whole.parts[partition]
            following = self._begun(self._follow(partition, request, whole, openings[part]))
            self._late[part] = following
        return whole

    async def _follow(
        self, partition: int, request: SessionRequest, whole: Session, opening: "asyncio.Task[Session]"
    ) -> None:
        """Open a part of a session once its node answers."""
        part, lane = whole.parts[partition], self._lanes[partition]
        for pause_s in pauses():
            try:
                await opening
                break
            except ImError as error:
                log.debug("partition %d is still silent to %r: %s", partition, whole.uid, error)
                await asyncio.sleep(pause_s)
                opening = self._begun(lane.open(request, part))
        self._late.pop(part, None)
        whole.silent = tuple(each for each in whole.silent if each != partition)
        if whole.is_paused:
            lane.core.pause(part)

    async def end(self, session: Session, *, clean: bool) -> None:
        if self.core.begin_end(session):
            await asyncio.wait(self._end_parts(session, clean), timeout=PATIENCE_S)

    def _end_beside(self, session: Session, *, clean: bool) -> None:
        self.core.ending[session] = None
        self._end_parts(session, clean)

    def _end_parts(self, session: Session, clean: bool) -> "list[asyncio.Task[Any]]":
        for part in session.parts:
            if late := self._late.pop(part, None):
                late.cancel()
        ends = [self._begun(lane.end(part, clean=clean)) for lane, part in zip(self._lanes, session.parts, strict=True)]
        ended = self._begun(_all(ends))
        ended.add_done_callback(lambda _: self.core.ending.pop(session, None))
        return ends

    async def flush(self, session: Session) -> TryAgain | None:
        """Send what the client of a session has confirmed. Return why some of it has to wait."""
        flushes = {
            self._begun(lane.flush(part)): lane
            for lane, part in zip(self._lanes, session.parts, strict=False)
            if lane.core.holds(part)
        }
        if not flushes:
            return None
        done, late = await asyncio.wait(flushes, timeout=PATIENCE_S)
        refusals = [refusal for each in done if (refusal := each.result())]
        refusals += [RedisUnavailable(f"{_named([flushes[each]])}: acks have to wait") for each in late]
        return refusals[0] if refusals else None

    async def close(self, *, clean: bool) -> None:
        for task in self._tasks:
            task.cancel()
        closings = {asyncio.ensure_future(lane.close(clean=clean)): lane for lane in self._lanes}
        done, late = await asyncio.wait(closings, timeout=_CLOSING_S)
        for closing in late:
            closing.cancel()
        for lane in self._lanes:
            lane.leave()
        if late:
            log.warning("%s; what was not acked comes again", _named([closings[each] for each in late]))
            await asyncio.wait(late, timeout=_CLOSING_S)
        for closing in done:
            closing.result()

    # For `poll`.

    def confirm_now(self) -> bool:
        self.core.confirm()  # at any time: else one lane that is held up would hold up all
        return True

    async def confirm(self) -> None:
        self.confirm_now()

    async def advance(self) -> None:
        if any(lane.is_advancing for lane in self._lanes):
            await asyncio.sleep(0)  # else who polls without waiting would keep the loop from them
        for lane in self._lanes:
            lane.advance_beside()

    def due(self) -> float:
        return min(lane.due() for lane in self._lanes)

    def take(self) -> list[Event]:
        events = self.core.take()
        while self.core.erased:
            self._end_beside(self.core.erased.pop(), clean=False)
        return events

    def _begun(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)
        return task


async def _all(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    await asyncio.wait(tasks)


def _is_open(opening: "asyncio.Task[Session]") -> bool:
    """Return whether a part is open; False if it may be later. Raise the error that waiting does not mend."""
    if not opening.done():
        return False
    error = opening.exception()
    if error and not isinstance(error, TryAgain):
        raise error
    return error is None


def _retrieve(task: "asyncio.Task[Any]") -> None:
    """Look at the error of a task for which perhaps nobody waits: else asyncio reports it."""
    if not task.cancelled():
        task.exception()


def _named(lanes: "Sequence[LiveLane]") -> str:
    numbers = ", ".join(str(partition) for lane in lanes for partition in lane.partitions)
    return f"no answer from the node of partition {numbers}"
