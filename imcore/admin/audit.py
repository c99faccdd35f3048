"""`im check`: holds Redis against SQL, while the system runs, and mends what has one right answer.

Every message, span, offset and index is compared, and every count of the messages in Redis is made anew from SQL. What
is on its way through the journals is no difference: see `imcore.admin.pending`. In memory are the names of all groups,
and of one group the members and the msgids; of all else a page.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from imcore import msgid as msgids
from imcore.admin.audit_group import UNREADABLE, differences, oldest_of
from imcore.admin.audit_messages import chunks
from imcore.admin.audit_users import strange_listings
from imcore.admin.claims import unfinished
from imcore.admin.holders import lives, silent_holders
from imcore.admin.mending import mend
from imcore.admin.pending import KIND, undone
from imcore.admin.reconcile import end_rebuild, marks_of, rebuild_token, reconcile
from imcore.admin.suspicion import MISSING, NOTHING, THERE, Suspicion
from imcore.chat import Chat
from imcore.errors import ConfigurationError, TryAgain
from imcore.sql import corrections, stored
from imcore.streams import keys, wire

AT_ONCE = 200
"""How many groups are looked at within one window."""

_MOST_WORKERS = 32


@dataclass(frozen=True, slots=True)
class Difference:
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


def check(chat: Chat, *, repair: bool = False, on_progress: Progress | None = None) -> Iterator[Difference]:
    """Yield every difference; with `repair`, those that could be mended are marked so.

    What is mended: SQL gets what no journal tells any more, Redis gets what only SQL has, the further offset wins
    (never one that no message can have), and what is derived is made anew. What is left: texts that differ, and
    messages that both have lost. Nothing is ever dropped but names that are no member and no group. Where the two hold
    the data of different systems, that is the only difference, and nothing is mended. Raise DatabaseUnavailable,
    RedisUnavailable, and with `repair` RedisRefuses for a Redis that takes no writes.
    """
    chat.database.check_version()
    if repair:
        chat.link.require_writes()
    foreign = list(_dataset(chat))
    yield from foreign
    if foreign:
        return
    if repair:
        _bind(chat)
    rebuild = rebuild_token(chat)
    yield from _rebuild_under_way(chat, rebuild)
    yield from _older(chat, repair)
    yield from _backlog(chat)
    yield from _silent(chat)
    gids = _gids(chat)
    done = 0
    if on_progress:
        on_progress(Checked(0, len(gids)))
    for some in chunks(gids, AT_ONCE):
        half_done = {gid for p in {chat.link.space.partition_of(gid) for gid in some} for gid in unfinished(chat, p)}
        for gid, found in differences(chat, some).items():
            begun = [_BEGUN] if gid in half_done else []
            yield from _of_group(chat, gid, [*begun, *found], repair)
        done += len(some)
        if on_progress:
            on_progress(Checked(done, len(gids)))
    for gid, uid, removed in strange_listings(chat, repair=repair):
        yield Difference(gid, f"group among those of {uid!r}", THERE, "not a member", repaired=removed)
    yield from _rebuild_broken_off(chat, rebuild, repair)


_BEGUN = Suspicion("mending", "begun and not ended", "nothing of it", "stored")


def _gids(chat: Chat) -> list[str]:
    link, space = chat.link, chat.link.space
    found = link.read_many([("SMEMBERS", space.groups(p)) for p in range(space.partitions)])
    in_redis = {wire.text(gid) for some in found for gid in some}
    return sorted({*in_redis, *stored.gids(chat.database), *stored.unlisted(chat.database)})


def _of_group(chat: Chat, gid: str, found: list[Suspicion], repair: bool) -> Iterator[Difference]:
    if not repair or all(suspicion.unsure for suspicion in found):
        yield from _differences(gid, found)
        return
    try:
        corrections.correct_times(chat.database, gid)
        mend(chat, gid, since=oldest_of(found))
        left = {suspicion.what: suspicion for suspicion in differences(chat, [gid])[gid]}
    except (TryAgain, ConfigurationError):
        raise
    except UNREADABLE:
        yield from _differences(gid, found)
        return
    for difference in _differences(gid, found):
        yield replace(difference, repaired=difference.what not in left)
    known = {suspicion.what for suspicion in found}
    yield from _differences(gid, [suspicion for what, suspicion in left.items() if what not in known])


def _differences(gid: str, found: list[Suspicion]) -> Iterator[Difference]:
    for suspicion in found:
        yield Difference(gid, suspicion.what, suspicion.redis, suspicion.sql, unsure=suspicion.unsure)


def _dataset(chat: Chat) -> Iterator[Difference]:
    """Redis and SQL hold the same data, in as many partitions."""
    for name in ("dataset", "partitions"):
        here, there = chat.link.read("HGET", keys.CONFIG, name), chat.database.meta(name)
        if there is not None and (here or b"").decode() != there:
            yield Difference("", name, here.decode() if here else MISSING, there)


def _bind(chat: Chat) -> None:
    """Let an empty database be the one of this data: it gets all that Redis has."""
    partitions, dataset = chat.link.read("HMGET", keys.CONFIG, "partitions", "dataset")
    if dataset and chat.database.meta("dataset") is None:
        chat.database.bind(int(partitions), dataset.decode())


def _rebuild_under_way(chat: Chat, begun: str | None) -> Iterator[Difference]:
    if begun and lives(chat.link, keys.REBUILD, [1]):
        yield Difference("", "rebuild", "under way: wait for its end", THERE)


def _rebuild_broken_off(chat: Chat, begun: str | None, repair: bool) -> Iterator[Difference]:
    """What a rebuild has left that was killed or has failed is mended by now, if it had begun before this check."""
    now = rebuild_token(chat)
    if now and not lives(chat.link, keys.REBUILD, [1]):
        is_ended = repair and now == begun and end_rebuild(chat, now)
        yield Difference("", "rebuild", "broken off: the next worker persist ends it", THERE, repaired=is_ended)


def _older(chat: Chat, repair: bool) -> Iterator[Difference]:
    """Redis knows of all that was stored."""
    behind = marks_of(chat).behind
    for (partition, consumer), (here, there) in behind.items():
        what = f"partition {partition}: stored by {consumer} up to"
        yield Difference("", what, msgids.unpack(here) if here else NOTHING, msgids.unpack(there), repaired=repair)
    for partition in sorted({partition for partition, _ in behind}) if repair else ():
        reconcile(chat, partition)


def _backlog(chat: Chat) -> Iterator[Difference]:
    """Where no worker runs that would store it, what is not stored is a difference."""
    if lives(chat.link, KIND, range(1, _MOST_WORKERS + 1)):
        return
    waiting = sum(1 for partition in range(chat.link.space.partitions) for _ in undone(chat.link, partition))
    if waiting:
        yield Difference("", f"journal: no worker {KIND} runs", _entries(waiting), "not stored")


def _silent(chat: Chat) -> Iterator[Difference]:
    """What a process has in hand that is heard of no more, and nobody has taken over."""
    for holder in silent_holders(chat.link, chat.settings):
        since = "" if holder.silent_ms is None else f" for {holder.silent_ms // 1000} s"
        what = f"journal: {holder.process} is silent{since}"
        yield Difference(
            "", what, f"{_entries(holder.entries)} in its hand", "not stored" if holder.worker == KIND else "not told"
        )


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"
