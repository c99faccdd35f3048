"""A Redis that came back older than SQL: how that is seen, and how a partition is reconciled.

A power cut may cost Redis its last second, and a replica that becomes the master may have lagged. By then a worker may
have stored what Redis has lost, and Redis goes on with messages and members that SQL does not know.

Watermarks show it. Before a worker stores entries of a journal, it sets its watermark in Redis to the last of them, and
stores it in SQL with them. So Redis is behind SQL with a watermark only if it has lost that, and perhaps the entries
before it. This can be seen until it is mended, whatever is written to Redis since. Until then no worker stores anything
of the partition, so SQL stays as it was when Redis fell behind.
"""

import logging
from collections.abc import Iterable

from imcore import msgid as msgids
from imcore.repair import policies
from imcore.repair.apply import Mended, id_above, mend
from imcore.repair.compare import differences, oldest_of
from imcore.repair.locks import PartitionLock
from imcore.repair.state import highest_offset
from imcore.repair.window import gids_of, lost_watermarks, now_ms, rebuild_token
from imcore.sql import deletion, queries
from imcore.streams.calls import repair_calls
from imcore.streams.calls.repair_calls import NEVER
from imcore.system import System
from imcore.util.batches import batches

log = logging.getLogger(__name__)

GROUPS_AT_ONCE = 100
"""The groups that one window compares."""

RECENT_MS = 600_000
"""A lost batch may hold data up to 10 minutes older than its last entry."""


def reconcile(system: System, partition: int) -> Mended:
    """Mend the groups of a partition in which Redis is older than SQL; return what was done. Repeat it at will.

    Raise TryAgain if another process does so.
    """
    with PartitionLock(system, partition) as lock:
        stored = queries.watermarks(system.database)
        marks = {consumer: mark for (p, consumer), mark in stored.items() if p == partition}
        lost = [in_sql for _, (_, in_sql) in lost_watermarks(system, [partition]).items()]
        after = msgids.first_at(msgids.time_ms(min(lost)) - RECENT_MS) if lost else NEVER
        raise_journals(system, [partition], marks.values())
        system.client.call(repair_calls.raise_versions(system.client.space, partition))
        done = _mend_groups(system, partition, lock, after, is_older=bool(lost))
        if restored := policies.restore(system, [partition]):
            log.warning("partition %d: %d receipt policies are as SQL has them", partition, restored)
        system.client.call(repair_calls.set_watermarks(system.client.space, partition, marks))
        return done


def _mend_groups(system: System, partition: int, lock: PartitionLock, after: int, *, is_older: bool) -> Mended:
    done = Mended()
    for gids in batches(gids_of(system, [partition]), GROUPS_AT_ONCE):
        for gid, each in differences(system, gids, after=after).items():
            if not all(difference.unsure for difference in each):
                mended = mend(system, gid, since=oldest_of(each), lock=lock, is_older=is_older)
                done = done.plus(mended)
                back = f"{mended.restored} lost messages are back, {mended.renumbered} have another seq"
                log.warning("group %r: %s", gid, back)
        lock.renew()
    return done


def raise_journals(system: System, partitions: Iterable[int], watermarks: Iterable[int]) -> None:
    """Let later entries have ids above these watermarks and all that SQL knows, also where the clock is behind."""
    known = queries.newest_change(system.database, until=highest_offset(0, now_ms()))
    latest = max(known, deletion.newest(system.database), *watermarks, 0)
    space = system.client.space
    system.client.call_many([repair_calls.journal(space, p, id_above(latest)) for p in partitions])


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
