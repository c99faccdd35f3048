"""One live session, as an iterator: the simplest user of a gateway."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from imcore.live.feed import Place
from imcore.live.gateway import Gateway
from imcore.live.rooms import Arrived, Event
from imcore.values import Message, Receipt


class Listener:
    """What one user is told, live: messages, and receipts of their own. Use it as a context manager.

    Leaving it normally acks what was handed over; leaving it by an error does not, so that the messages come again.
    """

    def __init__(self, gateway: Gateway, uid: str, *, places: Mapping[str, Place] | None = None) -> None:
        """Begin the session. Raise RedisUnavailable."""
        self._gateway = gateway
        self.session = gateway.open(uid, places=places)
        self._unseen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_back()
        self._gateway.close(clean=kind is None)

    def __iter__(self) -> Iterator[Message | Receipt]:
        """Yield for ever. What was yielded counts as received when more is asked for, or at the end."""
        while True:
            events = self._poll(1.0)
            self._unseen = len(events)
            for event in events:
                *items, last = _items(event)
                yield from items
                self._unseen -= 1
                yield last

    def poll(self, timeout_s: float) -> list[Message | Receipt]:
        """Return what came, after waiting at most so long for the first; it counts as received then, as yielded."""
        return [item for event in self._poll(timeout_s) for item in _items(event)]

    def places(self) -> dict[str, Place]:
        """Return up to which message each group has been returned; one that is being caught up with is left out."""
        return {
            gid: Place(feed.msgid, feed.seq)
            for gid, feed in self.session.feeds.items()
            if not feed.behind and feed.msgid is not None and feed.seq is not None
        }

    def _poll(self, timeout_s: float) -> list[Event]:
        self._take_back()
        return self._gateway.poll(timeout_s)

    def _take_back(self) -> None:
        """Nobody saw what an iteration that was broken off has not yielded."""
        self._gateway.give_back(self._unseen)
        self._unseen = 0


def _items(event: Event) -> tuple[Message | Receipt, ...]:
    return (event.message,) if isinstance(event, Arrived) else event.receipts
