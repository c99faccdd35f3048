"""The events that are ready for sessions, and those in flight to them. No I/O."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from imcore import msgid as msgids
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import (
    Ended,
    Event,
    Gap,
    Joined,
    Left,
    NewMessage,
    PositionMoved,
    Recipients,
    Rewound,
    Session,
)
from imcore.streams.calls.message_calls import UNKNOWN, HandedMessage


@dataclass(slots=True)
class DeliveryQueue:
    """Events go from `ready` to in flight, and are confirmed or requeued. Sessions that have ended get no more.

    A session that is paused gets none either: it resumes before its first event that was not taken.
    """

    ready: list[Event] = field(default_factory=list)
    _in_flight: list[Event] = field(default_factory=list)
    _ended: set[Session] = field(default_factory=set)
    _paused: set[Session] = field(default_factory=set)
    """Sessions that were paused since the last `take`, or have ready events again."""

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def take(self) -> list[Event]:
        """Return the events that are ready, in order: they are in flight now."""
        self._put_back_paused()
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
        parts = ((event, event.recipients.session_set.intersection(sessions)) for event in self._in_flight)
        return [event._replace(recipients=Recipients(own)) for event, own in parts if own]

    def requeue(self, count: int) -> None:
        """Make the last `count` events in flight ready again, before all others."""
        at = len(self._in_flight) - count
        requeued = self._in_flight[at:]
        self.ready = requeued + self.ready
        self._in_flight = self._in_flight[:at]
        for recipients in {event.recipients for event in requeued}:
            self._paused.update(session for session in recipients.sessions if session.is_paused)

    def pause(self, session: Session) -> None:
        self._paused.add(session)

    def _put_back_paused(self) -> None:
        """Take paused sessions out of the ready events, all at once: one of them costs the others nothing."""
        paused = {session for session in self._paused if session.is_paused} if self._paused else ()
        self._paused.clear()
        if paused and self.ready:
            for event in reversed(self.ready):
                for session in event.recipients.session_set.intersection(paused):
                    _put_back(session, event)
            self.ready = list(_without(self.ready, paused))

    def end(self, sessions: Iterable[Session]) -> None:
        self._ended.update(sessions)

    def told_end(self, session: Session) -> None:
        """Take a session out of all ready events, and let it get one more, which says that it has ended."""
        self.ready = [*_without(self.ready, [session]), Ended(session.as_recipients)]
        self._ended.discard(session)

    def retract(self, session: Session, gid: str, after: int = msgids.NONE) -> None:
        """Take a session out of the events of a group after a message (packed): it will get what the server has."""
        self.ready = [event for event in _less(self.ready, session, gid, after) if event.sessions]
        self._in_flight = list(_less(self._in_flight, session, gid, after))


def _without(events: Iterable[Event], ended: Collection[Session]) -> Iterator[Event]:
    """Yield events for the other sessions. Events that shared their recipients still do."""
    left: dict[Recipients, Recipients] = {}
    for event in events:
        if event.recipients not in left:
            left[event.recipients] = event.recipients.without(ended)
        if left[event.recipients].sessions:
            yield event._replace(recipients=left[event.recipients])


def _less(events: Iterable[Event], session: Session, gid: str, after: int) -> Iterator[Event]:
    """Yield events; messages and gaps of a group after a position without one session, and perhaps without any."""
    for event in events:
        is_of_group = (isinstance(event, NewMessage) and event.message.gid == gid and event.msgid > after) or (
            isinstance(event, Gap) and event.gid == gid and msgids.pack(event.to_msgid) > after
        )
        yield event._replace(recipients=event.recipients.without([session])) if is_of_group else event


def _resume_before(session: Session, gid: str, msgid: int, seq: int | None = None) -> None:
    """Let a session resume before a message (packed), which the server has if it has what the session was handed."""
    point = session.resume_points.get(gid)
    process = point.handed.process if point and point.handed else UNKNOWN
    session.resume_points[gid] = ResumePoint(msgid - 1, seq, HandedMessage(msgid, process))


def _put_back(session: Session, event: Event) -> None:
    """Let a paused session resume before an event. Receipts need nothing: they are fetched once it is resumed."""
    gids = session.paused_gids if session.paused_gids is not None else set()
    if isinstance(event, NewMessage):
        gids.add(event.message.gid)
        _resume_before(session, event.message.gid, event.msgid, event.message.seq - 1)
    elif isinstance(event, Gap):
        gids.add(event.gid)
        _resume_before(session, event.gid, msgids.pack(event.from_msgid))
    elif isinstance(event, Rewound):
        gids.add(event.gid)
        # No server has this message: so it is told again where to begin anew.
        lost = HandedMessage(msgids.HIGHEST, UNKNOWN)
        session.resume_points[event.gid] = ResumePoint(msgids.position_of(event.after_msgid or "0-0"), handed=lost)
    elif isinstance(event, PositionMoved):
        session.forget_position(event.gid)
    elif isinstance(event, Left):
        gids.add(event.gid)
    elif isinstance(event, Joined):
        gids.discard(event.gid)
