"""Makes one group right where Redis and SQL differ, while the system runs.

Redis gets what only SQL has, and SQL what only Redis has; `imcore.admin.merging` says what comes of it.

SQL is written first. Then a new stream is made beside the group's own and takes its place in one step, which looks
whether anybody came or went meanwhile; then spans and own messages follow. Killed anywhere on the way, or run twice, it
does no harm: done again, it finds the rest.

A message that Redis had lost may lie before the offset of a member who has read on since, without having got it. Such
an offset goes back to before that message, unless SQL knows that it had passed it: the member pulls it with what
follows.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from imcore import msgid as msgids
from imcore.admin import pending as journals
from imcore.admin.audit_members import followers, scan
from imcore.admin.audit_messages import Meta, chunks, metas_of
from imcore.admin.mend_plan import (
    Live,
    Plan,
    lay_out,
    lowest_behind,
    note,
    orders,
    passed,
    place_of,
    settled,
    version_after,
)
from imcore.admin.merging import Placed, paired, place
from imcore.admin.pending import START, Window
from imcore.chat import Chat
from imcore.errors import TryAgain
from imcore.sql import stored
from imcore.sql.rows import Batch, GroupRow, MessageRow, SpanRow
from imcore.streams import restore_calls, wire
from imcore.streams.keys import SEPARATOR
from imcore.streams.link import CHUNK
from imcore.streams.restore_calls import NEVER, Seen, Shadow, Text, Trim

PAGE = 200
"""How many messages one call adds to a shadow, and how many spans one puts right: the server stands still meanwhile."""

TRIES = 20


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done: messages that Redis got again, messages that SQL got, and messages that have another seq now.

    `behind` is the lowest offset (packed) that Redis had behind what SQL knew, None if it had none.
    """

    restored: int = 0
    stored: int = 0
    renumbered: int = 0
    behind: int | None = None


def mend(chat: Chat, gid: str, *, since: int | None = None) -> Mended:
    """Make one group right; return what was done. Messages before `since` (packed), if it is given, are looked at too.

    Raise TryAgain if members come and go too fast.
    """
    for _ in range(TRIES):
        done = _Mending(chat, gid, since).attempt()
        if done:
            return done
    raise TryAgain(f"the members of {gid!r} change too fast to mend it now")


def unfinished(chat: Chat, partition: int) -> set[str]:
    """Return the groups of a partition whose mending has begun and not ended: they may not be as they should."""
    found = chat.link.read("SMEMBERS", restore_calls.unfinished_of(chat.link.space, partition))
    return {gid.decode() for gid in found}


