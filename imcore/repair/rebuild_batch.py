"""Brings back groups that Redis does not have, many in few round trips. See `imcore.repair.rebuild`."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from imcore import msgid as msgids
from imcore.model.rows import SpanRow
from imcore.repair import client_msgids, locks, offsets
from imcore.repair.check_members import is_empty
from imcore.repair.check_messages import chunks
from imcore.repair.journal_window import START
from imcore.repair.mend import id_above
from imcore.repair.merge import offset_of
from imcore.sql import queries
from imcore.streams.calls import repair_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.repair_calls import NEVER, GroupLock, Shadow, ShadowEntry, SpanOrder, StreamState, Trim
from imcore.system import System

PAGE = 200
"""How many messages, or spans, one call brings back: the server stands still meanwhile."""

MOST_CALLS = 20
"""How many calls travel together: their messages are in memory."""


class RebuildBatch:
    """Groups that come back together. Only one that comes back alone may have a trim point."""

    def __init__(self, system: System, gids: Sequence[str], trim: Trim, *, once_after: int) -> None:
        """Client_msgids come back of messages after `once_after` (packed)."""
        self._system = system
        self._client = system.client
        self._database = system.database
        self._space = system.client.space
        self._once_after = once_after
        self._gids = gids
        self._trim = trim
        self._waiting: list[Call[Any]] = []
        self._claims: dict[str, GroupLock] = {}
        self._newest = dict.fromkeys(gids, trim)
        self._entries = dict.fromkeys(gids, 0)
        self._missed: set[str] = set()
        self._outlived: set[str] = set()
        """Groups in which somebody said something in a span after its end."""
        self._seqs: dict[tuple[str, int], int] = {}
        self.spans: dict[str, list[SpanRow]] = {gid: [] for gid in gids}
        self.messages = 0
        self.members = 0

    def bring_back(self) -> list[str]:
        """Bring the groups back; return those that are not as they should be yet, to be mended one by one.

        These are groups that somebody has made meanwhile, or whose members came or went, or whose spans contradict each
        other or what was said in them. First come the messages, in a stream beside; then, as one step, the group; then
        its members.
        """
        taken = locks.take(self._system, self._gids)
        self._claims = {claim.k.gid: claim for claim in taken}
        done: set[str] = set()
        try:
            done = self._bring_back() - self._missed
        finally:
            locks.give_back(self._system, [claim for claim in taken if claim.k.gid in done], done=True)
            locks.give_back(self._system, [claim for claim in taken if claim.k.gid not in done], done=False)
        return sorted(set(self._gids).difference(done))

    def _bring_back(self) -> set[str]:
        for span in queries.spans(self._database, self._gids):
            self.spans[span.gid].append(span)
        self._add_messages()
        clear = [gid for gid in self._gids if not (gid in self._outlived or _has_double(self.spans[gid]))]
        for gid in self._gids:
            self._lower_offsets(gid)
        answers = self._client.call_many([self._swap(gid) for gid in clear])
        done = [gid for gid, answer in zip(clear, answers, strict=True) if answer is not repair_calls.CHANGED]
        for gid in done:
            self._add_spans(gid)
        self._add_rest(done)
        self._flush()
        return set(done)

    def _add_messages(self) -> None:
        offsets = {(gid, span.acked_msgid) for gid, spans in self.spans.items() for span in spans}
        ends: dict[tuple[str, str, int | None], int] = {
            (gid, span.uid, span.joined_msgid): span.left_msgid
            for gid, spans in self.spans.items()
            for span in spans
            if span.left_msgid is not None
        }
        rows = queries.messages(self._database, self._gids, after=self._trim.msgid)
        for gid, each in groupby(rows, key=attrgetter("gid")):
            for some in chunks(each, PAGE):
                self._seqs.update(((gid, row.msgid), row.seq) for row in some if (gid, row.msgid) in offsets)
                if any(row.msgid > ends.get((gid, row.sender_uid, row.span), NEVER) for row in some):
                    self._outlived.add(gid)
                self._newest[gid] = Trim(some[-1].msgid, some[-1].seq)
                self._entries[gid] += len(some)
                self._later(repair_calls.add(self._claims[gid], [ShadowEntry(row) for row in some]))
        self._flush()
        if self._trim.msgid:
            gid = self._gids[0]
            below = (acked for _, acked in offsets if acked <= self._trim.msgid)
            self._seqs.update(((gid, msgid), seq) for msgid, seq in queries.seqs(self._database, gid, below).items())

    def _lower_offsets(self, gid: str) -> None:
        there, newest = self.spans[gid], self._newest[gid].msgid
        self.spans[gid] = offsets.possible(there, newest)
        lowered = [span for span, stands in zip(self.spans[gid], there, strict=True) if span != stands]
        if lowered:
            offsets.lower(self._database, gid, lowered, newest)

    def _swap(self, gid: str) -> Call[tuple[int, int] | None]:
        newest, seq = self._newest[gid]
        bounds = (max(span.joined_msgid, span.left_msgid or 0, span.acked_msgid) for span in self.spans[gid])
        floor = max(bounds, default=0)
        after = id_above(floor) if floor > newest else START
        shadow = Shadow(self._entries[gid], msgids.unpack(newest), seq, after)
        return repair_calls.swap(self._claims[gid], StreamState(START, None), shadow, self._trim)

    def _add_spans(self, gid: str) -> None:
        self.messages += self._entries[gid]
        for some in chunks((span for span in self.spans[gid] if not is_empty(span)), PAGE):
            self.members += sum(1 for span in some if span.left_msgid is None)
            self._later(repair_calls.spans(self._claims[gid], [self._order(span) for span in some], self._trim))

    def _order(self, span: SpanRow) -> SpanOrder:
        what = "open" if span.left_msgid is None else "close"
        seq = 0 if span.acked_msgid == msgids.NONE else self._seqs.get((span.gid, span.acked_msgid))
        return SpanOrder(what, span.uid, span.joined_msgid, span.left_msgid, offset_of(span), seq)

    def _add_rest(self, gids: Sequence[str]) -> None:
        """Bring back what goes beside: recalls, client_msgids, own messages past the offset."""
        if not gids:
            return
        for call in client_msgids.bring_back(self._system, gids, after=self._once_after):
            self._later(call)
        if self._trim.msgid:
            self._add_recalls(gids[0])
        own: dict[str, dict[str, list[int]]] = {}
        for gid, uid, msgid in queries.own_unread(self._database, gids):
            own.setdefault(gid, {}).setdefault(uid, []).append(msgid)
        for gid, by_uid in own.items():
            self._add_own(gid, by_uid)

    def _add_recalls(self, gid: str) -> None:
        recalled = sorted({msgid for pair in queries.recalls(self._database, gid) for msgid in pair})
        for some in chunks(recalled, PAGE):
            self._later(repair_calls.set_recalled(self._space.group(gid), some))

    def _add_own(self, gid: str, by_uid: dict[str, list[int]]) -> None:
        """The stream tells the own messages after the trim point, in one step with the offset; the others are given."""
        trimmed = {uid: [msgid for msgid in own if msgid <= self._trim.msgid] for uid, own in by_uid.items()}
        for uids in chunks(by_uid, PAGE):
            self._later(repair_calls.restore_own_unacked(self._space.group(gid), uids, trimmed))

    def _later(self, call: Call[Any]) -> None:
        self._waiting.append(call)
        if len(self._waiting) == MOST_CALLS:
            self._flush()

    def _flush(self) -> None:
        answers = self._client.call_many(self._waiting)
        for call, missed in zip(self._waiting, answers, strict=True):
            if call.function == repair_calls.SPANS and missed:
                self._missed.add(call.gid)
        self._waiting = []


def _has_double(spans: Iterable[SpanRow]) -> bool:
    members = [span.uid for span in spans if span.left_msgid is None]
    return len(members) != len(set(members))
