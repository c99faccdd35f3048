"""Rows of the database as workers write and readers get them: plain tuples of packed msgids and milliseconds.

Every row has a key. Rows of one key merge to the same row in any order and any number of times. So batches may overlap,
and no writer needs to know what has been written before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.errors import ErasuresChanged

NO_TIME = 1 << 62
"""`MessageRow.sent_at_ms` of a stored time that cannot be read. It is never written."""


class MessageRow(NamedTuple):
    """A message. Key: gid and msgid. `span` is the joined_msgid of the sender's span, None for an admin who has none.

    A message that `recalls` another one (its msgid) removes that one's content and meta. `recalled` is only read, never
    written, like a `sent_at_ms` of NO_TIME. `meta` is a JSON object as text.
    """

    gid: str
    msgid: int
    seq: int
    sender_uid: str
    span: int | None
    content: str
    client_msgid: str | None
    sent_at_ms: int | None
    recalls: int | None = None
    recalled: bool = False
    meta: str | None = None

    def without_text(self) -> "MessageRow":
        """Return the row of a recalled message: without content and meta."""
        return self._replace(content="", meta=None)


class Head(NamedTuple):
    """The number of messages of a group, its highest seq, and its oldest and newest msgid; zeros without messages."""

    gid: str
    messages: int = 0
    last_seq: int = 0
    oldest: int = 0
    newest: int = 0


class SpanRow(NamedTuple):
    """A membership (joined_msgid, left_msgid]. Key: gid, uid and joined_msgid.

    `left_msgid` is None while it lasts. `changed` is the version of `left_msgid`: the packed id of its journal entry, 0
    if unknown. `acked_msgid` is the offset within the span, 0 before the first message. `delivered_msgid` is the
    position up to which messages have arrived, None if that is not past the offset.
    """

    gid: str
    uid: str
    joined_msgid: int
    left_msgid: int | None
    changed: int
    acked_msgid: int
    delivered_msgid: int | None = None


Movers = tuple[str | int, ...]
"""Uids whose offsets moved at one time. Those behind a number moved that many ms later."""

_FOLD_BITS = 10
FOLD_MS = 1 << _FOLD_BITS
"""The times of one MoveRow differ by less. Read times are deleted by row: some of them at most so much early."""


class MoveRow(NamedTuple):
    """Offsets moved from `start` to `msgid` since the time of the journal's `entry` (packed id). Key: all but the uids.

    One row has all that moved over the same messages in one batch, within FOLD_MS. `entry` is the first of theirs. A
    batch of other entries may repeat a part of them, in a row of its own or of this key: the earliest time counts.
    """

    gid: str
    msgid: int
    start: int
    entry: int
    uids: Movers


class GroupRow(NamedTuple):
    """A group exists since `created_ms`, or longer. Key: gid.

    `receipts` and `asked_by` are its policy, of the row with the highest `policy_changed`: the packed id of its journal
    entry, 0 for the policy that every group has at first.
    """

    gid: str
    created_ms: int
    receipts: str = "names"
    asked_by: str = "sender"
    policy_changed: int = 0


class UserRow(NamedTuple):
    """Whether a user's receipts are `on` or `off`. Key: uid. The row with the highest `changed` counts.

    That is the packed id of its journal entry.
    """

    uid: str
    receipts: str
    changed: int


class ConfirmRow(NamedTuple):
    """The sender has confirmed how many have read a message, and at how many it had arrived.

    Ignored for a message that is not stored.
    """

    gid: str
    msgid: int
    read: int
    delivered: int


class BookmarkRow(NamedTuple):
    """The bookmark of a member in the span that began after `joined_msgid`. Key: gid and uid.

    Read in private up to `private_msgid`, marked unread after `mark_msgid`; 0 for neither. The row with the highest
    `changed` counts: the packed id of its journal entry.
    """

    gid: str
    uid: str
    joined_msgid: int
    private_msgid: int
    mark_msgid: int
    changed: int


class WatermarkRow(NamedTuple):
    """A consumer has stored a partition's journal up to `entry` (packed id), or is about to. Key: both of these."""

    partition: int
    consumer: str
    entry: int


