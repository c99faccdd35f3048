"""`im rebuild`: brings back from SQL what Redis has lost: all of it, or what it did not know yet when it was saved.

Groups that Redis does not have come back in batches (`imcore.repair.bulk_apply`). A group that is there already, in an
older state or with newer messages, is mended instead (`imcore.repair.apply`): no data of Redis is dropped. Redis keeps
the list of groups that are done, so a rebuild that was killed goes on from there.

Groups, present and former members, messages that retention would keep, offsets, own messages, recalls, client_msgids,
and tallies that senders have not confirmed come back. Sessions begin again by themselves. Dead letters, and entries
that no worker had stored, are lost.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Event, Thread
from typing import Self

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, ImError, RefusedError, TryAgain
from imcore.model.rows import Batch, GroupRow, Head
from imcore.repair import deletion, policies
from imcore.repair.apply import mend
from imcore.repair.bulk_apply import BulkApply
from imcore.repair.desired import oldest_client_msgid, trim_point
from imcore.repair.erasure import settle_stored
from imcore.repair.watermarks import end_rebuild, raise_journals
from imcore.repair.window import now_ms, rebuild_token
from imcore.sql import corrections, queries
from imcore.sql import deletion as sql_deletion
from imcore.streams import keys
from imcore.streams.calls import journal_calls, repair_calls
from imcore.streams.calls.repair_calls import Trim
from imcore.streams.keys import CONFIG, REBUILD, REBUILDING, Keyspace
from imcore.system import System
from imcore.util.batches import batches, grouped
from imcore.util.deadlines import attempts

GROUPS = 200
MESSAGES = 10_000
"""The most groups and messages of a batch. One group alone may have more messages."""

LEASE_MS = 5000


@dataclass(frozen=True, slots=True)
class RebuildSummary:
    """The result of a rebuild. `merged`: groups that were there already.

    `done_before`: groups of an earlier, killed rebuild. `receipts`: tallies that their senders have not confirmed.
    `renumbered`: messages whose seq had to change because others are lost for good.
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
    """The groups before a rebuild, and the ids of their data. `goes_on`: an earlier rebuild has not ended.

    `partitions`: how many the data has, or will have.
    """

    redis_groups: int
    sql_groups: int
    partitions: int
    redis_dataset: str | None
    sql_dataset: str | None
    goes_on: bool


def look_before(system: System) -> Before:
    """Return the state before a rebuild.

    Raise ConfigurationError if Redis has groups in another number of partitions than SQL.
    """
    system.database.check_version()
    client, database = system.client, system.database
    [values] = client.query_many([("HMGET", CONFIG, "partitions", "dataset", REBUILDING)], any_library=True)
    in_redis, dataset, token = (None if value is None else value.decode() for value in values)
    partitions = str(database.partitions() or in_redis or system.settings.partitions or keys.DEFAULT_PARTITIONS)
    groups = _count_groups(system, int(in_redis or partitions))
    if groups and in_redis not in {None, partitions}:
        raise ConfigurationError(
            f"{client.address} holds groups in {in_redis} partitions, and the database those of {partitions}: empty it "
            "first"
        )
    if system.settings.partitions not in {None, int(partitions)}:
        raise ConfigurationError(
            f"the data has {partitions} partitions, not {system.settings.partitions}: set IM_PARTITIONS={partitions}, "
            "or unset it"
        )
    in_sql = queries.count_groups(database) + len(queries.unlisted(database))
    return Before(groups, in_sql, int(partitions), dataset, database.meta("dataset"), bool(token))


def rebuild(
    system: System, *, yes: bool = False, adopt: bool = False, on_progress: Progress | None = None
) -> RebuildSummary:
    """Bring back what SQL has; return what that was. `on_progress` gets the summary so far.

    The system must not have been used before. Killed and started again, a rebuild goes on. Raise RefusedError if Redis
    has groups and SQL has none; if Redis has groups, without `yes`; if these are of other data, without `adopt`.
    Raise ConfigurationError if Redis has another number of partitions, TryAgain if another process rebuilds it.
    """
    before = look_before(system)
    _refuse(system, before, yes, adopt)
    system.client.upgrade()  # can it work at all?
    _begin(system, before)
    with _Lease(system) as lease:
        settle_stored(system)
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
    is_foreign = len({before.redis_dataset, before.sql_dataset} - {None}) == 2
    if before.redis_groups and is_foreign and not adopt:  # of another system, or begun anew after all was lost
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
    """Write down the id of the data and the number of partitions, which say where all else belongs.

    SQL comes first: if it cannot be written, nothing has begun.
    """
    client = system.client
    dataset = before.sql_dataset or before.redis_dataset or uuid.uuid4().hex
    system.database.bind(before.partitions, dataset)
    client.execute_once("HSET", CONFIG, "partitions", before.partitions, "dataset", dataset)
    if client.space.partitions != before.partitions:
        raise ConfigurationError(f"this connection was made for {client.space.partitions} partitions: open another one")


def _count_groups(system: System, partitions: int) -> int:
    lists = map(Keyspace(partitions).groups, range(partitions))
    return sum(system.client.query_many([("SCARD", key) for key in lists], any_library=True))


