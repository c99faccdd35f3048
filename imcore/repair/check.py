"""`im check`: compares Redis with SQL while the system runs, and mends what has one right answer.

Every message, span, offset and index is compared, and the tallies of all messages in Redis are counted again from SQL.
What the journals are about to bring to SQL is no difference. In memory are the names of all groups, the members and
msgids of one group, and a page of all else.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, TryAgain
from imcore.repair import policies
from imcore.repair.apply import mend
from imcore.repair.compare import HAND_WRITTEN, differences, oldest_of
from imcore.repair.diff import MISSING, NOTHING, THERE, Difference
from imcore.repair.watermarks import end_rebuild, reconcile
from imcore.repair.window import KIND, concerned_by_erasures, gids_of, lost_watermarks, rebuild_token, undone
from imcore.sql import corrections, queries
from imcore.streams import keys, wire
from imcore.streams.calls import group_calls, repair_calls
from imcore.streams.consumers import alive_in, lives, silent_holders
from imcore.system import System
from imcore.util.batches import batches, grouped

AT_ONCE = 1000
"""The groups that one window compares, and the users that one round trip looks at."""

Progress = Callable[[int, int], None]
"""Gets the number of groups that have been compared, and of all groups."""


def check(system: System, *, repair: bool = False, on_progress: Progress | None = None) -> Iterator[Difference]:
    """Yield every difference; with `repair`, those that could be mended are marked so.

    SQL gets what no journal brings any more, Redis gets what only SQL has, the further offset wins (but none that no
    message can have), and derived data is made anew. Texts that differ stay, and so do holes where both have lost a
    message. Only names that are no member and no group are dropped. If the two hold data of different systems, that is
    the only difference, and nothing is mended. Raise DatabaseUnavailable, RedisUnavailable, and with `repair`
    RedisRefuses for a Redis that takes no writes.
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
    if rebuild and lives(system.client, keys.REBUILD, [1]):
        yield Difference("rebuild", "under way: wait for its end", THERE)
    yield from _older(system, repair)
    yield from _backlog(system)
    yield from _silent(system)
    yield from _erasures(system)
    yield from _groups(system, repair, on_progress or (lambda *_: None))
    yield from policies.differences(system, range(system.client.space.partitions), repair=repair)
    yield from _strange_listings(system, repair)
    yield from _rebuild_broken_off(system, rebuild, repair)


def _groups(system: System, repair: bool, on_progress: Progress) -> Iterator[Difference]:
    gids = sorted({*gids_of(system, range(system.client.space.partitions)), *queries.unlisted(system.database)})
    done = 0
    on_progress(0, len(gids))
    for batch in batches(gids, AT_ONCE):
        for gid, of_group in _settled(system, batch).items():
            yield from _of_group(system, gid, of_group, repair)
        done += len(batch)
        on_progress(done, len(gids))


def _settled(system: System, gids: Sequence[str]) -> dict[str, list[Difference]]:
    """Compare groups, without those from which a user is being erased."""
    while True:
        begun = system.database.erasures().count
        left_out = concerned_by_erasures(system, gids)
        found = differences(system, [gid for gid in gids if gid not in left_out])
        if system.database.erasures().count == begun:
            return found


def _of_group(system: System, gid: str, before: list[Difference], repair: bool) -> Iterator[Difference]:
    """Report a group, and with `repair` mend it until nothing differs."""
    if not repair or all(difference.unsure for difference in before):
        yield from before
        return
    try:
        corrections.correct_times(system.database, gid)
        mend(system, gid, since=oldest_of(before))
        left = {difference.what: difference for difference in differences(system, [gid])[gid]}
    except (TryAgain, ConfigurationError):
        raise
    except HAND_WRITTEN:
        yield from before
        return
    for difference in before:
        yield replace(difference, repaired=left.pop(difference.what, None) is None)
    yield from left.values()


def _strange_listings(system: System, repair: bool) -> Iterator[Difference]:
    """Yield the groups that users list and are no members of; with `repair` these go.

    The comparison of a group's members finds users who do not list it.
    """
    client, space = system.client, system.client.space
    for uids in batches(queries.uids(system.database), AT_ONCE):
        by_group = grouped((gid, (uid, key)) for gid, uid, key in _listed(system, uids))
        asked = [group_calls.are_members(space, gid, [uid for uid, _ in named]) for gid, named in by_group.items()]
        for (gid, named), are_members in zip(by_group.items(), client.call_each(asked), strict=True):
            # An error is about the group, whose comparison reports it.
            for uid, key in named if are_members is False else ():
                if _is_strange(system, gid, uid, key):
                    removed = repair and client.call(repair_calls.unlist(space.group(gid), uid))
                    what = f"group among those of {uid!r}"
                    yield Difference(what, THERE, "not a member", gid=gid, repaired=removed)


