"""Reads what the journals and Redis have of some groups. See `imcore.repair.state` for the window of a comparison."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import MessageRow, SpanRow
from imcore.operations.creation import first_members
from imcore.operations.performer import stream_from_redis
from imcore.repair.state import ActualGroup, Changes, GroupMeta, highest_offset
from imcore.sql import erasures, queries
from imcore.streams import events, wire
from imcore.streams.calls import journal_calls, look_calls, message_calls
from imcore.streams.calls.call import all_entries
from imcore.streams.calls.deletion_calls import DELETE
from imcore.streams.calls.rewrite_calls import REWRITE
from imcore.streams.client import RedisClient
from imcore.streams.events import Entry
from imcore.streams.keys import CONFIG, REBUILDING, SEPARATOR, GroupKeys
from imcore.system import System
from imcore.util.batches import batches, grouped

PAGE = 500
_HEADS_PER_CALL = 100

KIND = "persist"
"""The worker that stores the journals' entries."""

_HARMLESS = REWRITE.encode(), DELETE.encode()
"""The beginnings of the tokens of locks that are no repairs."""

START = "0-0"

Place = tuple[int, str]
"""A partition, and the name of a consumer of its journal."""

StreamEntry = tuple[bytes, MessageRow | None, list[bytes]]
"""An entry's id, its message (None if it is no message), and its values."""


class JournalWindow:
    """A stretch of the journals, for some groups. It opens when it is made."""

    def __init__(self, system: System, gids: Sequence[str]) -> None:
        self._client = client = system.client
        self._database = system.database
        self._gids = gids
        partitions = sorted({client.space.partition_of(gid) for gid in gids})
        self.ends = {partition: end_of(client, client.space.journal(partition)) for partition in partitions}
        """The ids of the newest entries when the window opened."""
        self._undone = {partition: undone_from(client, partition) for partition in partitions}
        self.backlogs = _read(gids, chain.from_iterable(undone(client, partition) for partition in partitions))
        for gid, backlog in self.backlogs.items():
            self._add_first_members(gid, backlog)
            self._add_messages(gid, backlog)

    def changes(self) -> dict[str, Changes]:
        """Return what has changed since the window opened, by group."""
        newer = (entries(self._client, partition, f"({end}") for partition, end in self.ends.items())
        changes = _read(self._gids, chain.from_iterable(newer))
        trimmed = {partition for partition in self.ends if self._is_trimmed(partition)}
        for gid, changed in changes.items():
            changed.anything = self._client.space.partition_of(gid) in trimmed
            self._add_messages(gid, changed)
            if changed.first_sent is not None:  # some may have been trimmed already
                for light in queries.light(self._database, [gid], after=changed.first_sent - 1):
                    changed.add_message(light.sender_uid, light.recalls)
        return changes

    def _is_trimmed(self, partition: int) -> bool:
        """Return whether entries of the window may be gone: a trim drops the oldest entries first."""
        end = self.ends[partition]
        if end == START:
            return undone_from(self._client, partition) != self._undone[partition]
        return not self._client.query("XRANGE", self._client.space.journal(partition), end, end)

    def _add_first_members(self, gid: str, changes: Changes) -> None:
        if changes.created is not None:  # the entry does not say who was in the new group
            for uid in stream_from_redis(self._client, first_members(gid)):
                changes.add_span(SpanRow(gid, uid, msgids.NONE, None, changes.created, msgids.NONE))

    def _add_messages(self, gid: str, changes: Changes) -> None:
        if changes.first_sent is not None:  # the entries do not say who has sent what
            for row, moved_sender in live(self._client, gid, first=msgids.unpack(changes.first_sent)):
                changes.add_message(row.sender_uid, row.recalls)
                if moved_sender and row.span is not None:
                    changes.add_span(SpanRow(gid, row.sender_uid, row.span, None, 0, row.msgid))


def _read(gids: Sequence[str], entries: Iterable[Entry]) -> dict[str, Changes]:
    """Return what entries of the journal change in these groups."""
    changes = {gid: Changes() for gid in gids}
    for entry in entries:
        if (gid := getattr(entry.event, "gid", "")) in changes:
            changes[gid].add(entry)
    return changes


# Journals.


def end_of(client: RedisClient, stream: str) -> str:
    """Return the id of the newest entry of a stream or journal, as text; START for an empty one."""
    newest = client.query("XREVRANGE", stream, "+", "-", "COUNT", 1)
    return newest[0][0].decode() if newest else START


def latest_change(journal_end: str) -> int:
    """Return the highest id (packed) that an entry of a journal can have whose newest entry is this one."""
    return highest_offset(packed(journal_end), now_ms())


def undone_from(client: RedisClient, partition: int) -> str:
    """Return the id from which on entries of a journal may not be stored."""
    return client.call(journal_calls.undone(client.space, partition, [KIND], only=True)) or "-"


def undone(client: RedisClient, partition: int) -> Iterator[Entry]:
    """Yield the entries of a journal that are not stored. Some of them may be."""
    return entries(client, partition, undone_from(client, partition))