_OfGroup = TypeVar("_OfGroup", MessageRow, SpanRow, MoveRow, GroupRow, ConfirmRow, BookmarkRow)


@dataclass(slots=True)
class Batch:
    """The rows of one transaction; any list may have a key more than once."""

    groups: list[GroupRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)
    spans: list[SpanRow] = field(default_factory=list)
    moves: list[MoveRow] = field(default_factory=list)
    confirms: list[ConfirmRow] = field(default_factory=list)
    bookmarks: list[BookmarkRow] = field(default_factory=list)
    users: list[UserRow] = field(default_factory=list)
    marks: list[WatermarkRow] = field(default_factory=list)
    known_deletions: Mapping[str, int] | None = None
    """The deletions of groups of these rows that the writer knows: a packed entry by gid. Nothing is written if there
    are others by now. None: the writer has made sure of that in another way."""
    erasures: int | None = None
    """The count of `Erasures` when the writer read the data of these rows. Nothing is written if it is another by now.
    None: the writer has made sure of that in another way."""

    def __len__(self) -> int:
        return sum(len(rows) for each in fields(self) if isinstance(rows := getattr(self, each.name), list))

    @property
    def gids(self) -> list[str]:
        gids = [row.gid for row in self.groups] + [row.gid for row in self.messages]
        others = (self.spans, self.moves, self.bookmarks)
        return sorted({*gids, *(row.gid for rows in others for row in rows)})

    def merged(self) -> "Batch":
        """Return the same with every key once, in order of key: so writers never deadlock. Moves are folded."""
        return Batch(
            groups=_merge(self.groups, 1, _merged_group),
            messages=_merge(self.messages, 2, max),
            spans=_merge(self.spans, 3, merged_span),
            moves=folded(self.moves),
            confirms=_merge(self.confirms, 2, _merged_confirm),
            bookmarks=_merge(self.bookmarks, 2, _newer_bookmark),
            users=_merge(self.users, 1, _newer_user),
            marks=_merge(self.marks, 2, max),
            known_deletions=self.known_deletions,
            erasures=self.erasures,
        )


@dataclass(frozen=True, slots=True)
class Erasures:
    """All erasures in progress.

    `uids` maps each uid to its alias. `gids` maps the old gid of each one-to-one chat to the new one.

    Nobody of such a uid can join a group before the end. So every row that names it is the erased user's. `count`
    changes whenever an erasure begins or ends: what was read before may have names that are gone by now.
    """

    count: int = 0
    uids: Mapping[str, str] = field(default_factory=dict)
    gids: Mapping[str, str] = field(default_factory=dict)

    def message(self, row: MessageRow) -> MessageRow:
        """Return a message without name, text and client_msgid of a user who is being erased."""
        row = self._moved(row)
        alias = self.uids.get(row.sender_uid)
        return row if alias is None else row.without_text()._replace(sender_uid=alias, client_msgid=None)

    def applied(self, batch: Batch) -> Batch:
        """Return the rows of a batch without these names. Raise ErasuresChanged if the batch knows another count."""
        if batch.erasures not in {None, self.count}:
            raise ErasuresChanged("the erasure of a user has begun or ended: what is to be stored is read again")
        return self._renamed(batch) if self.uids else batch

    def _renamed(self, batch: Batch) -> Batch:
        return Batch(
            groups=list(map(self._moved, batch.groups)),
            messages=list(map(self.message, batch.messages)),
            spans=[row._replace(uid=self.uids.get(row.uid, row.uid)) for row in map(self._moved, batch.spans)],
            moves=[row._replace(uids=self._movers(row.uids)) for row in map(self._moved, batch.moves)],
            confirms=list(map(self._moved, batch.confirms)),
            bookmarks=[self._moved(row) for row in batch.bookmarks if row.uid not in self.uids],
            users=[row for row in batch.users if row.uid not in self.uids],
            marks=batch.marks,
        ).merged()

    def _moved(self, row: _OfGroup) -> _OfGroup:
        return row._replace(gid=self.gids[row.gid]) if row.gid in self.gids else row

    def _movers(self, uids: Movers) -> Movers:
        return tuple(self.uids.get(mover, mover) if isinstance(mover, str) else mover for mover in uids)


