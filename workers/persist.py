"""The worker `persist`: writes what the journals report into SQL.

    journals --take--> entries, their messages --mark, merge--> rows --write, one transaction--> SQL
                          `--------------------------- done, only then ---------------------------'

While a transaction is written, the entries of the next one are taken, if there are many. They are stored and confirmed
after it, so the order of a journal stays. If it is killed anywhere on the way its entries stay open, and the next
worker handles them again: rows merge with themselves.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imcore import msgid as msgids
from imcore.admin import append_only
from imcore.errors import DatabaseRejected, DatabaseUnavailable, ErasuresChanged, ImError
from imcore.metrics import WorkerMetrics
from imcore.model.rows import Batch, WatermarkRow
from imcore.operations import user_policies
from imcore.operations.performer import perform_in_redis
from imcore.repair.rewriting import Rewriting
from imcore.settings import Settings
from imcore.sql import deletion
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.events import Created, Entry, Malformed, Sent, UserSet
from imcore.streams.journal import Journal
from imcore.workers import hand
from imcore.workers.beside import beside
from imcore.workers.fetch import WorkItem, member_pages
from imcore.workers.hand import Hand
from imcore.workers.stored_rows import batch_of

if TYPE_CHECKING:
    from imcore.repair.watch import Watch
    from imcore.workers.lanes import PartitionLane

KIND = "persist"

PACE_S = 0.1
"""The least time between the beginnings of two transactions, unless a full batch waits. A transaction costs as much as
some hundred rows, and several acks of one member meanwhile make one row."""

SPREAD_AGAIN_S = 1.0
"""A choice that could not be copied everywhere is tried again after this time."""


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
        self._hand = Hand(client, database, self._journal, settings.batch_size)
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
            self._drop()  # the next step reads it again, without the names
            return 0
        except DatabaseUnavailable:
            self._watch.doubt()
            self._hand.keep()
            raise
        except ImError:
            self._watch.doubt()
            self._drop()
            raise

    def _step(self) -> int:
        if self._journal.lease.is_held:
            self._journal.renew()  # also while nothing may be taken: a worker that waits is not dead
            self._rewriting.look(self._journal.renew)
        if self._watch.look():
            self._drop()
        if not self._hand:
            time.sleep(max(0.0, self._next - time.monotonic()))
            if self._erasures is None:
                self._erasures = self._database.erasures().count
            self._take()
        self._database.empty_log()  # a reader may have been in the way when it was to be emptied
        items = self._hand.first()
        handled = self._persist(items) if items else 0
        self._hand.remove_first()
        return handled

    def _take(self, block_ms: int | None = None) -> None:
        self._hand.take(block_ms=block_ms)
        self._next = time.monotonic() + (0.0 if self._hand.has_more else PACE_S)

    def _drop(self) -> None:
        self._hand.drop()
        self._erasures = None
        self._journal.reread_open()

    def drained(self) -> bool:
        return not self._hand and self._journal.drained()

    def close(self) -> None:
        self._journal.close()

    def _persist(self, items: Sequence[WorkItem]) -> int:
        self._forget_deleted(items)
        for item in items:
            event = item.entry.event
            if isinstance(event, Malformed):
                item.problem = event.reason
            elif isinstance(event, Created):
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
        gids = {gid for item in items if (gid := item.gid) is not None}
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
        for uids in member_pages(self._client, item, hand.MOST_ROWS):
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
            self._store(batch)
        except DatabaseRejected as error:
            if len(items) == 1:
                items[0].problem = str(error)
                return
            middle = len(items) // 2
            self._write(items[:middle], marks)
            self._write(items[middle:], marks)

    def _store(self, batch: Batch) -> None:
        """Write a batch. If there is more to store, take that meanwhile: it has no part in this transaction."""
        if self._hand.wants_more:
            with beside(lambda: self._database.write(batch)):
                self._take(block_ms=0)
        else:
            self._database.write(batch)


def _sound(items: Sequence[WorkItem]) -> list[WorkItem]:
    return [item for item in items if not item.problem]


def _recalled(items: Sequence[WorkItem]) -> list[tuple[str, int]]:
    return [(row.gid, row.recalls) for item in items for row, _ in item.messages if row.recalls is not None]
