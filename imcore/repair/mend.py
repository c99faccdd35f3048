"""Makes one group right where Redis and SQL differ, while the system runs.

Redis gets what only SQL has, and SQL what only Redis has; `imcore.repair.merge` says what comes of it.

Meanwhile no worker stores anything of the partition, and nobody else mends the group (`imcore.repair.locks`). SQL is
written first. Then, where messages are not as they should be, a new stream is made beside the group's own and takes its
place in one step; then spans and own messages follow. Killed anywhere on the way, or run twice, it does no harm: done
again, it finds the rest. People go on all the time: messages that come meanwhile follow in the new stream, and where
members come or go, the spans are looked at again.

A message that Redis had lost may lie before the offset of a member who has read on since, without having got it. Such
an offset goes back to before that message, unless SQL knows that it had passed it: the member pulls it with what
follows.
"""

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from imcore import msgid as msgids
from imcore.errors import TryAgain
from imcore.model.rows import Batch, GroupRow, MessageRow, SpanRow, WatermarkRow
from imcore.operations.messages import message as message_of
from imcore.operations.performer import Performer
from imcore.repair import client_msgids, locks, offsets
from imcore.repair import journal_window as journals
from imcore.repair.check_members import followers, scan
from imcore.repair.check_messages import GroupMeta, chunks, metas_of
from imcore.repair.journal_window import START, JournalWindow
from imcore.repair.locks import PartitionLock
from imcore.repair.merge import Placed, paired, place
from imcore.repair.plan import (
    LiveGroup,
    Plan,
    Span,
    bounded,
    ended,
    lowest_behind,
    merged_messages,
    note,
    orders,
    passed,
    place_of,
    settled,
    version_after,
)
from imcore.sql import corrections, queries
from imcore.streams import wire
from imcore.streams.calls import repair_calls
from imcore.streams.calls.repair_calls import NEVER, GroupLock, Shadow, StreamState, Text, Trim
from imcore.streams.client import CHUNK
from imcore.streams.dead_letters import CHECK
from imcore.streams.keys import SEPARATOR, uid_of
from imcore.system import System

PAGE = 200
"""How many messages one call adds to a shadow, and how many spans one puts right: the server stands still meanwhile."""

TRIES = 20

MENDER = "mend"
"""The name by which those who mend mark how far they have stored."""

Whose = Container[str]


class _Everybody:
    """All users, whoever they are."""

    def __contains__(self, uid: object) -> bool:
        return True


