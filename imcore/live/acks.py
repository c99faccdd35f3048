"""What sessions have received and not acked yet. No I/O."""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from imcore.live.feed import Place
from imcore.live.rooms import Arrived, Audience, Session
from imcore.streams.calls import Target

UIDS_PER_CALL = 1000
"""So many acks take the server some two milliseconds."""


@dataclass(eq=False, slots=True)
class Waiting:
    """An ack that an audience owes, of so many messages of a group. `due` is of the monotonic clock, in seconds."""

    gid: str
    audience: Audience
    place: Place
    due: float
    messages: int = 0


class AckBook:
    """Acks are due after `every` messages of a group or after `interval_s`, whichever is first."""

    def __init__(self, every: int, interval_s: float) -> None:
        self._every = every
        self._interval_s = interval_s
        self._waiting: dict[tuple[str, Audience], Waiting] = {}
        self._full: list[Waiting] = []

    def received(self, arrived: Arrived, now: float) -> None:
        """Note that an audience has received a message."""
        audience, message, msgid = arrived
        waiting = self._wait(message.gid, audience, Place(msgid, message.seq), now)
        waiting.messages += 1
        if waiting.messages >= self._every:
            self._full.append(self._waiting.pop((message.gid, audience)))

    def resume(self, gid: str, session: Session, place: Place, now: float) -> None:
        """Note what a former session of this client has received, and perhaps not acked."""
        self._wait(gid, Audience([session]), place, now)

    def next_due(self) -> float:
        """Return when the next ack is due; `inf` if none waits."""
        if self._full:
            return 0.0
        return next((waiting.due for waiting in self._waiting.values()), math.inf)

    def take_due(self, now: float) -> list[Waiting]:
        """Take out what is due."""
        taken, self._full = self._full, []
        for key, waiting in list(self._waiting.items()):
            if waiting.due > now:
                break
            taken.append(self._waiting.pop(key))
        return taken

    def take_of(self, sessions: Collection[Session]) -> list[Waiting]:
        """Take out what these sessions owe, and nobody else's part of it."""
        taken = []
        for waiting in [*self._full, *self._waiting.values()]:
            mine = [session for session in waiting.audience.sessions if session in sessions]
            if mine:
                taken.append(Waiting(waiting.gid, Audience(mine), waiting.place, waiting.due))
                waiting.audience = waiting.audience.without(mine)
        return taken

    def forget(self, gid: str, session: Session) -> None:
        """Drop what a session owes of a group: it is to receive that again."""
        for waiting in [*self._full, *self._waiting.values()]:
            if waiting.gid == gid and session in waiting.audience.sessions:
                waiting.audience = waiting.audience.without([session])

    def put_back(self, taken: Iterable[Waiting]) -> None:
        """Put back what could not be sent: it is due."""
        self._full += taken

    def _wait(self, gid: str, audience: Audience, place: Place, now: float) -> Waiting:
        waiting = self._waiting.get((gid, audience))
        if waiting is None:
            waiting = self._waiting[gid, audience] = Waiting(gid, audience, place, now + self._interval_s)
        waiting.place = place
        return waiting


def split(acks: Iterable[Target]) -> Iterator[list[Target]]:
    """Yield the acks of each call: the server does nothing else while it carries one out."""
    part: list[Target] = []
    room = UIDS_PER_CALL
    for target in acks:
        for start in range(0, len(target.uids), UIDS_PER_CALL):
            some = target._replace(uids=target.uids[start : start + UIDS_PER_CALL])
            if len(some.uids) > room:
                yield part
                part, room = [], UIDS_PER_CALL
            part.append(some)
            room -= len(some.uids)
    if part:
        yield part


def targets(waiting: Iterable[Waiting]) -> dict[str, list[Target]]:
    """Return the acks by group, so that those of one group travel in one call."""
    found: dict[str, list[Target]] = {}
    for each in waiting:
        if each.audience.sessions:
            found.setdefault(each.gid, []).append(Target(each.place.msgid, each.audience.uids, each.place.seq))
    return found
