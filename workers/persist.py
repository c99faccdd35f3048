"""The worker `persist`: writes what the journals report into SQL.

    journals --take--> entries --fetch--> their messages --mark, merge--> rows --write, one transaction--> SQL
                          `------------------------------ done, only then ------------------------------'

If it is killed anywhere on the way its entries stay open, and the next worker handles them again: rows merge with
themselves.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from imcore import msgid as msgids
from imcore.admin import append_only
from imcore.errors import DatabaseRejected, DatabaseUnavailable, ErasuresChanged, ImError
from imcore.metrics import WorkerMetrics
from imcore.model.rows import Batch, BookmarkRow, ConfirmRow, GroupRow, MoveRow, SpanRow, UserRow, WatermarkRow
from imcore.msgid import NONE
from imcore.operations import user_policies
from imcore.operations.performer import perform_in_redis
from imcore.repair.rewriting import Rewriting
from imcore.settings import Settings
from imcore.sql import deletion
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.events import (
    Acked,
    BookmarksSet,
    Confirmed,
    Created,
    Delivered,
    Entry,
    Malformed,
    PolicySet,
    Sent,
    SpanBegun,
    SpanEnded,
    UserSet,
)
from imcore.streams.journal import Journal
from imcore.workers.fetch import StoredMessage, WorkItem, fetch, member_counts, member_pages

if TYPE_CHECKING:
    from imcore.repair.watch import Watch
    from imcore.workers.lanes import PartitionLane

KIND = "persist"

MOST_ROWS = 5000
"""About how many rows one transaction writes. One entry may bring hundreds of messages, a thousand offsets, or a new
group with any number of members; a larger group takes several transactions."""

PACE_S = 0.1
"""The least time between the beginnings of two transactions, unless a full batch waits. A transaction costs as much as
some hundred rows, and several acks of one member meanwhile make one row."""

SPREAD_AGAIN_S = 1.0
"""A choice that could not be copied everywhere is tried again after this time."""

Spans = tuple[str, int, tuple[str, ...]]
"""Spans of one group (gid) that began at one message (joined), by uid. A gateway's sessions ack together, so most
entries name the same uids together."""

Positions = dict[Spans, int]
"""The newest message that spans have acked, or that has arrived for them. Msgids are packed."""


class Persist:
    """The worker. It sends nothing before the first step. `watch` keeps SQL from storing what Redis has lost."""

    def __init__(
        self,
        client: RedisClient,
        database: Database,
        settings: Settings,
        watch: "Watch",
        metrics: WorkerMetrics | None = None,
        lane: "PartitionLane | None" = None,
    ) -> None:
        """Store all partitions, or that of a lane."""
        self._client = client
        self._lane = lane
        partition = lane.partition if lane else None
        self._database = database
        self._metrics = metrics or WorkerMetrics(KIND)
        self._journal = Journal(client, KIND, settings, self._metrics, partition)
        self._watch = watch
        self._rewriting = Rewriting(client, partition)
        self._batch_size = settings.batch_size
        self._in_hand: list[Entry] = []
        self._member_counts: dict[str, int] = {}
        """Of the groups that the entries in hand create, by gid."""
        self._next = 0.0
        self._deletions: dict[str, int] = {}
        """The entries of the deletions of the groups in hand, by gid."""
        self._erasures: int | None = None
        """How many erasures of users had begun or ended when the entries in hand were read."""

    def step(self) -> int:
        """Handle one batch, waiting a moment for it; return how many entries are handled.

        A Redis that came back older than SQL is reconciled with it first. Raise DatabaseUnavailable, and the client's
        errors: the entries stay open, and the next step handles them.
        """
        try:
            return self._step()
        except ErasuresChanged:
            self._drop_batch()  # the next step reads it again, without the names
            return 0
        except ImError as error:
            self._watch.doubt()
            if not isinstance(error, DatabaseUnavailable):  # after that one the entries are still in hand
                self._drop_batch()
            raise

    def _step(self) -> int:
        if self._journal.lease.is_held:
            self._journal.renew()  # also while nothing may be taken: a worker that waits is not dead
            self._rewriting.look(self._journal.renew)
        if self._watch.look():
            self._drop_batch()
        if not self._in_hand:
            time.sleep(max(0.0, self._next - time.monotonic()))
            if self._erasures is None:
                self._erasures = self._database.erasures().count
            self._in_hand = self._journal.read()
            self._next = time.monotonic() + (PACE_S if len(self._in_hand) < self._batch_size else 0.0)
            self._member_counts = member_counts(self._client, self._in_hand)
        batch = self._in_hand[: _batch_length(self._in_hand, self._member_counts)]
        self._database.empty_log()  # a reader may have been in the way when it was to be emptied
        handled = self._persist(batch) if batch else 0
        del self._in_hand[: len(batch)]
        return handled

    def _drop_batch(self) -> None:
        self._in_hand = []
        self._erasures = None
        self._journal.reread_open()

    def drained(self) -> bool:
        return not self._in_hand and self._journal.drained()

    def close(self) -> None:
        self._journal.close()

    def _persist(self, entries: Sequence[Entry]) -> int:
        items = [WorkItem(entry) for entry in entries]
        fetch(self._client, self._database, items)
        self._forget_deleted(items)
        for item in items:
            if isinstance(item.entry.event, Malformed):
                item.problem = item.entry.event.reason
            self._fetch_members(item)
        sound = _sound(items)
        if sound:
            append_only.note_recalled(self._client, _recalled(sound))
            self._write(sound)
        written = self._spread([item.entry for item in _sound(items)])
        self._count(written)
        self._journal.done(written)
        return len(written) + sum(self._journal.fail(item.entry, item.problem) for item in items if item.problem)

    def _forget_deleted(self, items: Sequence[WorkItem]) -> None:
        """Forget what is about deleted groups. A deletion is known here before anything of its group leaves Redis."""
        gids = {item.gid for item in items if item.gid is not None}
        self._deletions = {gid: each.entry for gid, each in deletion.known(self._database, gids).items()}
        for item in items if self._deletions else ():
            if item.gid is not None and item.entry.version <= self._deletions.get(item.gid, 0):
                item.forget()

    def _spread(self, written: Sequence[Entry]) -> list[Entry]:
        """Copy what users chose to all partitions: the process that set it may have died over that.

        Return the entries that are done. Where another node does not answer, that of the choice stays open.
        """
        done = []
        for entry in written:
            event = entry.event
            if not isinstance(event, UserSet):
                done.append(entry)
            elif self._lane is None:
                perform_in_redis(self._client, user_policies.spread(event.uid))
                done.append(entry)
            elif self._lane.spread((entry.partition, entry.id), event.uid):
                done.append(entry)
            else:
                self._journal.postpone(entry, SPREAD_AGAIN_S)
        return done

    def _count(self, written: Sequence[Entry]) -> None:
        """Count the messages of entries that are in SQL now, by the millisecond in which they were sent."""
        sent: defaultdict[int, int] = defaultdict(int)
        for entry in written:
            event = entry.event
            if isinstance(event, Sent):
                sent[msgids.time_ms(event.last)] += event.messages
        now_s = time.time()
        for sent_ms, messages in sent.items():
            self._metrics.messages.add(messages)
            self._metrics.stored_s.observe(now_s - sent_ms / 1000, messages)

    def _fetch_members(self, item: WorkItem) -> None:
        """Give an item the first members of its group; if one transaction cannot hold them, write all but the last.

        The entry is done only when all are written: a worker that is killed meanwhile leaves it open.
        """
        for uids in member_pages(self._client, item, MOST_ROWS):
            if item.members:
                part = WorkItem(item.entry, members=item.members)
                self._write([part])
                self._journal.renew()
                item.problem = part.problem
            item.members = uids
            if item.problem:
                return

    def _write(self, items: Sequence[WorkItem], marks: list[WatermarkRow] | None = None) -> None:
        """Write the rows of the items. An item that SQL refuses is found among the others by halving."""
        marks = marks or self._watch.mark(self._journal.lease.process, [item.entry for item in items])
        try:
            batch = batch_of(items)
            batch.marks, batch.erasures = marks, self._erasures
            batch.known_deletions = self._deletions
            self._database.write(batch)
        except DatabaseRejected as error:
            if len(items) == 1:
                items[0].problem = str(error)
                return
            middle = len(items) // 2
            self._write(items[:middle], marks)
            self._write(items[middle:], marks)


def _sound(items: Sequence[WorkItem]) -> list[WorkItem]:
    return [item for item in items if not item.problem]


def _recalled(items: Sequence[WorkItem]) -> list[tuple[str, int]]:
    return [(row.gid, row.recalls) for item in items for row, _ in item.messages if row.recalls is not None]


def batch_of(items: Sequence[WorkItem]) -> Batch:
    """Return the rows that items make; of several positions of one span only the newest."""
    batch = Batch()
    offsets: Positions = {}
    delivered: Positions = {}
    for item in items:
        if not item.is_void:
            _add_positions(item, batch, offsets, delivered)
            _add_rows(item, batch)
    for spans in offsets.keys() | delivered.keys():
        gid, joined, uids = spans
        acked, arrived = offsets.get(spans, joined), delivered.get(spans, 0)
        ahead = arrived if arrived > acked else None
        batch.spans += (SpanRow(gid, uid, joined, None, 0, acked, ahead) for uid in uids)
    return batch


def _add_positions(item: WorkItem, batch: Batch, offsets: Positions, delivered: Positions) -> None:
    event = item.entry.event
    if isinstance(event, Sent):
        _add_messages(item.messages, batch, offsets)
    elif isinstance(event, Acked):
        _add_moves(event, item.entry.version, batch, offsets)
    elif isinstance(event, Delivered):
        _add_delivered(event, delivered)


def _add_delivered(event: Delivered, positions: Positions) -> None:
    for joined, _, to, uids in event.moves:
        spans = (event.gid, joined, uids)
        positions[spans] = max(to, positions.get(spans, 0))


def _add_rows(item: WorkItem, batch: Batch) -> None:
    event, version = item.entry.event, item.entry.version
    if isinstance(event, SpanBegun):
        batch.spans.append(SpanRow(*event, left_msgid=None, changed=version, acked_msgid=event.joined))
    elif isinstance(event, SpanEnded):
        batch.spans.append(SpanRow(*event, changed=version, acked_msgid=event.joined))
    elif isinstance(event, BookmarksSet):
        batch.bookmarks += _bookmarks(event, version)
    elif isinstance(event, PolicySet):
        batch.groups.append(GroupRow(event.gid, item.entry.time_ms, event.receipts, event.asked_by, version))
    elif isinstance(event, UserSet):
        batch.users.append(UserRow(event.uid, event.receipts, version))
    elif isinstance(event, Confirmed):
        batch.confirms += (ConfirmRow(*tally) for tally in event.tallies)
    elif isinstance(event, Created):
        batch.groups.append(GroupRow(event.gid, item.entry.time_ms))
        batch.spans += (SpanRow(event.gid, uid, NONE, None, version, NONE) for uid in item.members)


def _bookmarks(event: BookmarksSet, version: int) -> Iterator[BookmarkRow]:
    for joined, private, mark, uids in event.bookmarks:
        yield from (BookmarkRow(event.gid, uid, joined, private, mark, version) for uid in uids)


def _add_messages(messages: Sequence[StoredMessage], batch: Batch, offsets: Positions) -> None:
    for row, moved_sender in messages:
        batch.messages.append(row)
        if moved_sender and row.span is not None:
            # No MoveRow: nobody asks when senders read their own messages, and they had acked all earlier ones.
            spans = (row.gid, row.span, (row.sender_uid,))
            offsets[spans] = max(row.msgid, offsets.get(spans, 0))


def _add_moves(event: Acked, entry: int, batch: Batch, offsets: Positions) -> None:
    gid = event.gid
    uids: dict[tuple[int, int], tuple[str, ...]] = {}
    for joined, start, to, movers in event.moves:
        uids[start, to] = uids.get((start, to), ()) + movers
        spans = (gid, joined, movers)
        offsets[spans] = max(to, offsets.get(spans, 0))
    batch.moves += (MoveRow(gid, to, start, entry, movers) for (start, to), movers in uids.items())


def _batch_length(entries: Sequence[Entry], member_counts: Mapping[str, int]) -> int:
    """Return how many of the entries, one at least, make a transaction."""
    rows = 0
    known: set[Spans] = set()
    for length, entry in enumerate(entries):
        event = entry.event
        if isinstance(event, Acked | Delivered):
            rows += _rows_of_moves(event, known)
        elif isinstance(event, BookmarksSet):
            rows += sum(len(each.uids) for each in event.bookmarks)
        elif isinstance(event, Created):
            rows += 1 + member_counts.get(event.gid, 0)
        else:
            rows += event.messages if isinstance(event, Sent) else 1
        if rows > MOST_ROWS:
            return length or 1
    return len(entries)


def _rows_of_moves(event: Acked | Delivered, known: set[Spans]) -> int:
    """Return the most rows that an entry makes. Offsets of `known` spans have rows already; add the entry's spans."""
    rows = 0
    for joined, _, _, uids in event.moves:
        before = len(known)
        known.add((event.gid, joined, uids))
        rows += 1 + len(uids) * (len(known) - before)
    return rows
