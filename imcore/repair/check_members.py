"""Whether the spans of one group are alike in Redis and in SQL: who is a member since when, and has read how far."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import SpanRow
from imcore.repair import offsets
from imcore.repair.check_messages import GroupMeta, MessageAudit, chunks
from imcore.repair.diff import MISSING, THERE, Difference, named, of_end, of_offset, of_span, short
from imcore.repair.journal_window import Backlog
from imcore.repair.merge import offset_of
from imcore.sql import queries
from imcore.streams import wire
from imcore.streams.calls.repair_calls import NEVER
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.keys import SEPARATOR, GroupKeys, span_key
from imcore.system import System

NO_MESSAGE = "no message can have that id"


class MemberAudit:
    """Compares the spans of one group, with all that is indexed by them."""

    def __init__(self, system: System, gid: str, pending: Backlog) -> None:
        self._client: RedisClient = system.client
        self._database = system.database
        self._gid = gid
        self._pending = pending
        self._keys = system.client.space.group(gid)
        self._followers: dict[str, int] = {}
        self._known: set[str] = set()
        self._closed = 0
        self._soon = offsets.highest(0)
        self._last = 0

    def suspicions(self, meta: GroupMeta, messages: MessageAudit | None) -> Iterator[Difference]:
        """Yield what differs. Of `messages` all have been compared before; without them, own messages are left out."""
        self._followers = followers(self._client, self._keys.stream)
        self._last = meta.last or 0
        own = self._own(meta, messages) if messages else None
        rows = self._pending.applied(queries.spans(self._database, [self._gid]))
        for chunk in chunks((row for row in rows if not is_empty(row)), CHUNK):
            yield from self._spans(chunk, own)
        yield from self._unknown()
        if messages:
            yield from self._not_unread(messages)

    def _own(self, meta: GroupMeta, messages: MessageAudit) -> dict[str, list[int]]:
        """Return the own messages of all who may have some past their offset."""
        found: dict[str, list[int]] = {}
        if meta.trimmed:
            for _, uid, msgid in queries.own_unread(self._database, [self._gid], until=meta.trimmed):
                if msgid not in self._pending.recalled:
                    found.setdefault(uid, []).append(msgid)
        for uid, msgs in messages.own.items():
            found.setdefault(uid, []).extend(msgid for msgid in msgs if msgid > meta.trimmed)
        return found

    def _spans(self, rows: Sequence[SpanRow], own: dict[str, list[int]] | None) -> Iterator[Difference]:
        keys = [row.uid if row.left_msgid is None else span_key(row.uid, row.joined_msgid) for row in rows]
        k = self._keys
        members = [row.uid for row in rows if row.left_msgid is None]
        found = self._client.query_many(
            [
                *(("ZMSCORE", z, *keys) for z in _sets(k)),
                *(("SISMEMBER", k.groups_of(uid), self._gid) for uid in members),
                *(("LRANGE", k.own_unacked(uid), 0, -1) for uid in members),
            ]
        )
        scores, of_members = map(_scores, found[:3]), found[3:]
        lists = dict(zip(members, zip(of_members, of_members[len(members) :], strict=False), strict=True))
        self._known.update(keys)
        self._closed += len(rows) - len(members)
        for row, acked, joined, left in zip(rows, *scores, strict=True):
            yield from self._span(row, acked, joined, left)
            if row.left_msgid is None and acked is not None:
                is_listed, own_list = lists[row.uid]
                yield from self._member(row, acked, is_listed)
                if own is not None:
                    yield from self._own_list(row.uid, acked, own_list, own.get(row.uid, []))

    def _span(self, row: SpanRow, acked: int | None, joined: int | None, left: int | None) -> Iterator[Difference]:
        name = named(row.uid, row.joined_msgid)
        if acked is None and joined is None:
            yield self._suspect(row.uid, name, MISSING, of_span(row))
            return
        stands = row.acked_msgid if self._is_impossible(row.acked_msgid) else offset_of(row)
        if acked != stands or stands != offset_of(row) or self._is_impossible(stands):
            yield self._suspect(row.uid, f"offset in the {name}", self._of_offset(acked), self._of_offset(stands))
        if joined != row.joined_msgid:
            yield self._suspect(row.uid, f"beginning of the {name}", of_offset(joined), of_offset(row.joined_msgid))
        if left != row.left_msgid or self._is_impossible(left):
            yield self._suspect(row.uid, f"end of the {name}", self._of_end(left), self._of_end(row.left_msgid))

    def _member(self, row: SpanRow, acked: int, is_listed: Any) -> Iterator[Difference]:
        uid = row.uid
        follows = self._followers.pop(uid, None)
        if follows != acked:
            there = f"index at {of_offset(acked)}, SQL at {of_offset(row.acked_msgid)}"
            yield self._suspect(uid, f"consumer group of {uid!r}", self._of_offset(follows), there)
        if not is_listed:
            yield self._suspect(uid, f"group among those of {uid!r}", MISSING, of_span(row))

    def _own_list(self, uid: str, acked: int, held: list[bytes], own: list[int]) -> Iterator[Difference]:
        past = [msgid for msgid in own if msgid > acked]
        # Those that the offset has passed stay in the list until the next one comes.
        held_past = [packed for packed in map(int, held) if packed > acked]
        if held_past == past:
            return
        for msgid in sorted(set(past).symmetric_difference(held_past)):
            what = f"own message {msgids.unpack(msgid)} of {uid!r} past the offset"
            here, there = (THERE if msgid in side else MISSING for side in (held_past, past))
            yield Difference(what, here, there, "own", uid=uid, msgid=msgid)
        if set(past) == set(held_past):
            what = f"order of the own messages of {uid!r} past the offset"
            yield Difference(what, _listed(held_past), _listed(past), "own", uid=uid, msgid=max(past))

    def _unknown(self) -> Iterator[Difference]:
        """Yield what Redis has and SQL has not."""
        for uid, offset in self._followers.items():
            yield self._suspect(uid, f"consumer group of {uid!r}", of_offset(offset), MISSING)
        everyone = len(self._known)
        counts = self._client.query_many([("ZCARD", key) for key in _sets(self._keys)])
        for key, count, known in zip(_sets(self._keys), counts, (everyone, everyone, self._closed), strict=True):
            if count != known:
                yield from self._strangers(key)

    def _strangers(self, key: str) -> Iterator[Difference]:
        for span, score in scan(self._client, key):
            if span not in self._known:
                uid, _, joined = span.partition(SEPARATOR)
                name = named(uid, int(joined)) if joined else f"open span of {uid!r}"
                yield self._suspect(uid, f"{name} in {_short_name(key)}", of_offset(score), MISSING)

    def _not_unread(self, messages: MessageAudit) -> Iterator[Difference]:
        """Recalled messages and tombstones are known as such, and no others."""
        recalls = {**dict(queries.recalls(self._database, self._gid)), **messages.tombstones}
        wanted = {*recalls, *recalls.values()}
        found = dict(scan(self._client, self._keys.recalled))
        known = {int(name) for name, score in found.items() if name == str(score)}
        for msgid in sorted(wanted.symmetric_difference(known)):
            here, there = ("recalled" if msgid in side else "not recalled" for side in (known, wanted))
            yield Difference(f"recall of message {msgids.unpack(msgid)}", here, there, "message", msgid=msgid)
        for name in sorted(found.keys() - map(str, known)):
            packed = int(name) if name.isdecimal() else msgids.IMPOSSIBLE
            what = f"score of a recalled message {of_offset(packed) if packed <= msgids.HIGHEST else short(name)}"
            yield Difference(what, of_offset(found[name]), of_offset(packed if packed in wanted else None), "stored")
        for msgid in queries.recalled_with_text(self._database, self._gid):
            what = f"text of recalled message {msgids.unpack(msgid)}"
            yield Difference(what, MISSING, THERE, "stored")

    def _is_impossible(self, offset: int | None) -> bool:
        return offset is not None and offset > self._soon and offset > offsets.highest(self._newest)

    @cached_property
    def _newest(self) -> int:
        """The newest message: hardly ever asked for."""
        there = self._database.messages_before(self._gid, NEVER, limit=1)
        return max(self._last, *(row.msgid for row in there))

    def _of_offset(self, offset: int | None) -> str:
        return of_offset(offset) + f": {NO_MESSAGE}" * self._is_impossible(offset)

    def _of_end(self, left: int | None) -> str:
        return of_end(left) + f": {NO_MESSAGE}" * self._is_impossible(left)

    def _suspect(self, uid: str, what: str, redis: str, sql: str) -> Difference:
        return Difference(what, redis, sql, "span", uid=uid)


def _listed(some: Sequence[int]) -> str:
    return short(" ".join(map(of_offset, some)))


def followers(client: RedisClient, stream: str) -> dict[str, int]:
    """Return the consumer groups of a stream, and the packed id up to which each has read."""
    try:
        found = client.query("XINFO GROUPS", stream)
    except ImError as error:
        if "no such key" in str(error):  # a group without members and messages has no stream
            return {}
        raise
    return {wire.text(info["name"]): _packed(info["last-delivered-id"]) for info in found}


def scan(client: RedisClient, key: str) -> Iterator[tuple[str, int]]:
    """Yield the members of a sorted set with their scores; one may come twice."""
    cursor = 0
    while True:
        cursor, page = client.query("ZSCAN", key, cursor, "COUNT", 1000)
        for name, score in page:
            yield wire.text(name), _whole(score)
        if int(cursor) == 0:
            return


def is_empty(row: SpanRow) -> bool:
    """Return whether a span covers no message; Redis keeps none of these once they are closed."""
    return row.left_msgid is not None and row.left_msgid <= row.joined_msgid


def _packed(entry_id: bytes) -> int:
    return 0 if entry_id == b"0-0" else msgids.pack_id(entry_id)


def _sets(k: GroupKeys) -> tuple[str, str, str]:
    return k.acked, k.joined, k.left


def _short_name(key: str) -> str:
    return key.split(":")[2]


def _scores(found: Sequence[Any]) -> list[int | None]:
    return [None if score is None else _whole(float(score)) for score in found]


def _whole(score: float) -> int:
    """Return a score as a packed msgid; by hand it may be anything."""
    score = max(score, 0.0)
    return int(score) if score <= msgids.HIGHEST and score.is_integer() else msgids.IMPOSSIBLE
