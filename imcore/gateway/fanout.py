"""Fan-out: the live sessions of this process that follow a group, and the events for them. No I/O.

Sessions at the same point of a group share one cursor, and one event is for all of them: a message costs much the same
for one session and for a thousand, and so does a pull.
"""

import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import dropwhile
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Message, Receipt
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import PullResult
from imcore.util.batches import batches

SESSIONS_PER_PULL = 1000
"""The server checks the membership of each."""


class ResumePoint(NamedTuple):
    """A session resumes a group after this message (packed msgid). The seq is None if it is unknown."""

    msgid: int
    seq: int | None = None


@dataclass(eq=False, slots=True)
class Cursor:
    """The position of sessions in one group.

    `msgid` (packed) and `seq` are those of the newest message handed over. Without a msgid the cursor begins at the
    user's ack offset, and the first pull finds the seq. While it is `behind`, it gets messages from pulls and ignores
    pushes: the next pull returns these messages too.
    """

    gid: str
    msgid: int | None = None
    seq: int | None = None
    behind: bool = True

    def pushed(self, msgid: int, seq: int) -> bool:
        """Take a pushed message; return whether it is the next one. After a gap in the seqs the cursor is behind."""
        if self.behind or self.seq is None:
            return False
        if seq == self.seq + 1:
            self.msgid, self.seq = msgid, seq
            return True
        self.behind = not self._has(msgid)
        return False

    def pulled(self, pulled: PullResult, page: MessagePage) -> list[Message]:
        """Handle a page of a pull; return its new messages. After the last page the cursor is not behind any more.

        If messages that Redis had lost came back before this point, the cursor returns to the offset: `msgid` is None.
        """
        if self._has_missed(pulled, page):
            self.msgid = self.seq = None
            return []
        new = list(dropwhile(lambda message: self._has(msgids.position_of(message.msgid)), page.messages))
        if new:
            self.msgid, self.seq = msgids.position_of(new[-1].msgid), new[-1].seq
        elif not page.more:
            self.seq, self.msgid = pulled.head_seq, max(pulled.start, self.msgid or 0)
        self.behind = page.more
        return new

    def _has_missed(self, pulled: PullResult, page: MessagePage) -> bool:
        """Return whether seqs have grown: then the group has more messages before this point than were handed over."""
        if self.seq is None or pulled.start != self.msgid:
            return False
        return (page.messages[0].seq - 1 if page.messages else pulled.head_seq) > self.seq

    def _has(self, msgid: int) -> bool:
        # A msgid is never given twice, but a server that lost its last second gives the same seqs again.
        return self.msgid is not None and msgid <= self.msgid


@dataclass(eq=False, slots=True)
class Session:
    """One live client of a user, `uid`; `sid` names it to the server.

    `is_synced`: it is subscribed, and its user's groups were fetched. `reconnects` counts the syncs after lost
    subscriptions.
    """

    uid: str
    sid: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_synced: bool = False
    reconnects: int = 0
    cursors: dict[str, Cursor] = field(default_factory=dict)
    """By gid, of the groups that it follows. Other sessions at the same point have the same cursor."""
    resume_points: dict[str, ResumePoint | None] = field(default_factory=dict)
    """By gid, of the groups that it does not follow now. None: at the user's ack offset."""
    as_recipients: "Recipients" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.as_recipients = Recipients([self])

    @property
    def gids(self) -> set[str]:
        return self.cursors.keys() | self.resume_points.keys()


class Recipients:
    """The sessions that an event is for."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        self.sessions = tuple(sessions)

    @cached_property
    def session_set(self) -> frozenset[Session]:
        return frozenset(self.sessions)

    @cached_property
    def uids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(session.uid for session in self.sessions))

    def without(self, sessions: Collection[Session]) -> "Recipients":
        if self.session_set.isdisjoint(sessions):
            return self
        left_out = frozenset(sessions)
        return Recipients(session for session in self.sessions if session not in left_out)


class NewMessage(NamedTuple):
    """A message for sessions of its group's members."""

    recipients: Recipients
    message: Message
    msgid: int
    """Packed."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


class ReceiptsChanged(NamedTuple):
    """New tallies of a user's own messages, for sessions of this user."""

    recipients: Recipients
    receipts: tuple[Receipt, ...]

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


Event = NewMessage | ReceiptsChanged


@dataclass(slots=True)
class DeliveryQueue:
    """Events go from `ready` to in flight, and are confirmed or requeued. Sessions that have ended get no more."""

    ready: list[Event] = field(default_factory=list)
    _in_flight: list[Event] = field(default_factory=list)
    _ended: set[Session] = field(default_factory=set)

    @property
    def in_flight(self) -> int:
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
        parts = ((event, event.recipients.session_set.intersection(sessions)) for event in self._in_flight)
        return [event._replace(recipients=Recipients(own)) for event, own in parts if own]

    def requeue(self, count: int) -> None:
        """Make the last `count` events in flight ready again, before all others."""
        at = len(self._in_flight) - count
        self.ready = self._in_flight[at:] + self.ready
        self._in_flight = self._in_flight[:at]

    def end(self, sessions: Iterable[Session]) -> None:
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


