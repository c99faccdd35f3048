"""Reads what both sides have of a group where they differ, and merges the two into a plan."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import TypeVar

from imcore import msgid as msgids
from imcore.model.rows import MessageRow, SpanRow
from imcore.repair import window
from imcore.repair.bookmarks import Bookmarks
from imcore.repair.merge import Placed, Plan, Span, bounded, ended, identity_of, place, settled_spans
from imcore.repair.state import GroupMeta, highest_offset, paired, possible
from imcore.repair.window import JournalWindow, now_ms, packed
from imcore.sql import queries
from imcore.streams import wire
from imcore.streams.calls import repair_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.repair_calls import NEVER, StreamState, Trim
from imcore.streams.keys import GroupKeys
from imcore.system import System
from imcore.util.batches import batches

T = TypeVar("T")

PAGE = 200
"""The messages that one call adds to a shadow, and the spans that one asserts: the server does nothing else."""


class Planner:
    """Makes the plan of one group, with a window of its own."""

    def __init__(self, system: System, k: GroupKeys, since: int | None) -> None:
        self._system = system
        self._client = system.client
        self._database = system.database
        self._k = k
        self._gid = k.gid
        self._partition = system.client.space.partition_of(k.gid)
        self._since = since
        self._erasures = system.database.erasures()
        self._window = JournalWindow(system, [k.gid])
        self.backlog = self._window.backlogs[k.gid]

    def plan(self) -> Plan | None:
        """Return what to do, None for a name that is no group on either side."""
        # In this order: what SQL has by now and Redis does not have then, is lost.
        newest_stored = queries.head(self._database, self._gid, until=NEVER).newest
        live = window.actual_group(self._client, self._k)
        changing = self._window.changes()[self._gid].members
        newest_live = packed(window.end_of(self._client, self._k.stream))
        meta = window.metas_of(self._client, [self._gid])[self._gid]
        rows = list(queries.spans(self._database, [self._gid]))
        is_listed = self._client.query("SISMEMBER", self._k.groups, self._gid)
        is_known = self.backlog.created_ms is not None or queries.listed(self._database, [self._gid])
        if not any((meta.exists, newest_live, newest_stored, rows, live.keys, is_known)):
            self._client.call(repair_calls.unlist_group(self._k))
            return None
        newest = max(newest_live, newest_stored)
        bound = highest_offset(newest, now_ms())
        sound = possible(rows, newest, chain.from_iterable(live.rows.values()), bound=bound)
        desired = possible(self.backlog.applied(sound), newest, sound, bound=bound)
        live = bounded(live, desired, newest, bound=bound)
        base = self._base(meta)
        journal_end = self._window.ends[self._partition]
        # Above that of each row, and not above those of later journal entries.
        version = max(packed(journal_end), max((row.changed for row in desired), default=0) + 1)
        latest_change, stored = window.latest_change(journal_end), queries.bookmarks(self._database, [self._gid])
        bookmarks = Bookmarks(stored, {}, self.backlog, bound=bound, latest_change=latest_change)
        plan = Plan(
            base=base,
            trim=self._trim(meta, base),
            seen=StreamState(msgids.unpack(newest_live), meta.trimmed if meta.exists else None),
            journal_end=journal_end,
            newest_live=newest_live,
            newest_stored=newest_stored,
            live=live,
            settled=settled_spans(desired, live, version=version),
            known={(row.uid, row.joined_msgid): row for row in sound},
            lowered=[row for row, stored in zip(sound, rows, strict=True) if row != stored],
            private=bookmarks.private,
            bookmarked=bookmarks.furthest,
            bound=bound,
            latest_change=latest_change,
            version=version,
            seq=base.seq,
            newest=base.msgid,
            changing=changing,
        )
        self._fill(plan, desired)
        is_whole = (meta.seq, meta.last, meta.trimmed) == (plan.seq, plan.newest, plan.trim.msgid)
        plan.is_sound &= bool(is_listed) and is_whole and not plan.foreign
        return plan

    def _fill(self, plan: Plan, desired: Sequence[SpanRow]) -> None:
        """Go through the messages: first for the spans that they need, then for what becomes of each."""
        plan.lay_out(self.placed(plan), self._last_own(plan, desired))
        for placed in self.placed(plan):
            plan.note(placed)
        plan.is_sound &= plan.live.followers == plan.live.opened.keys() and plan.floor <= plan.newest

    def _last_own(self, plan: Plan, desired: Sequence[SpanRow]) -> dict[Span, int]:
        """Return the newest message (packed) up to the base in each span of which the two sides have another end."""
        spans = ended(plan, desired)
        uids, after = sorted({uid for uid, _ in spans}), min(spans.values(), default=NEVER)
        return queries.newest_own(self._database, self._gid, uids, after=after, until=plan.base.msgid)

    def _base(self, meta: GroupMeta) -> Trim:
        """Return the newest message that is the same on both sides: all after it is looked at.

        Without one it is the trim point, and for a group that Redis does not have, the point where it would be trimmed.
        """
        if not meta.exists:
            return trim_point(self._system, self._gid)
        bound = NEVER if self._since is None else self._since
        while True:
            stored = self._database.messages_before(self._gid, bound, limit=PAGE)
            live = self._live_before(bound)
            if both := set(map(identity_of, live)) & set(map(identity_of, stored)):
                return Trim(*max(both)[:2])
            if not live or not stored:
                below = queries.head(self._database, self._gid, until=meta.trimmed)
                return Trim(meta.trimmed, below.last_seq)
            bound = max(live[0].msgid, stored[0].msgid)

    def _live_before(self, bound: int) -> list[MessageRow]:
        last = "+" if bound == NEVER else f"({msgids.unpack(bound)}"
        page = self._client.query("XREVRANGE", self._k.stream, last, "-", "COUNT", PAGE)
        rows = [window.readable(self._gid, entry_id, wire.values_of(fields)) for entry_id, fields in reversed(page)]
        return [row for row in rows if row]

    def _trim(self, meta: GroupMeta, base: Trim) -> Trim:
        """Return the trim point of the shadow: the message before the first that is copied into it."""
        last = msgids.unpack(base.msgid)
        first = next((row for row, _ in window.live(self._client, self._gid, last=last)), None)
        if not meta.exists or first is None:
            return base
        if first.seq == 1:
            return Trim(0, 0)
        before = self._database.messages_before(self._gid, first.msgid, limit=1)
        return Trim(before[0].msgid if before else meta.trimmed, first.seq - 1)

    def placed(self, plan: Plan) -> Iterator[Placed]:
        """Yield the messages after the base, as desired, up to the newest ones when this attempt began."""
        stored = queries.messages(self._database, [self._gid], after=plan.base.msgid, until=plan.newest_stored)
        pairs = paired(self._live(plan), stored, attrgetter("msgid"))
        return place(pairs, base=plan.base.seq, is_new=self.backlog.covers, span_of=plan.span_of)

    def _live(self, plan: Plan) -> Iterator[MessageRow]:
        first = f"({msgids.unpack(plan.base.msgid)}" if plan.base.msgid else "-"
        last = msgids.unpack(plan.newest_live)
        for entry_id, row, values in window.raw_entries(self._client, self._gid, first=first, last=last):
            if row is None:
                plan.foreign[entry_id] = values
                continue
            if wire.was_caught_up(values):
                plan.moved_senders.add(row.msgid)
            yield self._erasures.message(row)


def trim_point(system: System, gid: str) -> Trim:
    """Return where a group would be trimmed, by the settings."""
    settings, database = system.settings, system.database
    by_count = queries.older_than(database, gid, settings.keep_messages)
    by_age = database.messages_before(gid, msgids.first_at(now_ms() - settings.keep_ms), limit=1)
    return Trim(*max(by_count or (0, 0), by_age[0][1:3] if by_age else (0, 0)))


# Beside the spans.


def paged(values: Iterable[T], call: Callable[[list[T]], Call[int]]) -> Iterator[Call[int]]:
    return map(call, batches(values, PAGE))


def trimmed_own(system: System, gids: Sequence[str], trimmed: int) -> dict[str, dict[str, list[int]]]:
    """Return who has own messages past the offset or mark, by group and uid, with those (packed) that only SQL has."""
    own: dict[str, dict[str, list[int]]] = {}
    for gid, uid, msgid in queries.own_unread(system.database, gids):
        own.setdefault(gid, {}).setdefault(uid, []).extend([msgid] if msgid <= trimmed else [])
    return own


def oldest_client_msgid(system: System, key: str) -> int:
    """Return the msgid (packed) after which a message's client_msgid has to be known.

    The earlier of our clock and that of the key's server counts: a clock that is ahead forgets nothing early.
    """
    earlier_ms = min(now_ms(), system.client.time_ms(key))
    return msgids.first_at(earlier_ms - system.settings.idempotency_ms)


def client_msgids(system: System, gids: Sequence[str], *, after: int) -> Iterator[Call[int]]:
    """Yield calls that restore the client_msgids of messages after a msgid (packed). Known ones stay as they are."""
    rows = queries.with_client_msgid(system.database, gids, after=after)
    for gid, of_group in groupby(rows, key=attrgetter("gid")):
        k, once_ms = system.client.space.group(gid), system.settings.idempotency_ms
        yield from paged(of_group, partial(repair_calls.restore_idempotency, k, for_ms=once_ms))
