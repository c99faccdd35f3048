"""Makes one group alike in Redis and in SQL, while the system runs: each side gets what only the other one has.

Meanwhile no worker stores anything of the partition, and nobody else mends the group (`imcore.repair.locks`). SQL is
written first. If messages are not as desired, a new stream (the shadow) is made beside the group's own, and takes its
place in one step. Spans, bookmarks and own messages follow. Killed anywhere or done twice, this does no harm: the next
attempt finds the rest. The system goes on: later messages follow in the new stream, and spans of users who join or
leave meanwhile are done again.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

from imcore import msgid as msgids
from imcore.errors import ErasuresChanged, TryAgain
from imcore.model.rows import Batch, GroupRow, SpanRow, WatermarkRow
from imcore.repair import deletion, erasure, locks, own_messages, window
from imcore.repair.bookmarks import Bookmarks
from imcore.repair.desired import PAGE, Planner, client_msgids, oldest_client_msgid, paged, trimmed_own
from imcore.repair.diff import described_span
from imcore.repair.locks import PartitionLock
from imcore.repair.merge import Placed, Plan
from imcore.repair.orders import lowest_behind, orders, passed
from imcore.repair.state import highest_offset, outside
from imcore.repair.unconfirmed import mark_unconfirmed
from imcore.repair.window import START, now_ms, packed
from imcore.sql import corrections, queries
from imcore.streams.calls import repair_calls, rewrite_calls
from imcore.streams.calls.repair_calls import GroupLock, Shadow, ShadowEntry
from imcore.streams.client import CHUNK
from imcore.streams.dead_letters import CHECK
from imcore.streams.keys import uid_of
from imcore.system import System
from imcore.util.batches import batches

log = logging.getLogger(__name__)

TRIES = 20
MOST_NAMES = 3

MENDER = "mend"
"""The consumer name of the watermark that repairs set."""


@dataclass(frozen=True, slots=True)
class Mended:
    """The result of repairs: groups, messages that Redis got again, messages that have another seq now, and receipts
    that are due again.

    `behind` is the lowest offset (packed) that Redis had behind SQL, None if it had none.
    """

    groups: int = 0
    restored: int = 0
    renumbered: int = 0
    receipts: int = 0
    behind: int | None = None

    def plus(self, other: "Mended") -> "Mended":
        behind = min((each.behind for each in (self, other) if each.behind is not None), default=None)
        sums = self.groups + other.groups, self.restored + other.restored, self.renumbered + other.renumbered
        return Mended(*sums, self.receipts + other.receipts, behind)


def mend(
    system: System,
    gid: str,
    *,
    since: int | None = None,
    lock: PartitionLock | None = None,
    is_older: bool = False,
    lost_all: bool = False,
) -> Mended:
    """Make one group alike on both sides; return what was done. Messages before `since` (packed) are looked at too.

    `is_older`: Redis has lost what SQL has, as it has if it has `lost_all`.

    Nobody knows whether senders got the tallies that Redis had lost: those that they have not confirmed are due again,
    from the lowest lost offset on; all of them if Redis has `lost_all`, or if a process has died over this group.
    `lock` is the caller's on the partition, if it has one. Raise TryAgain if somebody else mends it all the time, or if
    members join and leave too fast.
    """
    if deletion.begun(system, [gid]):
        return Mended()
    deletion.end(system, gid)
    partition = system.client.space.partition_of(gid)
    if lock is None:
        with PartitionLock(system, partition, wait_s=locks.LOCK_MS / 1000 + 1) as own:
            return mend(system, gid, since=since, lock=own, is_older=is_older, lost_all=lost_all)
    for _ in range(TRIES):
        gid = erasure.settle(system, gid)
        begun = Mended(groups=1, behind=0 if lost_all or gid in window.unfinished(system, partition) else None)
        with suppress(ErasuresChanged):  # what was read may have the names
            return _mend(system, gid, begun, since, lock, is_older=is_older or lost_all)
    raise TryAgain(f"erasures of users begin and end too fast to mend {gid!r} now")


def _mend(system: System, gid: str, total: Mended, since: int | None, lock: PartitionLock, *, is_older: bool) -> Mended:
    left: set[str] | None = None
    for _ in range(TRIES):
        lock.renew()
        [group_lock] = locks.take(system, [gid])
        is_done = bool(deletion.begun(system, [gid]))
        try:
            if is_done:
                return total
            done, left = _Attempt(system, group_lock, since, lock, is_older=is_older).run(left)
            total = total.plus(done)
            if not left and left is not None:
                total = total.plus(Mended(receipts=_make_due(system, gid, total.behind)))
                is_done = True
        finally:
            locks.give_back(system, [group_lock], done=is_done)
        if is_done:
            return total
    raise TryAgain(f"{gid!r} changes too fast to mend it now")


def _make_due(system: System, gid: str, behind: int | None) -> int:
    """Make receipts of later messages due, and let live sessions of their senders ask; return how many are new."""
    if behind is None:
        return 0
    spans = list(queries.spans(system.database, [gid]))
    marked = mark_unconfirmed(system, gid, queries.light(system.database, [gid], after=behind), spans)
    calls = paged(sorted(marked), partial(repair_calls.resync, system.client.space.group(gid)))
    system.client.call_many(list(calls))
    return sum(marked.values())


class _Attempt(Planner):
    def __init__(
        self, system: System, group_lock: GroupLock, since: int | None, lock: PartitionLock, *, is_older: bool
    ) -> None:
        super().__init__(system, group_lock.k, since)
        self._group_lock = group_lock
        self._lock = lock
        self._is_older = is_older
        self._marks: dict[str, int] = {}
        """The marks behind offsets, by uid."""

    def run(self, uids: set[str] | None) -> tuple[Mended, set[str] | None]:
        """Put the spans of these uids right, and all else; return what was done, and the uids that are left.

        None: everybody.
        """
        plan = self.plan()
        if plan is None:
            return Mended(), set()
        self._set_watermark(plan)
        self._write_spans(plan)
        if plan.is_sound and not plan.resets:
            for _ in self._stored(plan):
                pass
        elif not self._swap(plan, self._make_shadow(plan)):
            return Mended(), uids
        left = self._restore_spans(plan, uids) or self._restore_bookmarks(plan)
        if not left:
            self._restore_rest(plan)
        return Mended(0, len(plan.lost), plan.moved, behind=lowest_behind(plan)), left

    # SQL first.

    def _set_watermark(self, plan: Plan) -> None:
        """Set a watermark in both before anything is stored: a Redis that loses it afterwards shows that."""
        if plan.journal_end == START:
            return
        entry = packed(plan.journal_end)
        self._client.call(repair_calls.set_watermarks(self._client.space, self._partition, {MENDER: entry}))
        self._database.write(Batch(marks=[WatermarkRow(self._partition, MENDER, entry)]))

    def _write_spans(self, plan: Plan) -> None:
        newest = max(plan.newest_live, plan.newest_stored)
        lower(self._system, self._gid, plan.lowered, newest)
        if plan.rewritten:
            corrections.rewrite(self._database, plan.rewritten)
        rows = [row for spans in plan.spans.values() for row in spans.rows]
        if plan.resets:  # which positions hold is clear only after the swap: the journal will say so
            rows = [row._replace(acked_msgid=row.joined_msgid, delivered_msgid=None) for row in rows]
        batch = Batch(spans=rows, erasures=self._erasures.count)
        if not queries.listed(self._database, [self._gid]):
            batch.groups.append(GroupRow(self._gid, self.backlog.created_ms or now_ms()))
        self._database.write(batch)
        desired = {(row.uid, row.joined_msgid): row for row in plan.rows}
        lower(self._system, self._gid, list(outside(plan.known.values(), desired)), newest)

    def _stored(self, plan: Plan) -> Iterator[list[Placed]]:
        """Yield the messages after the base, a page at a time, once SQL has them; recalled ones without their text."""
        recalled = {msgid for *_, msgid in queries.recalls(self._database, [self._gid])}
        for batch in batches(self.placed(plan), PAGE):
            new = [placed.row for placed in batch if placed.stored is None]
            rows = [row.without_text() if row.msgid in recalled else row for row in new]
            self._database.write(Batch(messages=rows, erasures=self._erasures.count))
            self._lock.renew()
            yield batch

    # Then Redis.

    def _make_shadow(self, plan: Plan) -> int:
        """Make the shadow; return how many entries it has."""
        moved_senders = set() if plan.resets else plan.moved_senders
        entries = 0 if plan.trim == plan.base else self._copy(msgids.unpack(plan.base.msgid))
        for batch in self._stored(plan):
            texts = [
                ShadowEntry(placed.row, caught_up=placed.stored is None and placed.row.msgid in moved_senders)
                for placed in batch
            ]
            self._client.call(repair_calls.add(self._group_lock, texts))
            entries += len(batch)
        return entries

    def _copy(self, last: str) -> int:
        before, entries = -1, 0
        while before != entries:
            before, entries = entries, self._client.call(repair_calls.copy(self._group_lock, last=last, count=PAGE))
            self._lock.renew()
        return entries

    def _swap(self, plan: Plan, entries: int) -> bool:
        undone = window.undone_from(self._client, self._partition) if plan.journal_end != START else None
        shadow = shadow_of(entries, plan.newest, plan.seq, plan.floor)
        spans = list(passed(plan)) if plan.resets else ()
        call = repair_calls.swap(self._group_lock, plan.seen, shadow, plan.trim, undone=undone, passed=spans)
        if self._client.call(call) is repair_calls.CHANGED:
            return False
        self._put_aside(plan)
        return True

    def _put_aside(self, plan: Plan) -> None:
        """Keep entries that are no messages as dead letters."""
        add = "XADD", self._client.space.dead_letters(self._partition), "*"
        why = "dead_worker", CHECK, "dead_reason", f"no message, and stood in the stream of {self._gid!r}"
        for entry_id, values in plan.foreign.items():
            self._client.execute_once(*add, *why, "dead_entry", entry_id, "dead_deliveries", "0", *values)

    def _restore_spans(self, plan: Plan, uids: set[str] | None) -> set[str]:
        """Put spans right; return the uids who joined or left meanwhile."""
        missed: set[str] = set()
        wanted = (order for order in orders(plan) if uids is None or uid_of(order.uid) in uids)
        for batch in batches(wanted, PAGE):
            missed |= plan.changing.intersection(uid_of(order.uid) for order in batch)
            settled = [order for order in batch if uid_of(order.uid) not in plan.changing]
            numbers = self._client.call(repair_calls.spans(self._group_lock, settled, plan.trim))
            missed.update(uid_of(settled[number].uid) for number in numbers)
            self._lock.renew()
        return missed

    def _restore_bookmarks(self, plan: Plan) -> set[str]:
        """Put bookmarks right on both sides; return the uids who changed theirs meanwhile, or joined or left."""
        live, stored = window.bookmarks(self._client, self._k), list(queries.bookmarks(self._database, [self._gid]))
        if not (live or stored or self.backlog.bookmarks):
            return set()
        later, latest = self._window.changes()[self._gid], plan.latest_change
        bookmarks = Bookmarks(stored, live, self.backlog, later, bound=plan.bound, latest_change=latest)
        members = self._at_offsets([row for row in plan.rows if row.left_msgid is None and row.uid in bookmarks.uids])
        wanted = bookmarks.orders(members, plan.newest, packed(plan.journal_end), is_older=self._is_older)
        known = self._erasures.count
        corrections.set_bookmarks(self._database, self._gid, wanted.in_sql, wanted.gone, erasures=known)
        self._marks = wanted.marks
        missed = wanted.changing
        for batch in batches(wanted.in_redis, PAGE):
            numbers = self._client.call(repair_calls.bookmarks(self._group_lock, batch))
            missed.update(batch[number].uid for number in numbers)
        return missed

    def _at_offsets(self, rows: Sequence[SpanRow]) -> dict[str, SpanRow]:
        """Return open spans with the offsets of Redis, by uid."""
        scores = self._client.query("ZMSCORE", self._k.acked, *(row.uid for row in rows)) if rows else ()
        offsets = (window.packed_score(float(score or 0)) for score in scores)
        return {row.uid: row._replace(acked_msgid=at) for row, at in zip(rows, offsets, strict=True)}

    def _restore_rest(self, plan: Plan) -> None:
        """Restore recalls, own messages past the offsets, and client_msgids."""
        members = [row.uid for row in plan.rows if row.left_msgid is None]
        trimmed = self._trimmed_own(plan.trim.msgid)
        recalled = {msgid for _, *pair in queries.recalls(self._database, [self._gid]) for msgid in pair}
        corrections.delete_recalled_texts(self._database, self._gid)
        strangers = [msgid for msgid in plan.live.recalled - recalled if not self._is_message(msgid)]
        owners = sorted(self._owners(members) | trimmed.keys() | self._marks.keys() | plan.senders)
        once_ms, k = self._system.settings.idempotency_ms, self._k
        self._client.call_many(
            [
                *paged(recalled, partial(repair_calls.set_recalled, k)),
                *([rewrite_calls.wait(k)] if recalled - plan.live.recalled else ()),  # Redis may have their texts
                *paged(strangers, partial(repair_calls.set_recalled, k, drop=True)),
            ]
        )
        own_messages.restore(self._system, [(k, owners, self._trimmed_own)])
        self._client.call_many(
            [
                *paged(plan.reidentified, partial(repair_calls.restore_idempotency, k, for_ms=once_ms, correct=True)),
                *paged(members if plan.resets else (), partial(repair_calls.resync, k)),
                *erasure.restore_latest(k, plan.rows),
            ]
        )
        # All of them: a group that is new in Redis, or that somebody has died over, may know none.
        for call in client_msgids(self._system, [self._gid], after=oldest_client_msgid(self._system, k.meta)):
            self._lock.renew()  # before it: they may be an erased user's by now
            self._client.call(call)

    def _trimmed_own(self, until: int) -> dict[str, list[int]]:
        """Return the own messages up to a trim point that are past the offset or mark, by uid."""
        return trimmed_own(self._system, [self._gid], until).get(self._gid, {})

    def _is_message(self, msgid: int) -> bool:
        """Return whether either side has a message. It then stays recalled, even without its tombstone."""
        entry_id = msgids.unpack(msgid)
        entries = self._client.query("XRANGE", self._k.stream, entry_id, entry_id)
        return bool(entries) or self._database.message(self._gid, msgid) is not None

    def _owners(self, uids: Sequence[str]) -> set[str]:
        """Return the members who have own messages past the offset, as Redis has it."""
        lengths = (
            self._client.query_many([("LLEN", self._k.own_unacked(uid)) for uid in batch])
            for batch in batches(uids, CHUNK)
        )
        return {uid for uid, length in zip(uids, chain.from_iterable(lengths), strict=True) if length}


# Parts that a rebuild shares.


def shadow_of(entries: int, newest: int, seq: int, floor: int) -> Shadow:
    """Return the description of a shadow. Ids go on after `floor`, the highest msgid that a span names."""
    return Shadow(entries, msgids.unpack(newest), seq, id_above(floor) if floor > newest else START)


def id_above(packed: int) -> str:
    """Return the first id (text) of the millisecond after a packed one: ids that follow it can be packed."""
    return msgids.unpack(msgids.first_at(msgids.time_ms(packed) + 1))


def lower(system: System, gid: str, rows: Sequence[SpanRow], newest: int) -> None:
    """Set positions and ends in SQL that no message can have to those of these rows."""
    if not rows:
        return
    corrections.lower_spans(system.database, rows, above=highest_offset(newest, now_ms()))
    named = "; ".join(f"{row.uid!r} {described_span(row)}" for row in rows[:MOST_NAMES])
    more = f"; and {len(rows) - MOST_NAMES} more" if len(rows) > MOST_NAMES else ""
    log.warning("group %r: SQL had offsets or ends that no message can have; now: %s%s", gid, named, more)
