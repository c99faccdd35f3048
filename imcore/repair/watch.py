"""The watch of the worker `persist`: before it stores anything, it checks whether Redis still has what SQL has.

At times it also ends in Redis what processes that died had begun.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from imcore.errors import DatabaseUnavailable, ImError, RedisUnavailable, TryAgain
from imcore.model.rows import WatermarkRow
from imcore.operations import creation
from imcore.operations.performer import perform_in_redis, stream_from_redis
from imcore.repair.deletion import Deletions
from imcore.repair.watermarks import end_rebuild, reconcile
from imcore.repair.window import Place, lost_watermarks, packed, rebuild_token, unfinished
from imcore.settings import Settings
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.streams import keys
from imcore.streams.calls import creation_calls, journal_calls, repair_calls, session_calls
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient
from imcore.streams.events import Entry
from imcore.system import System
from imcore.util.backoff import ThrottledLog

T = TypeVar("T")

log = logging.getLogger(__name__)

_OLDER = "OLDER"
_REASONS = {
    _OLDER: "Redis is older than SQL: nothing is stored until the two are reconciled",
    "GONE": "Redis has lost what was about to be stored: it is asked again what there is",
    "LOCKED": "Redis and SQL are being reconciled: nothing is stored until that is done",
    "REPAIRED": "Redis and SQL have been reconciled: it is asked again what there is to store",
}
"""Why nothing may be stored, by Redis' answer to a watermark."""

_NOT_ENDED = "what processes that died left behind is not settled: %s"
_IS_REBUILT = "Redis is being rebuilt from SQL: nothing is stored until that is done"


class Facts(NamedTuple):
    """The state of all data, as Redis has it. On a cluster one node has it, and this node may be silent."""

    partitions: int
    dataset: str | None
    rebuilding: str
    """The token of a rebuild that has begun and not ended, or ''."""
    is_rebuilt: bool
    """Whether the process of that rebuild lives."""


def facts_of(client: RedisClient) -> Facts:
    partitions, dataset, rebuilding = client.query("HMGET", keys.CONFIG, "partitions", "dataset", keys.REBUILDING)
    token = (rebuilding or b"").decode()
    is_rebuilt = bool(token) and client.call(journal_calls.is_held(keys.REBUILD, 1))
    return Facts(int(partitions or 0), dataset.decode() if dataset else None, token, is_rebuilt)


