"""One live session, as an iterator: the simplest user of a gateway."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from imcore import msgid as msgids
from imcore.gateway.fanout import Event, NewMessage
from imcore.gateway.gateway import Gateway
from imcore.model.values import Message, Receipt


class Listener:
    """What one user is told, live: messages, and receipts of their own. Use it as a context manager.

    Leaving it normally acks what was handed over; leaving it by an error does not, so that the messages come again.
    """

    def __init__(
        self, gateway: Gateway, uid: str, *, places: Mapping[str, str] | None = None, since_join: bool = False
    ) -> None:
        """Begin the session, as `Gateway.open` does."""
        self._gateway = gateway
        self.session = gateway.open(uid, places=places, since_join=since_join)
        self._unseen = 0
        self._polled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_back_unseen()
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
        events = self._poll(timeout_s)
        self._polled = len(events)
        return [item for event in events for item in _items(event)]

    def take_back(self) -> None:
        """Take back what the last `poll` returned: it was not shown, and does not count as received."""
        self._gateway.give_back(self._polled)
        self._polled = 0

    @property
    def reconnects(self) -> int:
        """How often the subscription was made anew. A client that wants each tally exact asks for them again then.

        Receipts that were told while it was lost come by themselves, unless another session of the user has confirmed
        them meanwhile.
        """
        return self.session.reconnects

    def places(self) -> dict[str, str]:
        """Return up to which message (msgid) each group has been returned, for `places` of the next session.

        It is `0-0` where there is none yet; a group that is being caught up with is left out.
        """
        return {
            gid: msgids.unpack(feed.msgid)
            for gid, feed in self.session.feeds.items()
            if not feed.behind and feed.msgid is not None
        }

    def _poll(self, timeout_s: float) -> list[Event]:
        self._take_back_unseen()
        self._polled = 0
        return self._gateway.poll(timeout_s)

    def _take_back_unseen(self) -> None:
        """Nobody saw what an iteration that was broken off has not yielded."""
        self._gateway.give_back(self._unseen)
        self._unseen = 0


def _items(event: Event) -> tuple[Message | Receipt, ...]:
    return (event.message,) if isinstance(event, NewMessage) else event.receipts
