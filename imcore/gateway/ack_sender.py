"""Sends the acks of a gateway's sessions, and does not wait for the answers. No I/O."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from imcore.errors import ImError, TryAgain, UnknownGroup, raise_what_stops_all
from imcore.gateway.ack_buffer import AckBuffer, UnackedMessages, targets
from imcore.gateway.fanout import Session
from imcore.operations.effects import Effects, FinishCalls, StartCalls, call_many
from imcore.operations.sql_queries import MessagesByMsgid
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.message_calls import AckResult, AckTarget, split_targets
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoffs, Clock, ThrottledLog


class _Posted(NamedTuple):
    """Acks that were sent, and whose answers have not been read yet."""

    waiting: list[UnackedMessages]
    batch: list[tuple[str, list[AckTarget]]]
    ticket: Any


class AckSender:
    """A part. What is owed is in the `book`. What cannot be sent, or whose answers get lost, is put back there.

    That acks can be sent is no success yet: so what is refused in a group lets the acks of that group wait.
    """

    def __init__(self, space: Keyspace, book: AckBuffer, trouble: ThrottledLog, clock: Clock) -> None:
        self.book = book
        self._space = space
        self._trouble = trouble
        self._clock = clock
        self._waits: Backoffs[str] = Backoffs()
        self._posted: _Posted | None = None

    def due(self) -> float:
        """Return when the next ack is: at once while there are answers to read, which takes next to no time."""
        return 0.0 if self._posted else self.book.next_due()

    def go_on(self) -> Effects[None]:
        """Send what is due, or read what became of what was sent."""
        now = self._clock()
        if self.book.next_due() <= now:
            yield from self._send(self._not_waiting(self.book.take_due(now), now))
        else:
            yield from self._read_answers()

    def _not_waiting(self, due: Iterable[UnackedMessages], now: float) -> list[UnackedMessages]:
        """Put back what is due in groups whose acks wait; return the others."""
        ready = []
        for waiting in due:
            until = self._waits.until(waiting.gid)
            if until > now:
                self.book.put_back([waiting], until)
            else:
                ready.append(waiting)
        return ready

    def send_of(self, sessions: Collection[Session]) -> Effects[None]:
        """Send all that these sessions owe, and wait for the answers. Raise TryAgain where that cannot be done now."""
        yield from self._read_answers()
        yield from self._send(self.book.take_of(sessions))
        for error in (yield from self._read_answers()):
            if isinstance(error, TryAgain):
                raise error

    def _read_answers(self) -> Effects[list[ImError]]:
        """Read what became of the acks that were sent; return what was refused about groups, whose acks wait alone.

        Raise what all acks have to wait for.
        """
        if self._posted is None:
            return []
        posted, self._posted = self._posted, None
        try:
            answers: list[list[AckResult] | ImError] = yield FinishCalls(posted.ticket)
        except BaseException:
            self.book.put_back(posted.waiting)
            raise
        refused = self._postpone(posted, answers)
        raise_what_stops_all(answers)
        for (gid, part), answer in zip(posted.batch, answers, strict=True):
            for target in self._trimmed(part, answer):
                yield from self._ack_trimmed(gid, target)
        return refused

    def _postpone(self, posted: _Posted, answers: Sequence[list[AckResult] | ImError]) -> list[ImError]:
        """Put back, for a while, the acks of groups in which they were refused; return why. A group that is gone owes
        none.
        """
        refused = {
            gid: answer
            for (gid, _), answer in zip(posted.batch, answers, strict=True)
            if isinstance(answer, ImError) and not isinstance(answer, UnknownGroup)
        }
        for gid, error in refused.items():
            until = self._waits.failed(gid, self._clock())
            self.book.put_back((each for each in posted.waiting if each.gid == gid), until)
            self._trouble.note(error, "acks in some groups have to wait: %s")
        self._waits.succeeded(gid for gid, _ in posted.batch if gid not in refused)
        return list(refused.values())

    def abandon(self) -> Effects[None]:
        """Give back what waits for answers, whatever they are."""
        posted, self._posted = self._posted, None
        if posted:
            yield FinishCalls(posted.ticket)

    def _send(self, waiting: list[UnackedMessages]) -> Effects[None]:
        try:
            yield from self._read_answers()
            batch = [(gid, part) for gid, some in targets(waiting).items() for part in split_targets(some)]
            if batch:
                ticket = yield StartCalls([message_calls.ack(self._space, gid, part) for gid, part in batch])
                self._posted = _Posted(waiting, batch, ticket)
        except BaseException:
            self.book.put_back(waiting)
            raise

    def _ack_trimmed(self, gid: str, target: AckTarget) -> Effects[None]:
        """Ack with its seq a message that SQL alone still has. Where that fails, the next ack makes up for it."""
        msgid = target.msgid or 0
        try:
            rows = yield from MessagesByMsgid(gid, [msgid])
            if msgid in rows:
                yield from call_many([message_calls.ack(self._space, gid, [target._replace(seq=rows[msgid].seq)])])
        except ImError as error:
            self._trouble.note(error, "an ack has to wait for the next one: %s")

    def _trimmed(self, part: list[AckTarget], answer: list[AckResult] | ImError) -> list[AckTarget]:
        """Return the targets that SQL alone still has; say what was refused."""
        if isinstance(answer, ImError):
            if isinstance(answer, UnknownGroup):
                self._trouble.note(answer, "an ack was refused: %s")
            return []
        found = []
        for target, acked in zip(part, answer, strict=True):
            if isinstance(acked.target, Trimmed):
                found.append(target)
            elif isinstance(acked.target, ImError):
                self._trouble.note(acked.target, "an ack was refused: %s")
        return found
