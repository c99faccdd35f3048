"""Reads one group for a comparison, in pages. `imcore.repair.small_groups` reads many small ones at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from imcore.errors import ImError
from imcore.model.rows import BookmarkRow, Head, MessageRow, SpanRow
from imcore.repair import window
from imcore.repair.diff import SpanState
from imcore.repair.window import PAGE, StreamEntry
from imcore.sql import corrections, queries
from imcore.sql.database import Database
from imcore.streams.calls import receipt_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.receipt_calls import Counts
from imcore.streams.keys import Keyspace
from imcore.system import System

T = TypeVar("T")

SETS = ("acked", "joined", "left", "ahead", "ahead_acked")
"""The sorted sets with the spans of a group."""


class PagedReader:
    """Reads one group, of any size, with a page of it in memory."""

    def __init__(self, system: System, gid: str, trimmed: int) -> None:
        self._client = system.client
        self._database = system.database
        self._gid = gid
        self._k = system.client.space.group(gid)
        self._trimmed = trimmed

    # SQL.

    def below(self) -> Head:
        """Return the messages up to the trim point."""
        return queries.head(self._database, self._gid, until=self._trimmed) if self._trimmed else Head(self._gid)

    def unreadable(self) -> set[tuple[int, str]]:
        return {(msgid, name) for _, msgid, name in queries.unreadable(self._database, [self._gid])}

    def displaced(self) -> list[int]:
        """Return the messages up to the trim point whose seq is not their place, a page of them at most."""
        return queries.out_of_order(self._database, self._gid, self._trimmed)

    def wrong_times(self) -> Iterable[tuple[int, str]]:
        return [(msgid, stored) for _, msgid, stored in corrections.wrong_times(self._database, [self._gid])]

    def stored(self, after: int) -> Iterator[MessageRow]:
        """Yield the messages after one."""
        return stored_after(self._database, self._gid, after)

    def stored_message(self, msgid: int) -> MessageRow | None:
        return self._database.message(self._gid, msgid)

    def spans(self) -> Iterable[SpanRow]:
        return queries.spans(self._database, [self._gid])

    def own_unread(self) -> Iterable[tuple[str, int]]:
        """Return uid and msgid of each own message up to the trim point that is past the offset or a mark."""
        rows = queries.own_unread(self._database, [self._gid], until=self._trimmed)
        return [(uid, msgid) for _, uid, msgid in rows]

    def stored_bookmarks(self) -> list[BookmarkRow]:
        return list(queries.bookmarks(self._database, [self._gid]))

    def stored_recalls(self) -> dict[int, int]:
        """Return the tombstones, and what each recalls."""
        return {tombstone: recalled for _, tombstone, recalled in queries.recalls(self._database, [self._gid])}

    def recalled_with_text(self) -> Iterable[int]:
        return [msgid for _, msgid in queries.recalled_with_text(self._database, [self._gid])]

    # Redis.

    def entries(self, first: str) -> Iterable[StreamEntry]:
        return window.live_entries(self._client, self._gid, first=first)

    def tallies(self, messages: Sequence[int]) -> list[Counts | ImError]:
        """Return the tallies of at most CHUNK messages."""
        return self._client.call(tallies_of(self._client.space, self._gid, messages))

    def followers(self) -> dict[str, int]:
        """Return the consumer groups, and the packed id up to which each has read."""
        return window.followers(self._client, self._k.stream)

    def bookmarks(self) -> dict[str, str]:
        return window.bookmarks(self._client, self._k)

    def scores(self, keys: Sequence[str]) -> Iterator[SpanState]:
        """Yield what the sorted sets say of spans, by their keys."""
        columns = self._client.query_many([("ZMSCORE", getattr(self._k, name), *keys) for name in SETS])
        for scores in zip(*columns, strict=True):
            yield SpanState(*(None if score is None else window.packed_score(float(score)) for score in scores))

    def listed(self, uids: Sequence[str]) -> Mapping[str, tuple[bool, list[bytes]]]:
        """Return of members whether they list the group, and their own messages past the offset."""
        k = self._k
        listed = self._client.query_many([("SISMEMBER", k.groups_of(uid), self._gid) for uid in uids])
        own = self._client.query_many([("LRANGE", k.own_unacked(uid), 0, -1) for uid in uids])
        return {uid: (bool(is_listed), msgs) for uid, is_listed, msgs in zip(uids, listed, own, strict=True)}

    def counts(self) -> list[int]:
        """Return how many members each of the SETS has."""
        return self._client.query_many([("ZCARD", getattr(self._k, name)) for name in SETS])

    def members_of(self, name: str) -> Iterable[tuple[str, int]]:
        """Return the members of one of the sorted sets with their scores."""
        return window.scan(self._client, getattr(self._k, name))


def stored_after(database: Database, gid: str, after: int) -> Iterator[MessageRow]:
    """Yield what SQL has of a group after a message."""
    while True:
        page = database.messages_after(gid, after, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].msgid


def tallies_of(space: Keyspace, gid: str, messages: Iterable[int]) -> Call[list[Counts | ImError]]:
    return receipt_calls.tallies(space, gid, [(msgid, "", "") for msgid in messages])
