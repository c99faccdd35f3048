"""Whether the messages of one group are alike in Redis and in SQL: they, their order, the trim point, their tallies."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import MessageRow
from imcore.repair.counting import CountedMessage, Counter
from imcore.repair.diff import (
    MISSING,
    NOTHING,
    UNREADABLE,
    Difference,
    of_field,
    of_message,
    of_offset,
    of_place,
    short,
)
from imcore.repair.journal_window import PAGE, Backlog, live_entries
from imcore.sql import corrections, queries
from imcore.sql.database import Database
from imcore.sql.queries import Head
from imcore.sql.tables import to_iso
from imcore.streams.calls import receipt_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.receipt_calls import Counts
from imcore.streams.client import CHUNK, RedisClient
from imcore.system import System

MOST_TALLIES = 20_000
"""For how many messages the spans are gone through at once."""

_FIELDS = ("seq", "sender_uid", "span", "content", "client_msgid", "sent_at_ms", "recalls")

_EXTRA = 14
"""Up to there an entry's values are those of any message."""

T = TypeVar("T")


class GroupMeta(NamedTuple):
    """What a group's hash says; None where that is no number. Msgids are packed. `exists`: whether it is there."""

    seq: int | None
    last: int | None
    trimmed: int
    exists: bool


def metas_of(client: RedisClient, gids: Sequence[str]) -> dict[str, GroupMeta]:
    """Ask what the hashes of groups say."""
    found = client.query_many([("HMGET", client.space.group(gid).meta, "seq", "last", "trimmed") for gid in gids])
    return {gid: _meta(values) for gid, values in zip(gids, found, strict=True)}


def _meta(values: Sequence[bytes | None]) -> GroupMeta:
    seq, last, trimmed = (int(value) if value and value.isdigit() else None for value in values)
    return GroupMeta(seq, last, trimmed or 0, values[0] is not None)


