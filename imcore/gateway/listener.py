"""One live session of a gateway, as an iterator."""

from collections.abc import Iterator, Mapping
from typing import Self

from imcore import msgid as msgids
from imcore.errors import SessionExpired
from imcore.gateway.fanout import Ended, Event, NewMessage, PositionMoved, ReceiptsChanged, Rewound, Session
from imcore.gateway.gateway import Gateway
from imcore.gateway.request import StartMode
from imcore.model.values import Message, Receipt

Item = Message | Receipt | PositionMoved | Rewound
"""One live session yields these."""


class Listener:
    """One live session, as an iterator of messages, receipts of the user's own, and moved positions.

    Use it as a context manager. Leaving it normally acks what was handed over; after an error the messages come again.
    A PositionMoved says that another device has read, a Rewound that messages were lost and are to be forgotten. Groups
    that the user joins or leaves are only seen by their messages. For one thread.
    """

    def __init__(
        self, gateway: Gateway, uid: str, *, start: StartMode = "unread", after: Mapping[str, str] | None = None
    ) -> None:
        self._gateway = gateway
        self.session = gateway.open(uid, start=start, after=after)
        self._not_yielded = 0
        self._polled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._requeue_not_yielded()
        self._gateway.close(clean=kind is None)

    def __iter__(self) -> Iterator[Item]:
        """Yield for ever. An item counts as received when the next one is asked for, or at the end."""
        while True:
            events = self._poll(1.0)
            self._not_yielded = len(events)
            for event in events:
                items = items_of(event)
                yield from items[:-1]
                self._not_yielded -= 1
                yield from items[-1:]

    def poll(self, timeout_s: float) -> list[Item]:
        """Return new items, after waiting at most so long for the first. They count as received with the next call."""
        events = self._poll(timeout_s)
        self._polled = len(events)
        return [item for event in events for item in items_of(event)]

    def requeue(self) -> None:
        """Make what the last `poll` returned not received: it was not shown."""
        self._gateway.requeue(self._polled)
        self._polled = 0

    @property
    def reconnects(self) -> int:
        """The number of lost subscriptions. A client that needs exact tallies asks for them after each."""
        return self.session.reconnects

    def resume_points(self) -> dict[str, str]:
        """Return for `after` of the next session how far each group has been returned; 0-0 at its beginning."""
        return resume_points_of(self.session)

    def _poll(self, timeout_s: float) -> list[Event]:
        self._requeue_not_yielded()
        self._polled = 0
        return self._gateway.poll(timeout_s)

    def _requeue_not_yielded(self) -> None:
        self._gateway.requeue(self._not_yielded)
        self._not_yielded = 0


def resume_points_of(session: Session) -> dict[str, str]:
    return {
        gid: msgids.unpack(cursor.msgid)
        for gid, cursor in session.cursors.items()
        if not cursor.behind and cursor.msgid is not None
    }


def items_of(event: Event) -> tuple[Item, ...]:
    """Return what one session yields of an event. Raise SessionExpired if its user was erased."""
    if isinstance(event, Ended):
        raise SessionExpired("the user of this session was erased")
    if isinstance(event, NewMessage):
        return (event.message,)
    if isinstance(event, PositionMoved | Rewound):
        return (event,)
    return event.receipts if isinstance(event, ReceiptsChanged) else ()