def trim_point(chat: Chat, gid: str) -> Trim:
    """Return where a group would be trimmed, by the settings."""
    settings, database = chat.settings, chat.database
    by_count = stored.older_than(database, gid, settings.keep_messages)
    cutoff = msgids.first_at(time.time_ns() // 1_000_000 - settings.keep_ms)
    by_age = database.messages_before(gid, cutoff, limit=1)
    return Trim(*max(by_count or (0, 0), by_age[0][1:3] if by_age else (0, 0)))


class _Mending:
    """One attempt."""

    def __init__(self, chat: Chat, gid: str, since: int | None) -> None:
        self._chat = chat
        self._link = chat.link
        self._database = chat.database
        self._gid = gid
        self._since = since
        self._k = chat.link.space.group(gid)
        self._window = Window(chat, [gid])
        self._pending = self._window.pending[gid]

    def attempt(self) -> Mended | None:
        """Return what was done, None if the group has changed meanwhile."""
        plan = self._plan()
        self._note_unfinished("SADD")
        self._write_spans(plan)
        self._make_shadow(plan)
        if not self._swap(plan) or not self._restore_spans(plan):
            return None
        self._restore_rest(plan)
        self._note_unfinished("SREM")
        return Mended(len(plan.lost), plan.added, plan.moved, lowest_behind(plan))

    def _note_unfinished(self, command: str) -> None:
        self._link.once(command, restore_calls.unfinished_of(self._link.space, self._partition), self._gid)

    # What is to be.

    def _plan(self) -> Plan:
        # In this order: what SQL has by now and Redis does not have then, is lost.
        newest_stored = stored.head(self._database, self._gid, until=NEVER).newest
        live = self._live_spans()
        newest_live = self._newest()
        meta = metas_of(self._link, [self._gid])[self._gid]
        base = self._base(meta)
        rows = list(stored.spans(self._database, [self._gid]))
        told = list(self._pending.applied(rows))
        seen = Seen(self._window.opened_at(self._partition), msgids.unpack(newest_live))
        version = version_after(told, seen.journal)
        plan = Plan(
            base=base,
            trim=self._trim(meta, base),
            seen=seen,
            newest_live=newest_live,
            newest_stored=newest_stored,
            live=live,
            known={(row.uid, row.joined_msgid): row.acked_msgid for row in rows},
            settled=settled(told, live, version=version),
            version=version,
            seq=base.seq,
            newest=base.msgid,
        )
        lay_out(plan, self._placed(plan))
        for placed in self._placed(plan):
            note(plan, placed)
        return plan

    @property
    def _partition(self) -> int:
        return self._link.space.partition_of(self._gid)

    def _newest(self) -> int:
        found = self._link.read("XREVRANGE", self._k.stream, "+", "-", "COUNT", 1)
        return msgids.pack_id(found[0][0]) if found else 0

    def _base(self, meta: Meta) -> Trim:
        """Return the newest message that both sides have just so: all after it is looked at.

        Where there is none, the trim point; for a group that Redis does not have, where it would be trimmed.
        """
        if not meta.exists:
            return trim_point(self._chat, self._gid)
        bound = NEVER if self._since is None else self._since
        while True:
            there = self._database.messages_before(self._gid, bound, limit=PAGE)
            here = self._live_before(bound)
            both = {place_of(row) for row in here} & {place_of(row) for row in there}
            if both:
                return Trim(*max(both)[:2])
            if not here or not there:
                below = stored.head(self._database, self._gid, until=meta.trimmed)
                return Trim(meta.trimmed, below.last_seq)
            bound = max(here[0].msgid, there[0].msgid)

    def _live_before(self, bound: int) -> list[MessageRow]:
        last = "+" if bound == NEVER else f"({msgids.unpack(bound)}"
        found = self._link.read("XREVRANGE", self._k.stream, last, "-", "COUNT", PAGE)
        rows = [journals.readable(self._gid, entry_id, wire.values_of(fields)) for entry_id, fields in found]
        return [row for row in rows if row][::-1]

    def _trim(self, meta: Meta, base: Trim) -> Trim:
        """Return the trim point of the shadow: the message before the first that is copied into it."""
        first = next((row for row, _ in journals.live(self._link, self._gid, last=msgids.unpack(base.msgid))), None)
        if not meta.exists or first is None:
            return base
        before = self._database.messages_before(self._gid, first.msgid, limit=1)
        if first.seq == 1:
            return Trim(0, 0)
        return Trim(before[0].msgid if before else meta.trimmed, first.seq - 1)

    def _placed(self, plan: Plan) -> Iterator[Placed]:
        """Yield the messages after the base, as they are to be, up to where they had come when this attempt began."""
        base, last = plan.base.msgid, msgids.unpack(plan.newest_live)
        there = stored.messages(self._database, [self._gid], after=base, until=plan.newest_stored)
        pairs = paired(self._live(plan, base, last), there, attrgetter("msgid"), attrgetter("msgid"))
        return place(pairs, base=plan.base.seq, is_new=self._pending.covers, span_of=plan.span_of)

    def _live(self, plan: Plan, base: int, last: str) -> Iterator[MessageRow]:
        first = f"({msgids.unpack(base)}" if base else "-"
        for row, moved_sender in journals.live(self._link, self._gid, first=first, last=last):
            if moved_sender:
                plan.moved_senders.add(row.msgid)
            yield row

    def _live_spans(self) -> Live:
        acked, joined, left = (dict(scan(self._link, z)) for z in (self._k.acked, self._k.joined, self._k.left))
        follow = followers(self._link, self._k.stream)
        rows: dict[str, list[SpanRow]] = {}
        for key, began in joined.items():
            uid, _, closed = key.partition(SEPARATOR)
            if key in acked and bool(closed) == (key in left) and (not closed or int(closed) == began):
                offset = acked[key] if closed else max(acked[key], follow.get(key, 0))
                rows.setdefault(uid, []).append(SpanRow(self._gid, uid, began, left.get(key), 0, offset))
        opened = {key: began for key, began in joined.items() if SEPARATOR not in key}
        uncounted = {int(msgid) for msgid, _ in scan(self._link, self._k.uncounted)}
        return Live(rows, {*acked, *joined, *left}, opened, uncounted)

    # SQL first.

    def _write_spans(self, plan: Plan) -> None:
        if plan.rewritten:
            stored.rewrite(self._database, plan.rewritten)
        rows = [row for each in plan.spans.values() for row in each.rows]
        if plan.resets:  # which offsets stand is clear only once the shadow is in place: the journal will tell
            rows = [row._replace(acked_msgid=row.joined_msgid) for row in rows]
        batch = Batch(spans=rows)
        if not stored.listed(self._database, [self._gid]):
            batch.groups.append(GroupRow(self._gid, self._pending.created_ms or time.time_ns() // 1_000_000))
        self._database.write(batch)

    # Then Redis.

    def _make_shadow(self, plan: Plan) -> None:
        """Put beside the stream what is to be in its place; and into SQL what only Redis has."""
        if plan.trim == plan.base:
            self._link.run(restore_calls.add(self._k, [], anew=True))
        else:
            self._copy(msgids.unpack(plan.base.msgid))
        for some in chunks(self._placed(plan), PAGE):
            self._database.write(Batch(messages=[placed.row for placed in some if placed.stored is None]))
            texts = [Text(placed.row, up=self._moves_sender(plan, placed)) for placed in some]
            self._link.run(restore_calls.add(self._k, texts))

    def _copy(self, last: str) -> None:
        anew = True
        while self._link.run(restore_calls.copy(self._k, first="0-1", last=last, count=PAGE, anew=anew)) == PAGE:
            anew = False

    def _moves_sender(self, plan: Plan, placed: Placed) -> bool:
        return placed.stored is None and not plan.resets and placed.row.msgid in plan.moved_senders

    def _swap(self, plan: Plan) -> bool:
        undone = journals.undone_from(self._link, self._partition) if plan.seen.journal != journals.START else None
        floor = max((max(row.joined_msgid, row.left_msgid or 0, row.acked_msgid) for row in plan.rows), default=0)
        shadow = Shadow(msgids.unpack(plan.newest), plan.seq, id_above(floor) if floor > plan.newest else START)
        call = restore_calls.swap(
            self._k, plan.seen, shadow, plan.trim, undone=undone, passed=list(passed(plan)) if plan.resets else ()
        )
        return self._link.run(call) is not restore_calls.CHANGED

    def _restore_spans(self, plan: Plan) -> bool:
        for some in chunks(orders(plan), PAGE):
            if self._link.run(restore_calls.spans(self._k, some, plan.trim)):
                return False
        return True

    def _restore_rest(self, plan: Plan) -> None:
        members = [row.uid for row in plan.rows if row.left_msgid is None]
        trimmed: dict[str, list[int]] = {}
        for _, uid, msgid in stored.own_unread(self._database, [self._gid]):
            trimmed.setdefault(uid, []).extend([msgid] if msgid <= plan.trim.msgid else [])
        owners = self._owners(members) | trimmed.keys() | plan.senders
        recalled = {msgid for pair in stored.recalls(self._database, self._gid) for msgid in pair}
        once_ms = self._chat.settings.idempotency_ms
        strangers = plan.live.uncounted - recalled
        batch = [restore_calls.uncounted(self._k, some) for some in chunks(recalled, PAGE)]
        batch += [restore_calls.uncounted(self._k, some, drop=True) for some in chunks(strangers, PAGE)]
        batch += [restore_calls.own(self._k, some, trimmed) for some in chunks(sorted(owners), PAGE)]
        batch += [restore_calls.once(self._k, some, once_ms, correct=True) for some in chunks(plan.once, PAGE)]
        if plan.resets:
            batch += [restore_calls.again(self._k, some) for some in chunks(members, PAGE)]
        self._link.run_many(batch)

    def _owners(self, uids: Sequence[str]) -> set[str]:
        """Return who has own messages past the offset, as Redis has it."""
        lengths = [self._link.read_many([("LLEN", self._k.own(uid)) for uid in some]) for some in chunks(uids, CHUNK)]
        return {uid for uid, length in zip(uids, chain.from_iterable(lengths), strict=True) if length}


def id_above(packed: int) -> str:
    """Return the first id (text) of the millisecond after a packed one: what is counted on from there can be packed."""
    return msgids.unpack(msgids.first_at(msgids.time_ms(packed) + 1))
