"""Acks: buffers what sessions have received, and sends it in few calls without waiting for the answers. No I/O."""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from imcore.errors import ImError, TryAgain, UnknownGroup, raise_what_stops_all
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import Recipients, Session
from imcore.operations.effects import Answers, Effects, FinishCalls, StartCalls, call_many
from imcore.operations.queries import MessagesByMsgid
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.message_calls import AckResult, AckTarget, split_targets
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoffs, Clock, ThrottledLog
from imcore.util.batches import grouped

_NONE: dict[Recipients, "UnackedMessages"] = {}


@dataclass(eq=False, slots=True)
class UnackedMessages:
    """Messages of a group that recipients have received and not acked. Sessions in `ended` do not ack them any more.

    `due` and `not_before` are seconds of the monotonic clock; `not_before` is set when the ack was requeued.
    """

    gid: str
    recipients: Recipients
    newest: ResumePoint
    due: float
    count: int = 0
    is_taken: bool = False
    not_before: float = 0.0
    ended: frozenset[Session] = frozenset()

    @property
    def uids(self) -> tuple[str, ...]:
        return (self.recipients.without(self.ended) if self.ended else self.recipients).uids


class AckBuffer:
    """Acks are due after `every` messages of a group or after `interval_s`, whichever is first.

    Acks that are due a quarter of the interval later are taken with them, since clients that receive one message say
    so one after the other.
    """

    def __init__(self, every: int, interval_s: float) -> None:
        self._every = every
        self._interval_s = interval_s
        self._slack_s = interval_s / 4
        self._waiting: dict[str, dict[Recipients, UnackedMessages]] = {}
        self._in_order: deque[UnackedMessages] = deque()
        self._full: list[UnackedMessages] = []
        self._requeued: dict[tuple[str, Recipients], UnackedMessages] = {}
        self._requeued_due = math.inf
        """No later than the first requeued ack is due."""

    def received(self, gid: str, recipients: Recipients, message: ResumePoint, now: float) -> None:
        unacked = self._waiting.get(gid, _NONE).get(recipients)
        if unacked is None:
            unacked = UnackedMessages(gid, recipients, message, now + self._interval_s, is_taken=self._every == 1)
            if not unacked.is_taken:
                self._waiting.setdefault(gid, {})[recipients] = unacked
                self._in_order.append(unacked)
        elif message.msgid > unacked.newest.msgid:
            unacked.newest = message
        unacked.count += 1
        if unacked.count >= self._every:
            self._full.append(unacked if unacked.is_taken else self._take(unacked))

    def next_due(self) -> float:
        if self._full:
            return 0.0
        self._pop_taken()
        return min(self._requeued_due, self._in_order[0].due if self._in_order else math.inf)

    def take_due(self, now: float) -> list[UnackedMessages]:
        taken, self._full = [*self._take_requeued(now), *self._full], []
        self._pop_taken()
        until = now + self._slack_s if self._in_order and self._in_order[0].due <= now else now
        while self._in_order and self._in_order[0].due <= until:
            taken.append(self._take(self._in_order[0]))
            self._pop_taken()
        return taken

    def take_of(self, sessions: Collection[Session]) -> list[UnackedMessages]:
        """Take out the acks of these sessions; those of other sessions stay."""
        return [
            UnackedMessages(unacked.gid, Recipients(own), unacked.newest, unacked.due, is_taken=True)
            for unacked, own in self._remove(sessions)
        ]

    def forget(self, sessions: Collection[Session], gid: str | None = None) -> None:
        """Drop the acks of sessions, in one group or in all: they have not received the messages, or will again."""
        self._remove(sessions, gid)

    def requeue(self, acks: Iterable[UnackedMessages], not_before: float = 0.0) -> None:
        """Put back acks that failed: they are due at once, or at a time. The ack of the later message stays."""
        for unacked in acks:
            key = unacked.gid, unacked.recipients
            other = self._requeued.get(key, unacked)
            later = unacked if unacked.newest.msgid > other.newest.msgid else other
            later.not_before = not_before
            self._requeued[key] = later
            self._requeued_due = min(self._requeued_due, not_before)

    def _take_requeued(self, now: float) -> list[UnackedMessages]:
        if self._requeued_due > now:
            return []
        due = [key for key, unacked in self._requeued.items() if unacked.not_before <= now]
        taken = [self._requeued.pop(key) for key in due]
        self._requeued_due = min((unacked.not_before for unacked in self._requeued.values()), default=math.inf)
        return taken

    def _remove(
        self, sessions: Collection[Session], gid: str | None = None
    ) -> list[tuple[UnackedMessages, frozenset[Session]]]:
        """Take sessions out of the acks of one group or of all; return the acks, each with its sessions among these."""
        gids = {gid} if gid else {gid for session in sessions for gid in session.gids}
        parts = [
            (unacked, own)
            for unacked in self._in_groups(gids)
            if (own := unacked.recipients.session_set.intersection(sessions) - unacked.ended)
        ]
        for unacked, own in parts:
            unacked.ended |= own
            if not unacked.is_taken and len(unacked.ended) == len(unacked.recipients.sessions):
                self._take(unacked)
        return parts

    def _in_groups(self, gids: Collection[str]) -> Iterator[UnackedMessages]:
        yield from (unacked for unacked in [*self._full, *self._requeued.values()] if unacked.gid in gids)
        for gid in gids:
            yield from self._waiting.get(gid, {}).values()

    def _take(self, unacked: UnackedMessages) -> UnackedMessages:
        unacked.is_taken = True
        of_group = self._waiting[unacked.gid]
        del of_group[unacked.recipients]
        if not of_group:
            del self._waiting[unacked.gid]
        return unacked

    def _pop_taken(self) -> None:
        while self._in_order and self._in_order[0].is_taken:
            self._in_order.popleft()


