"""The events of the journal: one small value for each kind of entry. No I/O.

Msgids are packed. An entry that cannot be read is Malformed, for the worker to bury, and never an exception.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS, USER_RECEIPTS
from imcore.msgid import HIGHEST
from imcore.streams.keys import RECORD_SEPARATOR, SEPARATOR

Fields = dict[bytes, bytes]


class Created(NamedTuple):
    gid: str


class SpanBegun(NamedTuple):
    """A membership began after `joined`."""

    gid: str
    uid: str
    joined: int


class SpanEnded(NamedTuple):
    """The membership that had begun after `joined` ended with `left`."""

    gid: str
    uid: str
    joined: int
    left: int


class Sent(NamedTuple):
    """This number of messages was stored, from `first` to `last`."""

    gid: str
    first: int
    last: int
    messages: int


class Move(NamedTuple):
    """The offsets of memberships that had begun after `joined` moved from `start` to `to`."""

    joined: int
    start: int
    to: int
    uids: tuple[str, ...]


class Acked(NamedTuple):
    gid: str
    moves: tuple[Move, ...]


class Delivered(NamedTuple):
    """Messages have arrived at clients of members: how far, in the form of moves."""

    gid: str
    moves: tuple[Move, ...]


class BookmarkChange(NamedTuple):
    """The bookmark that members have now in memberships that had begun after `joined`; see `lua/positions.lua`.

    Read in private up to `private`, marked unread after `mark`; 0 for neither.
    """

    joined: int
    private: int
    mark: int
    uids: tuple[str, ...]


class BookmarksSet(NamedTuple):
    gid: str
    bookmarks: tuple[BookmarkChange, ...]


class PolicySet(NamedTuple):
    """A group's policy is this now; see `imcore.model.values.GroupPolicy`."""

    gid: str
    receipts: str
    asked_by: str


class UserSet(NamedTuple):
    """A user's receipts are `on` or `off` now."""

    uid: str
    receipts: str


class Confirmation(NamedTuple):
    """A sender has confirmed how many have `read` a message, and at how many it had arrived."""

    gid: str
    msgid: int
    read: int
    delivered: int


class Confirmed(NamedTuple):
    tallies: tuple[Confirmation, ...]


class Malformed(NamedTuple):
    """An entry that this program cannot read, and why."""

    reason: str


KIND_NAMES: Mapping[type, str] = {
    Created: "created",
    SpanBegun: "joined",
    SpanEnded: "left",
    Sent: "sent",
    Acked: "acked",
    Delivered: "delivered",
    BookmarksSet: "bookmarks",
    PolicySet: "policy",
    UserSet: "user",
    Confirmed: "confirmed",
    Malformed: "malformed",
}
"""The names of the kinds in metrics. These names do not change."""

_Setting = BookmarksSet | PolicySet | UserSet
Event = Created | SpanBegun | SpanEnded | Sent | Acked | Delivered | _Setting | Confirmed | Malformed


class Entry(NamedTuple):
    """An entry of a partition's journal.

    For a requeued dead letter `of` is its first id, and `kind` the kind of worker that it is for; else both are ''.
    """

    partition: int
    id: str
    event: Event
    of: str = ""
    kind: str = ""

    @property
    def time_ms(self) -> int:
        """The time of the event, in ms since 1970."""
        return int((self.of or self.id).partition("-")[0])

    @property
    def version(self) -> int:
        """The packed id: a later event of the partition has a higher one."""
        return msgids.pack_id((self.of or self.id).encode())


def read(partition: int, entry_id: bytes, fields: Fields | None) -> Entry:
    """Return the entry of raw fields; None: it was deleted after it was read."""
    text = entry_id.decode()
    if fields is None:
        return Entry(partition, text, Malformed("it was deleted from the journal"))
    kind = fields[b"for"].decode(errors="replace") if b"for" in fields else ""
    try:
        of = fields.get(b"of", b"")
        of_text = of.decode() if of and msgids.pack_id(of) else ""
        return Entry(partition, text, _KINDS[fields[b"kind"]](fields), of_text, kind)
    except (KeyError, ValueError) as error:
        return Entry(partition, text, Malformed(f"it cannot be read: {error!r}"), kind=kind)


def _gid(fields: Fields) -> str:
    return fields[b"gid"].decode()


def _membership(fields: Fields) -> tuple[str, str, int]:
    return _gid(fields), fields[b"uid"].decode(), _position(fields[b"joined"])


def _position(text: bytes) -> int:
    packed = int(text)
    if packed > HIGHEST:
        raise ValueError("no message can have such an id")
    return packed


def _sent(fields: Fields) -> Event:
    first = last = msgids.pack_id(fields[b"first"])
    messages = 1
    if b"last" in fields:  # it is left out where there is one message only
        last, messages = msgids.pack_id(fields[b"last"]), int(fields[b"n"])
    if not (0 < first <= last <= HIGHEST and messages > 0):
        raise ValueError("not a range of messages")
    return Sent(_gid(fields), first, last, messages)


def _records(text: bytes) -> list[str]:
    return text.decode().split(RECORD_SEPARATOR)


def _move(record: str) -> Move:
    joined_text, start_text, to_text, uids = record.split(SEPARATOR, 3)
    joined, start, to = int(joined_text), int(start_text), int(to_text)
    if max(joined, start, to) > HIGHEST:
        raise ValueError("no message can have such an id")
    return Move(joined, start, to, _names(uids))


@lru_cache(maxsize=256)
def _names(joined: str) -> tuple[str, ...]:
    """Return the uids. Cached, since the sessions of a gateway ack together again and again."""
    return tuple(joined.split(SEPARATOR))


def _confirmation(record: str) -> Confirmation:
    gid, msgid, read, delivered = record.split(SEPARATOR)
    return Confirmation(gid, int(msgid), int(read), int(delivered))


def _bookmark(record: str) -> BookmarkChange:
    joined, private, mark, uids = record.split(SEPARATOR, 3)
    return BookmarkChange(
        _position(joined.encode()), _position(private.encode()), _position(mark.encode()), _names(uids)
    )


def _choice(text: bytes, choices: Sequence[str]) -> str:
    choice = text.decode()
    if choice not in choices:
        raise ValueError(f"not one of {', '.join(choices)}")
    return choice


def _policy(fields: Fields) -> PolicySet:
    receipts, asked_by = _choice(fields[b"receipts"], GROUP_RECEIPTS), _choice(fields[b"asked_by"], ASKED_BY)
    return PolicySet(_gid(fields), receipts, asked_by)


_KINDS: dict[bytes, Callable[[Fields], Event]] = {
    b"group": lambda fields: Created(_gid(fields)),
    b"join": lambda fields: SpanBegun(*_membership(fields)),
    b"leave": lambda fields: SpanEnded(*_membership(fields), _position(fields[b"left"])),
    b"msg": _sent,
    b"ack": lambda fields: Acked(_gid(fields), tuple(map(_move, _records(fields[b"moves"])))),
    b"delivered": lambda fields: Delivered(_gid(fields), tuple(map(_move, _records(fields[b"moves"])))),
    b"bookmarks": lambda fields: BookmarksSet(_gid(fields), tuple(map(_bookmark, _records(fields[b"bookmarks"])))),
    b"policy": _policy,
    b"user": lambda fields: UserSet(fields[b"uid"].decode(), _choice(fields[b"receipts"], USER_RECEIPTS)),
    b"confirm": lambda fields: Confirmed(tuple(map(_confirmation, _records(fields[b"tallies"])))),
}
