"""Erases a user: no name and no text stays, and every count does. See `imcore.repair.erasure`.

    note it (Redis, SQL) -> hide all groups -> journals, spans -> texts in SQL -> streams -> end

The user is called `erased-` and 16 random hex digits from then on. Killed anywhere, the same call continues. Once all
groups are hidden no answer has name or text, and what follows removes them from where they are stored. SQL knows of the
erasure until the servers have it on their disks: a server that was started anew meanwhile may have lost some of it, so
all is done again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from imcore.admin import append_only
from imcore.errors import TryAgain, UnknownGroup
from imcore.model.direct import pair_of
from imcore.model.erased import new_alias
from imcore.model.limits import check_name
from imcore.model.values import ErasedUser
from imcore.repair import deletion, rewriting
from imcore.repair.apply import mend
from imcore.repair.erasure import Erasure
from imcore.repair.locks import LOCK_MS, PartitionLock
from imcore.repair.window import rebuild_token, unfinished
from imcore.sql import erasures
from imcore.streams import wire
from imcore.streams.calls import erasure_calls, group_calls
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.keys import SEPARATOR
from imcore.streams.redis_errors import driver_errors
from imcore.streams.server_info import servers_of
from imcore.system import System
from imcore.util.batches import batches, grouped
from imcore.util.deadlines import attempts

Progress = Callable[[int, int], None]
"""Gets the number of groups whose streams are free of the user, and of all groups."""

_TRIES = 5

PATIENCE_S = 30.0
"""An erasure waits so long for a group whose stream another process rewrites or repairs."""


@dataclass(slots=True)
class _Found:
    """The groups of the user. `gids` are as they are called now, `moved` one-to-one chats by their former gids.

    `deleted` are one-to-one chats that somebody had deleted before.
    """

    gids: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    writes_in: set[str] = field(default_factory=set)
    messages: int = 0


def erase_user(system: System, uid: str, *, on_progress: Progress | None = None) -> ErasedUser:
    """Erase a user; return how many messages that concerns. The name can be used again afterwards, by a new user.

    A send of the user that comes meanwhile is erased, too, or refused. Nobody of that name can join a group before the
    end. Killed anywhere, the same call continues. Raise TryAgain if a rebuild is under way, or if others repair or
    rewrite a group all the time; DatabaseUnavailable, RedisUnavailable.
    """
    check_name(uid, "uid")
    system.database.check_version()
    system.client.require_writes()
    _refuse_rebuild(system)
    for gid in deletion.unfinished(system):
        deletion.end(system, gid)
    for _ in range(_TRIES):
        begun = _processes(system.client)
        messages = _erase(system, uid, on_progress or (lambda *_: None))
        append_only.wait_until_synced(system.client)
        if _processes(system.client) == begun:
            _end(system, uid)
            return ErasedUser(uid, messages)
    raise TryAgain("Redis is started anew all the time: repeat it when it stays")


def _processes(client: RedisClient) -> list[tuple[str, str | None]]:
    """Return the servers, each with what identifies its process: another one may have lost the last writes."""
    with driver_errors(client.address):
        return [(server.node, server.run_id) for server in servers_of(client.driver, asks_config=False)]


def _erase(system: System, uid: str, shown: Progress) -> int:
    """Take all steps but the end; return how many messages that concerns."""
    erasure = Erasure(system, uid, _begin(system, uid))
    with _all_locked(system) as renew:
        found = _hide_all(system, erasure, renew)
    _empty_sql(system, erasure, found)
    _free_streams(system, erasure, found, shown)
    _clean_rest(system, erasure, found)
    return found.messages


def _refuse_rebuild(system: System) -> None:
    if rebuild_token(system):
        raise TryAgain(
            "a rebuild of Redis is under way, or was broken off: try again when im check says that it has ended"
        )


def _begin(system: System, uid: str) -> str:
    """Note the erasure in Redis, so that nobody of that name joins a group, and then in SQL; return the alias."""
    client, space = system.client, system.client.space
    known = system.database.erasures().uids.get(uid)
    alias = known or client.call(erasure_calls.alias(space, uid)) or new_alias()
    while True:
        client.call_many([erasure_calls.begin(space, p, uid, alias) for p in range(space.partitions)])
        stored = erasures.begin(system.database, uid, alias)
        if stored == alias:
            return alias
        alias = stored  # another process has begun at the same time


def _end(system: System, uid: str) -> None:
    """End in SQL first: as long as Redis knows, nobody can be the new user of that name."""
    client, space = system.client, system.client.space
    _note_file(client)
    erasures.end(system.database, uid)
    client.call_many([erasure_calls.end(space, p, uid) for p in range(space.partitions)])
    _note_file(client)  # again: it may have been rewritten between these


def _note_file(client: RedisClient) -> None:
    """Let the next rewrite of the append-only file, which has names and texts, be due. The note is of no group."""
    append_only.note_recalled(client, [("", 0)])


@contextmanager
def _all_locked(system: System) -> Iterator[Callable[[], None]]:
    """Lock all partitions; yield what keeps the locks. So nobody stores what was read before, and nobody repairs."""
    with ExitStack() as stack:
        taken = [
            stack.enter_context(PartitionLock(system, partition, wait_s=LOCK_MS / 1000 + 1))
            for partition in range(system.client.space.partitions)
        ]

        def renew() -> None:
            for lock in taken:
                lock.renew()

        yield renew


# While the partitions are locked.


def _hide_all(system: System, erasure: Erasure, renew: Callable[[], None]) -> _Found:
    """Hide the user in all groups, and remove the name from the journals and from spans in SQL."""
    client, space, database = system.client, system.client.space, system.database
    _refuse_rebuild(system)
    partitions = range(space.partitions)
    backlog = erasure.backlog(partitions)
    closed = grouped(erasures.beginnings(database, erasure.names))
    for gid, beginnings in backlog.spans.items():
        closed[gid] = [*closed.get(gid, ()), *beginnings]
    gids = {*closed, *erasures.gids_of(database, erasure.names), *_joined(client, erasure.uid)}
    found = _Found()
    _hide(erasure, gids, closed, found, renew)
    backlog = erasure.backlog(partitions)  # with what was sent before it was hidden
    found.moved |= database.erasures().gids
    unstored = erasure.unstored_messages(backlog, found.moved)
    _hide(erasure, unstored.keys() - found.gids, closed, found, renew)
    found.deleted = erasures.deleted_chats(database, erasure.uid)
    changed = {**dict.fromkeys(found.deleted, ""), **found.moved}
    by_partition = grouped((space.partition_of(gid), gid) for gid in sorted(found.gids))
    for partition in partitions:
        client.call_many(erasure_calls.drop_user(space, partition, erasure.uid))
        # In this order: a dead letter may return to the journal.
        erasure.clean_dead_letters(partition, changed, by_partition.get(partition, ()))
        erasure.clean_journal(partition, changed)
        renew()
    erasure.store_groups(found.moved)
    found.writes_in = {found.moved.get(gid, gid) for gid in (*unstored, *erasures.written_in(database, erasure.names))}
    found.messages = _count(system, erasure, unstored)
    return found


def _hide(
    erasure: Erasure, gids: set[str], closed: Mapping[str, Sequence[int]], found: _Found, renew: Callable[[], None]
) -> None:
    for batch in batches(sorted(gids), CHUNK):
        now = erasure.hide(batch, closed)
        found.gids.update(now.values())
        found.moved |= {gid: new for gid, new in now.items() if gid != new}
        renew()


def _joined(client: RedisClient, uid: str) -> set[str]:
    return {gid for gids in client.call_many(group_calls.groups_of(client.space, uid)) for gid in gids}


def _count(system: System, erasure: Erasure, unstored: Mapping[str, Sequence[int]]) -> int:
    stored = sum(len(system.database.messages(gid, own)) for gid, own in unstored.items())
    return erasures.count_messages(system.database, erasure.names) + sum(map(len, unstored.values())) - stored


# While everything goes on.


def _empty_sql(system: System, erasure: Erasure, found: _Found) -> None:
    for _ in erasures.empty_messages(system.database, erasure.uid, erasure.alias):
        pass
    for _ in erasures.rename_moves(system.database, erasure.uid, erasure.alias, sorted(found.gids)):
        pass


def _free_streams(system: System, erasure: Erasure, found: _Found, shown: Progress) -> None:
    """Let each stream have nothing of the user. Raise TryAgain at the end if some could not be rewritten."""
    client, space = system.client, system.client.space
    kept = 0
    shown(0, len(found.gids))
    for number, gid in enumerate(sorted(found.gids), 1):
        k = space.group(gid)
        erasure.drop_client_msgids(k)
        if gid in found.writes_in or erasure.is_in_stream(k):
            kept += not _rewrite(system, gid, erasure.uid)
        else:
            client.call(erasure_calls.unhide(k, erasure.uid))
        shown(number, len(found.gids))
    if kept:
        raise TryAgain(f"{kept} groups are being repaired or rewritten by others: no answer has the name; repeat it")


def _rewrite(system: System, gid: str, uid: str) -> bool:
    """Rewrite the stream of a group; return False if others keep it locked. A repair that was broken off is ended."""
    client = system.client
    for _ in attempts(PATIENCE_S):
        with suppress(TryAgain, UnknownGroup):
            if not rewriting.rewrite(client, gid) and gid in unfinished(system, client.space.partition_of(gid)):
                mend(system, gid)
                rewriting.rewrite(client, gid)
        if uid not in client.call(erasure_calls.hidden(client.space.group(gid))):
            return True
    return False


def _clean_rest(system: System, erasure: Erasure, found: _Found) -> None:
    """Clean new dead letters, and the notes of recalled messages in chats whose gids say the name."""
    client, space = system.client, system.client.space
    by_partition = grouped((space.partition_of(gid), gid) for gid in sorted(found.gids))
    for partition in range(space.partitions):
        gids = {**dict.fromkeys(found.deleted, ""), **found.moved}
        erasure.clean_dead_letters(partition, gids, by_partition.get(partition, ()))
    for key, note in append_only.noted(client):
        gid, _, msgid = wire.text(note).rpartition(SEPARATOR)
        if erasure.uid in (pair_of(gid) or ()) or gid in found.moved:
            # The note of another chat is not needed: the end of the erasure adds one for all.
            append_only.note_recalled(client, [(found.moved[gid], int(msgid))] if gid in found.moved else [])
            client.execute_once("ZREM", key, note)
    erasures.forget_deleted(system.database, found.deleted)