class GroupSubscribers:
    """The sessions of this process that follow one group, by cursor. Only this class changes their cursors.

    `is_subscribed`: the group's channel is subscribed, and every message from now on is pushed.
    """

    def __init__(self, gid: str) -> None:
        self.gid = gid
        self.is_subscribed = False
        self._sessions: dict[Cursor, dict[Session, None]] = {}
        self._live: dict[Cursor, None] = {}
        self._behind_at: dict[tuple[int | None, int | None], Cursor] = {}
        self._recipients: dict[Cursor, Recipients] = {}

    @property
    def is_empty(self) -> bool:
        return not self._sessions

    def __iter__(self) -> Iterator[Cursor]:
        yield from list(self._sessions)

    def sessions(self, cursor: Cursor) -> list[Session]:
        """Return the sessions at a cursor: an empty list once it was merged into another one."""
        return list(self._sessions.get(cursor, ()))

    def recipients(self, cursor: Cursor) -> Recipients:
        """Return the sessions at a cursor: the same object until one comes or goes."""
        if cursor not in self._recipients:
            self._recipients[cursor] = Recipients(self._sessions[cursor])
        return self._recipients[cursor]

    def add(self, session: Session, resume_point: ResumePoint | None) -> Cursor:
        """Add a session at a resume point, None for the user's ack offset. Its cursor is behind."""
        cursor = Cursor(self.gid, *(resume_point or ()))
        session.cursors[self.gid] = cursor
        self._sessions[cursor] = {session: None}
        return self._index(cursor)

    def remove(self, session: Session) -> ResumePoint | None:
        """Remove a session; return where it would resume, None for the user's ack offset."""
        cursor = session.cursors.pop(self.gid)
        self._recipients.pop(cursor, None)
        del self._sessions[cursor][session]
        if not self._sessions[cursor]:
            self._unindex(cursor)
            del self._sessions[cursor]
        return None if cursor.msgid is None else ResumePoint(cursor.msgid, cursor.seq)

    def fall_behind(self, cursor: Cursor) -> list[Cursor]:
        """Let the sessions at a cursor pull. Return their cursors: several if they are too many for one pull."""
        self._unindex(cursor)
        cursor.behind = True
        return list(dict.fromkeys(self._index(part) for part in [cursor, *self._split(cursor)]))

    def pushed(self, message: Message, msgid: int) -> tuple[list[NewMessage], list[Cursor]]:
        """Take a pushed message; return its events, and the cursors that have fallen behind."""
        events: list[NewMessage] = []
        behind: list[Cursor] = []
        for cursor in list(self._live):
            if cursor.pushed(msgid, message.seq):
                events.append(NewMessage(self.recipients(cursor), message, msgid))
            elif cursor.behind:
                behind += self.fall_behind(cursor)
        for cursor in list(self._live) if len(self._live) > 1 else ():
            if cursor in self._live:
                self._index(cursor)
        return events, behind

    def pulled(self, cursor: Cursor, pulled: PullResult, page: MessagePage) -> tuple[list[NewMessage], Cursor]:
        """Handle a page that was pulled for a cursor; return its events, and the cursor that the sessions have now."""
        recipients = self.recipients(cursor)
        self._unindex(cursor)
        events = [
            NewMessage(recipients, message, msgids.position_of(message.msgid))
            for message in cursor.pulled(pulled, page)
        ]
        return events, self._index(cursor)

    def _index(self, cursor: Cursor) -> Cursor:
        """Index a cursor by its point; merge it with the one that is there. Return the cursor of its sessions."""
        if not cursor.behind:
            self._live[cursor] = None
            present = next(each for each in self._live if (each.msgid, each.seq) == (cursor.msgid, cursor.seq))
        elif cursor.msgid is None:
            return cursor  # every user has an offset of their own
        else:
            present = self._behind_at.setdefault((cursor.msgid, cursor.seq), cursor)
        if present is cursor:
            return cursor
        if cursor.behind and len(self._sessions[cursor]) + len(self._sessions[present]) > SESSIONS_PER_PULL:
            self._behind_at[cursor.msgid, cursor.seq] = cursor
            return cursor
        smaller, larger = sorted((cursor, present), key=lambda each: len(self._sessions[each]))
        self._unindex(smaller)
        self._move(self.sessions(smaller), smaller, larger)
        return self._index(larger)

    def _unindex(self, cursor: Cursor) -> None:
        self._live.pop(cursor, None)
        if self._behind_at.get((cursor.msgid, cursor.seq)) is cursor:
            del self._behind_at[cursor.msgid, cursor.seq]

    def _split(self, cursor: Cursor) -> Iterator[Cursor]:
        """Yield new cursors at the same point for the sessions that are too many for one pull."""
        for sessions in batches(self.sessions(cursor)[SESSIONS_PER_PULL:], SESSIONS_PER_PULL):
            part = Cursor(self.gid, cursor.msgid, cursor.seq)
            self._sessions[part] = {}
            self._move(sessions, cursor, part)
            yield part

    def _move(self, sessions: Iterable[Session], cursor: Cursor, to: Cursor) -> None:
        for session in sessions:
            session.cursors[self.gid] = to
            del self._sessions[cursor][session]
            self._sessions[to][session] = None
        self._recipients.pop(cursor, None)
        self._recipients.pop(to, None)
        if not self._sessions[cursor]:
            del self._sessions[cursor]