def dead(client: RedisClient, partition: int) -> Iterator[Entry]:
    """Yield the entries of a partition's journal that have become dead letters."""
    page = partial(journal_calls.dead_letters, client.space, partition, last="+", count=PAGE)
    for entry_id, fields in all_entries(lambda start: client.call(page(start))):
        yield events.read(partition, entry_id, fields)


def entries(client: RedisClient, partition: int, first: str) -> Iterator[Entry]:
    """Yield the entries of a journal from an id on (as XRANGE takes it)."""
    page = partial(journal_calls.entries, client.space, partition, count=PAGE)
    for entry_id, fields in all_entries(lambda start: client.call(page(start)), first):
        yield events.read(partition, entry_id, fields)


# Streams.


def live(client: RedisClient, gid: str, *, first: str = "-", last: str = "+") -> Iterator[tuple[MessageRow, bool]]:
    """Yield the readable messages of a stream, and whether each one's sender moved with it."""
    for _, row, values in live_entries(client, gid, first=first, last=last):
        if row:
            yield row, wire.was_caught_up(values)


def live_entries(client: RedisClient, gid: str, *, first: str = "-", last: str = "+") -> Iterator[StreamEntry]:
    """Yield the entries of a stream as members see them, oldest first."""
    page = partial(message_calls.entries, client.space, gid, last=last, count=PAGE)
    for entry_id, values in all_entries(lambda start: client.call(page(start)), first):
        yield entry_id, readable(gid, entry_id, values), values


def raw_entries(client: RedisClient, gid: str, *, first: str = "-", last: str = "+") -> Iterator[StreamEntry]:
    """Yield the entries of a stream as they are stored, with the texts of recalled messages."""

    def page_from(start: str) -> Any:
        page = client.query("XRANGE", client.space.group(gid).stream, start, last, "COUNT", PAGE)
        return page, len(page) == PAGE

    for entry_id, fields in all_entries(page_from, first):
        values = wire.values_of(fields)
        yield entry_id, readable(gid, entry_id, values), values


def readable(gid: str, entry_id: bytes, values: list[bytes]) -> MessageRow | None:
    """Return the message of an entry, None for another entry."""
    try:
        return wire.message_row(gid, msgids.pack_id(entry_id), values)
    except (IndexError, ValueError):
        return None


# What there is of groups beside these.


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def gids_of(system: System, partitions: Collection[int]) -> Iterator[str]:
    """Yield the groups of some partitions, those that only Redis has last."""
    client, space = system.client, system.client.space
    answers = client.query_many([("SMEMBERS", space.groups(partition)) for partition in partitions])
    only_in_redis = {wire.text(gid) for names in answers for gid in names}
    for gid in queries.gids(system.database):
        if space.partition_of(gid) in partitions:
            only_in_redis.discard(gid)
            yield gid
    yield from sorted(only_in_redis)


def metas_of(client: RedisClient, gids: Sequence[str]) -> dict[str, GroupMeta]:
    """Return what the hashes of groups say."""
    answers = client.query_many([("HMGET", client.space.group(gid).meta, "seq", "last", "trimmed") for gid in gids])
    return {gid: _meta(values) for gid, values in zip(gids, answers, strict=True)}


class GroupHead(NamedTuple):
    """The hash of a group, its place in the list of all groups, and its numbers of entries and spans.

    A number is -1 if that key is of another type.
    """

    meta: GroupMeta
    is_listed: bool
    entries: int
    spans: int


def heads_of(client: RedisClient, gids: Sequence[str]) -> dict[str, GroupHead]:
    """Return the heads of groups, in the order of their partitions."""
    by_partition = grouped((client.space.partition_of(gid), gid) for gid in gids)
    parts = [part for of_partition in by_partition.values() for part in batches(of_partition, _HEADS_PER_CALL)]
    answers = client.call_many([look_calls.heads(client.space, part) for part in parts])
    return {
        gid: GroupHead(_meta(values), is_listed == 1, entries, spans)
        for part, answer in zip(parts, answers, strict=True)
        for gid, (is_listed, values, entries, spans) in zip(part, answer, strict=True)
    }


def _meta(values: Sequence[bytes | None]) -> GroupMeta:
    seq, last, trimmed = (int(value) if value and value.isdigit() else None for value in values)
    return GroupMeta(seq, last, trimmed or 0, values[0] is not None)


def actual_group(client: RedisClient, k: GroupKeys) -> ActualGroup:
    """Return the spans, the consumer groups and the recalls that Redis has of a group."""
    sets = k.acked, k.joined, k.left, k.ahead, k.ahead_acked
    acked, joined, left, ahead, ahead_acked = map(dict, map(partial(scan, client), sets))
    rows: dict[str, list[SpanRow]] = {}
    for key, began in joined.items():
        uid, _, closed = key.partition(SEPARATOR)
        if key in acked and bool(closed) == (key in left) and (not closed or int(closed) == began):
            # The consumer group moves with the index in one step. Where the two differ, somebody has set it by hand.
            delivered = ahead[key] if ahead.get(key, 0) > acked[key] else None
            rows.setdefault(uid, []).append(SpanRow(k.gid, uid, began, left.get(key), 0, acked[key], delivered))
    opened = {key: began for key, began in joined.items() if SEPARATOR not in key}
    recalled = {int(msgid) for msgid, _ in scan(client, k.recalled)}
    keys = {*acked, *joined, *left, *ahead, *ahead_acked, *bookmarks(client, k)}
    return ActualGroup(rows, keys, opened, set(followers(client, k.stream)), {}, recalled)


