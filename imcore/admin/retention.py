"""Retention: drops from Redis what SQL has and nobody needs there any more, and from SQL, if it is wished, the times.

A message goes from its group's stream when it is beyond the newest `keep_messages` or older than `keep_ms`; but only if
SQL has it, and all messages before it, and no entry of the journal tells of it that some worker has not
done. An entry of the journal goes when every kind of worker has done it and all before it. When messages were read is
forgotten after `keep_read_times_ms`; how many and who have read them follows from the offsets, and stays exact.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from imcore import msgid as msgids
from imcore.admin.lag import worker_stats
from imcore.errors import DatabaseUnavailable
from imcore.model.limits import check_limit
from imcore.model.rows import MessageRow
from imcore.model.values import Group
from imcore.operations import groups as operations
from imcore.operations.performer import perform_in_redis, stream_from_redis
from imcore.sql import queries
from imcore.streams import events, wire
from imcore.streams.calls import journal_calls, message_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.client import CHUNK
from imcore.streams.events import Sent
from imcore.streams.keys import CONFIG
from imcore.system import System

PAGE = 500
_MOVES_AT_ONCE = 5000
_TRIM_AT_ONCE = 2000
_TRIM_CHARACTERS = 1 << 20
"""The server stands still while it drops entries: so many, or so much text, in a call."""

_SAME = MessageRow._fields.index("content")
"""Two rows that agree up to there are one message: the rest may be changed by a recall."""

STORES = ("persist",)
READS = ("persist", "receipts")
"""The kinds of worker without which nothing is dropped: from streams, who stores them; from a journal, all who read it,
whether they have begun or not. A kind of somebody else's counts once it has begun."""


@dataclass(frozen=True, slots=True)
class TrimSummary:
    """What was dropped: `entries` of the streams of so many `groups`, entries of the journals, rows of read times."""

    groups: int = 0
    entries: int = 0
    journal_entries: int = 0
    read_times: int = 0


Progress = Callable[[TrimSummary], None]


def trim(
    system: System,
    *,
    keep_messages: int | None = None,
    keep_ms: int | None = None,
    gid: str | None = None,
    on_progress: Progress | None = None,
) -> TrimSummary:
    """Trim all streams and journals, or the stream of one group; return what was dropped.

    What is kept is as the settings say, unless given. `on_progress` gets the summary so far. Interrupted, or run twice
    at the same time, it does no harm. Raise UnknownGroup for a gid that is none, DatabaseUnavailable.
    """
    with suppress(DatabaseUnavailable):  # journals can be trimmed without
        system.database.refuse_newer()
        system.client.new_partitions = system.database.partitions() or system.client.new_partitions
    settings = system.settings
    check_limit(keep_messages, lowest=0)
    check_limit(keep_ms, lowest=0)
    keep_messages = settings.keep_messages if keep_messages is None else keep_messages
    cutoff_ms = time.time_ns() // 1_000_000 - (settings.keep_ms if keep_ms is None else keep_ms)
    # In this order: no entry that is not seen here tells of a message that is one of these groups' by now.
    groups = _groups(system, gid)
    needed = _needed(system)
    summary = TrimSummary()
    for i in range(0, len(groups), CHUNK):
        limits = [_Limit(group, keep_messages, cutoff_ms, needed.get(group.gid)) for group in groups[i : i + CHUNK]]
        for limit in _worth_a_look(system, limits):
            dropped = _trim_stream(system, limit)
            summary = replace(summary, groups=summary.groups + bool(dropped), entries=summary.entries + dropped)
        system.client.call_many([message_calls.rotate_idempotency(system.client.space, limit.gid) for limit in limits])
        if on_progress:
            on_progress(summary)
    if gid:
        return summary
    return replace(summary, journal_entries=_trim_journals(system), read_times=_forget_read_times(system))


def _groups(system: System, gid: str | None) -> list[Group]:
    if gid:
        return [perform_in_redis(system.client, operations.group(gid))]
    return list(stream_from_redis(system.client, operations.groups()))


def held_up(system: System) -> str | None:
    """Return why the journals keep what they have, if that is for want of a kind of worker: which one, in words."""
    kept = sum(system.client.query_many([("XLEN", journal) for journal in system.client.space.journals()]))
    backlogs = {worker.worker: worker.backlog for worker in worker_stats(system)}
    reasons = [f"the worker {kind} has never run" for kind in READS if kind not in backlogs]
    reasons += [f"the worker {kind} is {_entries(behind)} behind" for kind, behind in backlogs.items() if behind]
    return f"the journals keep {_entries(kept)}: {', '.join(reasons)}" if kept and reasons else None


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"


