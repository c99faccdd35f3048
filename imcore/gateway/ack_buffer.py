"""What sessions have received and not acked yet. No I/O."""

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import Recipients, Session
from imcore.streams.calls.message_calls import AckTarget

_NONE: dict[Recipients, "UnackedMessages"] = {}


@dataclass(eq=False, slots=True)
class UnackedMessages:
    """An ack that an audience owes, of so many messages of a group, but for those who have `gone`.

    `due` is of the monotonic clock, in seconds; so is `not_before`, which is set once it was put back.
    """

    gid: str
    audience: Recipients
    place: ResumePoint
    due: float
    messages: int = 0
    taken: bool = False
    not_before: float = 0.0
    gone: frozenset[Session] = frozenset()

    @property
    def uids(self) -> tuple[str, ...]:
        """Who acks."""
        return (self.audience.without(self.gone) if self.gone else self.audience).uids

    def of(self, sessions: Collection[Session]) -> frozenset[Session]:
        """Return those of the sessions that owe it."""
        return self.audience.members.intersection(sessions) - self.gone


class AckBuffer:
    """Acks are due after `every` messages of a group or after `interval_s`, whichever is first.

    What is due a quarter of that later goes with it: clients that receive one message say so one after the other.
    """

    def __init__(self, every: int, interval_s: float) -> None:
        self._every = every
        self._interval_s = interval_s
        self._slack_s = interval_s / 4
        self._waiting: dict[str, dict[Recipients, UnackedMessages]] = {}
        self._in_order: deque[UnackedMessages] = deque()
        self._full: list[UnackedMessages] = []
        self._put_back: dict[tuple[str, Recipients], UnackedMessages] = {}
        self._put_back_due = math.inf
        """No later than the first of these is due."""

    def received(self, gid: str, audience: Recipients, place: ResumePoint, now: float) -> None:
        """Note that an audience has received a message, and so all before it."""
        waiting = self._waiting.get(gid, _NONE).get(audience)
        if waiting is None:
            waiting = UnackedMessages(gid, audience, place, now + self._interval_s, taken=self._every == 1)
            if not waiting.taken:
                self._waiting.setdefault(gid, {})[audience] = waiting
                self._in_order.append(waiting)
        elif place.msgid > waiting.place.msgid:
            waiting.place = place
        waiting.messages += 1
        if waiting.messages >= self._every:
            self._full.append(waiting if waiting.taken else self._take(waiting))

    def next_due(self) -> float:
        """Return when the next ack is due; `inf` if none waits."""
        if self._full:
            return 0.0
        self._pass_over_taken()
        return min(self._put_back_due, self._in_order[0].due if self._in_order else math.inf)

    def take_due(self, now: float) -> list[UnackedMessages]:
        """Take out what is due."""
        taken, self._full = [*self._take_put_back(now), *self._full], []
        self._pass_over_taken()
        until = now + self._slack_s if self._in_order and self._in_order[0].due <= now else now
        while self._in_order and self._in_order[0].due <= until:
            taken.append(self._take(self._in_order[0]))
            self._pass_over_taken()
        return taken

    def take_of(self, sessions: Collection[Session]) -> list[UnackedMessages]:
        """Take out what these sessions owe, and nobody else's part of it."""
        removed = self._remove(sessions, {gid for session in sessions for gid in session.gids})
        return [
            UnackedMessages(waiting.gid, Recipients(mine), waiting.place, waiting.due, taken=True)
            for waiting, mine in removed
        ]

    def forget(self, sessions: Collection[Session], gid: str | None = None) -> None:
        """Drop what sessions owe, of one group or of all: they have not received that, or are to receive it again."""
        self._remove(sessions, {gid} if gid else {gid for session in sessions for gid in session.gids})

    def put_back(self, taken: Iterable[UnackedMessages], not_before: float = 0.0) -> None:
        """Put back what could not be sent, or was refused: it is due at once, or not before a time.

        Where an audience owes two acks of a group by now, the one of the later message stands for both.
        """
        for waiting in taken:
            key = waiting.gid, waiting.audience
            other = self._put_back.get(key, waiting)
            later = waiting if waiting.place.msgid > other.place.msgid else other
            later.not_before = not_before
            self._put_back[key] = later
            self._put_back_due = min(self._put_back_due, not_before)

    def _take_put_back(self, now: float) -> list[UnackedMessages]:
        if self._put_back_due > now:
            return []
        due = [key for key, waiting in self._put_back.items() if waiting.not_before <= now]
        taken = [self._put_back.pop(key) for key in due]
        self._put_back_due = min((waiting.not_before for waiting in self._put_back.values()), default=math.inf)
        return taken

    def _remove(
        self, sessions: Collection[Session], gids: Collection[str]
    ) -> list[tuple[UnackedMessages, frozenset[Session]]]:
        """Take sessions out of what they owe; return it, each time with those of them who did."""
        owed = [waiting for waiting in [*self._full, *self._put_back.values()] if waiting.gid in gids]
        owed += [waiting for gid in gids for waiting in self._waiting.get(gid, {}).values()]
        removed = [(waiting, mine) for waiting in owed if (mine := waiting.of(sessions))]
        for waiting, mine in removed:
            waiting.gone |= mine
            if not waiting.taken and len(waiting.gone) == len(waiting.audience.sessions):
                self._take(waiting)
        return removed

    def _take(self, waiting: UnackedMessages) -> UnackedMessages:
        waiting.taken = True
        of_group = self._waiting[waiting.gid]
        del of_group[waiting.audience]
        if not of_group:
            del self._waiting[waiting.gid]
        return waiting

    def _pass_over_taken(self) -> None:
        while self._in_order and self._in_order[0].taken:
            self._in_order.popleft()


def targets(waiting: Iterable[UnackedMessages]) -> dict[str, list[AckTarget]]:
    """Return the acks by group, so that those of one group travel in one call, and each message once for all."""
    found: dict[str, dict[int, list[UnackedMessages]]] = {}
    for each in waiting:
        found.setdefault(each.gid, {}).setdefault(each.place.msgid, []).append(each)
    return {
        gid: [target for same in of_group.values() if (target := _target(same)).uids] for gid, of_group in found.items()
    }


def _target(same: Sequence[UnackedMessages]) -> AckTarget:
    if len(same) == 1:
        return AckTarget(same[0].place.msgid, same[0].uids, same[0].place.seq)
    seqs = (each.place.seq for each in same if each.place.seq is not None)
    uids = tuple(dict.fromkeys(uid for each in same for uid in each.uids))
    return AckTarget(same[0].place.msgid, uids, next(seqs, None))
