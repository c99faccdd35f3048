"""Brings back groups that Redis does not have, many in few round trips. See `imcore.repair.rebuild`."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

from imcore.errors import ImError, RedisUnavailable
from imcore.model.rows import BookmarkRow, MessageRow, SpanRow
from imcore.repair import erasure, locks, own_messages
from imcore.repair.apply import lower, shadow_of
from imcore.repair.bookmarks import Bookmarks, own_floor
from imcore.repair.desired import PAGE, client_msgids, paged, trimmed_own
from imcore.repair.orders import close_order
from imcore.repair.own_messages import KnownLists
from imcore.repair.state import Changes, delivered_of, furthest, highest_offset, is_empty, outside, possible
from imcore.repair.unconfirmed import mark_unconfirmed
from imcore.repair.window import START, now_ms
from imcore.sql import corrections, queries
from imcore.streams.answers import raised
from imcore.streams.calls import repair_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.repair_calls import NEVER, GroupLock, OwnList, ShadowEntry, SpanOrder, StreamState, Trim
from imcore.streams.client import Answers
from imcore.system import System
from imcore.util.batches import batches, grouped

MOST_CALLS = 20
"""The most calls of one round trip: their messages are in memory."""


class BulkApply:
    """Brings groups back together. A group with a trim point comes back alone."""

    def __init__(self, system: System, gids: Sequence[str], trim: Trim, *, known_after: int) -> None:
        """Restore the client_msgids of messages after `known_after` (packed)."""
        self._system = system
        self._client = system.client
        self._database = system.database
        self._space = system.client.space
        self._known_after = known_after
        self._erasures = system.database.erasures().count
        self._gids = gids
        self._trim = trim
        self._waiting: list[Call[Any]] = []
        self._sent: list[Call[Any]] = []
        self._answers: Answers[Any] = list
        self._locks: dict[str, GroupLock] = {}
        self._newest = dict.fromkeys(gids, trim)
        self._entries = dict.fromkeys(gids, 0)
        self._missed: set[str] = set()
        """Groups whose members joined, left or changed a bookmark meanwhile."""
        self._contradicting: set[str] = set()
        """Groups with two open spans of a user, or with a message in a span after its end."""
        self._spans: dict[str, list[SpanRow]] = {gid: [] for gid in gids}
        self._stored_bookmarks: dict[str, list[BookmarkRow]] = {}
        self._bookmarks: dict[str, Bookmarks] = {}
        self.messages = 0
        self.members = 0
        self.receipts = 0

    def run(self) -> list[str]:
        """Bring the groups back; return those that are not as desired yet, to be mended one by one.

        In these somebody created the group meanwhile, members joined or left, or spans contradict each other or the
        messages. Messages come first, in a shadow; then the group, in one step; then its members.
        """
        taken = locks.take(self._system, self._gids)
        self._locks = {lock.k.gid: lock for lock in taken}
        done: set[str] = set()
        try:
            whole = self._run() - self._missed
            self._make_receipts_due(whole)
            done = whole
        finally:
            with suppress(ImError):
                self._settle()  # a call that comes after the lock was given back would be refused
            locks.give_back(self._system, [lock for lock in taken if lock.k.gid in done], done=True)
            locks.give_back(self._system, [lock for lock in taken if lock.k.gid not in done], done=False)
        return sorted(set(self._gids).difference(done))

    def _run(self) -> set[str]:
        for span in queries.spans(self._database, self._gids):
            self._spans[span.gid].append(span)
        self._stored_bookmarks = grouped((row.gid, row) for row in queries.bookmarks(self._database, self._gids))
        self._add_messages()
        for gid in self._gids:
            self._check_spans(gid)
        sound = [gid for gid in self._gids if gid not in self._contradicting]
        answers = self._client.call_many([self._swap(gid) for gid in sound])
        done = [gid for gid, answer in zip(sound, answers, strict=True) if answer is not repair_calls.CHANGED]
        self._add_beside(done)
        return set(done)

    def _make_receipts_due(self, gids: set[str]) -> None:
        for gid, messages in groupby(queries.light(self._database, sorted(gids)), key=attrgetter("gid")):
            self.receipts += sum(mark_unconfirmed(self._system, gid, messages, self._spans[gid]).values())

    def _add_messages(self) -> None:
        spans = [span for of_group in self._spans.values() for span in of_group]
        ends = {(s.gid, s.uid, s.joined_msgid): NEVER if s.left_msgid is None else s.left_msgid for s in spans}
        rows = queries.messages(self._database, self._gids, after=self._trim.msgid)
        for gid, of_group in groupby(rows, key=attrgetter("gid")):
            for batch in batches(of_group, PAGE):
                self._add_page(gid, batch, ends)
        self._flush()

    def _add_page(self, gid: str, rows: Sequence[MessageRow], ends: dict[tuple[str, str, int], int]) -> None:
        if any(row.span is not None and row.msgid > ends.get((gid, row.sender_uid, row.span), NEVER) for row in rows):
            self._contradicting.add(gid)
        self._newest[gid] = Trim(rows[-1].msgid, rows[-1].seq)
        self._entries[gid] += len(rows)
        self._later(repair_calls.add(self._locks[gid], map(ShadowEntry, rows)))

    def _check_spans(self, gid: str) -> None:
        stored, newest = self._spans[gid], self._newest[gid].msgid
        members = [span.uid for span in stored if span.left_msgid is None]
        if len(members) != len(set(members)):
            self._contradicting.add(gid)
        bound, soon = highest_offset(newest, now_ms()), highest_offset(0, now_ms())
        bookmarks = self._stored_bookmarks.get(gid, [])
        self._bookmarks[gid] = Bookmarks(bookmarks, {}, Changes(), bound=bound, latest_change=soon)
        self._spans[gid] = possible(stored, newest, bound=bound)
        lowered = [span for span, row in zip(self._spans[gid], stored, strict=True) if span != row]
        lower(self._system, gid, [*lowered, *outside(self._spans[gid], {})], newest)

    def _swap(self, gid: str) -> Call[tuple[int, int] | None]:
        newest, seq = self._newest[gid]
        floor = max(furthest(self._spans[gid]), self._bookmarks[gid].furthest)
        shadow = shadow_of(self._entries[gid], newest, seq, floor)
        return repair_calls.swap(self._locks[gid], StreamState(START, None), shadow, self._trim)

    def _add_spans(self, gid: str) -> None:
        self.messages += self._entries[gid]
        for batch in batches((span for span in self._spans[gid] if not is_empty(span)), PAGE):
            self.members += sum(1 for span in batch if span.left_msgid is None)
            self._later(repair_calls.spans(self._locks[gid], list(map(_order, batch)), self._trim))
        members = {span.uid: span for span in self._spans[gid] if span.left_msgid is None}
        wanted = self._bookmarks[gid].orders(members, self._newest[gid].msgid, 0, is_older=True)
        corrections.set_bookmarks(self._database, gid, wanted.in_sql, wanted.gone, erasures=self._erasures)
        for orders in batches(wanted.in_redis, PAGE):
            self._later(repair_calls.bookmarks(self._locks[gid], orders))

    def _add_beside(self, gids: Sequence[str]) -> None:
        for gid in gids:
            self._add_spans(gid)
        if gids:
            self._add_rest(gids)
        self._flush()

    def _add_rest(self, gids: Sequence[str]) -> None:
        """Restore client_msgids, recalls, own messages past the offset, and that users were erased."""
        for gid in gids:
            self._later(*erasure.restore_latest(self._space.group(gid), self._spans[gid]))
        for call in client_msgids(self._system, gids, after=self._known_after):
            self._later(call)
        if self._trim.msgid:  # a shadow notes the recalls of its messages
            recalled = sorted({msgid for _, *pair in queries.recalls(self._database, gids[:1]) for msgid in pair})
            self._later(*paged(recalled, partial(repair_calls.set_recalled, self._space.group(gids[0]))))
        self._flush()
        own = grouped((gid, (uid, msgid)) for gid, uid, msgid in queries.own_unread(self._database, gids))
        known = [self._known_own(gid, grouped(of_group)) for gid, of_group in own.items()]
        left = own_messages.restore_known(self._system, known)
        again = [(self._space.group(gid), uids, partial(self._trimmed_own, gid)) for gid, uids in left.items()]
        own_messages.restore(self._system, again)

    def _known_own(self, gid: str, own: dict[str, list[int]]) -> KnownLists:
        """Return the lists of all who have own messages past their offset or mark, as SQL has both."""
        stored = (row for row in self._stored_bookmarks.get(gid, ()) if row.mark_msgid >= row.joined_msgid)
        marks = {(row.uid, row.joined_msgid): row.mark_msgid for row in stored}
        floors = {
            span.uid: own_floor(span.acked_msgid, marks.get((span.uid, span.joined_msgid), 0))
            for span in self._spans[gid]
            if span.left_msgid is None
        }
        lists = [OwnList(uid, floors.get(uid), msgs) for uid, msgs in sorted(own.items())]
        return KnownLists(self._space.group(gid), lists, self._trim.msgid, self._newest[gid].msgid)

    def _trimmed_own(self, gid: str, until: int) -> dict[str, list[int]]:
        """Return the own messages of a group up to a trim point."""
        return trimmed_own(self._system, [gid], until).get(gid, {})

    def _later(self, *calls: Call[Any]) -> None:
        for call in calls:
            self._waiting.append(call)
            if len(self._waiting) == MOST_CALLS:
                self._send()

    def _send(self) -> None:
        """Send what waits, in its order: no call is sent before those of the last round trip are answered.

        The server does the work while the caller prepares the next calls.
        """
        self._settle()
        if self._waiting:
            self._sent, self._waiting = self._waiting, []
            self._answers = self._client.start(self._sent)

    def _settle(self) -> None:
        """Wait for the calls that were sent."""
        sent, self._sent = self._sent, []
        answers = self._answers() if sent else []
        if any(isinstance(answer, RedisUnavailable) for answer in answers):
            answers = self._client.call_many(sent)  # which tries again
        for call, answer in zip(sent, answers, strict=True):
            if raised(answer) and call.function in {repair_calls.SPANS, repair_calls.BOOKMARKS}:
                self._missed.add(call.gid)

    def _flush(self) -> None:
        self._send()
        self._settle()


def _order(span: SpanRow) -> SpanOrder:
    if span.left_msgid is None:
        return SpanOrder("open", span.uid, span.joined_msgid, None, span.acked_msgid, delivered_of(span))
    return close_order(span)
