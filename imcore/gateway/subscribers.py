"""The live sessions of this process that follow one group, by their point in it. No I/O."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from imcore import msgid as msgids
from imcore.gateway.cursor import Cursor, ResumePoint
from imcore.gateway.fanout import Event, Gap, NewMessage, Recipients, Session
from imcore.model.values import Message
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import PullResult
from imcore.util.batches import batches, grouped

SESSIONS_PER_PULL = 1000
"""The server checks the membership of each."""


class GroupSubscribers:
    """The sessions of this process that follow one group, by cursor. Only this class changes their cursors.

    `is_subscribed`: the group's channel is subscribed, and every message from now on is pushed.
    """

    def __init__(self, gid: str) -> None:
        self.gid = gid
        self.is_subscribed = False
        self._sessions: dict[Cursor, dict[Session, None]] = {}
        self._live: dict[Cursor, None] = {}
        self._behind_at: dict[tuple[object, ...], Cursor] = {}
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
            sessions = self._sessions[cursor]
            alone = next(iter(sessions)).as_recipients if len(sessions) == 1 else None
            self._recipients[cursor] = alone or Recipients(sessions)
        return self._recipients[cursor]

    def add(self, session: Session, resume_point: ResumePoint | None) -> Cursor:
        """Add a session at a resume point, None for the user's ack offset. Its cursor is behind."""
        msgid, seq, handed = resume_point or (None, None, None)
        cursor = Cursor(self.gid, msgid, seq, session.most)
        if handed:
            cursor.process, cursor.is_pushed = handed.process, handed.is_pushed
            cursor.proof = None if handed.msgid == msgid else handed.msgid
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
        return cursor.resume_point

    def fall_behind(self, cursor: Cursor) -> list[Cursor]:
        """Let the sessions at a cursor pull. Return their cursors: several if one pull cannot be for all of them."""
        self._unindex(cursor)
        cursor.behind = True
        return list(dict.fromkeys(self._index(part) for part in self._split(cursor)))

    def pushed(self, msgid: int, message: Message, process: str) -> tuple[list[NewMessage], list[Cursor]]:
        """Take a pushed message; return its events, and the cursors that have fallen behind."""
        events: list[NewMessage] = []
        behind: list[Cursor] = []
        for cursor in list(self._live):
            if cursor.pushed(msgid, message.seq, process):
                events.append(NewMessage(self.recipients(cursor), message, msgid))
            elif cursor.behind:
                behind += self.fall_behind(cursor)
        for cursor in list(self._live) if len(self._live) > 1 else ():
            if cursor in self._live:
                self._index(cursor)
        return events, behind

    def pulled(self, cursor: Cursor, pulled: PullResult, page: MessagePage) -> tuple[list[Event], Cursor]:
        """Handle a page that was pulled for a cursor; return its events, and the cursor that the sessions have now."""
        recipients = self.recipients(cursor)
        self._unindex(cursor)
        events: list[Event] = []
        if pulled.left_out:
            first, last = map(msgids.unpack, (pulled.left_out.first, pulled.start))
            events.append(Gap(recipients, self.gid, first, last))
            for session in recipients.sessions:
                session.whole_after[self.gid] = pulled.start
        events += [
            NewMessage(recipients, message, msgids.position_of(message.msgid))
            for message in cursor.pulled(pulled, page)
        ]
        return events, self._index(cursor)

    def _index(self, cursor: Cursor) -> Cursor:
        """Index a cursor by its point; merge it with the one that is there. Return the cursor of its sessions."""
        if not cursor.behind:
            self._live[cursor] = None
            where = cursor.msgid, cursor.seq, cursor.process
            present = next(each for each in self._live if (each.msgid, each.seq, each.process) == where)
        elif cursor.msgid is None:
            return cursor  # every user has an offset of their own
        else:
            present = self._behind_at.setdefault(cursor.point, cursor)
        if present is cursor:
            return cursor
        if cursor.behind and len(self._sessions[cursor]) + len(self._sessions[present]) > SESSIONS_PER_PULL:
            self._behind_at[cursor.point] = cursor
            return cursor
        smaller, larger = sorted((cursor, present), key=lambda each: len(self._sessions[each]))
        self._unindex(smaller)
        self._move(self.sessions(smaller), smaller, larger)
        return self._index(larger)

    def _unindex(self, cursor: Cursor) -> None:
        self._live.pop(cursor, None)
        if self._behind_at.get(cursor.point) is cursor:
            del self._behind_at[cursor.point]

    def _split(self, cursor: Cursor) -> Iterator[Cursor]:
        """Yield cursors at the same point, beginning with this one: each for sessions that one pull can be for."""
        by_most = grouped((session.most, session) for session in self.sessions(cursor))
        parts = [(most, part) for most, same in by_most.items() for part in batches(same, SESSIONS_PER_PULL)]
        for number, (most, sessions) in enumerate(parts):
            part = cursor
            if number:
                part = replace(cursor)
                self._sessions[part] = {}
                self._move(sessions, cursor, part)
            part.most = most
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
