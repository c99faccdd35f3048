"""Who follows a group in one process, and what a pushed message means for them. No I/O.

Sessions that stand at the same place of a group share one feed, and one event tells all of them: so a message costs
much the same for one session of a group and for a thousand.
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from imcore.live.feed import Feed, Place
from imcore.values import Message, Receipt


@dataclass(eq=False, slots=True)
class Session:
    """One live client of a user. `feeds` has its place in each group; those at the same place share it.

    `resumed` are places that its former self may not have acked.
    """

    uid: str
    sid: str = field(default_factory=lambda: uuid.uuid4().hex)
    feeds: dict[str, Feed] = field(default_factory=dict)
    former: dict[str, Feed] = field(default_factory=dict)
    resumed: dict[str, Place] = field(default_factory=dict)
    entered: bool = False


class Audience:
    """Some sessions, as long as they are told the same."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        self.sessions = tuple(sessions)

    @cached_property
    def uids(self) -> tuple[str, ...]:
        """Whose sessions they are."""
        return tuple(dict.fromkeys(session.uid for session in self.sessions))

    def without(self, sessions: Iterable[Session]) -> "Audience":
        """Return the others."""
        gone = set(sessions)
        return Audience(session for session in self.sessions if session not in gone)


class Arrived(NamedTuple):
    """A message came, for all of an audience."""

    audience: Audience
    message: Message
    msgid: int
    """Packed."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        """For whom it came."""
        return self.audience.sessions


class Told(NamedTuple):
    """A user is told new tallies of their messages, in all their sessions here."""

    audience: Audience
    receipts: tuple[Receipt, ...]

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Who is told."""
        return self.audience.sessions


Event = Arrived | Told


class Room:
    """The sessions that follow one group."""

    def __init__(self, gid: str) -> None:
        self.gid = gid
        self._sessions: dict[Feed, dict[Session, None]] = {}
        self._audiences: dict[Feed, Audience] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def __iter__(self) -> Iterator[Session]:
        for sessions in list(self._sessions.values()):
            yield from list(sessions)

    def enter(self, session: Session, feed: Feed) -> None:
        """Let a session follow, from a feed that nobody else has."""
        session.feeds[self.gid] = feed
        self._sessions[feed] = {session: None}

    def leave(self, session: Session) -> Feed:
        """Let a session follow no more; return its place."""
        feed = session.feeds.pop(self.gid)
        sessions = self._sessions[feed]
        del sessions[session]
        self._audiences.pop(feed, None)
        if not sessions:
            del self._sessions[feed]
            return feed
        return Feed(self.gid, feed.msgid, feed.seq, feed.behind)

    def fall_behind(self, session: Session) -> None:
        """Let a session go on by itself: it has to pull, with the rights that it has."""
        if len(self._sessions[session.feeds[self.gid]]) > 1:
            self.enter(session, self.leave(session))
        session.feeds[self.gid].behind = True

    def pushed(self, message: Message, msgid: int) -> tuple[list[Arrived], list[Session]]:
        """Take a pushed message; return for whom it is the next one, and who has fallen behind."""
        arrived: list[Arrived] = []
        behind: list[Session] = []
        for feed in list(self._sessions):
            was_behind = feed.behind
            if feed.pushed(msgid, message.seq):
                arrived.append(Arrived(self.audience(feed), message, msgid))
            elif feed.behind and not was_behind:
                behind += self._sessions[feed]
        for session in behind:
            self.fall_behind(session)
        if len(self._sessions) > 1:
            self.gather()
        return arrived, behind

    def gather(self) -> None:
        """Let sessions share a feed that have come to the same place."""
        first: dict[tuple[int | None, int | None], Feed] = {}
        for feed in list(self._sessions):
            if feed.behind:
                continue
            shared = first.setdefault((feed.msgid, feed.seq), feed)
            if shared is not feed:
                self._merge(feed, shared)

    def audience(self, feed: Feed) -> Audience:
        """Return who shares a feed: the same as before, while nobody comes or goes."""
        if feed not in self._audiences:
            self._audiences[feed] = Audience(self._sessions[feed])
        return self._audiences[feed]

    def _merge(self, feed: Feed, into: Feed) -> None:
        for session in self._sessions[feed]:
            session.feeds[self.gid] = into
        self._sessions[into] |= self._sessions.pop(feed)
        self._audiences.pop(feed, None)
        self._audiences.pop(into, None)