class Watch:
    """Looks at the watermarks at times, mends what is behind, and sets those of a worker.

    With a partition, it looks at that one alone, and sends nothing elsewhere: then `facts` returns what another node
    says.
    """

    def __init__(
        self,
        client: RedisClient,
        database: Database,
        settings: Settings,
        partition: int | None = None,
        facts: Callable[[], Facts] | None = None,
    ) -> None:
        self._system = System(client, database, settings)
        self._partition = partition
        self._facts = facts or (lambda: facts_of(client))
        self._every_s = settings.lease_ms / 1000
        self._mended: dict[int, str] | None = None
        self._look_at = 0.0
        self._dataset: str | None = None
        self._heir = ""
        self._trouble = ThrottledLog(time.monotonic)
        self._deletions = Deletions(self._system, self._trouble, partition)
        self._broken_off = ""
        """The token of a rebuild whose process has died."""

    def look(self) -> bool:
        """Look at all watermarks, if it is time to; mend what is behind, and end repairs that somebody has died over.

        Call it before entries are read. Return whether somebody has mended since the last look: entries that were read
        before may not be stored. Raise RedisUnavailable, DatabaseUnavailable, TryAgain.
        """
        if time.monotonic() < self._look_at:
            return False
        is_new = self._dataset is None
        self._adopt()
        self._mend_all()
        has_more = bool(self._broken_off) and not self._end_rebuild()
        end_abandoned(self._system.client, self._trouble, self._partitions())
        if self._dataset is not None and self._deletions.look(is_new=is_new):
            has_more = True
        before, self._mended = self._mended, self._states()
        if self._dataset is not None and not has_more:
            self._look_at = time.monotonic() + self._every_s
        return before is not None and before != self._mended

    def _partitions(self) -> Sequence[int]:
        return range(self._system.client.space.partitions) if self._partition is None else [self._partition]

    def _end_rebuild(self) -> bool:
        """End the rebuild that was broken off; return False if other partitions are not mended yet.

        Raise RedisUnavailable if another one has begun since.
        """
        if self._partition is not None and self._unmended(range(self._system.client.space.partitions)):
            return False
        if end_rebuild(self._system, self._broken_off):
            log.warning("the rebuild that was broken off is ended: what it left is reconciled")
        elif rebuild_token(self._system):
            raise RedisUnavailable(_IS_REBUILT)
        return True

    def doubt(self) -> None:
        """Look at all again next time: the connection was lost, or SQL did not answer."""
        self._look_at = 0.0
        self._dataset = None

    def mark(self, process: str, entries: Sequence[Entry]) -> list[WatermarkRow]:
        """Set the watermarks for entries that are about to be stored; return the rows to store with them.

        The watermarks of SQL are read first, so nobody else can have stored anything since the entries were read that
        Redis has lost by now. Raise RedisUnavailable if they may not be stored.
        """
        if self._dataset is None:
            self._adopt()  # the data has begun since the last look
        newest = {entry.partition: entry for entry in sorted(entries, key=lambda entry: packed(entry.id))}
        rows = [WatermarkRow(partition, process, packed(entry.id)) for partition, entry in newest.items()]
        stored = queries.watermarks(self._system.database)
        if self._heir != process:
            self._inherit(process, stored)
            stored = queries.watermarks(self._system.database)
        answers = self._system.client.call_many([self._call(row, newest[row.partition].id, stored) for row in rows])
        if _OLDER in answers and not lost_watermarks(self._system, newest):
            return self.mark(process, entries)  # a new process has inherited some of these meanwhile
        for answer in answers:
            if answer != repair_calls.OK:
                raise self._refused(answer)
        return rows

    def _refused(self, answer: str) -> RedisUnavailable:
        self.doubt()
        return RedisUnavailable(_REASONS[answer])

    def _inherit(self, process: str, stored: dict[Place, int]) -> None:
        """Inherit the watermarks of earlier processes of this name, so that they do not pile up.

        If one of these lives after all and stores something late, its watermark is in SQL again, and not in Redis. That
        is treated as an older Redis.
        """
        before: dict[int, dict[str, int]] = {}
        for (partition, consumer), mark in stored.items():
            if partition in self._partitions() and consumer.partition(".")[0] == process.partition(".")[0]:
                before.setdefault(partition, {})[consumer] = mark
        rows = [WatermarkRow(partition, process, max(marks.values())) for partition, marks in before.items()]
        client, space = self._system.client, self._system.client.space
        inherit = [
            repair_calls.set_watermarks(space, p, {process: entry}, unless_lost=before[p]) for p, process, entry in rows
        ]
        if not all(client.call_many(inherit)):
            raise self._refused(_OLDER)
        gone = [(p, consumer) for p, marks in before.items() for consumer in marks]
        queries.replace_watermarks(self._system.database, rows, gone)
        client.call_many([repair_calls.forget(space, p, list(marks)) for p, marks in before.items()])
        self._heir = process

    def _call(self, row: WatermarkRow, newest: str, stored: dict[Place, int]) -> Call[str]:
        known = {consumer: mark for (partition, consumer), mark in stored.items() if partition == row.partition}
        mended = self._mended[row.partition] if self._mended else ""
        return repair_calls.set_watermark(self._system.client.space, row, newest, repaired=mended, stored=known)

    def _states(self) -> dict[int, str]:
        """Return a value of each partition that changes whenever somebody mends."""
        client, space, partitions = self._system.client, self._system.client.space, self._partitions()
        fields = [("HGET", space.watermarks(p), repair_calls.REPAIRED) for p in partitions]
        return {p: (state or b"").decode() for p, state in zip(partitions, client.query_many(fields), strict=True)}

    def _unmended(self, partitions: Sequence[int]) -> dict[int, bool]:
        """Return the partitions that need to be reconciled, and whether Redis is older than SQL there."""
        behind = {partition for partition, _ in lost_watermarks(self._system, partitions)}
        half_done = {p for p in partitions if unfinished(self._system, p)}
        return {partition: partition in behind for partition in sorted(behind | half_done)}

    def _mend_all(self) -> None:
        """Reconcile each partition that needs it. Raise only afterwards, if one that is behind could not be."""
        problem = None
        for partition, is_behind in self._unmended(self._partitions()).items():
            why = "Redis is older than SQL" if is_behind else "somebody has died over mending it"
            try:
                self._mend(partition, why)
            except TryAgain as error:
                problem = error if is_behind else problem
        if problem:
            raise problem

    def _mend(self, partition: int, why: str) -> None:
        if self._trouble.is_due((partition, why)):  # while it fails it is tried again and again
            log.warning("partition %d: %s; the two are reconciled", partition, why)
        done = reconcile(self._system, partition)
        log.warning("partition %d: %d groups mended, %d messages back", partition, done.groups, done.restored)

    def _adopt(self) -> None:
        """Compare the id of Redis' data with that in SQL, or let an empty SQL have it.

        Raise RedisUnavailable or DatabaseUnavailable if these are different data.
        """
        client, database = self._system.client, self._system.database
        facts = self._facts()
        self._notice_rebuild(facts)
        if self._dataset is None:
            self._dataset = database.meta("dataset")
        if self._dataset is None and facts.dataset:
            if _has_stored(client) and database.meta("dataset") is None:  # else another lane has just begun
                raise DatabaseUnavailable(
                    f"{database.address} is empty, though much of {client.address} has been stored: "
                    "set IM_DATABASE_URL; or, if that database is lost, run im check --repair"
                )
            self._dataset = facts.dataset
            database.bind(facts.partitions, self._dataset)
        elif self._dataset is not None and facts.dataset != self._dataset:
            raise RedisUnavailable(
                f"{client.address} does not have the data that {database.address} has: set IM_DATABASE_URL or "
                "IM_REDIS_URL if one is wrong; if Redis has lost its data, run im rebuild"
            )

    def _notice_rebuild(self, facts: Facts) -> None:
        self._broken_off = facts.rebuilding
        if facts.is_rebuilt:
            raise RedisUnavailable(_IS_REBUILT)
        if facts.rebuilding and self._trouble.is_due("broken off"):
            log.warning("a rebuild of Redis was broken off: what it left is reconciled now, group by group")