def targets(acks: Iterable[UnackedMessages]) -> dict[str, list[AckTarget]]:
    """Return acks by group, so that those of a group travel in one call, and those of a message are one target."""
    by_message = grouped(((unacked.gid, unacked.newest.msgid), unacked) for unacked in acks)
    return grouped((gid, target) for (gid, _), same in by_message.items() if (target := _target(same)).uids)


def _target(same: Sequence[UnackedMessages]) -> AckTarget:
    newest = same[0].newest
    if len(same) == 1:
        return AckTarget(newest.msgid, same[0].uids, newest.seq)
    seqs = (each.newest.seq for each in same if each.newest.seq is not None)
    return AckTarget(newest.msgid, tuple(dict.fromkeys(uid for each in same for uid in each.uids)), next(seqs, None))


_Batch = list[tuple[str, list[AckTarget]]]
"""The gid and the targets of each call."""


@dataclass(eq=False)
class AckSender:
    """A task: sends the acks of a buffer; failed acks return to it. A group that Redis refuses waits alone."""

    _space: Keyspace
    buffer: AckBuffer
    _log: ThrottledLog
    _clock: Clock
    _backoffs: Backoffs[str] = field(default_factory=Backoffs)
    _sent: tuple[list[UnackedMessages], _Batch, Answers[list[AckResult]]] | None = None
    """Acks whose answers have not been read yet."""

    def due(self) -> float:
        """Return when to step: at once while there are answers to read, which takes next to no time."""
        return 0.0 if self._sent else self.buffer.next_due()

    def step(self) -> Effects[None]:
        """Send the acks that are due, or read the answers to those that were sent."""
        now = self._clock()
        if self.buffer.next_due() <= now:
            yield from self._send(self._not_waiting(self.buffer.take_due(now), now))
        else:
            yield from self._read_answers()

    def _not_waiting(self, due: Iterable[UnackedMessages], now: float) -> list[UnackedMessages]:
        ready = []
        for unacked in due:
            until = self._backoffs.until(unacked.gid)
            if until > now:
                self.buffer.requeue([unacked], until)
            else:
                ready.append(unacked)
        return ready

    def flush(self, sessions: Collection[Session] | None) -> Effects[None]:
        """Send all acks of these sessions or of all, and wait for the answers. Raise TryAgain if some have to wait."""
        yield from self._read_answers()
        yield from self._send(self.buffer.take_due(math.inf) if sessions is None else self.buffer.take_of(sessions))
        for error in (yield from self._read_answers()):
            if isinstance(error, TryAgain):
                raise error

    def abandon(self) -> Effects[None]:
        """Read and ignore the answers that are still to come."""
        sent, self._sent = self._sent, None
        if sent:
            yield from FinishCalls(sent[2])

    def _read_answers(self) -> Effects[list[ImError]]:
        """Read the answers; return the errors of groups, whose acks wait alone. Raise the error that stops all."""
        if self._sent is None:
            return []
        (acks, batch, started), self._sent = self._sent, None
        try:
            answers = yield from FinishCalls(started)
        except BaseException:
            self.buffer.requeue(acks)
            raise
        refused = self._postpone(acks, batch, answers)
        raise_what_stops_all(answers)
        for (gid, part), answer in zip(batch, answers, strict=True):
            for target in self._trimmed(part, answer):
                yield from self._ack_trimmed(gid, target)
        return refused

    def _postpone(
        self, acks: list[UnackedMessages], batch: _Batch, answers: Sequence[list[AckResult] | ImError]
    ) -> list[ImError]:
        """Requeue the acks of groups that were refused; return the errors. A group that is gone needs no acks."""
        refused = {
            gid: answer
            for (gid, _), answer in zip(batch, answers, strict=True)
            if isinstance(answer, ImError) and not isinstance(answer, UnknownGroup)
        }
        for gid, error in refused.items():
            until = self._backoffs.failed(gid, self._clock())
            self.buffer.requeue((each for each in acks if each.gid == gid), until)
            self._log.note(error, "acks in some groups have to wait: %s")
        self._backoffs.succeeded(gid for gid, _ in batch if gid not in refused)
        return list(refused.values())

    def _send(self, acks: list[UnackedMessages]) -> Effects[None]:
        try:
            yield from self._read_answers()
            batch = [(gid, part) for gid, of_group in targets(acks).items() for part in split_targets(of_group)]
            if batch:
                started = yield from StartCalls([message_calls.ack(self._space, gid, part) for gid, part in batch])
                self._sent = acks, batch, started
        except BaseException:
            self.buffer.requeue(acks)
            raise

    def _ack_trimmed(self, gid: str, target: AckTarget) -> Effects[None]:
        """Ack a message that only SQL still has, by its seq. If that fails, the next ack makes up for it."""
        msgid = target.msgid or 0
        try:
            rows = yield from MessagesByMsgid(gid, [msgid])
            if msgid in rows:
                yield from call_many([message_calls.ack(self._space, gid, [target._replace(seq=rows[msgid].seq)])])
        except ImError as error:
            self._log.note(error, "an ack has to wait for the next one: %s")

    def _trimmed(self, part: list[AckTarget], answer: list[AckResult] | ImError) -> list[AckTarget]:
        """Return the targets that only SQL still has; log those that were refused."""
        if isinstance(answer, ImError):
            if isinstance(answer, UnknownGroup):
                self._log.note(answer, "an ack was refused: %s")
            return []
        trimmed = []
        for target, acked in zip(part, answer, strict=True):
            if isinstance(acked.target, Trimmed):
                trimmed.append(target)
            elif isinstance(acked.target, ImError):
                self._log.note(acked.target, "an ack was refused: %s")
        return trimmed