class MessageAudit:
    """Compares the messages of one group. Afterwards `own` has those in Redis that count as unread, by sender."""

    def __init__(self, system: System, gid: str, pending: Backlog, *, after: int | None = None) -> None:
        """With `after`, the messages up to there are left out."""
        self._client: RedisClient = system.client
        self._database: Database = system.database
        self._gid = gid
        self._pending = pending
        self._after = after
        self._unreadable: set[tuple[int, str]] = set()
        """What SQL has and nobody can read: msgid and field. Here is what has not been told yet."""
        self.own: dict[str, list[int]] = {}
        self.tombstones: dict[int, int] = {}
        """What recalls what, of the messages in Redis."""

    def suspicions(self, meta: GroupMeta) -> Iterator[Difference]:
        """Yield what differs."""
        if self._after is None:
            self._unreadable = set(queries.unreadable(self._database, self._gid))
        first = "-" if self._after is None else f"({msgids.unpack(self._after)}"
        entries = live_entries(self._client, self._gid, first=first)
        below = queries.head(self._database, self._gid, until=meta.trimmed) if meta.trimmed else Head(self._gid)
        before, some = None, []
        for entry_id, row, stored_row, values in self._pairs(meta, entries):
            if row is None and stored_row is None:
                what = f"message {entry_id.decode()} that cannot be read"
                said = short(b" ".join(values).decode(errors="replace"))
                yield Difference(what, f"no message: {said}", MISSING, "message", msgid=msgids.pack_id(entry_id))
                continue
            yield from self._compare(row, stored_row)
            if row is None:
                continue
            yield from self._order(below, before, row, stored_row)
            before = row
            self._note(row, values)
            some.append(CountedMessage(row.msgid, row.sender_uid))
            if len(some) == MOST_TALLIES:
                yield from self._tallies(some)
                some = []
        yield from self._tallies(some)
        yield from self._head(meta, below, before)
        for msgid, field in sorted(self._unreadable):
            yield Difference(f"{field} of message {msgids.unpack(msgid)}", "not compared", UNREADABLE, "stored")
        if self._after is None:
            for msgid, time in corrections.wrong_times(self._database, self._gid):
                what = f"time of message {msgids.unpack(msgid)}"
                yield Difference(what, to_iso(msgids.time_ms(msgid)), time, "stored")

    def _pairs(
        self, meta: GroupMeta, entries: Iterator[tuple[bytes, MessageRow | None, list[bytes]]]
    ) -> Iterator[tuple[bytes, MessageRow | None, MessageRow | None, list[bytes]]]:
        """Yield each message with its other side, in order; both None for an entry that cannot be read."""
        after = meta.trimmed if self._after is None else max(self._after, meta.trimmed)
        rows = stored_after(self._database, self._gid, after)
        there = next(rows, None)
        for entry_id, row, values in entries:
            if row is None:
                yield entry_id, None, None, values
                continue
            if row.msgid <= after:
                yield entry_id, row, self._database.message(self._gid, row.msgid), values
                continue
            while there is not None and there.msgid < row.msgid:
                yield b"", None, there, []
                there = next(rows, None)
            same = there is not None and there.msgid == row.msgid
            yield entry_id, row, there if same else None, values
            there = next(rows, None) if same else there
        while there is not None:
            yield b"", None, there, []
            there = next(rows, None)

    def _compare(self, row: MessageRow | None, there: MessageRow | None) -> Iterator[Difference]:
        if row is None or there is None:
            if row is None or not self._pending.covers(row.msgid):
                yield self._suspect("message", of_message(row), of_message(there), row or there)
            return
        for field in _FIELDS:
            here, stands = getattr(row, field), getattr(there, field)
            if here != stands and not (field == "content" and row.msgid in self._pending.recalled):
                is_unreadable = (row.msgid, field) in self._unreadable
                self._unreadable.discard((row.msgid, field))
                sql = UNREADABLE if is_unreadable else of_field(field, stands)
                yield self._suspect(f"{field} of message", of_field(field, here), sql, row)

    def _order(
        self, below: Head, before: MessageRow | None, row: MessageRow, there: MessageRow | None
    ) -> Iterator[Difference]:
        """Seqs have no holes, and the first one follows the trim point."""
        if before is None:
            if self._after is None and (row.msgid <= below.newest or row.seq != below.last_seq + 1):
                here, point = of_place(row.seq, row.msgid), f"trimmed up to {of_place(below.last_seq, below.newest)}"
                yield Difference("first message after the trim point", here, point, "trim")
        elif row.seq != before.seq + 1:
            what = f"order of message {msgids.unpack(row.msgid)}"
            # The one before it, because what lies between the two may just be trimmed.
            here = f"seq {row.seq} after seq {before.seq}"
            yield Difference(what, here, of_message(there), "message", msgid=before.msgid)

    def _head(self, meta: GroupMeta, below: Head, newest: MessageRow | None) -> Iterator[Difference]:
        seq, last = (newest.seq, newest.msgid) if newest else (below.last_seq, meta.trimmed)
        if (self._after is None or newest) and (meta.seq, meta.last) != (seq, last):
            yield Difference("newest message", of_place(meta.seq, meta.last), of_place(seq, last), "head")
        if (below.messages, below.newest) != (below.last_seq, meta.trimmed):
            there = f"{below.messages} up to {of_place(below.last_seq, below.newest)}" if below.messages else NOTHING
            yield Difference("trimmed messages", f"up to {of_offset(meta.trimmed)}", there, "trim")
        elif meta.trimmed and self._after is None:
            for msgid in queries.out_of_order(self._database, self._gid, meta.trimmed):
                yield Difference(f"place of message {msgids.unpack(msgid)}", "trimmed", "another seq", "stored")

    def _note(self, row: MessageRow, values: list[bytes]) -> None:
        if row.recalls is not None:
            self.tombstones[row.msgid] = row.recalls
        elif b"recalled" not in values[_EXTRA:]:
            self.own.setdefault(row.sender_uid, []).append(row.msgid)

    def _tallies(self, some: list[CountedMessage]) -> Iterator[Difference]:
        """Count who has read each message from SQL, and hold it against what Redis answers."""
        if not some:
            return
        counter = Counter(some)
        for span in self._pending.applied(queries.spans(self._database, [self._gid])):
            counter.add(span)
        counts = iter(counter.counts())
        for chunk in chunks(some, CHUNK):
            answers = self._client.call(
                receipt_calls.tallies(self._client.space, self._gid, [(told.msgid, "", "") for told in chunk])
            )
            for told, answer, count in zip(chunk, answers, counts, strict=False):
                if answer != count and not isinstance(answer, Trimmed):
                    what = f"tally of {msgids.unpack(told.msgid)}"
                    yield Difference(what, _of_tally(answer), _of_tally(count), "tally", msgid=told.msgid)

    def _suspect(self, what: str, redis: str, sql: str, row: MessageRow | None) -> Difference:
        msgid = row.msgid if row else 0
        return Difference(f"{what} {msgids.unpack(msgid)}", redis, sql, "message", msgid=msgid)


def stored_after(database: Database, gid: str, after: int) -> Iterator[MessageRow]:
    """Yield what SQL has of a group after a message."""
    while True:
        page = database.messages_after(gid, after, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].msgid


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items so many at a time."""
    some: list[T] = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _of_tally(tally: Counts | ImError) -> str:
    return str(tally) if isinstance(tally, ImError) else f"{tally.read} read, {tally.unread} unread"
