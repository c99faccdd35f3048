"""Who follows a group in one process, and what a pushed message means for them. No I/O.

Sessions that stand at the same place of a group share one feed, and one event tells all of them: so a message costs
much the same for one session of a group and for a thousand, and so does a pull.
"""

import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.gateway.cursor import Cursor, ResumePoint
from imcore.model.values import Message, Receipt
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import PullResult

MOST_AT_A_PULL = 1000
"""How many sessions one pull is for, at most: the server looks at the rights of each."""


@dataclass(eq=False, slots=True)
class Session:
    """One live client of a user, `uid`; `sid` names it to the server.

    `entered`: it hears of everything, for what came before that has been asked for. `reconnects`: how often it has been
    entered anew since, after the subscription was lost; what was pushed in between it has been told by asking.
    """

    uid: str
    sid: str = field(default_factory=lambda: uuid.uuid4().hex)
    entered: bool = False
    reconnects: int = 0
    feeds: dict[str, Cursor] = field(default_factory=dict)
    """Its place in each group that it follows; those at the same place share it."""
    former: dict[str, ResumePoint | None] = field(default_factory=dict)
    """Where it goes on in groups that it does not follow now; None: from its offset, wherever that stands."""
    alone: "Recipients" = field(init=False, repr=False)
    """The audience of this session and no other."""

    def __post_init__(self) -> None:
        self.alone = Recipients([self])

    @property
    def gids(self) -> set[str]:
        """The groups in which it was handed something, perhaps."""
        return self.feeds.keys() | self.former.keys()


class Recipients:
    """Some sessions, as long as they are told the same."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        self.sessions = tuple(sessions)

    @cached_property
    def members(self) -> frozenset[Session]:
        """The sessions, to look one up."""
        return frozenset(self.sessions)

    @cached_property
    def uids(self) -> tuple[str, ...]:
        """Whose sessions they are."""
        return tuple(dict.fromkeys(session.uid for session in self.sessions))

    def without(self, sessions: Collection[Session]) -> "Recipients":
        """Return the others."""
        if self.members.isdisjoint(sessions):
            return self
        gone = frozenset(sessions)
        return Recipients(session for session in self.sessions if session not in gone)


class NewMessage(NamedTuple):
    """A message came, for all of an audience."""

    audience: Recipients
    message: Message
    msgid: int
    """Packed."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        """For whom it came."""
        return self.audience.sessions


class ReceiptsChanged(NamedTuple):
    """A user is told new tallies of their messages, in sessions of theirs."""

    audience: Recipients
    receipts: tuple[Receipt, ...]

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Who is told."""
        return self.audience.sessions


Event = NewMessage | ReceiptsChanged