def merged_span(one: SpanRow, other: SpanRow) -> SpanRow:
    """Return two rows of one span merged: the newer end, the further positions. `bulk` does the same in SQL."""
    newer = max(one, other, key=_version)
    acked = max(one.acked_msgid, other.acked_msgid)
    delivered = max(one.delivered_msgid or 0, other.delivered_msgid or 0)
    return newer._replace(acked_msgid=acked, delivered_msgid=delivered if delivered > acked else None)


def _merged_group(one: GroupRow, other: GroupRow) -> GroupRow:
    newer = max(one, other, key=attrgetter("policy_changed"))
    return newer._replace(created_ms=min(one.created_ms, other.created_ms))


def _newer_user(one: UserRow, other: UserRow) -> UserRow:
    return max(one, other, key=attrgetter("changed"))


def _merged_confirm(one: ConfirmRow, other: ConfirmRow) -> ConfirmRow:
    return one._replace(read=max(one.read, other.read), delivered=max(one.delivered, other.delivered))


def _newer_bookmark(one: BookmarkRow, other: BookmarkRow) -> BookmarkRow:
    return max(one, other, key=attrgetter("changed"))


def _version(span: SpanRow) -> tuple[int, int]:
    return span.changed, -1 if span.left_msgid is None else span.left_msgid


def folded(moves: Iterable[MoveRow]) -> list[MoveRow]:
    """Return one row for all that moved over the same messages within FOLD_MS, in order of key."""
    alike: dict[tuple[Any, ...], list[MoveRow]] = {}
    for row in moves:
        gid, msgid, start, entry, _ = row
        alike.setdefault((gid, msgid, start, entry >> msgids.COUNTER_BITS + _FOLD_BITS), []).append(row)
    return [_united(alike[key]) for key in sorted(alike)]


def _united(moves: list[MoveRow]) -> MoveRow:
    """Return one row for rows that differ in time alone. Of several times of a uid it has the first one."""
    if len(moves) == 1:
        return moves[0]
    moves.sort(key=attrgetter("entry"))
    began = msgids.time_ms(moves[0].entry)
    delays: dict[str, int] = {}
    for row in moves:
        later = msgids.time_ms(row.entry) - began
        for uid, delay in delays_of(row.uids):
            delays[uid] = min(later + delay, delays.get(uid, later + delay))
    return moves[0]._replace(uids=_movers(delays))


def delays_of(movers: Iterable[object]) -> Iterator[tuple[str, int]]:
    """Yield each uid with its delay in ms. Anything else, as somebody may have written by hand, is left out."""
    delay = 0
    for mover in movers:
        if isinstance(mover, str):
            yield mover, delay
        elif type(mover) is int and 0 <= mover < FOLD_MS:
            delay = mover


def _movers(delays: dict[str, int]) -> Movers:
    movers: list[str | int] = []
    last = 0
    for delay, uid in sorted((delay, uid) for uid, delay in delays.items()):
        if delay != last:
            movers.append(delay)
            last = delay
        movers.append(uid)
    return tuple(movers)


_Row = TypeVar("_Row", bound=tuple[Any, ...])


def _merge(rows: Sequence[_Row], key_width: int, merge: Callable[[_Row, _Row], _Row]) -> list[_Row]:
    by_key = {row[:key_width]: row for row in rows}
    if len(by_key) == len(rows):  # nearly always
        return [by_key[key] for key in sorted(by_key)]
    by_key = {}
    for row in rows:
        key = row[:key_width]
        known = by_key.get(key)
        by_key[key] = row if known is None else merge(known, row)
    return [by_key[key] for key in sorted(by_key)]
