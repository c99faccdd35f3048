"""`im rebuild`: brings back from SQL what Redis has lost: all of it, or what it did not know yet when it was saved.

Groups come back in bunches, each group first with its messages and then with its members. Where a group is there
already, in an older state or with messages that came since, the two are merged instead (`imcore.repair.mend`):
nothing that Redis has is dropped. What is done is noted in Redis, so a rebuild that was ended goes on where it stood.

Back come groups, members and who has left, messages with their msgids and seqs (those that retention would keep; SQL
has the others), offsets, own messages, recalls, client_msgids, and which tallies senders have not confirmed. Not back
come sessions, which begin again by themselves, dead letters, and what no worker had stored.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from threading import Event, Thread
from types import TracebackType
from typing import Self

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, ImError, RefusedError, TryAgain
from imcore.model.rows import Batch, GroupRow, SpanRow
from imcore.repair import client_msgids
from imcore.repair.check_messages import chunks
from imcore.repair.dirty_receipts import mark_unconfirmed
from imcore.repair.mend import id_above, mend, trim_point
from imcore.repair.rebuild_batch import RebuildBatch
from imcore.repair.watermarks import end_rebuild, rebuild_token
from imcore.sql import corrections, queries
from imcore.sql.database import Database
from imcore.sql.queries import Head, Light
from imcore.streams import keys
from imcore.streams.calls import journal_calls, repair_calls
from imcore.streams.calls.repair_calls import Trim
from imcore.streams.keys import CONFIG, REBUILD, REBUILDING, Keyspace
from imcore.system import System
from imcore.util.backoff import pauses

GROUPS = 200
MESSAGES = 10_000
"""A bunch has at most so many groups, and so many messages unless one group alone has more."""

LEASE_MS = 5000


@dataclass(frozen=True, slots=True)
class RebuildSummary:
    """What came back. `merged` counts the groups that were there already, `done_before` those of a rebuild that ended.

    `receipts` are tallies that their senders have not confirmed, `renumbered` messages whose seq had to change because
    others are lost for good.
    """

    groups: int = 0
    messages: int = 0
    members: int = 0
    receipts: int = 0
    merged: int = 0
    done_before: int = 0
    renumbered: int = 0


Progress = Callable[[RebuildSummary], None]


@dataclass(frozen=True, slots=True)
class Before:
    """What there is before a rebuild: groups in Redis (some of a rebuild that `goes_on`) and in SQL, of which data.

    `partitions` are those that the data has, or is to have.
    """

    redis_groups: int
    sql_groups: int
    partitions: int
    redis_dataset: str | None
    sql_dataset: str | None
    goes_on: bool

    @property
    def is_foreign(self) -> bool:
        """Whether Redis has groups of other data than SQL: of another system, or begun anew after all was lost."""
        return (
            bool(self.redis_groups)
            and None not in {self.redis_dataset, self.sql_dataset}
            and (self.redis_dataset != self.sql_dataset)
        )


def look_before(system: System) -> Before:
    """Return what there is. Raise ConfigurationError if Redis has groups in another number of partitions than SQL."""
    system.database.check_version()
    client, database = system.client, system.database
    [found] = client.query_many([("HMGET", CONFIG, "partitions", "dataset", REBUILDING)], any_library=True)
    here, dataset, goes_on = (None if value is None else value.decode() for value in found)
    partitions = str(database.partitions() or here or system.settings.partitions or keys.DEFAULT_PARTITIONS)
    groups = _count_groups(system, int(here or partitions))
    if groups and here not in {None, partitions}:
        raise ConfigurationError(
            f"{client.address} holds groups in {here} partitions, and the database those of {partitions}: empty it first"
        )
    if system.settings.partitions not in {None, int(partitions)}:
        raise ConfigurationError(
            f"the data has {partitions} partitions, not {system.settings.partitions}: set IM_PARTITIONS={partitions}, "
            "or unset it"
        )
    return Before(groups, _count_stored(database), int(partitions), dataset, database.meta("dataset"), bool(goes_on))


def rebuild(
    system: System, *, yes: bool = False, adopt: bool = False, on_progress: Progress | None = None
) -> RebuildSummary:
    """Bring back what SQL has; return what that was. `on_progress` gets the summary so far.

    The Chat must not have been used before. Killed and started again, it goes on. Raise RefusedError if there are
    groups in Redis and none in SQL, whatever is said; if there are some and it is not said `yes`; or if these are of
    other data and it is not said to `adopt` them;
    ConfigurationError if Redis has them in another number of partitions; TryAgain if another process is about it.
    """
    before = look_before(system)
    _refuse(system, before, yes, adopt)
    system.client.upgrade()  # can it work at all?
    _begin(system, before)
    with _Lease(system) as lease:
        lease.begin()
        rebuilding = _Rebuild(system, lease)
        for _ in rebuilding.steps():
            if on_progress:
                on_progress(rebuilding.summary)
        _end(system, lease)
    return rebuilding.summary


def _refuse(system: System, before: Before, yes: bool, adopt: bool) -> None:
    client, database = system.client, system.database
    if before.redis_groups and not before.sql_groups:
        raise RefusedError(
            f"{database.address} is empty, though {client.address} holds {before.redis_groups} groups: set "
            "IM_DATABASE_URL; or, if that database is lost, run im check --repair"
        )
    if before.is_foreign and not adopt:
        raise RefusedError(
            f"{client.address} holds {before.redis_groups} groups of other data than {database.address}: set "
            "IM_DATABASE_URL or IM_REDIS_URL if one is wrong; if these groups were made after this system had lost its "
            "Redis, repeat it with --adopt"
        )
    if before.redis_groups and not before.goes_on and not yes:
        raise RefusedError(
            f"{client.address} holds {before.redis_groups} groups: what the database has would be merged into them; "
            "repeat it with --yes if that is meant"
        )


def _begin(system: System, before: Before) -> None:
    """Write down what data this is to be, before anything else is: where everything lies follows from it.

    In SQL first: if that cannot be written, nothing has begun.
    """
    client = system.client
    dataset = before.sql_dataset or before.redis_dataset or uuid.uuid4().hex
    system.database.bind(before.partitions, dataset)
    client.execute_once("HSET", CONFIG, "partitions", before.partitions, "dataset", dataset)
    if client.space.partitions != before.partitions:
        raise ConfigurationError(f"this connection was made for {client.space.partitions} partitions: open another one")


def _count_groups(system: System, partitions: int) -> int:
    space = Keyspace(partitions)
    return sum(system.client.query_many([("SCARD", space.groups(p)) for p in range(partitions)], any_library=True))


def _count_stored(database: Database) -> int:
    return queries.count_groups(database) + len(queries.unlisted(database))


def _end(system: System, lease: "_Lease") -> None:
    """From now on workers may store again: Redis knows all that they have stored."""
    client, space = system.client, system.client.space
    lease.keep()
    for (partition, consumer), mark in queries.watermarks(system.database).items():
        client.call(repair_calls.set_watermarks(space, partition, {consumer: mark}))
    if not end_rebuild(system, lease.token):
        raise TryAgain(_LOST)


_LOST = "another process has gone on with this rebuild, or Redis was emptied meanwhile: see what im check says"


class _Lease:
    """The right to rebuild, of one process: workers store nothing while it is used in a `with`.

    A thread renews it, since one group may take longer than it lasts. Where the process dies, or the rebuild fails, the
    next worker goes on: it reconciles what is left. Where it stalls for longer, another one may have gone on: then it
    must not end what is that one's.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self.token = uuid.uuid4().hex
        self._ended = Event()
        self._renewing = Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Raise TryAgain if another process has it; one that was killed just now counts as alive for a moment."""
        give_up, pause = time.monotonic() + LEASE_MS / 1000 + 1, pauses()
        while not self._hold(LEASE_MS):
            if time.monotonic() > give_up:
                raise TryAgain("another process rebuilds Redis")
            time.sleep(next(pause))
        self._renewing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._renewing.join()
        with suppress(ImError):  # then it ends by itself
            self._hold(0)

    def begin(self) -> None:
        """Let everybody know that a rebuild is under way, and that it is this one."""
        self._system.client.execute_once("HSET", CONFIG, REBUILDING, self.token)

    def keep(self) -> None:
        """Go on with the rebuild. Raise TryAgain if another one has begun since, or somebody has ended this one."""
        if not self._hold(LEASE_MS) or rebuild_token(self._system) != self.token:
            raise TryAgain(_LOST)

    def _renew(self) -> None:
        while not self._ended.wait(LEASE_MS / 3000):
            with suppress(Exception):  # whatever it is, the rebuild itself finds out
                if not self._hold(LEASE_MS):
                    return

    def _hold(self, lease_ms: int) -> bool:
        return self._system.client.call(journal_calls.lease(REBUILD, 1, self.token, lease_ms))


class _Rebuild:
    """A rebuild under way."""

    def __init__(self, system: System, lease: _Lease) -> None:
        self._system = system
        self._lease = lease
        self._client = system.client
        self._database = system.database
        self._space = system.client.space
        self._cutoff = msgids.first_at(_now_ms() - system.settings.keep_ms)
        self._once_after = client_msgids.oldest_known(system, CONFIG)
        self.summary = RebuildSummary()

    def steps(self) -> Iterator[None]:
        """Bring back one bunch after the other."""
        self._raise_journals()
        now_ms = _now_ms()
        self._database.write(Batch(groups=[GroupRow(gid, now_ms) for gid in queries.unlisted(self._database)]))
        for some in chunks(queries.gids(self._database), GROUPS):
            for fresh in self._bunches(some):
                self._bring_back(fresh)
                yield
            yield

    def _raise_journals(self) -> None:
        """What happens from now on is to be later than what SQL knows, also where the clock stands behind."""
        latest = max(queries.newest_change(self._database), *queries.watermarks(self._database).values(), 0)
        partitions = range(self._space.partitions)
        self._client.call_many([repair_calls.journal(self._space, p, id_above(latest)) for p in partitions])

    def _bunches(self, gids: list[str]) -> Iterator[list[Head]]:
        """Merge those of the groups that are there, pass over those that are done, and yield the others."""
        rebuilt = [self._space.rebuilt(self._space.partition_of(gid)) for gid in gids]
        done = self._client.query_many([("SISMEMBER", key, gid) for key, gid in zip(rebuilt, gids, strict=True)])
        there = self._client.query_many([("EXISTS", self._space.group(gid).meta) for gid in gids])
        heads = queries.heads(self._database, gids)
        bunch: list[Head] = []
        size = 0
        for gid, is_done, is_there in zip(gids, done, there, strict=True):
            head = heads[gid]
            if is_done:
                self._count(done_before=1)
            elif is_there:
                self._merge(gid)
            elif head.messages > MESSAGES or self._is_trimmed(head):
                yield [head]
            elif size + head.messages > MESSAGES:
                yield bunch
                bunch, size = [head], head.messages
            else:
                bunch.append(head)
                size += head.messages
        if bunch:
            yield bunch

    def _is_trimmed(self, head: Head) -> bool:
        return head.messages > self._system.settings.keep_messages or 0 < head.oldest < self._cutoff

    def _merge(self, gid: str) -> None:
        mended = mend(self._system, gid)
        self._count(merged=1, messages=mended.restored, renumbered=mended.renumbered)
        spans = list(queries.spans(self._database, [gid]))
        self._mark_dirty(gid, queries.light(self._database, [gid]), spans)
        self._note_done([gid])

    def _bring_back(self, heads: Sequence[Head]) -> None:
        """Bring back groups that are not there, and have no trim point unless it is one alone."""
        gids = [head.gid for head in heads]
        for gid in queries.with_gaps(self._database, gids):
            self._count(renumbered=corrections.close_gaps(self._database, gid))
        trim = trim_point(self._system, gids[0]) if len(gids) == 1 else Trim(0, 0)
        bunch = RebuildBatch(self._system, gids, trim, once_after=self._once_after)
        changed = bunch.bring_back()
        for gid in changed:
            self._merge(gid)
        self._count(groups=len(gids) - len(changed), messages=bunch.messages, members=bunch.members)
        lights = groupby(queries.light(self._database, gids), key=attrgetter("gid"))
        for gid, each in lights:
            self._mark_dirty(gid, each, bunch.spans.get(gid, []))
        self._note_done(gids)

    def _mark_dirty(self, gid: str, messages: Iterable[Light], spans: Sequence[SpanRow]) -> None:
        self._count(receipts=sum(mark_unconfirmed(self._system, gid, messages, spans).values()))

    def _note_done(self, gids: Sequence[str]) -> None:
        self._lease.keep()
        by_partition: dict[int, list[str]] = {}
        for gid in gids:
            by_partition.setdefault(self._space.partition_of(gid), []).append(gid)
        for partition, some in by_partition.items():
            self._client.execute_once("SADD", self._space.rebuilt(partition), *some)

    def _count(self, **more: int) -> None:
        self.summary = replace(
            self.summary, **{name: getattr(self.summary, name) + number for name, number in more.items()}
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
