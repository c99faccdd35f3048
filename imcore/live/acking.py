"""Sends the acks of a gateway's sessions, and does not wait for the answers. No I/O."""

import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

from imcore.asking import Asking, Collect, Post, ask_all, ask_sql
from imcore.errors import ImError, TryAgain, UnknownGroup, concerns_all
from imcore.live.acks import AckBook, Waiting, split, targets
from imcore.live.parts import LONGEST_WAIT_S, Clock, Trouble
from imcore.live.rooms import Session
from imcore.streams import calls
from imcore.streams.calls import Acked, Target, Trimmed
from imcore.streams.keys import Keyspace

log = logging.getLogger(__name__)


class _Posted(NamedTuple):
    """Acks that were sent, and whose answers have not been read yet."""

    waiting: list[Waiting]
    batch: list[tuple[str, list[Target]]]
    ticket: Any


class Acking:
    """A part. What is owed is in the `book`. What cannot be sent, or whose answers get lost, is put back there."""

    def __init__(self, space: Keyspace, book: AckBook, clock: Clock) -> None:
        self.book = book
        self._space = space
        self._clock = clock
        self._posted: _Posted | None = None
        self._trouble = Trouble("acks in some groups have", clock)

    def due(self) -> float:
        """Return when the next ack is: at once while there are answers to read, which takes next to no time."""
        return 0.0 if self._posted else self.book.next_due()

    def go_on(self) -> Asking[None]:
        """Send what is due, or read what became of what was sent."""
        if self.book.next_due() <= self._clock():
            yield from self._send(self.book.take_due(self._clock()))
        else:
            yield from self.read_answers()

    def send_of(self, sessions: Collection[Session]) -> Asking[None]:
        """Send all that these sessions owe, and wait for the answers."""
        yield from self._send(self.book.take_of(sessions))
        yield from self.read_answers()

    def read_answers(self) -> Asking[None]:
        """Read what became of the acks that were sent. Raise the first error of what could not be written now.

        What is refused about one group waits for a while, without the others.
        """
        if self._posted is None:
            return
        posted, self._posted = self._posted, None
        try:
            answers: list[list[Acked] | ImError] = yield Collect(posted.ticket)
            if failed := next((answer for answer in answers if _has_failed(answer)), None):
                raise cast(ImError, failed)
        except BaseException:
            self.book.put_back(posted.waiting)
            raise
        self._postpone(posted, answers)
        for (gid, part), answer in zip(posted.batch, answers, strict=True):
            for target in _trimmed(part, answer):
                yield from self._ack_trimmed(gid, target)

    def _postpone(self, posted: _Posted, answers: Sequence[list[Acked] | ImError]) -> None:
        """Put back, for a while, the acks of groups in which something is wrong."""
        spoiled = {
            gid: answer for (gid, _), answer in zip(posted.batch, answers, strict=True) if _is_about_group(answer)
        }
        for answer in spoiled.values():
            self._trouble.note(cast(ImError, answer))
        if spoiled:
            waiting = [each for each in posted.waiting if each.gid in spoiled]
            self.book.put_back(waiting, self._clock() + LONGEST_WAIT_S)

    def abandon(self) -> Asking[None]:
        """Give back what waits for answers, whatever they are."""
        posted, self._posted = self._posted, None
        if posted:
            yield Collect(posted.ticket)

    def _send(self, waiting: list[Waiting]) -> Asking[None]:
        try:
            yield from self.read_answers()
            batch = [(gid, part) for gid, some in targets(waiting).items() for part in split(some)]
            if batch:
                ticket = yield Post([calls.ack(self._space, gid, part) for gid, part in batch])
                self._posted = _Posted(waiting, batch, ticket)
        except BaseException:
            self.book.put_back(waiting)
            raise

    def _ack_trimmed(self, gid: str, target: Target) -> Asking[None]:
        """Ack with its seq a message that SQL alone still has. Where that fails, the next ack makes up for it."""
        msgid = target.msgid or 0
        try:
            rows = yield from ask_sql(lambda database: database.messages(gid, [msgid]))
            if msgid in rows:
                yield from ask_all([calls.ack(self._space, gid, [target._replace(seq=rows[msgid].seq)])])
        except ImError as error:
            log.warning("an ack has to wait for the next one: %s", error)


def _has_failed(answer: list[Acked] | ImError) -> bool:
    """Return whether acks were not carried out, and why is not about their group alone."""
    return isinstance(answer, TryAgain) or (isinstance(answer, ImError) and concerns_all(answer))


def _is_about_group(answer: list[Acked] | ImError) -> bool:
    """Return whether acks were not carried out since something is wrong in their group. One that is gone owes none."""
    return isinstance(answer, ImError) and not isinstance(answer, UnknownGroup)


def _trimmed(part: list[Target], answer: list[Acked] | ImError) -> list[Target]:
    """Return the targets that SQL alone still has; say what was refused. That somebody has left is nothing wrong."""
    if isinstance(answer, ImError):
        if isinstance(answer, UnknownGroup):
            log.warning("an ack was refused: %s", answer)
        return []
    found = []
    for target, acked in zip(part, answer, strict=True):
        if isinstance(acked.target, Trimmed):
            found.append(target)
        elif isinstance(acked.target, ImError):
            log.warning("an ack was refused: %s", acked.target)
    return found
