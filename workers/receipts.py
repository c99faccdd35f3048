"""The worker `receipts`: sends digests of changed tallies to senders, coalesced over a window.

Moves of offsets, and of positions of delivery, are taken from the journals for `receipt_window_ms` and coalesced: each
message concerned is tallied once, however many members have moved over it, and each sender gets one digest for each
group. The live sessions of each member who has moved get the member's own position, once in a window. One step at the
server tallies a message, marks it as changed and publishes the digest: two workers never send an older tally after a
newer one. The mark stays until the sender confirms it, so a digest that nobody receives is not lost.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseUnavailable, ImError, TryAgain, UnknownGroup
from imcore.metrics import WorkerMetrics
from imcore.operations.effects import raised
from imcore.settings import Settings
from imcore.sql import deletion
from imcore.sql.database import Database
from imcore.streams.calls import deletion_calls, receipt_calls
from imcore.streams.calls.journal_calls import CoalescingCounts
from imcore.streams.calls.receipt_calls import Segment, TallyChange
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, BookmarksSet, Delivered, Entry, Malformed, Move, Sent
from imcore.streams.journal import Journal
from imcore.util.batches import batches, grouped

if TYPE_CHECKING:
    from imcore.workers.lanes import PartitionLane

PAGE = 1000
"""One call looks at this many messages: the server does nothing else meanwhile."""

LONGEST_DIGEST = 10_000
"""One digest names this many messages, which are tallied in one call; more make several."""

MOST_IN_WINDOW = 100_000
"""One window takes this many entries; more are left for the next."""

Digest = tuple[str, str, list[int]]
"""The gid, the sender, and the messages (packed) that the digest names."""

POSITIONS_PER_CALL = 1000
"""One call publishes the positions of this many members."""

_Moves = Acked | Delivered
_SQL_AWAY = (DatabaseUnavailable, DatabaseNotReady)
"""These errors delay only the digests that need SQL; Redis alone answers for the others."""


class ReceiptsWorker:
    """The worker; `step` handles one window."""

    kind = "receipts"

    def __init__(
        self,
        client: RedisClient,
        database: Database,
        settings: Settings,
        metrics: WorkerMetrics | None = None,
        lane: "PartitionLane | None" = None,
    ) -> None:
        """Send the receipts of all partitions, or of that of a lane."""
        self._client = client
        self._database = database
        self._window_s = settings.receipt_window_ms / 1000
        self._longest_sleep_s = settings.lease_ms / 3000
        self._metrics = metrics or WorkerMetrics(self.kind)
        self._journal = Journal(client, self.kind, settings, self._metrics, lane.partition if lane else None)
        self._in_hand: list[Entry] = []
        self._digests: list[Digest] = []
        """Those sent for the entries in hand."""

    def step(self) -> int:
        """Take a window of entries, send the digests, confirm the entries; return how many are handled.

        Raise DatabaseUnavailable once all digests are sent that need Redis alone, and the client's errors: the next
        step continues with the rest.
        """
        try:
            self._digests = []
            entries = self._in_hand + self._window()
            failed = self._send_digests(moves_by_group(entries))
            self._publish_positions(entries)
            self._in_hand = [entry for entry in entries if _waits(entry, failed)]
            self._finish([entry for entry in entries if not _waits(entry, failed)], failed)
        except ImError:
            self._in_hand = []
            self._journal.reread_open()
            raise
        if self._in_hand:
            why = next(error for error in failed.values() if isinstance(error, _SQL_AWAY))
            raise DatabaseUnavailable(str(why)) from why  # waiting helps, also where there are no tables yet
        return len(entries)

    def drained(self) -> bool:
        return self._journal.drained()

    def close(self) -> None:
        self._journal.close()

    def _window(self) -> list[Entry]:
        """Return the entries that are there, and, if offsets have moved, those of the window after."""
        if len(self._in_hand) >= MOST_IN_WINDOW:
            self._journal.renew()
            return []
        entries = self._journal.read(block_ms=0 if self._in_hand else None)
        if not self._window_s or not any(isinstance(entry.event, _Moves) for entry in entries):
            return entries
        self._sleep_window()
        while len(entries) < MOST_IN_WINDOW and (more := self._journal.read(block_ms=0)):
            entries += more
        return entries

    def _sleep_window(self) -> None:
        """Sleep for a window; renew the lease meanwhile, or another worker would claim the entries in hand."""
        end = time.monotonic() + self._window_s
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, self._longest_sleep_s))
            self._journal.renew()

    def _finish(self, entries: Sequence[Entry], failed: dict[str, ImError]) -> None:
        done = []
        for entry in entries:
            event = entry.event
            if isinstance(event, Malformed):
                self._journal.fail(entry, event.reason)
            elif isinstance(event, _Moves) and event.gid in failed:
                self._journal.fail(entry, str(failed[event.gid]))
            else:
                done.append(entry)
        if done:
            counts = coalescing_counts(done, self._digests)
            self._journal.done(done, counts)
            self._count(done, counts.values())

    def _count(self, done: Iterable[Entry], counts: Iterable[CoalescingCounts]) -> None:
        for each in counts:
            self._metrics.acks.add(each.acks)
            self._metrics.receipts.add(each.receipts)
            self._metrics.digests.add(each.digests)
        for entry in done:
            if isinstance(event := entry.event, Acked):
                for move in event.moves:
                    self._metrics.read_s.observe((entry.time_ms - msgids.time_ms(move.to)) / 1000, len(move.uids))

    def _send_digests(self, moves: dict[str, list[Move]]) -> dict[str, ImError]:
        """Send a digest to every sender concerned; return the groups where that is impossible, or has to wait."""
        failed: dict[str, ImError] = {}
        digests = []
        for gid, changes in self._changes({gid: segments(each) for gid, each in moves.items()}).items():
            if isinstance(changes, ImError):
                failed[gid] = changes
                continue
            for sender_uid, own in grouped((change.sender_uid, change) for change in changes).items():
                for digest in batches(own, LONGEST_DIGEST):
                    digests.append(receipt_calls.publish_receipts(self._client.space, gid, sender_uid, digest))
                    self._digests.append((gid, sender_uid, [change.msgid for change in digest]))
        for published in self._client.call_each(digests):
            if not isinstance(published, UnknownGroup):  # it was deleted just now
                raised(published)
        return failed

    def _publish_positions(self, entries: Iterable[Entry]) -> None:
        """Tell the sessions of those who have read where they are now: another device may not know it."""
        calls = [
            receipt_calls.publish_positions(self._client.space, gid, uids, bookmarks=bookmarks)
            for (gid, bookmarks), readers in readers_by_group(entries).items()
            for uids in batches(readers, POSITIONS_PER_CALL)
        ]
        self._client.call_many(calls)

    def _changes(self, wanted: dict[str, list[Segment]]) -> dict[str, list[TallyChange] | ImError]:
        """Return the changed tallies of each group, or its error. Raise TryAgain, ConfigurationError."""
        changes: dict[str, list[TallyChange] | ImError] = {}
        calls = [receipt_calls.changes(self._client.space, gid, each, PAGE) for gid, each in wanted.items()]
        for (gid, each), answer in zip(wanted.items(), self._client.call_each(calls), strict=True):
            try:
                changes[gid] = self._all_pages(gid, each, raised(answer))
            except ImError as error:
                concerns_all = isinstance(error, TryAgain | ConfigurationError)
                if concerns_all and not isinstance(error, _SQL_AWAY):
                    raise
                changes[gid] = self._unless_deleted(gid, error)
        return changes

    def _unless_deleted(self, gid: str, error: ImError) -> list[TallyChange] | ImError:
        """Return the error of a group, or that no tally has changed, as the group was deleted."""
        if not isinstance(error, UnknownGroup):
            return error
        try:
            is_deleted = any(self._client.call_many(deletion_calls.deleting(self._client.space, [gid])))
            return [] if is_deleted or deletion.known(self._database, [gid]) else error
        except _SQL_AWAY as away:
            return away

    def _all_pages(self, gid: str, wanted: list[Segment], page: receipt_calls.TallyChanges) -> list[TallyChange]:
        """Return the changes of a first page and the pages after it, with those of trimmed messages from SQL."""
        changes = self._trimmed(gid, wanted, page.trimmed) + page.found
        while page.next_after is not None:
            after = page.next_after
            wanted = [Segment(max(s.after, after), s.until, s.only) for s in wanted if s.until > after]
            page = self._client.call(receipt_calls.changes(self._client.space, gid, wanted, PAGE))
            changes += self._trimmed(gid, wanted, page.trimmed) + page.found
        return changes

    def _trimmed(self, gid: str, wanted: list[Segment], trimmed: int) -> list[TallyChange]:
        changes: list[TallyChange] = []
        for segment in wanted:
            start, until = segment.after, min(segment.until, trimmed)
            while start < until:
                rows = self._database.messages_after(gid, start, until=until, limit=PAGE)
                changes += [
                    TallyChange(row.sender_uid, row.msgid, row.span)
                    for row in rows
                    if row.sender_uid != segment.only and row.recalls is None
                ]
                start = rows[-1].msgid if len(rows) == PAGE else until
        return changes


def _waits(entry: Entry, failed: dict[str, ImError]) -> bool:
    return isinstance(entry.event, _Moves) and isinstance(failed.get(entry.event.gid), _SQL_AWAY)


# Which tallies many moves have changed, and how few digests reported them. No I/O.


def segments(moves: Iterable[Move]) -> list[Segment]:
    """Return the ranges of messages that moves of one group have covered, in order and without overlaps.

    A message's tally changes when anyone but its sender moves over it; so a range that one member alone has moved over
    names them. Takes O(n log n) for n moves, however many messages they cover.
    """
    bounds: list[tuple[int, int, tuple[str, ...]]] = []
    for move in moves:
        if move.start < move.to:
            bounds += ((move.start, 1, move.uids), (move.to, -1, move.uids))
    bounds.sort(key=itemgetter(0))
    covered: list[Segment] = []
    movers: Counter[tuple[str, ...]] = Counter()
    start = 0
    for position, change, uids in bounds:
        if movers and position > start:
            segment = Segment(start, position, _only(movers))
            if covered and (covered[-1].until, covered[-1].only) == (start, segment.only):  # they touch
                segment = segment._replace(after=covered.pop().after)
            covered.append(segment)
        start = position
        movers[uids] += change
        if not movers[uids]:
            del movers[uids]
    return covered


def _only(movers: Iterable[tuple[str, ...]]) -> str:
    """Return the one member among the movers; '' if there are several."""
    uids = (uid for uids in movers for uid in uids)
    first = next(uids, "")
    return first if all(uid == first for uid in uids) else ""


def moves_by_group(entries: Iterable[Entry]) -> dict[str, list[Move]]:
    events = (entry.event for entry in entries if isinstance(entry.event, _Moves))
    return grouped((event.gid, move) for event in events for move in event.moves)


def acks_by_group(entries: Iterable[Entry]) -> dict[str, list[Move]]:
    events = (entry.event for entry in entries if isinstance(entry.event, Acked))
    return grouped((event.gid, move) for event in events for move in event.moves)


def readers_by_group(entries: Iterable[Entry]) -> dict[tuple[str, bool], list[str]]:
    """Return the members who have read, by group, and by whether their bookmarks have changed."""
    readers: dict[str, dict[str, bool]] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, Acked):
            of_group = readers.setdefault(event.gid, {})
            for move in event.moves:
                of_group.update((uid, of_group.get(uid, False)) for uid in move.uids)
        elif isinstance(event, BookmarksSet):
            readers.setdefault(event.gid, {}).update((uid, True) for each in event.bookmarks for uid in each.uids)
    return grouped(((gid, bookmark), uid) for gid, uids in readers.items() for uid, bookmark in uids.items())


def coalescing_counts(entries: Iterable[Entry], digests: Iterable[Digest]) -> dict[int, CoalescingCounts]:
    """Return by partition the acks of these entries, and how many receipts and digests reported them."""
    by_group = grouped((gid, (sender_uid, msgids)) for gid, sender_uid, msgids in digests)
    by_partition = grouped((entry.partition, entry) for entry in entries)
    return {partition: _counts(own, by_group) for partition, own in by_partition.items()}


def _counts(entries: Sequence[Entry], digests: Mapping[str, list[tuple[str, list[int]]]]) -> CoalescingCounts:
    moves = acks_by_group(entries)
    seconds: dict[int, tuple[int, int]] = {}
    for entry in entries:
        event, second = entry.event, entry.time_ms // 1000
        messages, acks = seconds.get(second, (0, 0))
        messages += event.messages if isinstance(event, Sent) else 0
        acks += _acks(event.moves) if isinstance(event, Acked) else 0
        seconds[second] = (messages, acks)
    return CoalescingCounts(
        acks=sum(map(_acks, moves.values())),
        receipts=sum(_receipts(own, digests.get(gid, ())) for gid, own in moves.items()),
        digests=sum(len(digests.get(gid, ())) for gid in moves),
        seconds=seconds,
    )


def _acks(moves: Iterable[Move]) -> int:
    return sum(len(move.uids) for move in moves)


def _receipts(moves: Iterable[Move], digests: Iterable[tuple[str, list[int]]]) -> int:
    """Return the number of pairs of recipient and message. A sender is no recipient of their own message."""
    named = grouped((sender_uid, msgid) for sender_uid, msgids in digests for msgid in msgids)
    own = {uid: sorted(set(msgids)) for uid, msgids in named.items()}
    messages = sorted(msgid for msgids in own.values() for msgid in msgids)
    receipts = 0
    for move in moves:
        receipts += len(move.uids) * _covered(messages, move)
        receipts -= sum(_covered(own[uid], move) for uid in move.uids if uid in own)
    return receipts


def _covered(msgids: Sequence[int], move: Move) -> int:
    return bisect_right(msgids, move.to) - bisect_right(msgids, move.start)
