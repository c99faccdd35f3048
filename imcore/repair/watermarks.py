"""A Redis that came back older than SQL: how that is seen, and how a partition is reconciled.

A power cut may cost Redis its last second, and a replica that becomes the master may have lagged. By then a worker may
have stored what Redis has lost, and Redis goes on with messages and members that SQL does not know.

Watermarks show it. Before a worker stores entries of a journal, it sets its watermark in Redis to the last of them, and
stores it in SQL with them. So Redis is behind SQL with a watermark only if it has lost that, and perhaps the entries
before it. This can be seen until it is mended, whatever is written to Redis since. Until then no worker stores anything
of the partition, so SQL stays as it was when Redis fell behind.
"""

import logging
from collections.abc import Iterable, Sequence

from imcore import msgid as msgids
from imcore.model.rows import SpanRow
from imcore.repair.apply import Mended, id_above, mend
from imcore.repair.compare import differences
from imcore.repair.diff import oldest_of
from imcore.repair.locks import PartitionLock
from imcore.repair.state import Counter
from imcore.repair.window import gids_of, lost_watermarks, rebuild_token
from imcore.sql import queries
from imcore.sql.queries import Light
from imcore.streams.calls import repair_calls
from imcore.streams.calls.repair_calls import NEVER
from imcore.system import System
from imcore.util.batches import batches, grouped

log = logging.getLogger(__name__)

GROUPS_AT_ONCE = 100
"""The groups that one window compares."""

RECENT_MS = 600_000
"""A lost batch may hold data up to 10 minutes older than its last entry."""

MARKED_AT_ONCE = 200
COUNTED_AT_ONCE = 10_000
"""For how many messages the spans are gone through once."""


def reconcile(system: System, partition: int) -> Mended:
    """Mend the groups of a partition in which Redis is older than SQL; return what was done. Repeat it at will.

    Raise TryAgain if another process does so.
    """
    with PartitionLock(system, partition) as lock:
        stored = queries.watermarks(system.database)
        marks = {consumer: mark for (p, consumer), mark in stored.items() if p == partition}
        lost = [in_sql for (p, _), (_, in_sql) in lost_watermarks(system).items() if p == partition]
        after = msgids.first_at(msgids.time_ms(min(lost)) - RECENT_MS) if lost else NEVER
        raise_journals(system, [partition], marks.values())
        system.client.call(repair_calls.raise_versions(system.client.space, partition))
        done = Mended()
        for gids in batches(gids_of(system, [partition]), GROUPS_AT_ONCE):
            for gid, each in differences(system, gids, after=after).items():
                if not all(difference.unsure for difference in each):
                    done = done.plus(_mend(system, gid, oldest_of(each), lock))
            lock.renew()
        system.client.call(repair_calls.set_watermarks(system.client.space, partition, marks))
        return done


def raise_journals(system: System, partitions: Iterable[int], watermarks: Iterable[int]) -> None:
    """Let later entries have ids above these watermarks and all that SQL knows, also where the clock is behind."""
    latest = max(queries.newest_change(system.database), *watermarks, 0)
    space = system.client.space
    system.client.call_many([repair_calls.journal(space, p, id_above(latest)) for p in partitions])


def _mend(system: System, gid: str, since: int | None, lock: PartitionLock) -> Mended:
    mended = mend(system, gid, since=since, lock=lock)
    if mended.behind is not None:  # nobody knows whether senders got the tallies that Redis had lost with the offsets
        spans = list(queries.spans(system.database, [gid]))
        marked = mark_unconfirmed(system, gid, queries.light(system.database, [gid], after=mended.behind), spans)
        k = system.client.space.group(gid)
        system.client.call_many([repair_calls.resync(k, uids) for uids in batches(sorted(marked), MARKED_AT_ONCE)])
    log.warning("group %r: %d lost messages are back, %d have another seq", gid, mended.restored, mended.renumbered)
    return mended


def mark_unconfirmed(system: System, gid: str, messages: Iterable[Light], spans: Sequence[SpanRow]) -> dict[str, int]:
    """Mark the messages of a group that more have read than their senders have confirmed.

    Return how many were not marked before, by sender.
    """
    k = system.client.space.group(gid)
    marked: dict[str, int] = {}
    for batch in batches((light for light in messages if light.recalls is None), COUNTED_AT_ONCE):
        counter = Counter([(light.msgid, light.sender_uid) for light in batch])
        for span in spans:
            counter.add(span)
        counts = zip(batch, counter.counts(), strict=True)
        dirty = grouped(
            (light.sender_uid, light.msgid) for light, count in counts if count.read != light.confirmed_read
        )
        for uid, msgs in dirty.items():
            calls = [repair_calls.dirty(k, uid, page) for page in batches(msgs, MARKED_AT_ONCE)]
            marked[uid] = marked.get(uid, 0) + sum(system.client.call_many(calls))
    return marked


def end_rebuild(system: System, token: str) -> bool:
    """Note that this rebuild has ended, as Redis has all that SQL has; return False if another one is under way.

    Its list of groups is dropped first. If this process is killed in between, the next one ends the rebuild.
    """
    client, space = system.client, system.client.space
    if rebuild_token(system) != token:
        return False
    for partition in range(space.partitions):
        client.execute_once("UNLINK", space.rebuilt(partition))
    return client.call(repair_calls.end_rebuild(token)) or rebuild_token(system) is None
