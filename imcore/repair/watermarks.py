"""A Redis that came back older than SQL: how it is noticed, and how the two become one again.

A power cut may take the last second of what Redis had, and a replica that is made the master may have lagged. By then a
worker may have stored what Redis has lost; and Redis goes on, with messages and members that SQL does not know.

It is noticed by marks. Before a worker stores entries of a journal, it sets its mark in Redis to the last of them, and
stores it in SQL with them; nobody else sets it. So Redis is never behind SQL with a mark, unless it has lost that mark,
and with it perhaps the entries before it. That can be seen for as long as it is not mended, whatever is written to
Redis since. Every storing looks at all marks of the partition, in the same step as it sets its own and sees that its
entries are still there; and every worker looks at all marks at times, and after every error.

It is mended group by group: see `imcore.repair.mend`. Until that is done, no worker stores anything of the partition;
so SQL stays what it was when Redis fell behind it.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from imcore import msgid as msgids
from imcore.errors import DatabaseUnavailable, RedisUnavailable, TryAgain
from imcore.model.rows import WatermarkRow
from imcore.repair import left_behind
from imcore.repair.check_group import differences, oldest_of
from imcore.repair.check_messages import chunks
from imcore.repair.dirty_receipts import mark_unconfirmed
from imcore.repair.locks import PartitionLock, unfinished
from imcore.repair.mend import Mended, id_above, mend
from imcore.settings import Settings
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.streams import keys, wire
from imcore.streams.calls import journal_calls, repair_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.repair_calls import NEVER
from imcore.streams.client import RedisClient
from imcore.streams.events import Entry
from imcore.system import System
from imcore.util.backoff import ThrottledLog

log = logging.getLogger(__name__)

AT_ONCE = 100
"""How many groups are looked at within one window."""

RECENT_MS = 600_000
"""So much older than the last entry of a batch that Redis has lost may what that batch has stored be."""

_OLDER = "OLDER"
_REASONS = {
    _OLDER: "Redis is older than SQL: nothing is stored until the two are reconciled",
    "GONE": "Redis has lost what was about to be stored: it is asked again what there is",
    "LOCKED": "Redis and SQL are being reconciled: nothing is stored until that is done",
    "REPAIRED": "Redis and SQL have been reconciled: it is asked again what there is to store",
}
"""Why nothing may be stored, by the answer to a mark."""

_IS_REBUILT = "Redis is being rebuilt from SQL: nothing is stored until that is done"

Place = tuple[int, str]
"""A partition, and the name of a consumer of its journal."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Up to where consumers have stored (packed ids), as SQL has it; and which Redis has less of, with both."""

    stored: dict[Place, int] = field(default_factory=dict)
    behind: dict[Place, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was done: groups that had to be mended, messages that Redis got again, messages with another seq now."""

    groups: int = 0
    restored: int = 0
    renumbered: int = 0


def watermarks_of(system: System) -> Watermarks:
    """Compare the marks. Those of SQL are read first: those of Redis only ever go forward."""
    client, space = system.client, system.client.space
    there = queries.watermarks(system.database)
    places = list(there)
    found = client.query_many([("HGET", space.watermarks(p), consumer) for p, consumer in places])
    here = {place: int(mark) if mark and mark.isdigit() else 0 for place, mark in zip(places, found, strict=True)}
    behind = {place: (here[place], there[place]) for place in places if here[place] < there[place]}
    if behind:  # a process that has taken some over meanwhile has let SQL forget them, and then Redis
        now = queries.watermarks(system.database)
        behind = {place: sides for place, sides in behind.items() if place in now}
    return Watermarks(there, behind)


def reconcile(system: System, partition: int) -> Reconciled:
    """Give the groups of a partition what only SQL has; return what was done. Again: nothing is left to do.

    Raise TryAgain if another process is about it.
    """
    with PartitionLock(system, partition) as hold:
        return _reconcile(system, partition, hold)


def _reconcile(system: System, partition: int, hold: PartitionLock) -> Reconciled:
    client, space, database = system.client, system.client.space, system.database
    found = watermarks_of(system)
    marks = {consumer: mark for (p, consumer), mark in found.stored.items() if p == partition}
    lost = [there for (p, _), (_, there) in found.behind.items() if p == partition]
    after = msgids.first_at(msgids.time_ms(min(lost)) - RECENT_MS) if lost else NEVER
    # What happens from now on is to be later than what SQL knows, also where the clock stands behind.
    latest = max(queries.newest_change(database), *marks.values(), 0)
    client.call(repair_calls.journal(space, partition, id_above(latest)))
    client.call(repair_calls.raise_versions(space, partition))
    done = Reconciled()
    half_done = unfinished(system, partition)
    for some in chunks(_gids(system, partition), AT_ONCE):
        for gid, each in differences(system, some, after=after).items():
            if gid in half_done or not all(suspicion.unsure for suspicion in each):
                done = _mended(system, gid, done, mend(system, gid, since=oldest_of(each), hold=hold))
        hold.keep()
    client.call(repair_calls.set_watermarks(space, partition, marks))
    return done


def _mended(system: System, gid: str, done: Reconciled, mended: Mended) -> Reconciled:
    if mended.behind is not None:
        _tell_senders(system, gid, mended.behind)
    log.warning("group %r: %d lost messages are back, %d have another seq", gid, mended.restored, mended.renumbered)
    return Reconciled(done.groups + 1, done.restored + mended.restored, done.renumbered + mended.renumbered)


def _tell_senders(system: System, gid: str, after: int) -> None:
    """Let senders have the tallies that Redis had lost with the offsets: whether they were told, nobody knows."""
    spans = list(queries.spans(system.database, [gid]))
    marked = mark_unconfirmed(system, gid, queries.light(system.database, [gid], after=after), spans)
    k = system.client.space.group(gid)
    system.client.call_many([repair_calls.resync(k, some) for some in chunks(sorted(marked), AT_ONCE)])


def _gids(system: System, partition: int) -> Iterator[str]:
    space = system.client.space
    here = {wire.text(gid) for gid in system.client.query("SMEMBERS", space.groups(partition))}
    for gid in queries.gids(system.database):
        if space.partition_of(gid) == partition:
            here.discard(gid)
            yield gid
    yield from sorted(here)


def is_rebuilding(system: System) -> bool:
    """Return whether a process is rebuilding Redis: no worker stores anything meanwhile."""
    return system.client.call(journal_calls.is_held(keys.REBUILD, 1))


def rebuild_token(system: System) -> str | None:
    """Return the token of the rebuild that was begun and not ended, whether its process lives or not."""
    token = system.client.query("HGET", keys.CONFIG, keys.REBUILDING)
    return token.decode() if token else None


def end_rebuild(system: System, token: str) -> bool:
    """Note that this rebuild is under way no more, as Redis has all that SQL has; return False if another one is.

    What it has done is forgotten first: killed in between, it is ended by whoever comes next.
    """
    client, space = system.client, system.client.space
    if rebuild_token(system) != token:
        return False
    for partition in range(space.partitions):
        client.execute_once("UNLINK", space.rebuilt(partition))
    return client.call(repair_calls.end_rebuild(token)) or rebuild_token(system) is None


class Watch:
    """What the worker `persist` asks before it stores anything: whether Redis still has what SQL has."""

    def __init__(self, client: RedisClient, database: Database, settings: Settings) -> None:
        self._system = System(client, database, settings)
        self._every_s = settings.lease_ms / 1000
        self._mended: list[str] | None = None
        self._look_at = 0.0
        self._dataset: str | None = None
        self._heir = ""
        self._trouble = ThrottledLog(time.monotonic)
        self._broken_off = ""
        """The token of a rebuild that was begun, and whose process is no more."""

    def look(self) -> bool:
        """Look at all marks, if it is time to; mend what is behind, and end what somebody has begun and died over.

        Call it before entries are taken. Return whether somebody has mended since the last look: what was taken before
        that may not be stored. Raise RedisUnavailable, DatabaseUnavailable, TryAgain.
        """
        if time.monotonic() < self._look_at:
            return False
        self._adopt()
        self._mend_all()
        if self._broken_off:
            self._end_rebuild()
        left_behind.settle(self._system.client, self._trouble)
        before, self._mended = self._mended, self._states()
        if self._dataset is not None:
            self._look_at = time.monotonic() + self._every_s
        return before is not None and before != self._mended

    def _end_rebuild(self) -> None:
        """End the rebuild that was broken off. Raise RedisUnavailable if another one has begun since."""
        if end_rebuild(self._system, self._broken_off):
            log.warning("the rebuild that was broken off is ended: what it left is reconciled")
        elif rebuild_token(self._system):
            raise RedisUnavailable(_IS_REBUILT)

    def doubt(self) -> None:
        """Look at all marks next time, and whose data SQL has: the connection was lost, or SQL did not answer."""
        self._look_at = 0.0
        self._dataset = None

    def mark(self, process: str, entries: Sequence[Entry]) -> list[WatermarkRow]:
        """Set the marks for entries that are about to be stored; return what has to be stored with them.

        The marks of SQL are read first, so that nobody else can have stored anything since the entries were taken that
        Redis has lost by now. Raise RedisUnavailable if they may not be stored.
        """
        if self._dataset is None:
            self._adopt()  # the data has begun since the last look
        newest = {entry.partition: entry for entry in sorted(entries, key=_packed)}
        rows = [WatermarkRow(partition, process, _packed(entry)) for partition, entry in newest.items()]
        there = queries.watermarks(self._system.database)
        if self._heir != process:
            self._inherit(process, there)
            there = queries.watermarks(self._system.database)
        answers = self._system.client.call_many([self._call(row, newest[row.partition].id, there) for row in rows])
        if _OLDER in answers and not watermarks_of(self._system).behind:
            return self.mark(process, entries)  # a new process has taken over some of these marks meanwhile
        for answer in answers:
            if answer != repair_calls.OK:
                raise self._refused(answer)
        return rows

    def _refused(self, answer: str) -> RedisUnavailable:
        self.doubt()
        return RedisUnavailable(_REASONS[answer])

    def _inherit(self, process: str, there: dict[Place, int]) -> None:
        """Take over the marks of those that had this name before: they are no more, and marks shall not pile up.

        If one of them lives after all and stores something late, its mark is there again, and Redis has it not: that is
        noticed as if Redis were older.
        """
        before: dict[int, dict[str, int]] = {}
        for (partition, consumer), mark in there.items():
            if _name_of(consumer) == _name_of(process):
                before.setdefault(partition, {})[consumer] = mark
        rows = [WatermarkRow(partition, process, max(marks.values())) for partition, marks in before.items()]
        client, space = self._system.client, self._system.client.space
        if not all(client.call_many([repair_calls.inherit(space, row, before[row.partition]) for row in rows])):
            raise self._refused(_OLDER)
        queries.replace_watermarks(
            self._system.database, rows, [(p, consumer) for p in before for consumer in before[p]]
        )
        client.call_many([repair_calls.forget(space, p, list(marks)) for p, marks in before.items()])
        self._heir = process

    def _call(self, row: WatermarkRow, newest: str, there: dict[Place, int]) -> Call[str]:
        known = {consumer: mark for (partition, consumer), mark in there.items() if partition == row.partition}
        mended = self._mended[row.partition] if self._mended else ""
        return repair_calls.set_watermark(self._system.client.space, row, newest, repaired=mended, stored=known)

    def _states(self) -> list[str]:
        """Return what changes whenever somebody mends, of each partition."""
        client, space = self._system.client, self._system.client.space
        fields = [("HGET", space.watermarks(p), repair_calls.REPAIRED) for p in range(space.partitions)]
        return [(state or b"").decode() for state in client.query_many(fields)]

    def _mend_all(self) -> None:
        """Mend each partition that needs it; raise only then what went wrong with one that must not be stored now."""
        behind = {partition for partition, _ in watermarks_of(self._system).behind}
        half_done = {p for p in range(self._system.client.space.partitions) if unfinished(self._system, p)}
        problem = None
        for partition in sorted(behind | half_done):
            why = "Redis is older than SQL" if partition in behind else "somebody has died over mending it"
            try:
                self._mend(partition, why)
            except TryAgain as error:
                if partition in behind:
                    problem = error
        if problem:
            raise problem

    def _mend(self, partition: int, why: str) -> None:
        if self._trouble.is_due((partition, why)):  # while it fails it is tried again and again
            log.warning("partition %d: %s; the two are reconciled", partition, why)
        done = reconcile(self._system, partition)
        log.warning("partition %d: %d groups mended, %d messages back", partition, done.groups, done.restored)

    def _adopt(self) -> None:
        """Hold the id of Redis' data against that of the data in SQL. Raise RedisUnavailable if it is another."""
        client, database = self._system.client, self._system.database
        partitions, dataset, rebuilding = client.query("HMGET", keys.CONFIG, "partitions", "dataset", keys.REBUILDING)
        self._broken_off = (rebuilding or b"").decode()
        if rebuilding and is_rebuilding(self._system):
            raise RedisUnavailable(_IS_REBUILT)
        if self._broken_off and self._trouble.is_due("broken off"):
            log.warning("a rebuild of Redis was broken off: what it left is reconciled now, group by group")
        if self._dataset is None:
            self._dataset = database.meta("dataset")
        if self._dataset is None and dataset:
            if _has_stored(client):
                raise DatabaseUnavailable(
                    f"{database.address} is empty, though much of {client.address} has been stored: set IM_DATABASE_URL; "
                    "or, if that database is lost, run im check --repair"
                )
            self._dataset = dataset.decode()
            database.bind(int(partitions), self._dataset)
        elif self._dataset is not None and (dataset or b"").decode() != self._dataset:
            raise RedisUnavailable(
                f"{client.address} does not have the data that {database.address} has: set IM_DATABASE_URL or "
                "IM_REDIS_URL if one is wrong; if Redis has lost its data, run im rebuild"
            )


def _has_stored(client: RedisClient) -> bool:
    """Whether any worker has ever stored something that Redis holds."""
    marks = client.query_many([("HKEYS", client.space.watermarks(p)) for p in range(client.space.partitions)])
    return any(not name.startswith(keys.SEPARATOR.encode()) for names in marks for name in names)


def _name_of(process: str) -> str:
    return process.partition(".")[0]


def _packed(entry: Entry) -> int:
    return msgids.pack_id(entry.id.encode())