class _Limit:
    """Up to where the messages of a group may go."""

    def __init__(self, group: Group, keep_messages: int, cutoff_ms: int, needed: int | None) -> None:
        self.gid = group.gid
        self._seq = group.messages - keep_messages
        self._cutoff_ms = cutoff_ms
        last = msgids.pack(group.last_msgid) if group.last_msgid else 0
        self._last = last if needed is None else min(last, needed - 1)

    def lets_go(self, row: MessageRow) -> bool:
        """Return whether this message may go, if SQL has it."""
        is_old = row.seq <= self._seq or msgids.time_ms(row.msgid) <= self._cutoff_ms
        return is_old and row.msgid <= self._last


def _worth_a_look(system: System, limits: Sequence[_Limit]) -> list[_Limit]:
    """Return those of the groups whose first message in Redis may go: few, as a rule."""
    space = system.client.space
    firsts = system.client.call_many([message_calls.entries(space, limit.gid, "-", "+", 1) for limit in limits])
    return [
        limit
        for limit, page in zip(limits, firsts, strict=True)
        if any(limit.lets_go(row) for row in _rows(limit.gid, page.entries))
    ]


def _trim_stream(system: System, limit: _Limit) -> int:
    """Trim a stream, some messages in a call."""
    bound = dropped = waiting = characters = 0
    for row in _stored(system, limit.gid):
        if not limit.lets_go(row):
            break
        bound, waiting, characters = row.msgid, waiting + 1, characters + len(row.content)
        if waiting == _TRIM_AT_ONCE or characters >= _TRIM_CHARACTERS:
            dropped += _trim_up_to(system, limit.gid, bound)
            bound = waiting = characters = 0
    return dropped + (_trim_up_to(system, limit.gid, bound) if bound else 0)


def _trim_up_to(system: System, gid: str, bound: int) -> int:
    try:
        return system.client.call(message_calls.trim(system.client.space, gid, bound))
    except Trimmed:
        return 0  # somebody else was faster


def _stored(system: System, gid: str) -> Iterator[MessageRow]:
    """Yield the messages of a stream, oldest first, up to the first one that SQL does not have."""
    after = 0
    while True:
        entries, more = system.client.call(
            message_calls.entries(system.client.space, gid, msgids.unpack(after + 1), "+", PAGE)
        )
        in_redis = list(_rows(gid, entries))
        if not in_redis:
            return
        first, last = in_redis[0].msgid, in_redis[-1].msgid
        in_sql = system.database.messages_after(gid, first - 1, until=last, limit=len(in_redis))
        for here, there in zip(in_redis, in_sql, strict=False):
            if here[:_SAME] != there[:_SAME]:
                return
            yield here
        if not more or not len(in_sql) == len(in_redis) == len(entries):
            return
        after = last


def _rows(gid: str, entries: Sequence[wire.Entry]) -> Iterator[MessageRow]:
    """Yield the messages of entries, up to the first one that cannot be read."""
    for entry_id, values in entries:
        try:
            yield wire.message_row(gid, msgids.pack_id(entry_id), values)
        except (IndexError, ValueError):
            return


def _needed(system: System) -> dict[str, int]:
    """Return the first message of each group that an entry, not done by some worker, tells of."""
    needed: dict[str, int] = {}
    for partition in range(system.client.space.partitions):
        for event in _undone(system, partition):
            needed[event.gid] = min(event.first, needed.get(event.gid, event.first))
    return needed


def _undone(system: System, partition: int) -> Iterator[Sent]:
    client, space = system.client, system.client.space
    start = client.call(journal_calls.undone(space, partition, STORES, only=False)) or "-"
    while True:
        found, more = client.call(journal_calls.entries(space, partition, start, PAGE))
        for entry_id, fields in found:
            event = events.read(partition, entry_id, fields).event
            if isinstance(event, Sent):
                yield event
        if not more:
            return
        start = f"({found[-1][0].decode()}"


def _forget_read_times(system: System) -> int:
    """Delete old moves of offsets, some at a time: writers go on in between.

    They are gone for good: of two clocks that which stands behind counts.
    """
    keep_ms = system.settings.keep_read_times_ms
    if not keep_ms:
        return 0
    before = msgids.first_at(min(time.time_ns() // 1_000_000, system.client.time_ms(CONFIG)) - keep_ms)
    total = 0
    while some := queries.forget_moves(system.database, before, _MOVES_AT_ONCE):
        total += some
    return total


def _trim_journals(system: System) -> int:
    return sum(_trim_journal(system, partition) for partition in range(system.client.space.partitions))


def _trim_journal(system: System, partition: int) -> int:
    total = 0
    while dropped := system.client.call(journal_calls.trim_journal(system.client.space, partition, READS)):
        total += dropped
    return total
