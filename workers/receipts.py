"""The worker `receipts`: tells senders who has read, in digests folded over a window.

Offset moves are taken from the journals, heaped up for `receipt_window_ms`, and folded: each message concerned is
tallied once, however many members have moved over it, and each sender is told once for each group. It is tallied,
marked as changed and told in one step at the server: of two workers, none tells an older tally after a newer one. The
mark stays until the sender confirms it, so a digest that nobody hears is not lost.
"""

import logging
import time
from collections.abc import Sequence

from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseUnavailable, ImError, TryAgain
from imcore.operations.effects import raised
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.calls import receipt_calls
from imcore.streams.calls.receipt_calls import Segment, TallyChange
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, Entry, Malformed, Move
from imcore.streams.journal import Journal
from imcore.workers.coalescing import CoalescingStats
from imcore.workers.folding import segments

log = logging.getLogger(__name__)

PAGE = 1000
"""How many messages one call looks at: the server stands still meanwhile."""

LONGEST_DIGEST = 10_000
"""How many messages one digest names, all of which are tallied in one call; more make several."""

MOST_IN_WINDOW = 100_000
"""How many entries one window takes; more are left for the next."""

_SQL_AWAY = (DatabaseUnavailable, DatabaseNotReady)
"""Why what Redis alone can tell is told, and the rest waits."""


class ReceiptsWorker:
    """Folds and tells. `step` does one window."""

    kind = "receipts"

    def __init__(self, client: RedisClient, database: Database, settings: Settings) -> None:
        self._client = client
        self._database = database
        self._window_s = settings.receipt_window_ms / 1000
        self._journal = Journal(client, self.kind, settings)
        self._in_hand: list[Entry] = []
        self._told = CoalescingStats()

    def step(self) -> int:
        """Take a window of entries, tell the senders, confirm the entries; return how many are out of the way.

        Raise DatabaseUnavailable, after all is told that needs Redis alone, and what the link raises: the next step
        goes on with what is not told.
        """
        try:
            self._told = CoalescingStats()
            entries = self._in_hand + self._window()
            handled = len(entries)
            failed = self._tell(_moves(entries))
            self._in_hand = [entry for entry in entries if _waits(entry, failed)]
            self._put_away([entry for entry in entries if not _waits(entry, failed)], failed)
        except ImError:
            self._in_hand = []
            self._journal.reread_open()
            raise
        if self._in_hand:
            why = next(error for error in failed.values() if isinstance(error, _SQL_AWAY))
            raise DatabaseUnavailable(str(why)) from why  # waiting helps, also where there are no tables yet
        return handled

    def drained(self) -> bool:
        """Return whether all is told that was in the journals when this was asked first."""
        return self._journal.drained()

    def close(self) -> None:
        """Let another process have this one's name and what it left open."""
        self._journal.close()

    def _window(self) -> list[Entry]:
        """Return what is there, and, if offsets have moved, what comes within the window after."""
        if len(self._in_hand) >= MOST_IN_WINDOW:
            self._journal.renew()
            return []
        entries = self._journal.read(block_ms=0 if self._in_hand else None)
        if not self._window_s or not any(isinstance(entry.event, Acked) for entry in entries):
            return entries
        time.sleep(self._window_s)
        while len(entries) < MOST_IN_WINDOW:
            more = self._journal.read(block_ms=0)
            if not more:
                break
            entries += more
        return entries

    def _put_away(self, entries: Sequence[Entry], failed: dict[str, ImError]) -> None:
        done = []
        for entry in entries:
            event = entry.event
            if isinstance(event, Malformed):
                self._journal.fail(entry, event.reason)
            elif isinstance(event, Acked) and event.gid in failed:
                self._journal.fail(entry, str(failed[event.gid]))
            else:
                done.append(entry)
        if done:
            self._journal.done(done, self._told.of(done))

    def _tell(self, moves: dict[str, list[Move]]) -> dict[str, ImError]:
        """Tell every sender concerned; return the groups for which that is impossible, or has to wait, and why."""
        failed: dict[str, ImError] = {}
        digests = []
        for gid, found in self._changes({gid: segments(each) for gid, each in moves.items()}).items():
            if isinstance(found, ImError):
                failed[gid] = found
                continue
            for sender_uid, changes in _by_sender(found).items():
                for i in range(0, len(changes), LONGEST_DIGEST):
                    some = changes[i : i + LONGEST_DIGEST]
                    digests.append(receipt_calls.publish_receipts(self._client.space, gid, sender_uid, some))
                    self._told.digest(gid, sender_uid, some)
        self._client.call_many(digests)
        return failed

    def _changes(self, wanted: dict[str, list[Segment]]) -> dict[str, list[TallyChange] | ImError]:
        """Return the new tallies in each group, or why they cannot be had: SQL may be away.

        Raise TryAgain, ConfigurationError.
        """
        found: dict[str, list[TallyChange] | ImError] = {}
        calls = [receipt_calls.changes(self._client.space, gid, each, PAGE) for gid, each in wanted.items()]
        for (gid, each), answer in zip(wanted.items(), self._client.call_each(calls), strict=True):
            try:
                found[gid] = self._rest(gid, each, raised(answer))
            except ImError as error:
                of_all = isinstance(error, TryAgain | ConfigurationError)
                if of_all and not isinstance(error, _SQL_AWAY):
                    raise
                found[gid] = error
        return found

    def _rest(self, gid: str, wanted: list[Segment], page: receipt_calls.TallyChanges) -> list[TallyChange]:
        """Return a first page and the pages after it, each with what SQL alone has of it by now."""
        found = self._trimmed(gid, wanted, page.trimmed) + page.found
        while page.next_after is not None:
            wanted = _after(wanted, page.next_after)
            page = self._client.call(receipt_calls.changes(self._client.space, gid, wanted, PAGE))
            found += self._trimmed(gid, wanted, page.trimmed) + page.found
        return found

    def _trimmed(self, gid: str, wanted: list[Segment], trimmed: int) -> list[TallyChange]:
        found: list[TallyChange] = []
        for segment in wanted:
            start = segment.after
            while start < min(segment.until, trimmed):
                until = min(segment.until, trimmed)
                rows = self._database.messages_after(gid, start, until=until, limit=PAGE)
                found += [
                    TallyChange(row.sender_uid, row.msgid, row.span)
                    for row in rows
                    if row.sender_uid != segment.only and row.recalls is None
                ]
                start = rows[-1].msgid if len(rows) == PAGE else until
        return found


def _moves(entries: Sequence[Entry]) -> dict[str, list[Move]]:
    moves: dict[str, list[Move]] = {}
    for entry in entries:
        if isinstance(entry.event, Acked):
            moves.setdefault(entry.event.gid, []).extend(entry.event.moves)
    return moves


def _waits(entry: Entry, failed: dict[str, ImError]) -> bool:
    """Return whether an entry has to wait for SQL."""
    return isinstance(entry.event, Acked) and isinstance(failed.get(entry.event.gid), _SQL_AWAY)


def _after(wanted: Sequence[Segment], position: int) -> list[Segment]:
    """Return what is left of the segments after a message."""
    return [
        Segment(max(segment.after, position), segment.until, segment.only)
        for segment in wanted
        if segment.until > position
    ]


def _by_sender(changes: Sequence[TallyChange]) -> dict[str, list[TallyChange]]:
    found: dict[str, list[TallyChange]] = {}
    for change in changes:
        found.setdefault(change.sender_uid, []).append(change)
    return found
