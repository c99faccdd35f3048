"""Sends acks in few calls, without waiting for their answers. No I/O."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from imcore.errors import ImError, TryAgain, UnknownGroup, raise_what_stops_all
from imcore.gateway.acks import AckBuffer, GroupAcks
from imcore.gateway.fanout import Session
from imcore.operations.effects import Answers, Effects, FinishCalls, StartCalls, call_many
from imcore.operations.queries import stored_message
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.message_calls import AckResult, AckTarget, split_targets
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoffs, Clock, ThrottledLog

_Batch = list[tuple[GroupAcks, list[AckTarget]]]
"""The acks of a group, and the targets of each call."""

_REFUSED = "an ack was refused: %s"


@dataclass(eq=False)
class AckSender:
    """A task: sends the acks of a buffer; failed acks return to it. A group that Redis refuses waits alone."""

    _space: Keyspace
    buffer: AckBuffer
    _log: ThrottledLog
    _clock: Clock
    calls: int = 0
    """The calls that were sent so far. Each acks one group, for any number of users."""
    _backoffs: Backoffs[str] = field(default_factory=Backoffs)
    _database_backoffs: Backoffs[str] = field(default_factory=Backoffs)
    _sent: tuple[list[GroupAcks], _Batch, Answers[list[AckResult]]] | None = None
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

    def _not_waiting(self, due: Iterable[GroupAcks], now: float) -> list[GroupAcks]:
        ready = []
        for group in due:
            until = self._backoffs.until(group.gid)
            if until > now:
                self.buffer.requeue([group], until)
            else:
                ready.append(group)
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
        refused = self._postpone(batch, answers)
        raise_what_stops_all(answers)
        for (group, part), answer in zip(batch, answers, strict=True):
            if isinstance(answer, UnknownGroup):
                self._log.note(answer, _REFUSED)
            elif not isinstance(answer, ImError):
                yield from self._look_at(group, part, answer)
        return refused

    def _postpone(self, batch: _Batch, answers: Sequence[list[AckResult] | ImError]) -> list[ImError]:
        """Requeue the acks of groups that were refused; return the errors. A group that is gone needs no acks."""
        refused = {
            group: answer
            for (group, _), answer in zip(batch, answers, strict=True)
            if isinstance(answer, ImError) and not isinstance(answer, UnknownGroup)
        }
        for group, error in refused.items():
            self.buffer.requeue([group], self._backoffs.failed(group.gid, self._clock()))
            self._log.note(error, "acks in some groups have to wait: %s")
        self._backoffs.succeeded(group.gid for group, _ in batch if group not in refused)
        return list(refused.values())

    def _send(self, acks: list[GroupAcks]) -> Effects[None]:
        try:
            yield from self._read_answers()
            batch = [(group, part) for group in acks for part in split_targets(group.targets())]
            if batch:
                started = yield from StartCalls(
                    [message_calls.ack(self._space, group.gid, part) for group, part in batch]
                )
                self._sent = acks, batch, started
                self.calls += len(batch)
        except BaseException:
            self.buffer.requeue(acks)
            raise

    def _look_at(self, group: GroupAcks, part: Sequence[AckTarget], results: Sequence[AckResult]) -> Effects[None]:
        """Ack what only SQL still has. Where there is no such message, ack the one that was received before it."""
        late: set[int] = set()
        refused: set[int] = set()
        for target, result in zip(part, results, strict=True):
            error: int | ImError = result.target
            if isinstance(error, Trimmed):
                error = yield from self._ack_trimmed(group.gid, target)
            if isinstance(error, ImError):
                self._log.note(error, "acks of some messages have to wait: %s" if _may_pass(error) else _REFUSED)
                (late if _may_pass(error) else refused).add(target.msgid or 0)
        if late or refused:
            gid = group.gid
            until = self._database_backoffs.failed(gid, self._clock()) if late else 0.0
            self.buffer.requeue([group.again(late, refused)], until)
        else:
            self._database_backoffs.succeeded([group.gid])

    def _ack_trimmed(self, gid: str, target: AckTarget) -> Effects[int | ImError]:
        """Ack a message that only SQL still has, by its seq."""
        try:
            row = yield from stored_message(gid, target.msgid or 0)
            [[acked]] = yield from call_many([message_calls.ack(self._space, gid, [target._replace(seq=row.seq)])])
        except ImError as error:
            return error
        return acked.target


def _may_pass(error: ImError) -> bool:
    return isinstance(error, TryAgain)