class GroupSubscribers:
    """The sessions that follow one group. Their feeds change here only, so that those at one place are found.

    It `stands` once its channel is listened to: what is sent from then on is pushed.
    """

    def __init__(self, gid: str) -> None:
        self.gid = gid
        self.stands = False
        self._sessions: dict[Cursor, dict[Session, None]] = {}
        self._live: dict[Cursor, None] = {}
        self._behind_at: dict[tuple[int | None, int | None], Cursor] = {}
        self._audiences: dict[Cursor, Recipients] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody follows it."""
        return not self._sessions

    def __iter__(self) -> Iterator[Cursor]:
        yield from list(self._sessions)

    def sessions(self, feed: Cursor) -> list[Session]:
        """Return who shares a feed: nobody, once it has gone up in another."""
        return list(self._sessions.get(feed, ()))

    def audience(self, feed: Cursor) -> Recipients:
        """Return who shares a feed: the same as before, while nobody comes or goes."""
        if feed not in self._audiences:
            self._audiences[feed] = Recipients(self._sessions[feed])
        return self._audiences[feed]

    def enter(self, session: Session, place: ResumePoint | None) -> Cursor:
        """Let a session follow from a place on, or from wherever its offset stands. It is behind."""
        feed = Cursor(self.gid, *(place or ()))
        session.feeds[self.gid] = feed
        self._sessions[feed] = {session: None}
        return self._settle(feed)

    def leave(self, session: Session) -> ResumePoint | None:
        """Let a session follow no more; return its place, if it has one."""
        feed = session.feeds.pop(self.gid)
        self._audiences.pop(feed, None)
        del self._sessions[feed][session]
        if not self._sessions[feed]:
            self._unsettle(feed)
            del self._sessions[feed]
        return None if feed.msgid is None else ResumePoint(feed.msgid, feed.seq)

    def fall_behind(self, feed: Cursor) -> list[Cursor]:
        """Let those who share a feed pull; return their feeds now, none of more than one pull may be for."""
        self._unsettle(feed)
        feed.behind = True
        return list(dict.fromkeys(self._settle(part) for part in [feed, *self._split(feed)]))

    def pushed(self, message: Message, msgid: int) -> tuple[list[NewMessage], list[Cursor]]:
        """Take a pushed message; return for whom it is the next one, and which feeds have fallen behind."""
        arrived: list[NewMessage] = []
        behind: list[Cursor] = []
        for feed in list(self._live):
            if feed.pushed(msgid, message.seq):
                arrived.append(NewMessage(self.audience(feed), message, msgid))
            elif feed.behind:
                behind += self.fall_behind(feed)
        for feed in list(self._live) if len(self._live) > 1 else ():
            if feed in self._live:
                self._settle(feed)
        return arrived, behind

    def pulled(self, feed: Cursor, pulled: PullResult, page: MessagePage) -> tuple[list[NewMessage], Cursor]:
        """Take what those who share a feed have pulled; return it, and the feed that they share now.

        If that has no msgid, each has to begin again at the offset.
        """
        audience = self.audience(feed)
        self._unsettle(feed)
        new = feed.pulled(pulled, page)
        return [NewMessage(audience, message, msgids.position_of(message.msgid)) for message in new], self._settle(feed)

    def _settle(self, feed: Cursor) -> Cursor:
        """Note where a feed is; let it share with those who are there. Return the feed that they have then."""
        if not feed.behind:
            self._live[feed] = None
            there = next(each for each in self._live if (each.msgid, each.seq) == (feed.msgid, feed.seq))
        elif feed.msgid is None:
            return feed  # each has an offset of their own
        else:
            there = self._behind_at.setdefault((feed.msgid, feed.seq), feed)
        if there is feed:
            return feed
        if feed.behind and len(self._sessions[feed]) + len(self._sessions[there]) > MOST_AT_A_PULL:
            self._behind_at[feed.msgid, feed.seq] = feed
            return feed
        return self._merge(feed, there)

    def _unsettle(self, feed: Cursor) -> None:
        self._live.pop(feed, None)
        if self._behind_at.get((feed.msgid, feed.seq)) is feed:
            del self._behind_at[feed.msgid, feed.seq]

    def _merge(self, feed: Cursor, there: Cursor) -> Cursor:
        fewer, more = sorted((feed, there), key=lambda each: len(self._sessions[each]))
        self._unsettle(fewer)
        self._move(self.sessions(fewer), fewer, more)
        return self._settle(more)

    def _split(self, feed: Cursor) -> Iterator[Cursor]:
        """Yield new feeds at the same place for those who are too many for one pull."""
        sessions = self.sessions(feed)
        for start in range(MOST_AT_A_PULL, len(sessions), MOST_AT_A_PULL):
            part = Cursor(self.gid, feed.msgid, feed.seq)
            self._sessions[part] = {}
            self._move(sessions[start : start + MOST_AT_A_PULL], feed, part)
            yield part

    def _move(self, sessions: Iterable[Session], feed: Cursor, to: Cursor) -> None:
        for session in sessions:
            session.feeds[self.gid] = to
            del self._sessions[feed][session]
            self._sessions[to][session] = None
        self._audiences.pop(feed, None)
        self._audiences.pop(to, None)
        if not self._sessions[feed]:
            del self._sessions[feed]
