"""Fan-out: the live sessions of this process that follow a group, and the events for them. No I/O.

Sessions at the same point of a group share one cursor, and one event is for all of them: a message costs much the same
for one session and for a thousand, and so does a pull.
"""

import uuid
from collections.abc import Collection, Iterable, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Message, Receipt

if TYPE_CHECKING:
    from imcore.gateway.cursor import Cursor, ResumePoint


class SessionStart(NamedTuple):
    """The beginning of a session in one group, at the time of `open`.

    `begin`, `offset` and `last`, the newest message, are packed msgids. `unread` is the user's count; None if only SQL
    knows it: ask `Chat.unread`.
    """

    begin: int
    offset: int
    last: int
    unread: int | None

    @property
    def after(self) -> str | None:
        """The msgid after which the session goes on; None at the beginning of the group."""
        return msgids.unpack_offset(self.begin)

    @property
    def last_ack_msgid(self) -> str | None:
        return msgids.unpack_offset(self.offset)

    @property
    def last_msgid(self) -> str | None:
        """The msgid of the newest message; None for an empty group."""
        return msgids.unpack_offset(self.last)


@dataclass(eq=False, slots=True)
class Session:
    """One live client of a user, `uid`; `sid` names it to the server. `tag` is the caller's.

    `starts` says for each of the user's groups where the session began. `is_synced`: it is subscribed, and its user's
    groups were fetched. `reconnects` counts the syncs after lost subscriptions and pauses: receipts may have been
    missed. `silent`: the partitions of a cluster whose groups it does not have yet, since their node has not answered;
    it is told of each as of one that was joined, once that node is back. Read it in the thread of its gateway; only
    `tag` may be changed.
    """

    uid: str
    most: int | None = None
    tag: Any = None
    sid: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_synced: bool = False
    is_paused: bool = False
    reconnects: int = 0
    silent: tuple[int, ...] = ()
    starts: MutableMapping[str, SessionStart] = field(default_factory=dict)
    """By gid, of the groups of its user at `open`."""
    cursors: "MutableMapping[str, Cursor]" = field(default_factory=dict)
    """By gid, of the groups that it follows. Other sessions at the same point have the same cursor."""
    resume_points: "MutableMapping[str, ResumePoint | None]" = field(default_factory=dict)
    """By gid, of the groups that it does not follow now. None: at the user's ack offset."""
    whole_after: MutableMapping[str, int] = field(default_factory=dict)
    """By gid, of groups in which it was handed no message up to here (packed), though its user may not have them."""
    known_offsets: MutableMapping[str, int] = field(default_factory=dict)
    """By gid, the newest offset (packed) that its client knows: it has acked so far, or was told. See `starts`, too."""
    known_bookmarks: MutableMapping[str, tuple[int, int] | None] = field(default_factory=dict)
    """By gid, what lies beside the offset, where there was anything; None if it has changed since it was asked for."""
    acks_privately: bool = False
    """Whether an ack of it has left its user's offset behind: the user's receipts are off."""
    paused_gids: set[str] | None = None
    """While it follows nothing, since it is paused: the groups that it follows again once it is resumed."""
    whole: "Session | None" = field(default=None, repr=False)
    """The session of the caller of which this is the part in one lane."""
    parts: "tuple[Session, ...]" = field(default=(), repr=False)
    """Those in the lanes, by partition. The fields by gid show those of all of them."""
    beats: bool = True
    """Whether it is kept alive at the server: a part is if its lane has the partition of its user."""
    is_late: bool = False
    """Whether its partition was silent when the caller got the session."""
    as_recipients: "Recipients" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.as_recipients = Recipients([self])

    @property
    def is_held(self) -> bool:
        """Whether it follows nothing, since it is paused."""
        return self.paused_gids is not None

    @property
    def gids(self) -> set[str]:
        return self.cursors.keys() | self.resume_points.keys()

    def whole_since(self, gid: str, msgid: int) -> int | None:
        """Return since when (packed; 0: since its user has read) it was handed all messages of a group up to this one.

        None if it was not handed this one.
        """
        point = self.cursors.get(gid) or self.resume_points.get(gid)
        if point is None or point.msgid is None or msgid > point.msgid:
            return None
        since = self.whole_after.get(gid, 0)
        return since if msgid > since else None

    def synced(self) -> None:
        """Note that it is subscribed, and that its user's groups were fetched."""
        if self.is_synced:
            self.reconnects += 1
        self.is_synced = True
        if whole := self.whole:
            whole.is_synced = all(part.is_synced for part in whole.parts)
            whole.reconnects = sum(part.reconnects for part in whole.parts)

    def forget_position(self, gid: str) -> None:
        """Note that the client was not told the newest position of its user after all."""
        self.known_offsets.pop(gid, None)
        self.known_bookmarks[gid] = None


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

    @cached_property
    def whole(self) -> "Recipients":
        """The sessions of the caller: these are their parts in one lane."""
        return Recipients(session.whole or session for session in self.sessions)

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


class PositionMoved(NamedTuple):
    """The user of sessions has read a group on another device, perhaps in private, or has marked messages there.

    `last_ack_msgid` is the offset; None before the first message. Unread counts may have changed though it has not.
    What the user sends moves the offset, too, if they had read all before it: a session is told so as it syncs.
    """

    recipients: Recipients
    gid: str
    last_ack_msgid: str | None

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


class Gap(NamedTuple):
    """Messages of a group that sessions with `most` are not handed: the first and the last that are left out."""

    recipients: Recipients
    gid: str
    from_msgid: str
    to_msgid: str

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


class Rewound(NamedTuple):
    """The server does not have the messages of a group that sessions were handed after `after_msgid`: forget them.

    What it has after that message comes again. None: the client forgets all messages of the group. It comes after a
    failover to a replica that lagged, and where a server was replaced while it was stopped: as it woke up, it sent
    messages that nobody has.
    """

    recipients: Recipients
    gid: str
    after_msgid: str | None

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


class Joined(NamedTuple):
    """The user of a session has joined a group since it was opened. Messages of the group come after this."""

    recipients: Recipients
    gid: str

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


class Left(NamedTuple):
    """The user of a session has left a group. No message of the group comes after this, unless they join again."""

    recipients: Recipients
    gid: str

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


class Ended(NamedTuple):
    """The sessions have ended, since their user was erased: let their clients go. Nothing comes after this."""

    recipients: Recipients

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.recipients.sessions


News = NewMessage | ReceiptsChanged | PositionMoved | Gap | Rewound | Joined | Left
Event = News | Ended
