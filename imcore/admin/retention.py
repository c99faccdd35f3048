"""Retention: trims streams and journals in Redis, and deletes old read times in SQL.

A message leaves its stream if it is older than the newest `keep_messages`, or than `keep_ms`; but only if SQL has it
and all earlier messages, and every worker has handled its journal entries. A journal entry is trimmed once every kind
of worker has handled it and all earlier ones. Read times are deleted after `keep_read_times_ms`; the readers of a
message and their number follow from the offsets, and stay exact.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from imcore import msgid as msgids
from imcore.admin.stored_pages import StreamStart
from imcore.errors import DatabaseUnavailable, UnknownGroup
from imcore.model.limits import check_limit
from imcore.model.rows import MessageRow
from imcore.model.values import Group
from imcore.operations import groups as operations
from imcore.operations.performer import perform_in_redis, stream_from_redis
from imcore.repair import window
from imcore.sql import queries
from imcore.streams.calls import journal_calls, message_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.consumers import KINDS, worker_stats
from imcore.streams.events import Sent
from imcore.streams.keys import CONFIG
from imcore.system import System
from imcore.util.batches import batches

PAGE = 200
_MOVES_AT_ONCE = 5000
_TRIM_AT_ONCE = 2000
_TRIM_CHARACTERS = 1 << 20
"""The server answers nobody while it drops entries: one call drops at most this many, or this much text."""

_SAME = MessageRow._fields.index("content")
"""Rows that agree in the fields before are the same message: a recall may change the later fields."""

STORES = ("persist",)
READS = KINDS
"""The kinds of worker that must have handled an entry: to trim a stream, and to trim a journal. They count even if they
have never run. Any other kind that reads a journal counts once it has begun."""


@dataclass(frozen=True, slots=True)
class TrimSummary:
    """The numbers of trimmed groups, of their entries, of journal entries, and of deleted rows of read times."""

    groups: int = 0
    entries: int = 0
    journal_entries: int = 0
    read_times: int = 0


def trim(
    system: System,
    *,
    keep_messages: int | None = None,
    keep_ms: int | None = None,
    gid: str | None = None,
) -> TrimSummary:
    """Trim all streams and journals, or the stream of one group; return what was dropped.

    The settings give the limits that are None. Several processes may trim at the same time. Raise UnknownGroup,
    DatabaseUnavailable.
    """
    with suppress(DatabaseUnavailable):  # journals can be trimmed without it
        system.database.refuse_newer()
        system.client.new_partitions = system.database.partitions() or system.client.new_partitions
    settings = system.settings
    check_limit(keep_messages, lowest=0)
    check_limit(keep_ms, lowest=0)
    keep_messages = settings.keep_messages if keep_messages is None else keep_messages
    cutoff_ms = window.now_ms() - (settings.keep_ms if keep_ms is None else keep_ms)
    # In this order: the entries of all messages that these groups have by now are in the journals.
    groups = _groups(system, gid)
    needed = _needed(system)
    limits = (_Limit(group, keep_messages, cutoff_ms, needed.get(group.gid)) for group in groups)
    summary = _trim_streams(system, limits)
    if gid:
        return summary
    return replace(summary, journal_entries=_trim_journals(system), read_times=_delete_read_times(system))


def _groups(system: System, gid: str | None) -> list[Group]:
    if gid:
        return [perform_in_redis(system.client, operations.group(gid))]
    return list(stream_from_redis(system.client, operations.groups()))


def held_up(system: System) -> str | None:
    """Return the kinds of worker that keep journal entries from being trimmed, in words; None if no kind does."""
    kept = sum(system.client.query_many([("XLEN", journal) for journal in system.client.space.journals()]))
    backlogs = {worker.worker: worker.backlog for worker in worker_stats(system.client)}
    reasons = [f"the worker {kind} has never run" for kind in READS if kind not in backlogs]
    reasons += [f"the worker {kind} is {_entries(behind)} behind" for kind, behind in backlogs.items() if behind]
    return f"the journals keep {_entries(kept)}: {', '.join(reasons)}" if kept and reasons else None


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"


class _Limit:
    """The limit up to which messages of a group may be dropped."""

    def __init__(self, group: Group, keep_messages: int, cutoff_ms: int, needed: int | None) -> None:
        self.gid = group.gid
        self._seq = group.messages - keep_messages
        self._cutoff_ms = cutoff_ms
        last = msgids.pack(group.last_msgid) if group.last_msgid else 0
        self._last = last if needed is None else min(last, needed - 1)

    def may_drop(self, msgid: int, seq: int) -> bool:
        """Return whether a message (packed) with this seq may be dropped, and all before it whose seq is no higher."""
        is_old = seq <= self._seq or msgids.time_ms(msgid) <= self._cutoff_ms
        return is_old and msgid <= self._last


def _trim_streams(system: System, limits: Iterable[_Limit]) -> TrimSummary:
    client, dropped = system.client, list[int]()
    for batch in batches(limits, CHUNK):
        dropped += [_trim_stream(system, limit) for limit in _trimmable(system, batch)]
        client.call_many([message_calls.rotate_idempotency(client.space, limit.gid) for limit in batch])
    return TrimSummary(groups=sum(map(bool, dropped)), entries=sum(dropped))


def _trimmable(system: System, limits: Sequence[_Limit]) -> list[_Limit]:
    """Return the limits of the groups whose first message in Redis may be dropped."""
    space = system.client.space
    firsts = system.client.call_many([message_calls.entries(space, limit.gid, "-", "+", 1) for limit in limits])
    return [
        limit
        for limit, page in zip(limits, firsts, strict=True)
        for entry in page.entries
        if (row := window.readable(limit.gid, *entry)) and limit.may_drop(row.msgid, row.seq)
    ]


def _trim_stream(system: System, limit: _Limit) -> int:
    dropped = _trim_pages(system, limit)
    bound = waiting = characters = 0
    for row in _stored(system, limit.gid):
        if not limit.may_drop(row.msgid, row.seq):
            break
        bound, waiting, characters = row.msgid, waiting + 1, characters + len(row.content) + len(row.meta or "")
        if waiting == _TRIM_AT_ONCE or characters >= _TRIM_CHARACTERS:
            dropped += _trim_up_to(system, limit.gid, bound)
            bound = waiting = characters = 0
    return dropped + (_trim_up_to(system, limit.gid, bound) if bound else 0)


def _trim_pages(system: System, limit: _Limit) -> int:
    """Drop whole pages; return how many messages that were. What is left is looked at message by message."""
    start, dropped = StreamStart(system, limit.gid), 0
    while (page := start.page()) and limit.may_drop(page.last, page.seq):
        more = _trim_up_to(system, limit.gid, page.last)
        if not more:  # another process repairs the group, or has dropped them
            break
        dropped += more
    return dropped


def _trim_up_to(system: System, gid: str, bound: int) -> int:
    try:
        return system.client.call(message_calls.trim(system.client.space, gid, bound))
    except (Trimmed, UnknownGroup):
        return 0  # by another process


def _stored(system: System, gid: str) -> Iterator[MessageRow]:
    """Yield the messages of a stream, oldest first, and stop before the first one that SQL does not have."""
    for batch in batches(_readable(system.client, gid), PAGE):
        in_sql = system.database.messages_after(gid, batch[0].msgid - 1, until=batch[-1].msgid, limit=len(batch))
        for redis_row, sql_row in zip(batch, in_sql, strict=False):
            if redis_row[:_SAME] != sql_row[:_SAME]:
                return
            yield redis_row
        if len(in_sql) < len(batch):
            return


def _readable(client: RedisClient, gid: str) -> Iterator[MessageRow]:
    """Yield the messages of a stream, oldest first, and stop before the first entry that cannot be read."""
    for _, row, _ in window.live_entries(client, gid):
        if row is None:
            return
        yield row


def _needed(system: System) -> dict[str, int]:
    """Return by gid the first message with a journal entry that some worker has not handled."""
    client = system.client
    needed: dict[str, int] = {}
    for partition in range(client.space.partitions):
        start = client.call(journal_calls.undone(client.space, partition, STORES, only=False)) or "-"
        for entry in window.entries(client, partition, start):
            if isinstance(event := entry.event, Sent):
                needed[event.gid] = min(event.first, needed.get(event.gid, event.first))
    return needed


def _delete_read_times(system: System) -> int:
    """Delete old offset moves in batches; return the number of rows. Deleted rows never come back."""
    keep_ms = system.settings.keep_read_times_ms
    if not keep_ms:
        return 0
    before = msgids.first_at(min(window.now_ms(), system.client.time_ms(CONFIG)) - keep_ms)
    return sum(iter(lambda: queries.forget_moves(system.database, before, _MOVES_AT_ONCE), 0))


def _trim_journals(system: System) -> int:
    client = system.client
    calls = [journal_calls.trim_journal(client.space, partition, READS) for partition in range(client.space.partitions)]
    return sum(sum(iter(partial(client.call, call), 0)) for call in calls)