def _listed(system: System, uids: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each gid that some users list, with the uid and the key of the list."""
    space = system.client.space
    lists = [(uid, space.groups_of(p, uid)) for uid in uids for p in range(space.partitions)]
    answers = system.client.query_many([("SMEMBERS", key) for _, key in lists])
    for (uid, key), gids in zip(lists, answers, strict=True):
        for gid in gids:
            yield wire.text(gid), uid, key


def _is_strange(system: System, gid: str, uid: str, key: str) -> bool:
    """Ask once more, since users join and leave: both sides change in one step."""
    listed = system.client.query("SISMEMBER", key, gid)
    return bool(listed) and system.client.query("ZSCORE", system.client.space.group(gid).acked, uid) is None


# The data as a whole.


def _dataset(system: System) -> Iterator[Difference]:
    """Redis and SQL hold the same data, in as many partitions."""
    for name in ("dataset", "partitions"):
        in_redis, in_sql = system.client.query("HGET", keys.CONFIG, name), system.database.meta(name)
        if in_sql is not None and (in_redis or b"").decode() != in_sql:
            yield Difference(name, in_redis.decode() if in_redis else MISSING, in_sql)


def _bind(system: System) -> None:
    """Let an empty database be the one of this data: it gets all that Redis has."""
    partitions, dataset = system.client.query("HMGET", keys.CONFIG, "partitions", "dataset")
    if dataset and system.database.meta("dataset") is None:
        system.database.bind(int(partitions), dataset.decode())


def _rebuild_broken_off(system: System, begun: str | None, repair: bool) -> Iterator[Difference]:
    """If a rebuild was broken off before this check, the check has mended what it left."""
    now = rebuild_token(system)
    if now and not lives(system.client, keys.REBUILD, [1]):
        is_ended = repair and now == begun and end_rebuild(system, now)
        yield Difference("rebuild", "broken off: the next worker persist ends it", THERE, repaired=is_ended)


def _older(system: System, repair: bool) -> Iterator[Difference]:
    """Redis has the watermarks of all that was stored."""
    behind = lost_watermarks(system)
    for (partition, consumer), (in_redis, in_sql) in behind.items():
        what = f"partition {partition}: stored by {consumer} up to"
        redis = msgids.unpack(in_redis) if in_redis else NOTHING
        yield Difference(what, redis, msgids.unpack(in_sql), repaired=repair)
    for partition in sorted({partition for partition, _ in behind}) if repair else ():
        reconcile(system, partition)


def _backlog(system: System) -> Iterator[Difference]:
    """Entries that are not stored are a difference if no worker runs that would store them."""
    alone = [partition for partition, alive in alive_in(system.client, KIND).items() if not alive]
    waiting = sum(1 for partition in alone for _ in undone(system.client, partition))
    if waiting:
        yield Difference(f"journal: no worker {KIND} runs", _entries(waiting), "not stored")


def _erasures(system: System) -> Iterator[Difference]:
    """Yield the users who are being erased: their groups are not compared before the end."""
    space = system.client.space
    in_redis = system.client.query_many([("HKEYS", space.erasing(partition)) for partition in range(space.partitions)])
    known = {wire.text(uid) for uids in in_redis for uid in uids}
    for uid in sorted(known | system.database.erasures().uids.keys()):
        yield Difference(f"erasure of {uid!r}", "under way, or broken off: im user erase ends it", "not compared")


def _silent(system: System) -> Iterator[Difference]:
    """Yield the processes that are silent while they hold entries which nobody has taken over."""
    for holder in silent_holders(system.client, system.settings):
        since = "" if holder.silent_ms is None else f" for {holder.silent_ms // 1000} s"
        what = f"journal: {holder.process} is silent{since}"
        sql = "not stored" if holder.worker == KIND else "not told"
        yield Difference(what, f"{_entries(holder.entries)} in its hand", sql)


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"
