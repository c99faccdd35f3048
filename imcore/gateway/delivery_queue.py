"""The events of a gateway: ready for the caller, or in flight, which is returned and not confirmed. No I/O."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from imcore.gateway.fanout import Event, NewMessage, Recipients, Session


@dataclass(slots=True)
class DeliveryQueue:
    """Events go from `ready` to in flight, and are confirmed or requeued. Sessions that have ended get no more."""

    ready: list[Event] = field(default_factory=list)
    _in_flight: list[Event] = field(default_factory=list)
    _ended: set[Session] = field(default_factory=set)

    @property
    def in_flight(self) -> int:
        """How many events are in flight."""
        return len(self._in_flight)

    def take(self) -> list[Event]:
        """Return the events that are ready, in order: they are in flight now."""
        taken = list(_without(self.ready, self._ended)) if self._ended else self.ready
        self._ended.clear()
        self._in_flight, self.ready = taken, []
        return taken

    def confirm(self) -> list[Event]:
        """End the flight of all events; return them, for the sessions that have not ended."""
        confirmed = list(_without(self._in_flight, self._ended)) if self._ended else self._in_flight
        self._in_flight = []
        return confirmed

    def in_flight_of(self, sessions: Collection[Session]) -> list[Event]:
        """Return the events in flight for these sessions alone."""
        parts = ((event, event.recipients.session_set.intersection(sessions)) for event in self._in_flight)
        return [event._replace(recipients=Recipients(own)) for event, own in parts if own]

    def requeue(self, count: int) -> None:
        """Make the last `count` events in flight ready again, before all others."""
        at = len(self._in_flight) - count
        self.ready = self._in_flight[at:] + self.ready
        self._in_flight = self._in_flight[:at]

    def end(self, sessions: Iterable[Session]) -> None:
        """Take sessions out of all events."""
        self._ended.update(sessions)

    def retract(self, session: Session, gid: str) -> None:
        """Take a session out of the events of a group, whose messages it will get again."""
        self.ready = [event for event in _less(self.ready, session, gid) if event.sessions]
        self._in_flight = list(_less(self._in_flight, session, gid))


def _without(events: Iterable[Event], ended: set[Session]) -> Iterator[Event]:
    """Yield events for the other sessions. Events that shared their recipients still do."""
    left: dict[Recipients, Recipients] = {}
    for event in events:
        if event.recipients not in left:
            left[event.recipients] = event.recipients.without(ended)
        if left[event.recipients].sessions:
            yield event._replace(recipients=left[event.recipients])


def _less(events: Iterable[Event], session: Session, gid: str) -> Iterator[Event]:
    """Yield events; those of a group without one session, and perhaps without any."""
    for event in events:
        is_of_group = isinstance(event, NewMessage) and event.message.gid == gid
        yield event._replace(recipients=event.recipients.without([session])) if is_of_group else event