def _has_stored(client: RedisClient) -> bool:
    """Return whether any worker has ever stored something that Redis holds."""
    marks = client.query_many([("HKEYS", client.space.watermarks(p)) for p in range(client.space.partitions)])
    return any(not name.startswith(keys.SEPARATOR.encode()) for names in marks for name in names)


# What processes that died had begun.


def end_abandoned(client: RedisClient, trouble: ThrottledLog, partitions: Sequence[int] | None = None) -> None:
    """Undo abandoned creations of groups, tell members that were not told, and cut sessions to their length.

    In all partitions, or in some. Sessions last too long if the server's clock was put back. Raise nothing: warn by way
    of `trouble`.
    """
    space = client.space
    partitions = range(space.partitions) if partitions is None else partitions
    list(_answers(client, [session_calls.expire_online(space, p) for p in partitions], trouble))
    for gids_of, end_one in ((creation_calls.abandoned, _undo), (creation_calls.unnotified, _tell)):
        for gid in chain.from_iterable(_answers(client, [gids_of(space, p) for p in partitions], trouble)):
            try:
                end_one(client, gid)
            except ImError as error:
                trouble.note(error, _NOT_ENDED)


def _undo(client: RedisClient, gid: str) -> None:
    if perform_in_redis(client, creation.undo(gid)):
        log.warning("group %r: its creation was given up, and is undone", gid)


def _tell(client: RedisClient, gid: str) -> None:
    uids = list(stream_from_redis(client, creation.first_members(gid)))
    perform_in_redis(client, creation.tell(gid, uids))


def _answers(client: RedisClient, calls: Sequence[Call[T]], trouble: ThrottledLog) -> Iterator[T]:
    """Make calls; warn of errors, and yield the other answers."""
    try:
        answers = client.call_each(calls)
    except ImError as error:
        answers = [error]
    for answer in answers:
        if isinstance(answer, ImError):
            trouble.note(answer, _NOT_ENDED)
        else:
            yield answer