EVERYBODY: Whose = _Everybody()


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done: messages that Redis got again, messages that SQL got, and messages that have another seq now.

    `behind` is the lowest offset (packed) that Redis had behind what SQL knew, None if it had none.
    """

    restored: int = 0
    stored: int = 0
    renumbered: int = 0
    behind: int | None = None


def mend(system: System, gid: str, *, since: int | None = None, hold: PartitionLock | None = None) -> Mended:
    """Make one group right; return what was done. Messages before `since` (packed), if it is given, are looked at too.

    `hold` is the caller's on the partition, if it has one. Raise TryAgain if somebody else mends it all the time, or if
    members come and go too fast.
    """
    if hold is None:
        with PartitionLock(system, system.client.space.partition_of(gid), wait_s=locks.HOLD_MS / 1000 + 1) as own:
            return mend(system, gid, since=since, hold=own)
    total, left = Mended(), EVERYBODY
    for _ in range(TRIES):
        hold.keep()
        done, left = _attempt(system, gid, since, hold, left)
        total = _sum(total, done)
        if not left:
            return total
    raise TryAgain(f"{gid!r} changes too fast to mend it now")


def _attempt(system: System, gid: str, since: int | None, hold: PartitionLock, whose: Whose) -> tuple[Mended, Whose]:
    """Put the spans of some users right, and all else; return what was done, and whose spans are left."""
    claim = locks.take(system, [gid])[0]
    left = whose
    try:
        done, left = _Mending(system, claim, since, hold).attempt(whose)
    finally:
        locks.give_back(system, [claim], done=not left)
    return done, left


def _sum(one: Mended, other: Mended) -> Mended:
    lowest = [behind for behind in (one.behind, other.behind) if behind is not None]
    return Mended(
        one.restored + other.restored,
        one.stored + other.stored,
        one.renumbered + other.renumbered,
        min(lowest, default=None),
    )


def trim_point(system: System, gid: str) -> Trim:
    """Return where a group would be trimmed, by the settings."""
    settings, database = system.settings, system.database
    by_count = queries.older_than(database, gid, settings.keep_messages)
    cutoff = msgids.first_at(time.time_ns() // 1_000_000 - settings.keep_ms)
    by_age = database.messages_before(gid, cutoff, limit=1)
    return Trim(*max(by_count or (0, 0), by_age[0][1:3] if by_age else (0, 0)))


class _Mending:
    """One attempt."""

    def __init__(self, system: System, claim: GroupLock, since: int | None, hold: PartitionLock) -> None:
        self._system = system
        self._client = system.client
        self._database = system.database
        self._claim = claim
        self._k = claim.k
        self._gid = gid = claim.k.gid
        self._since = since
        self._hold = hold
        self._window = JournalWindow(system, [gid])
        self._pending = self._window.pending[gid]

    def attempt(self, whose: Whose) -> tuple[Mended, Whose]:
        """Return what was done, and whose spans are left, since they came or went meanwhile."""
        plan = self._plan()
        if plan is None:
            return Mended(), ()
        self._mark(plan)
        self._write_spans(plan)
        if plan.stands and not plan.resets:
            self._store_messages(plan)
        elif not self._swap(plan, self._make_shadow(plan)):
            return Mended(), whose
        done = Mended(len(plan.lost), plan.added, plan.moved, lowest_behind(plan))
        left = self._restore_spans(plan, whose)
        if not left:
            self._restore_rest(plan)
        return done, left

    # What is to be.

    def _plan(self) -> Plan | None:
        """Return what is to be done, None for a name that is no group on either side."""
        # In this order: what SQL has by now and Redis does not have then, is lost.
        newest_stored = queries.head(self._database, self._gid, until=NEVER).newest
        live = self._live_spans()
        newest_live = self._newest()
        meta = metas_of(self._client, [self._gid])[self._gid]
        rows = list(queries.spans(self._database, [self._gid]))
        is_listed = self._client.query("SISMEMBER", self._k.groups, self._gid)
        if not (meta.exists or newest_live or newest_stored or rows or live.keys or self._is_known()):
            self._client.execute_once("SREM", self._k.groups, self._gid)
            return None
        newest = max(newest_live, newest_stored)
        sound = offsets.possible(rows, newest, chain.from_iterable(live.rows.values()))
        told = offsets.possible(self._pending.applied(sound), newest, sound)
        live = bounded(live, told, newest, bound=offsets.highest(newest))
        base = self._base(meta)
        journal_end = self._window.opened_at(self._partition)
        version = version_after(told, journal_end)
        plan = Plan(
            base=base,
            trim=self._trim(meta, base),
            seen=StreamState(msgids.unpack(newest_live), meta.trimmed if meta.exists else None),
            journal_end=journal_end,
            newest_live=newest_live,
            newest_stored=newest_stored,
            live=live,
            known={(row.uid, row.joined_msgid): row.acked_msgid for row in sound},
            lowered=[row for row, there in zip(sound, rows, strict=True) if row != there],
            settled=settled(told, live, version=version),
            version=version,
            seq=base.seq,
            newest=base.msgid,
        )
        merged_messages(plan, self._placed(plan), self._said(plan, told))
        for placed in self._placed(plan):
            note(plan, placed)
        is_whole = (meta.seq, meta.last, meta.trimmed) == (plan.seq, plan.newest, plan.trim.msgid)
        is_followed = live.followers == live.opened.keys() and plan.floor <= plan.newest
        plan.stands &= bool(is_listed) and is_whole and is_followed and not plan.foreign
        return plan

    def _said(self, plan: Plan, told: Sequence[SpanRow]) -> dict[Span, int]:
        """Return the newest message (packed) up to the base in each span of which the two sides have another end."""
        spans = ended(plan, told)
        uids = sorted({uid for uid, _ in spans})
        after = min(spans.values(), default=NEVER)
        return queries.newest_own(self._database, self._gid, uids, after=after, until=plan.base.msgid)

    def _is_known(self) -> bool:
        return self._pending.created_ms is not None or bool(queries.listed(self._database, [self._gid]))

    @property
    def _partition(self) -> int:
        return self._client.space.partition_of(self._gid)

    def _newest(self) -> int:
        found = self._client.query("XREVRANGE", self._k.stream, "+", "-", "COUNT", 1)
        return msgids.pack_id(found[0][0]) if found else 0

    def _base(self, meta: GroupMeta) -> Trim:
        """Return the newest message that both sides have just so: all after it is looked at.

        Where there is none, the trim point; for a group that Redis does not have, where it would be trimmed.
        """
        if not meta.exists:
            return trim_point(self._system, self._gid)
        bound = NEVER if self._since is None else self._since
        while True:
            there = self._database.messages_before(self._gid, bound, limit=PAGE)
            here = self._live_before(bound)
            both = {place_of(row) for row in here} & {place_of(row) for row in there}
            if both:
                return Trim(*max(both)[:2])
            if not here or not there:
                below = queries.head(self._database, self._gid, until=meta.trimmed)
                return Trim(meta.trimmed, below.last_seq)
            bound = max(here[0].msgid, there[0].msgid)

    def _live_before(self, bound: int) -> list[MessageRow]:
        last = "+" if bound == NEVER else f"({msgids.unpack(bound)}"
        found = self._client.query("XREVRANGE", self._k.stream, last, "-", "COUNT", PAGE)
        rows = [journals.readable(self._gid, entry_id, wire.values_of(fields)) for entry_id, fields in found]
        return [row for row in rows if row][::-1]

    def _trim(self, meta: GroupMeta, base: Trim) -> Trim:
        """Return the trim point of the shadow: the message before the first that is copied into it."""
        first = next((row for row, _ in journals.live(self._client, self._gid, last=msgids.unpack(base.msgid))), None)
        if not meta.exists or first is None:
            return base
        before = self._database.messages_before(self._gid, first.msgid, limit=1)
        if first.seq == 1:
            return Trim(0, 0)
        return Trim(before[0].msgid if before else meta.trimmed, first.seq - 1)

    def _placed(self, plan: Plan) -> Iterator[Placed]:
        """Yield the messages after the base, as they are to be, up to where they had come when this attempt began."""
        base, last = plan.base.msgid, msgids.unpack(plan.newest_live)
        there = queries.messages(self._database, [self._gid], after=base, until=plan.newest_stored)
        pairs = paired(self._live(plan, base, last), there, attrgetter("msgid"), attrgetter("msgid"))
        return place(pairs, base=plan.base.seq, is_new=self._pending.covers, span_of=plan.span_of)

    def _live(self, plan: Plan, base: int, last: str) -> Iterator[MessageRow]:
        first = f"({msgids.unpack(base)}" if base else "-"
        for entry_id, row, values in journals.raw_entries(self._client, self._gid, first=first, last=last):
            if row is None:
                plan.foreign[entry_id] = values
                continue
            if wire.moved_with_sender(values):
                plan.moved_senders.add(row.msgid)
            yield row

    def _live_spans(self) -> LiveGroup:
        acked, joined, left = (dict(scan(self._client, z)) for z in (self._k.acked, self._k.joined, self._k.left))
        rows: dict[str, list[SpanRow]] = {}
        for key, began in joined.items():
            uid, _, closed = key.partition(SEPARATOR)
            if key in acked and bool(closed) == (key in left) and (not closed or int(closed) == began):
                # The consumer group moves with the index in one step: where it stands elsewhere, somebody has set it.
                rows.setdefault(uid, []).append(SpanRow(self._gid, uid, began, left.get(key), 0, acked[key]))
        opened = {key: began for key, began in joined.items() if SEPARATOR not in key}
        recalled = {int(msgid) for msgid, _ in scan(self._client, self._k.recalled)}
        follow = set(followers(self._client, self._k.stream))
        return LiveGroup(rows, {*acked, *joined, *left}, opened, follow, {}, recalled)

    # SQL first.

    def _mark(self, plan: Plan) -> None:
        """Mark in both how far is stored, before anything is: a Redis that loses it afterwards shows that."""
        if plan.journal_end == START:
            return
        packed = msgids.pack_id(plan.journal_end.encode())
        self._client.call(repair_calls.set_watermarks(self._client.space, self._partition, {MENDER: packed}))
        self._database.write(Batch(marks=[WatermarkRow(self._partition, MENDER, packed)]))

    def _write_spans(self, plan: Plan) -> None:
        if plan.lowered:
            offsets.lower(self._database, self._gid, plan.lowered, max(plan.newest_live, plan.newest_stored))
        if plan.rewritten:
            corrections.rewrite(self._database, plan.rewritten)
        rows = [row for each in plan.spans.values() for row in each.rows]
        if plan.resets:  # which offsets stand is clear only once the shadow is in place: the journal will tell
            rows = [row._replace(acked_msgid=row.joined_msgid) for row in rows]
        batch = Batch(spans=rows)
        if not queries.listed(self._database, [self._gid]):
            batch.groups.append(GroupRow(self._gid, self._pending.created_ms or time.time_ns() // 1_000_000))
        self._database.write(batch)

    def _store_messages(self, plan: Plan) -> None:
        """Put into SQL what only Redis has."""
        for _ in self._stored(plan):
            pass

    def _stored(self, plan: Plan) -> Iterator[list[Placed]]:
        """Yield the messages after the base, a page at a time, once SQL has them; recalled ones without their text."""
        recalled = {msgid for _, msgid in queries.recalls(self._database, self._gid)}
        for some in chunks(self._placed(plan), PAGE):
            new = [placed.row for placed in some if placed.stored is None]
            rows = [row._replace(content="") if row.msgid in recalled else row for row in new]
            self._database.write(Batch(messages=rows))
            self._hold.keep()
            yield some

    # Then Redis.

    def _make_shadow(self, plan: Plan) -> int:
        """Put beside the stream what is to be in its place; return how many entries that are."""
        entries = 0 if plan.trim == plan.base else self._copy(msgids.unpack(plan.base.msgid))
        for some in self._stored(plan):
            texts = [Text(placed.row, up=self._moves_sender(plan, placed)) for placed in some]
            self._client.call(repair_calls.add(self._claim, texts))
            entries += len(some)
        return entries

    def _copy(self, last: str) -> int:
        before, entries = -1, 0
        while before != entries:
            before, entries = entries, self._client.call(repair_calls.copy(self._claim, last=last, count=PAGE))
            self._hold.keep()
        return entries

    def _moves_sender(self, plan: Plan, placed: Placed) -> bool:
        return placed.stored is None and not plan.resets and placed.row.msgid in plan.moved_senders

    def _swap(self, plan: Plan, entries: int) -> bool:
        undone = journals.undone_from(self._client, self._partition) if plan.journal_end != START else None
        after = id_above(plan.floor) if plan.floor > plan.newest else START
        shadow = Shadow(entries, msgids.unpack(plan.newest), plan.seq, after)
        call = repair_calls.swap(
            self._claim, plan.seen, shadow, plan.trim, undone=undone, passed=list(passed(plan)) if plan.resets else ()
        )
        if self._client.call(call) is repair_calls.CHANGED:
            return False
        self._put_aside(plan)
        return True

    def _put_aside(self, plan: Plan) -> None:
        """Keep as dead letters what was in the stream and is no message."""
        why = ("dead_worker", CHECK, "dead_reason", f"no message, and stood in the stream of {self._gid!r}")
        for entry_id, values in plan.foreign.items():
            told = (*why, "dead_entry", entry_id.decode(), "dead_deliveries", "0")
            self._client.execute_once("XADD", self._client.space.dead_letters(self._partition), "*", *told, *values)

    def _restore_spans(self, plan: Plan, whose: Whose) -> set[str]:
        """Put spans right; return whose are not, since they came or went meanwhile."""
        missed: set[str] = set()
        for some in chunks((order for order in orders(plan) if uid_of(order.uid) in whose), PAGE):
            numbers = self._client.call(repair_calls.spans(self._claim, some, plan.trim))
            missed.update(uid_of(some[number].uid) for number in numbers)
            self._hold.keep()
        return missed

    def _restore_rest(self, plan: Plan) -> None:
        members = [row.uid for row in plan.rows if row.left_msgid is None]
        trimmed: dict[str, list[int]] = {}
        for _, uid, msgid in queries.own_unread(self._database, [self._gid]):
            trimmed.setdefault(uid, []).extend([msgid] if msgid <= plan.trim.msgid else [])
        owners = self._owners(members) | trimmed.keys() | plan.senders
        recalled = {msgid for pair in queries.recalls(self._database, self._gid) for msgid in pair}
        corrections.delete_recalled_texts(self._database, self._gid)
        once_ms = self._system.settings.idempotency_ms
        strangers = [msgid for msgid in plan.live.recalled - recalled if not self._is_message(msgid)]
        batch = [repair_calls.set_recalled(self._k, some) for some in chunks(recalled, PAGE)]
        batch += [repair_calls.set_recalled(self._k, some, drop=True) for some in chunks(strangers, PAGE)]
        batch += [repair_calls.restore_own_unacked(self._k, some, trimmed) for some in chunks(sorted(owners), PAGE)]
        batch += [
            repair_calls.restore_idempotency(self._k, some, once_ms, correct=True) for some in chunks(plan.once, PAGE)
        ]
        if plan.resets:
            batch += [repair_calls.resync(self._k, some) for some in chunks(members, PAGE)]
        self._client.call_many(batch)
        self._restore_client_msgids()

    def _restore_client_msgids(self) -> None:
        """Let Redis know all client_msgids that it has to know.

        It may know none, also of messages that it has, or that only SQL has, and of those that an earlier attempt has
        brought back: where the group is new in Redis, or somebody has died over bringing it back.
        """
        after = client_msgids.oldest_known(self._system, self._k.meta)
        for call in client_msgids.bring_back(self._system, [self._gid], after=after):
            self._client.call(call)
            self._hold.keep()

    def _is_message(self, msgid: int) -> bool:
        """Return whether there is such a message: then it stays recalled, whatever has become of the tombstone."""
        return Performer(self._system).perform(message_of(self._gid, msgid)) is not None

    def _owners(self, uids: Sequence[str]) -> set[str]:
        """Return who has own messages past the offset, as Redis has it."""
        lengths = [
            self._client.query_many([("LLEN", self._k.own_unacked(uid)) for uid in some])
            for some in chunks(uids, CHUNK)
        ]
        return {uid for uid, length in zip(uids, chain.from_iterable(lengths), strict=True) if length}


def id_above(packed: int) -> str:
    """Return the first id (text) of the millisecond after a packed one: what is counted on from there can be packed."""
    return msgids.unpack(msgids.first_at(msgids.time_ms(packed) + 1))
