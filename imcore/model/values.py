"""The values of the public API: small, frozen, without behaviour."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from imcore import msgid as msgids


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message. `seq` is its dense number within the group; `sent_at` is what the sender's client claimed.

    A recalled message has lost its content and `meta`. A message that `recalls` another one (its msgid) is its
    tombstone, which has neither, and is never unread. `meta` is the sender's JSON object: nothing here reads it.
    `recipients`: how many members a message has gone to, without its sender. Only what a send returns says that.
    """

    gid: str
    msgid: str
    seq: int
    sender_uid: str
    content: str
    client_msgid: str | None = None
    sent_at: datetime | None = None
    recalled: bool = False
    recalls: str | None = None
    meta: Mapping[str, Any] | None = field(default=None, hash=False)
    recipients: int | None = field(default=None, compare=False)

    @property
    def time(self) -> datetime:
        """When the server stored it, in UTC (the first half of the msgid)."""
        return msgids.time_of(self.msgid)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Messages, oldest first. `older` and `newer`: whether visible messages come before the first, and after the last.

    For an empty page: before and after the msgid that was asked for.
    """

    messages: tuple[Message, ...]
    older: bool
    newer: bool


@dataclass(frozen=True, slots=True)
class DeletedGroup:
    """A group that is gone, and how many messages it had."""

    gid: str
    messages: int


@dataclass(frozen=True, slots=True)
class Group:
    """A chat group: how many members and messages it has. `last_msgid` is None while it has no message."""

    gid: str
    members: int
    messages: int
    last_msgid: str | None


@dataclass(frozen=True, slots=True)
class Member:
    """A current member: offset (None before the first message), unread messages, and whether a session is alive."""

    gid: str
    uid: str
    last_ack_msgid: str | None
    unread: int
    online: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to an ack: the offset now, and whether this ack moved it."""

    gid: str
    uid: str
    last_ack_msgid: str | None
    advanced: bool


@dataclass(frozen=True, slots=True)
class Unread:
    """The unread messages of one member in one group, and the two positions behind that count, all of one moment.

    `marked`: the member has marked messages unread, from one of them on.
    """

    gid: str
    unread: int
    last_msgid: str | None
    last_ack_msgid: str | None
    marked: bool = False


class UnreadCounts(list[Unread]):
    """The unread counts of a user, by group.

    `silent`: the partitions of a cluster whose node did not answer, in order. Groups in them are left out.
    """

    def __init__(self, counts: Iterable[Unread] = (), *, silent: Iterable[int] = ()) -> None:
        super().__init__(counts)
        self.silent = tuple(silent)


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A group in the inbox of a member. All its values are of one moment.

    `message` is the newest that they may see and that is neither recalled nor a tombstone; None without one. `marked`:
    see `Unread`.
    """

    gid: str
    unread: int
    marked: bool
    first_unread_msgid: str | None
    message: Message | None


@dataclass(frozen=True, slots=True)
class InboxPage:
    """A page of a user's groups, and the totals of all of them: how many there are, in how many how much is unread.

    The next page begins with `after=next`; None after the last one. `silent`: the partitions of a cluster whose node
    did not answer. Groups in them are left out, of the totals, too.
    """

    entries: tuple[InboxEntry, ...]
    groups: int
    unread_groups: int
    unread: int
    next: str | None
    silent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tally:
    """The numbers of recipients who have read a message and who have not. The two add up to its recipients.

    `delivered` counts those at a client of whom it has arrived, all readers among them.
    """

    gid: str
    msgid: str
    read: int
    unread: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """The tally of a message, for its sender. A confirmed receipt is delivered again when it has changed again."""

    gid: str
    msgid: str
    read: int
    unread: int
    delivered: int
    version: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """A message in a client's local database.

    `state` is given for own messages: waiting, refused (never to be stored), stored, read 3/7, or read by all.
    A message without a msgid has not reached the server; its time is then the client's own. A recalled one has lost its
    content and meta.
    """

    gid: str
    msgid: str | None
    time: datetime
    sender_uid: str
    content: str
    client_msgid: str | None
    state: str | None
    recalled: bool = False
    meta: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class ErasedUser:
    """A user of whom nothing is stored any more, and how many messages have no text and no name since then."""

    uid: str
    messages: int


@dataclass(frozen=True, slots=True)
class MessageTally:
    message: Message
    read: int
    unread: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A member's delivered position in a group. `advanced`: this call has moved it.

    `last_delivered_msgid` is None before the first message. It is never before the offset.
    """

    gid: str
    uid: str
    last_delivered_msgid: str | None
    advanced: bool


@dataclass(frozen=True, slots=True)
class Reader:
    """A member who has read a message. `read_at` is None until the worker `persist` has stored their ack."""

    uid: str
    read_at: datetime | None


@dataclass(frozen=True, slots=True)
class MessageStatus:
    """A message, its tally, and the names behind that, in order of uid. `delivered_to` has the readers, too.

    A user who is told numbers only gets no names: then `has_names` is False.
    """

    message: Message
    read: int
    unread: int
    delivered: int
    read_by: tuple[Reader, ...] = ()
    unread_by: tuple[str, ...] = ()
    delivered_to: tuple[str, ...] = ()
    has_names: bool = True


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """The receipt policy of a group.

    `receipts`: `names`, `counts` or `off`. `asked_by`: `sender` (of a message) or `members`.
    """

    gid: str
    receipts: str
    asked_by: str


@dataclass(frozen=True, slots=True)
class UserPolicy:
    """A user's own choice. While `receipts` is `off` (else `on`) they read in private, and are told no names."""

    uid: str
    receipts: str


@dataclass(frozen=True, slots=True)
class Why:
    """Why a user has not read a message, or that they have.

    `why` is the first that applies of `sender` (they have sent it), `not-a-member` (as it was sent), `receipts-off`
    (they tell nobody), `read`, `left` (without having read it), `delivered` (to a client of theirs), `online`,
    `offline`. `since` is when they read it, left, or were seen last; None for other words, or if that is not known.
    """

    gid: str
    msgid: str
    uid: str
    why: str
    since: datetime | None


class Draft(NamedTuple):
    sender_uid: str
    content: str
    client_msgid: str = ""
    sent_at_ms: int | None = None
    meta: Mapping[str, Any] | None = None