def bookmarks(client: RedisClient, k: GroupKeys) -> dict[str, str]:
    """Return the bookmarks that Redis has of a group, by uid."""
    found: dict[str, str] = {}
    for fields in batches(client.query("HKEYS", k.bookmarks), PAGE):
        values = client.query("HMGET", k.bookmarks, *fields)
        found |= {wire.text(uid): wire.text(text) for uid, text in zip(fields, values, strict=True) if text is not None}
    return found


def followers(client: RedisClient, stream: str) -> dict[str, int]:
    """Return the consumer groups of a stream, and the packed id up to which each has read."""
    try:
        infos = client.query("XINFO GROUPS", stream)
    except ImError as error:
        if "no such key" in str(error):  # a group without members and messages has no stream
            return {}
        raise
    return {wire.text(info["name"]): packed(info["last-delivered-id"].decode()) for info in infos}


def scan(client: RedisClient, key: str) -> Iterator[tuple[str, int]]:
    """Yield the members of a sorted set with their scores. One may come twice."""
    cursor = 0
    while True:
        cursor, page = client.query("ZSCAN", key, cursor, "COUNT", 1000)
        for name, score in page:
            yield wire.text(name), packed_score(score)
        if int(cursor) == 0:
            return


def packed_score(score: float) -> int:
    """Return a score as a packed msgid. One that was written by hand may be anything."""
    score = max(score, 0.0)
    return int(score) if score <= msgids.HIGHEST and score.is_integer() else msgids.IMPOSSIBLE


def packed(entry_id: str) -> int:
    """Return the id of an entry as a packed one, 0 for START."""
    return 0 if entry_id == START else msgids.pack_id(entry_id.encode())


def concerned_by_erasures(system: System, gids: Sequence[str]) -> set[str]:
    """Return the groups among these from which a user is being erased."""
    client, under_way = system.client, system.database.erasures()
    if not under_way.uids:
        return set()
    metas = [("HGET", client.space.group(gid).meta, "erased") for gid in gids]
    found = {gid for gid, hidden in zip(gids, client.query_many(metas), strict=True) if hidden}
    for uid in under_way.uids:
        acked = [("ZSCORE", client.space.group(gid).acked, uid) for gid in gids]
        found |= {gid for gid, offset in zip(gids, client.query_many(acked), strict=True) if offset is not None}
    names = [*under_way.uids, *under_way.uids.values()]
    found |= erasures.gids_of(system.database, names)
    return found.union(under_way.gids, under_way.gids.values()).intersection(gids)


# What was lost, and what is not ended.


def lost_watermarks(system: System, partitions: Collection[int] | None = None) -> dict[Place, tuple[int, int]]:
    """Return the watermarks (packed ids) of partitions that Redis has lost: what it has, and what SQL has.

    Those of SQL are read first, since those of Redis only go forward.
    """
    client, space = system.client, system.client.space
    stored = stored_watermarks(system, partitions)
    fields = client.query_many([("HGET", space.watermarks(p), consumer) for p, consumer in stored])
    actual = [int(mark) if mark and mark.isdigit() else 0 for mark in fields]
    behind = {place: (mark, stored[place]) for place, mark in zip(stored, actual, strict=True) if mark < stored[place]}
    if behind:  # a process that has inherited some meanwhile has let SQL forget them, and then Redis
        now = queries.watermarks(system.database)
        behind = {place: sides for place, sides in behind.items() if place in now}
    return behind


def stored_watermarks(system: System, partitions: Collection[int] | None = None) -> dict[Place, int]:
    """Return the watermarks that SQL has, of some partitions or all."""
    stored = queries.watermarks(system.database).items()
    return {place: mark for place, mark in stored if partitions is None or place[0] in partitions}


def unfinished(system: System, partition: int) -> set[str]:
    """Return the groups of a partition whose repair has begun and not ended. They may not be as desired."""
    locks = system.client.space.group_locks(partition)
    gids = system.client.query("HKEYS", locks)
    holders = system.client.query("HMGET", locks, *gids) if gids else ()
    locked = zip(gids, holders, strict=True)
    return {wire.text(gid) for gid, holder in locked if holder and not holder.startswith(_HARMLESS)}


def rebuild_token(system: System) -> str | None:
    """Return the token of the rebuild that was begun and not ended, whether its process lives or not."""
    token = system.client.query("HGET", CONFIG, REBUILDING)
    return token.decode() if token else None
