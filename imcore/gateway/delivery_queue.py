"""What is ready for the caller of a gateway, and what the caller has in hand. No I/O."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from imcore.gateway.fanout import Event, NewMessage, Recipients, Session


@dataclass(slots=True)
class DeliveryQueue:
    """Events wait in `ready`; what was taken stays in hand until the caller has done with it."""

    ready: list[Event] = field(default_factory=list)
    _in_hand: list[Event] = field(default_factory=list)
    _gone: set[Session] = field(default_factory=set)

    @property
    def count_in_hand(self) -> int:
        """How many events were taken the last time and not given back."""
        return len(self._in_hand)

    def take(self) -> list[Event]:
        """Hand over what is ready, for those who are still there."""
        taken = list(_without(self.ready, self._gone)) if self._gone else self.ready
        self._gone.clear()
        self._in_hand, self.ready = taken, []
        return taken

    def settle(self) -> list[Event]:
        """Return what the caller has done with, for those who are still there; from now on it is not in hand."""
        settled = list(_without(self._in_hand, self._gone)) if self._gone else self._in_hand
        self._in_hand = []
        return settled

    def settle_of(self, sessions: Collection[Session]) -> list[Event]:
        """Return what these sessions have in hand: their part of it."""
        parts = ((event, event.audience.members.intersection(sessions)) for event in self._in_hand)
        return [event._replace(audience=Recipients(mine)) for event, mine in parts if mine]

    def give_back(self, count: int) -> None:
        """Take back the last so many events: they are ready again."""
        at = len(self._in_hand) - count
        self.ready = self._in_hand[at:] + self.ready
        self._in_hand = self._in_hand[:at]

    def end(self, sessions: Iterable[Session]) -> None:
        """These sessions are handed nothing more, and what they have in hand counts no more."""
        self._gone.update(sessions)

    def take_back(self, session: Session, gid: str) -> None:
        """Take from a session what is ready or in hand of a group: it comes again."""
        self.ready = [event for event in _less(self.ready, session, gid) if event.sessions]
        self._in_hand = list(_less(self._in_hand, session, gid))


def _without(events: Iterable[Event], gone: set[Session]) -> Iterator[Event]:
    """Yield events for those who are not gone. Who shared an audience shares one still."""
    audiences: dict[Recipients, Recipients] = {}
    for event in events:
        if event.audience not in audiences:
            audiences[event.audience] = event.audience.without(gone)
        if audiences[event.audience].sessions:
            yield event._replace(audience=audiences[event.audience])


def _less(events: Iterable[Event], session: Session, gid: str) -> Iterator[Event]:
    """Yield events; those of a group without one session, and so perhaps for nobody."""
    for event in events:
        is_of_group = isinstance(event, NewMessage) and event.message.gid == gid
        yield event._replace(audience=event.audience.without([session])) if is_of_group else event