def _end(system: System, lease: "_Lease") -> None:
    """Let workers store again, once Redis has the watermarks of all that they have stored."""
    client, space = system.client, system.client.space
    lease.confirm()
    for (partition, consumer), mark in queries.watermarks(system.database).items():
        client.call(repair_calls.set_watermarks(space, partition, {consumer: mark}))
    if not end_rebuild(system, lease.token):
        raise TryAgain(_LOST)


_LOST = "another process has gone on with this rebuild, or Redis was emptied meanwhile: see what im check says"


class _Lease:
    """The right of one process to rebuild. Workers store nothing while it is used in a `with`.

    A thread renews it, since one group may take longer than it lasts. If the process dies, or the rebuild fails, the
    next worker reconciles what is left. If it stalls, another one may have begun, whose rebuild it must not end.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self.token = uuid.uuid4().hex
        self._ended = Event()
        self._renewing = Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Begin the rebuild. Raise TryAgain if another process has one, or was killed less than LEASE_MS ago."""
        if not any(self._hold(LEASE_MS) for _ in attempts(LEASE_MS / 1000 + 1)):
            raise TryAgain("another process rebuilds Redis")
        self._renewing.start()
        try:
            self._system.client.execute_once("HSET", CONFIG, REBUILDING, self.token)  # everybody sees it
        except ImError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewing.join()
        with suppress(ImError):  # then it ends by itself
            self._hold(0)

    def confirm(self) -> None:
        """Raise TryAgain if another rebuild has begun since, or somebody has ended this one."""
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
    def __init__(self, system: System, lease: _Lease) -> None:
        self._system = system
        self._lease = lease
        self._client = system.client
        self._database = system.database
        self._space = system.client.space
        self._cutoff = msgids.first_at(now_ms() - system.settings.keep_ms)
        self._known_after = oldest_client_msgid(system, CONFIG)
        self.summary = RebuildSummary()

    def steps(self) -> Iterator[None]:
        """Bring back one batch after the other."""
        watermarks = queries.watermarks(self._database).values()
        raise_journals(self._system, range(self._space.partitions), watermarks)
        self._end_deletions()
        created_ms = now_ms()
        self._database.write(Batch(groups=[GroupRow(gid, created_ms) for gid in queries.unlisted(self._database)]))
        for gids in batches(queries.gids(self._database), GROUPS):
            deleted = deletion.begun(self._system, gids)
            for heads in self._missing([gid for gid in gids if gid not in deleted]):
                self._bring_back(heads)
                yield
            yield
        policies.restore(self._system, range(self._space.partitions))

    def _end_deletions(self) -> None:
        """Delete the rows of groups whose deletion was begun: they are of no group. A worker does the rest."""
        for each in sql_deletion.unfinished(self._database):
            while sql_deletion.step(self._database, each.gid, each.entry, MESSAGES):
                self._lease.confirm()

    def _missing(self, gids: list[str]) -> Iterator[list[Head]]:
        """Yield batches of groups that Redis does not have. Mend those that it has, and skip those that are done."""
        space = self._space
        done = self._client.query_many([("SISMEMBER", space.rebuilt(space.partition_of(gid)), gid) for gid in gids])
        exist = self._client.query_many([("EXISTS", space.group(gid).meta) for gid in gids])
        heads = queries.heads(self._database, gids)
        batch: list[Head] = []
        for gid, is_done, exists in zip(gids, done, exist, strict=True):
            head = heads[gid]
            if is_done:
                self._count(done_before=1)
            elif exists:
                self._merge(gid)
            elif self._is_alone(head):
                yield [head]
            else:
                if sum(each.messages for each in batch) + head.messages > MESSAGES:
                    yield batch
                    batch = []
                batch.append(head)
        if batch:
            yield batch

    def _is_alone(self, head: Head) -> bool:
        """Return whether a group comes back alone: it is large, or has a trim point."""
        most = min(MESSAGES, self._system.settings.keep_messages)
        return head.messages > most or 0 < head.oldest < self._cutoff

    def _merge(self, gid: str) -> None:
        mended = mend(self._system, gid, lost_all=True)
        self._count(merged=1, messages=mended.restored, renumbered=mended.renumbered, receipts=mended.receipts)
        self._note_done([gid])

    def _bring_back(self, heads: Sequence[Head]) -> None:
        gids = [head.gid for head in heads]
        for gid in queries.with_gaps(self._database, gids):
            self._count(renumbered=corrections.close_gaps(self._database, gid))
        trim = trim_point(self._system, gids[0]) if len(gids) == 1 else Trim(0, 0)
        bulk = BulkApply(self._system, gids, trim, known_after=self._known_after)
        changed = bulk.run()
        for gid in changed:
            self._merge(gid)
        counts = {"messages": bulk.messages, "members": bulk.members, "receipts": bulk.receipts}
        self._count(groups=len(gids) - len(changed), **counts)
        self._note_done(gids)

    def _note_done(self, gids: Sequence[str]) -> None:
        self._lease.confirm()
        for partition, names in grouped((self._space.partition_of(gid), gid) for gid in gids).items():
            self._client.execute_once("SADD", self._space.rebuilt(partition), *names)

    def _count(self, **more: int) -> None:
        self.summary = replace(
            self.summary, **{name: getattr(self.summary, name) + number for name, number in more.items()}
        )
