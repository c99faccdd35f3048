"""`im check`: holds Redis against SQL, while the system runs, and mends what has one right answer.

Every message, span, offset and index is compared, and every count of the messages in Redis is made anew from SQL. What
is on its way through the journals is no difference: see `imcore.repair.journal_window`. In memory are the names of all groups,
and of one group the members and the msgids; of all else a page.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, TryAgain
from imcore.repair.check_group import UNREADABLE, differences, oldest_of
from imcore.repair.check_messages import chunks
from imcore.repair.check_users import strange_listings
from imcore.repair.diff import MISSING, NOTHING, THERE, Difference
from imcore.repair.journal_window import KIND, undone
from imcore.repair.locks import unfinished
from imcore.repair.mend import mend
from imcore.repair.watermarks import end_rebuild, rebuild_token, reconcile, watermarks_of
from imcore.sql import corrections, queries
from imcore.streams import keys, wire
from imcore.streams.consumers import lives, silent_holders
from imcore.system import System

AT_ONCE = 200
"""How many groups are looked at within one window."""

_MOST_WORKERS = 32


@dataclass(frozen=True, slots=True)
class ReportedDifference:
    """What Redis and SQL do not agree on, and both sides. No gid: it is about the data as a whole.

    `repaired`: it was so, and is no more. `unsure`: it may be none, since it is about what changes all the time.
    """

    gid: str
    what: str
    redis: str
    sql: str
    repaired: bool = False
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """How many of the groups have been looked at."""

    groups: int
    of: int


Progress = Callable[[Checked], None]


def check(system: System, *, repair: bool = False, on_progress: Progress | None = None) -> Iterator[ReportedDifference]:
    """Yield every difference; with `repair`, those that could be mended are marked so.

    What is mended: SQL gets what no journal tells any more, Redis gets what only SQL has, the further offset wins
    (never one that no message can have), and what is derived is made anew. What is left: texts that differ, and
    messages that both have lost. Nothing is ever dropped but names that are no member and no group. Where the two hold
    the data of different systems, that is the only difference, and nothing is mended. Raise DatabaseUnavailable,
    RedisUnavailable, and with `repair` RedisRefuses for a Redis that takes no writes.
    """
    system.database.check_version()
    if repair:
        system.client.require_writes()
    foreign = list(_dataset(system))
    yield from foreign
    if foreign:
        return
    if repair:
        _bind(system)
    rebuild = rebuild_token(system)
    yield from _rebuild_under_way(system, rebuild)
    yield from _older(system, repair)
    yield from _backlog(system)
    yield from _silent(system)
    gids = _gids(system)
    done = 0
    if on_progress:
        on_progress(Checked(0, len(gids)))
    for some in chunks(gids, AT_ONCE):
        half_done = {
            gid for p in {system.client.space.partition_of(gid) for gid in some} for gid in unfinished(system, p)
        }
        for gid, found in differences(system, some).items():
            begun = [_BEGUN] if gid in half_done else []
            yield from _of_group(system, gid, [*begun, *found], repair)
        done += len(some)
        if on_progress:
            on_progress(Checked(done, len(gids)))
    for gid, uid, removed in strange_listings(system, repair=repair):
        yield ReportedDifference(gid, f"group among those of {uid!r}", THERE, "not a member", repaired=removed)
    yield from _rebuild_broken_off(system, rebuild, repair)


_BEGUN = Difference("mending", "begun and not ended", "nothing of it", "stored")


def _gids(system: System) -> list[str]:
    client, space = system.client, system.client.space
    found = client.query_many([("SMEMBERS", space.groups(p)) for p in range(space.partitions)])
    in_redis = {wire.text(gid) for some in found for gid in some}
    return sorted({*in_redis, *queries.gids(system.database), *queries.unlisted(system.database)})


def _of_group(system: System, gid: str, found: list[Difference], repair: bool) -> Iterator[ReportedDifference]:
    if not repair or all(suspicion.unsure for suspicion in found):
        yield from _differences(gid, found)
        return
    try:
        corrections.correct_times(system.database, gid)
        mend(system, gid, since=oldest_of(found))
        left = {suspicion.what: suspicion for suspicion in differences(system, [gid])[gid]}
    except (TryAgain, ConfigurationError):
        raise
    except UNREADABLE:
        yield from _differences(gid, found)
        return
    for difference in _differences(gid, found):
        yield replace(difference, repaired=difference.what not in left)
    known = {suspicion.what for suspicion in found}
    yield from _differences(gid, [suspicion for what, suspicion in left.items() if what not in known])


def _differences(gid: str, found: list[Difference]) -> Iterator[ReportedDifference]:
    for suspicion in found:
        yield ReportedDifference(gid, suspicion.what, suspicion.redis, suspicion.sql, unsure=suspicion.unsure)


def _dataset(system: System) -> Iterator[ReportedDifference]:
    """Redis and SQL hold the same data, in as many partitions."""
    for name in ("dataset", "partitions"):
        here, there = system.client.query("HGET", keys.CONFIG, name), system.database.meta(name)
        if there is not None and (here or b"").decode() != there:
            yield ReportedDifference("", name, here.decode() if here else MISSING, there)


def _bind(system: System) -> None:
    """Let an empty database be the one of this data: it gets all that Redis has."""
    partitions, dataset = system.client.query("HMGET", keys.CONFIG, "partitions", "dataset")
    if dataset and system.database.meta("dataset") is None:
        system.database.bind(int(partitions), dataset.decode())


def _rebuild_under_way(system: System, begun: str | None) -> Iterator[ReportedDifference]:
    if begun and lives(system.client, keys.REBUILD, [1]):
        yield ReportedDifference("", "rebuild", "under way: wait for its end", THERE)


def _rebuild_broken_off(system: System, begun: str | None, repair: bool) -> Iterator[ReportedDifference]:
    """What a rebuild has left that was killed or has failed is mended by now, if it had begun before this check."""
    now = rebuild_token(system)
    if now and not lives(system.client, keys.REBUILD, [1]):
        is_ended = repair and now == begun and end_rebuild(system, now)
        yield ReportedDifference("", "rebuild", "broken off: the next worker persist ends it", THERE, repaired=is_ended)


def _older(system: System, repair: bool) -> Iterator[ReportedDifference]:
    """Redis knows of all that was stored."""
    behind = watermarks_of(system).behind
    for (partition, consumer), (here, there) in behind.items():
        what = f"partition {partition}: stored by {consumer} up to"
        yield ReportedDifference(
            "", what, msgids.unpack(here) if here else NOTHING, msgids.unpack(there), repaired=repair
        )
    for partition in sorted({partition for partition, _ in behind}) if repair else ():
        reconcile(system, partition)


def _backlog(system: System) -> Iterator[ReportedDifference]:
    """Where no worker runs that would store it, what is not stored is a difference."""
    if lives(system.client, KIND, range(1, _MOST_WORKERS + 1)):
        return
    waiting = sum(1 for partition in range(system.client.space.partitions) for _ in undone(system.client, partition))
    if waiting:
        yield ReportedDifference("", f"journal: no worker {KIND} runs", _entries(waiting), "not stored")


def _silent(system: System) -> Iterator[ReportedDifference]:
    """What a process has in hand that is heard of no more, and nobody has taken over."""
    for holder in silent_holders(system.client, system.settings):
        since = "" if holder.silent_ms is None else f" for {holder.silent_ms // 1000} s"
        what = f"journal: {holder.process} is silent{since}"
        yield ReportedDifference(
            "", what, f"{_entries(holder.entries)} in its hand", "not stored" if holder.worker == KIND else "not told"
        )


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"
