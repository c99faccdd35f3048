"""Sends what clients have confirmed in few calls, without waiting for their answers. No I/O."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from imcore.errors import ImError, TryAgain, UnknownGroup, raise_what_stops_all
from imcore.gateway.acks import AckBuffer, AckKind, GroupAcks
from imcore.gateway.fanout import Session
from imcore.gateway.options import GatewayOptions
from imcore.operations.effects import Answers, Effects, FinishCalls, StartCalls, call_many
from imcore.operations.queries import stored_message
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call, Trimmed
from imcore.streams.calls.message_calls import AckResult, DeliveryTarget, split_targets
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoffs, Clock, ThrottledLog

_Builder = Callable[[Keyspace, str, Sequence[DeliveryTarget]], Call[list[AckResult]]]
_BUILDERS: Mapping[AckKind, _Builder] = {
    "read": message_calls.ack,
    "private": partial(message_calls.ack, private=True),
    "delivered": message_calls.delivered,
}

_Batch = list[tuple[GroupAcks, list[DeliveryTarget]]]
"""The acks of a group, and the targets of each call."""

FOLD_S = 0.01
"""A group whose acks are due by number waits this long: other clients ack the same message one after the other."""

_REFUSED = "an ack was refused: %s"


@dataclass(slots=True)
class _Sent:
    """Acks whose answers have not been read yet. `spared`: deliveries that these include, and that were not sent."""

    acks: list[GroupAcks]
    spared: dict[str, GroupAcks]
    batch: _Batch = field(default_factory=list)
    answers: Answers[list[AckResult]] | None = None


@dataclass(eq=False)
class AckSender:
    """A task: sends what buffers hold; failed acks return there. A group that Redis refuses waits alone.

    Acks, acks for nobody else to see, and deliveries that are due at about the same time travel together. Who has read
    a message has it: a delivery that an ack of the same session includes is not sent, unless the ack turns out to be
    refused or, as its user's receipts are off, private.
    """

    _space: Keyspace
    buffers: Mapping[AckKind, AckBuffer]
    _log: ThrottledLog
    _clock: Clock
    calls: int = 0
    """The calls that were sent so far. Each is about one group, for any number of users."""
    _backoffs: Backoffs[str] = field(default_factory=Backoffs)
    _database_backoffs: Backoffs[str] = field(default_factory=Backoffs)
    _sent: _Sent | None = None
    _read: _Sent | None = None
    """Those whose answers are being waited for."""

    def __post_init__(self) -> None:
        self._all = tuple(self.buffers.values())

    def due(self) -> float:
        """Return when to step: at once while there are answers to read, which takes next to no time."""
        return 0.0 if self._sent else self._next_due()

    def _next_due(self) -> float:
        one, other, third = self._all
        return min(one.next_due(), other.next_due(), third.next_due())

    def step(self) -> Effects[None]:
        """Send the acks that are due, or read the answers to those that were sent."""
        now = self._clock()
        due = [buffer for buffer in self._all if buffer.next_due() <= now]
        if due:
            taken = [group for buffer in self._all for group in buffer.take_due(now, with_others=due != [buffer])]
            yield from self._send(self._not_waiting(taken, now))
        else:
            yield from self._read_answers()

    def forget(self, sessions: Iterable[Session], gid: str | None = None) -> None:
        """Drop what sessions have confirmed, in one group or in theirs: messages will come again."""
        for buffer in self._all:
            buffer.forget(sessions, gid)

    def _not_waiting(self, due: Iterable[GroupAcks], now: float) -> list[GroupAcks]:
        ready = []
        for group in due:
            until = self._backoffs.until(group.gid)
            if until > now:
                self._requeue([group], until)
            else:
                ready.append(group)
        return ready

    def _requeue(self, acks: Iterable[GroupAcks], not_before: float = 0.0) -> None:
        for group in acks:
            self.buffers[group.kind].requeue([group], not_before)

    def flush(self, sessions: Collection[Session] | None) -> Effects[None]:
        """Send all acks of these sessions or of all, and wait for the answers. Raise TryAgain if some have to wait."""
        yield from self._read_answers()
        is_again = True
        while is_again:
            yield from self._send(self._take(sessions))
            is_again = self._sent is not None and bool(self._sent.spared)  # which may have to be sent after all
            for error in (yield from self._read_answers()):
                if isinstance(error, TryAgain):
                    raise error

    def _take(self, sessions: Collection[Session] | None) -> list[GroupAcks]:
        takes = (buffer.take_due(math.inf) if sessions is None else buffer.take_of(sessions) for buffer in self._all)
        return [group for taken in takes for group in taken]

    def holds(self, session: Session) -> bool:
        """Return whether something that a session has confirmed was not sent yet, or not answered."""
        sent = [group for each in (self._sent, self._read) if each for group in each.acks]
        return any(buffer.holds(session) for buffer in self._all) or any(group.holds(session) for group in sent)

    def abandon(self) -> Effects[None]:
        """Read and ignore the answers that are still to come."""
        sent, self._sent = self._sent, None
        if sent and sent.answers:
            yield from FinishCalls(sent.answers)

    def _read_answers(self) -> Effects[list[ImError]]:
        """Read the answers; return the errors of groups, whose acks wait alone. Raise the error that stops all."""
        sent, self._sent = self._sent, None
        if sent is None or sent.answers is None:
            return []
        self._read = sent
        try:
            answers = yield from FinishCalls(sent.answers)
        except BaseException:
            self._requeue([*sent.acks, *sent.spared.values()])
            raise
        finally:
            self._read = None
        refused = self._postpone(sent, answers)
        try:
            raise_what_stops_all(answers)
        except ImError:
            self._requeue(sent.spared.values())
            raise
        for (group, part), answer in zip(sent.batch, answers, strict=True):
            if isinstance(answer, UnknownGroup):
                self._log.note(answer, _REFUSED)
            elif not isinstance(answer, ImError):
                self._deliver_spared(group, part, answer, sent.spared.get(group.gid))
                yield from self._look_at(group, part, answer)
        return refused

    def _postpone(self, sent: _Sent, answers: Sequence[list[AckResult] | ImError]) -> list[ImError]:
        """Requeue the acks of groups that were refused; return the errors. A group that is gone needs no acks."""
        refused = {
            group: answer
            for (group, _), answer in zip(sent.batch, answers, strict=True)
            if isinstance(answer, ImError) and not isinstance(answer, UnknownGroup)
        }
        for group, error in refused.items():
            until = self._backoffs.failed(group.gid, self._clock())
            self._requeue([group], until)
            if group.kind == "read" and group.gid in sent.spared:
                self._requeue([sent.spared[group.gid]], until)
            self._log.note(error, "acks in some groups have to wait: %s")
        failed = {group.gid for group in refused}
        self._backoffs.succeeded(group.gid for group, _ in sent.batch if group.gid not in failed)
        return list(refused.values())

    def _send(self, acks: list[GroupAcks]) -> Effects[None]:
        sent = _Sent(acks, {})
        try:
            yield from self._read_answers()
            self._spare(sent)
            sent.batch = [(group, part) for group in acks for part in split_targets(group.targets())]
            if sent.batch:
                calls = [_BUILDERS[group.kind](self._space, group.gid, part) for group, part in sent.batch]
                sent.answers = yield from StartCalls(calls)
                self._sent = sent
                self.calls += len(sent.batch)
        except BaseException:
            self._requeue([*acks, *sent.spared.values()])
            raise

    def _spare(self, sent: _Sent) -> None:
        """Take out the deliveries that acks of the same sessions include."""
        if deliveries := [group for group in sent.acks if group.kind == "delivered"]:
            read = {group.gid: group for group in sent.acks if group.kind == "read"}
            for group in deliveries:
                if group.gid in read and (spared := group.take_read(read[group.gid])).messages:
                    sent.spared[group.gid] = spared

    def _deliver_spared(
        self, group: GroupAcks, part: Sequence[DeliveryTarget], results: Sequence[AckResult], spared: GroupAcks | None
    ) -> None:
        """Deliver after all to members whose offsets have not moved: their receipts are off, or the ack was refused."""
        if group.kind != "read":
            return
        for target, result in zip(part, results, strict=True):
            if isinstance(result.target, ImError):
                uids = set(target.uids)
            else:
                uids = _behind(result, result.target)
                if uids:
                    group.note_private(uids)
            if uids and spared:
                self._requeue([spared.only(uids)])

    def _look_at(self, group: GroupAcks, part: Sequence[DeliveryTarget], results: Sequence[AckResult]) -> Effects[None]:
        """Ack what only SQL still has. Where there is no such message, ack the one that was received before it."""
        late: set[int] = set()
        refused: set[int] = set()
        for target, result in zip(part, results, strict=True):
            error: int | ImError = result.target
            if isinstance(error, Trimmed):
                error = yield from self._ack_trimmed(group, target)
            if isinstance(error, ImError):
                self._log.note(error, "acks of some messages have to wait: %s" if _may_pass(error) else _REFUSED)
                (late if _may_pass(error) else refused).add(target.msgid or 0)
        if late or refused:
            gid = group.gid
            until = self._database_backoffs.failed(gid, self._clock()) if late else 0.0
            self._requeue([group.again(late, refused)], until)
        else:
            self._database_backoffs.succeeded([group.gid])

    def _ack_trimmed(self, group: GroupAcks, target: DeliveryTarget) -> Effects[int | ImError]:
        """Ack a message that only SQL still has, by its seq."""
        try:
            row = yield from stored_message(group.gid, target.msgid or 0)
            call = _BUILDERS[group.kind](self._space, group.gid, [target._replace(seq=row.seq)])
            [[acked]] = yield from call_many([call])
        except ImError as error:
            return error
        return acked.target


def ack_sender(space: Keyspace, options: GatewayOptions, log: ThrottledLog, clock: Clock) -> AckSender:
    fold_s = FOLD_S if options.acks == "client" else 0.0  # else all who are handed a message receive it at once
    buffers = {kind: AckBuffer(options.ack_every, options.ack_interval_s, fold_s, kind) for kind in _BUILDERS}
    return AckSender(space, buffers, log, clock)


def _may_pass(error: ImError) -> bool:
    return isinstance(error, TryAgain)


def _behind(result: AckResult, msgid: int) -> set[str]:
    """Return the members whose offsets are before a message that they have acked: they read in private."""
    return {uid for uid, offset in result.unmoved.items() if isinstance(offset, int) and offset < msgid}
