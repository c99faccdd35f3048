"""Sends the acks of a gateway's sessions, and does not wait for the answers."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from imcore.errors import ImError, UnknownGroup
from imcore.live.acks import AckBook, Waiting, split, targets
from imcore.live.rooms import Session
from imcore.streams import calls
from imcore.streams.link import Answers, Link

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Posted:
    """Acks that were sent, and whose answers have not been read yet."""

    waiting: list[Waiting]
    answers: Answers[list[calls.Acked]]


class Acking:
    """What is owed is in the `book`. What cannot be sent, or whose answers get lost, is put back there."""

    def __init__(self, link: Link, book: AckBook) -> None:
        self.book = book
        self._link = link
        self._posted: _Posted | None = None

    def send_due(self, now: float) -> None:
        """Send what is due. Raise what the link raises, and for the acks that were sent before."""
        self._send(self.book.take_due(now))

    def send_of(self, sessions: Collection[Session]) -> None:
        """Send all that these sessions owe, and wait for the answers. Raise as `send_due`."""
        self._send(self.book.take_of(sessions))
        self.read_answers()

    def read_answers(self) -> None:
        """Read what became of the acks that were sent. Raise the first error of what could not be written now."""
        if self._posted is None:
            return
        posted, self._posted = self._posted, None
        answers = posted.answers()
        if failed := next((answer for answer in answers if _has_failed(answer)), None):
            self.book.put_back(posted.waiting)
            raise cast(ImError, failed)
        for answer in answers:
            for refused in _refused(answer):
                log.warning("an ack was refused: %s", refused)

    def close(self) -> None:
        """Give the connection back on which answers are awaited, whatever they are."""
        posted, self._posted = self._posted, None
        if posted:
            posted.answers()

    def _send(self, waiting: list[Waiting]) -> None:
        try:
            self.read_answers()
            space = self._link.space
            batch = [calls.ack(space, gid, part) for gid, some in targets(waiting).items() for part in split(some)]
            self._posted = _Posted(waiting, self._link.post(batch))
        except ImError:
            self.book.put_back(waiting)
            raise


def _has_failed(answer: list[calls.Acked] | ImError) -> bool:
    """Return whether acks were not carried out; where the group is gone there is nothing to ack."""
    return isinstance(answer, ImError) and not isinstance(answer, UnknownGroup)


def _refused(answer: list[calls.Acked] | ImError) -> list[ImError]:
    """Return what is wrong with acks. That somebody has left meanwhile is nothing wrong."""
    if isinstance(answer, ImError):
        return [answer]
    return [each.target for each in answer if isinstance(each.target, ImError)]
