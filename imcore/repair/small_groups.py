"""Reads many small groups at once for a comparison: a few queries of SQL and a few round trips to Redis.

Its readers say the same as a PagedReader, so the comparison does not know which one it has. In memory is a batch.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from imcore.errors import ImError
from imcore.model.rows import BookmarkRow, Head, MessageRow, SpanRow
from imcore.repair import window
from imcore.repair.diff import SpanState
from imcore.repair.group_readers import SETS, PagedReader, tallies_of
from imcore.repair.state import Changes
from imcore.repair.window import PAGE, GroupHead, StreamEntry
from imcore.sql import corrections, queries
from imcore.streams import wire
from imcore.streams.calls import look_calls, message_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.receipt_calls import Counts
from imcore.streams.client import CHUNK, Answers, RedisClient
from imcore.system import System
from imcore.util.batches import batches

T = TypeVar("T")

SMALL = CHUNK
"""A group with more messages in Redis, or more members, is read in pages."""

MOST_ROWS = 20_000
MOST_CHARACTERS = 1 << 24
"""The most rows of one kind that a batch holds, and characters of texts. A batch with more is read in two halves."""

_AHEAD = 50
"""The groups whose streams are read at once. An answer has 1 MiB at most, and two times as many are in memory."""

_TEXT = 13
"""The place of the text among the values of an entry."""


@dataclass(slots=True)
class _Rows:
    """The rows of one group in SQL."""

    below: Head
    spans: list[SpanRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)
    bookmarks: list[BookmarkRow] = field(default_factory=list)
    own_unread: list[tuple[str, int]] = field(default_factory=list)
    unreadable: set[tuple[int, str]] = field(default_factory=set)
    wrong_times: list[tuple[int, str]] = field(default_factory=list)
    recalls: dict[int, int] = field(default_factory=dict)
    with_text: list[int] = field(default_factory=list)
    is_displaced: bool = False


class _TooManyError(Exception):
    """A batch holds more than fits."""


class SmallReader(PagedReader):
    """Has one group of a batch in memory."""

    def __init__(
        self, system: System, gid: str, trimmed: int, rows: _Rows, look: look_calls.GroupLook, uids: Sequence[str]
    ) -> None:
        super().__init__(system, gid, trimmed)
        self._rows = rows
        self._look = look
        self._members = dict(zip(uids, look.members, strict=True))
        self._sets = {name: _scores(getattr(look, name)) for name in (*SETS, "recalled")}
        self._entries: list[StreamEntry] = []
        self._counted: dict[int, Counts | ImError] = {}

    def add_entries(self, entries: list[StreamEntry]) -> None:
        self._entries = entries

    def add_tallies(self, messages: Sequence[int], tallies: Sequence[Counts | ImError]) -> None:
        self._counted = dict(zip(messages, tallies, strict=True))

    def messages(self) -> list[int]:
        """Return the messages of the stream."""
        return [row.msgid for _, row, _ in self._entries if row]

    def below(self) -> Head:
        return self._rows.below

    def unreadable(self) -> set[tuple[int, str]]:
        return self._rows.unreadable

    def displaced(self) -> list[int]:
        return super().displaced() if self._rows.is_displaced else []

    def wrong_times(self) -> Iterable[tuple[int, str]]:
        return self._rows.wrong_times

    def stored(self, after: int) -> Iterator[MessageRow]:
        return iter(self._rows.messages) if after == self._trimmed else super().stored(after)

    def spans(self) -> Iterable[SpanRow]:
        return self._rows.spans

    def own_unread(self) -> Iterable[tuple[str, int]]:
        return self._rows.own_unread

    def stored_bookmarks(self) -> list[BookmarkRow]:
        return self._rows.bookmarks

    def stored_recalls(self) -> dict[int, int]:
        return self._rows.recalls

    def recalled_with_text(self) -> Iterable[int]:
        return self._rows.with_text

    def entries(self, first: str) -> Iterable[StreamEntry]:
        return self._entries if first == "-" else super().entries(first)

    def tallies(self, messages: Sequence[int]) -> list[Counts | ImError]:
        return [self._counted[msgid] for msgid in messages]

    def followers(self) -> dict[str, int]:
        pairs = _pairs(self._look.followers)
        return {wire.text(name): window.packed(last.decode()) for name, last in pairs}

    def bookmarks(self) -> dict[str, str]:
        bookmarks = zip(self._look.bookmarked, self._look.bookmarks, strict=True)
        return {wire.text(uid): wire.text(text) for uid, text in bookmarks}

    def scores(self, keys: Sequence[str]) -> Iterator[SpanState]:
        acked, joined, left, ahead, ahead_acked = (self._sets[name].get for name in SETS)
        for key in keys:
            yield SpanState(acked(key), joined(key), left(key), ahead(key), ahead_acked(key))

    def listed(self, uids: Sequence[str]) -> Mapping[str, tuple[bool, list[bytes]]]:
        return self._members if self._members.keys() >= set(uids) else super().listed(uids)

    def counts(self) -> list[int]:
        return [len(self._sets[name]) for name in SETS]

    def members_of(self, name: str) -> Iterable[tuple[str, int]]:
        return self._sets[name].items()


class GroupReaders:
    """Yields a reader for each of some groups, with a batch of small ones in memory."""

    def __init__(self, system: System, heads: Mapping[str, GroupHead], backlogs: Mapping[str, Changes]) -> None:
        self._system = system
        self._client = system.client
        self._database = system.database
        self._heads = heads
        self._backlogs = backlogs

    def paged(self, gid: str) -> PagedReader:
        return PagedReader(self._system, gid, self._heads[gid].meta.trimmed)

    def all(self) -> Iterator[tuple[str, PagedReader]]:
        """Yield the gid and the reader of every group."""
        small, rows = list[str](), 0
        for gid, head in self._heads.items():
            size = max(head.entries, head.spans)
            if not head.meta.exists or size > SMALL or min(head.entries, head.spans) < 0:
                yield gid, self.paged(gid)
                continue
            if rows + size > MOST_ROWS:
                yield from self._batch(small)
                small, rows = [], 0
            small.append(gid)
            rows += size
        yield from self._batch(small)

    def _batch(self, gids: Sequence[str]) -> Iterator[tuple[str, PagedReader]]:
        if not gids:
            return
        try:
            readers = self._read(gids)
        except _TooManyError:
            if len(gids) > 1:
                yield from self._batch(gids[: len(gids) // 2])
                yield from self._batch(gids[len(gids) // 2 :])
                return
            readers = {}
        for gid in gids:
            yield gid, readers.get(gid) or self.paged(gid)

    def _read(self, gids: Sequence[str]) -> dict[str, SmallReader]:
        """Return the readers of groups; a group that is not small, or that Redis cannot answer about, has none.

        Raise _TooManyError.
        """
        rows, space = {gid: _Rows(Head(gid)) for gid in gids}, self._client.space
        for span in _limited(queries.spans(self._database, gids)):
            rows[span.gid].spans.append(span)
        uids = {gid: self._members(gid, rows[gid].spans) for gid in gids}
        with _in_flight(self._client, [look_calls.look(space.group(gid), uids[gid], SMALL) for gid in gids]) as looks:
            self._add_stored(rows)
            readers = {
                gid: SmallReader(self._system, gid, self._heads[gid].meta.trimmed, rows[gid], look, uids[gid])
                for gid, look in zip(gids, looks, strict=True)
                if look is not None and not isinstance(look, ImError)
            }
        self._add_entries(readers)
        self._add_tallies(readers)
        return readers

    def _members(self, gid: str, spans: Iterable[SpanRow]) -> list[str]:
        """Return the members of a group as SQL and the journal have them, and some who were members."""
        stored = {span.uid for span in spans if span.left_msgid is None}
        return sorted(stored | {uid for uid, _ in self._backlogs[gid].spans})

    def _add_entries(self, readers: dict[str, SmallReader]) -> None:
        """Add the streams, and take away the readers of those that do not fit in a page."""
        gids, characters = list(readers), 0
        calls = [message_calls.entries(self._client.space, gid, "-", "+", PAGE) for gid in gids]
        for gid, page in zip(gids, _ahead(self._client, calls), strict=True):
            if isinstance(page, ImError) or page.more:
                del readers[gid]
                continue
            characters += sum(len(values[_TEXT]) for _, values in page.entries if len(values) > _TEXT)
            if characters > MOST_CHARACTERS:
                raise _TooManyError
            entries = [(each, window.readable(gid, each, values), values) for each, values in page.entries]
            readers[gid].add_entries(entries)

    def _add_tallies(self, readers: dict[str, SmallReader]) -> None:
        messages = {gid: reader.messages() for gid, reader in readers.items()}
        calls = [tallies_of(self._client.space, gid, of_group) for gid, of_group in messages.items() if of_group]
        for call, tallies in zip(calls, _ahead(self._client, calls), strict=True):
            if isinstance(tallies, ImError):
                del readers[call.gid]
            else:
                readers[call.gid].add_tallies(messages[call.gid], tallies)

    def _add_stored(self, rows: dict[str, _Rows]) -> None:
        """Add what SQL has beside the spans."""
        database, gids = self._database, list(rows)
        for bookmark in _limited(queries.bookmarks(database, gids)):
            rows[bookmark.gid].bookmarks.append(bookmark)
        characters = 0
        for row in _limited(database.history.messages_past([(gid, self._heads[gid].meta.trimmed) for gid in gids])):
            characters += len(row.content)
            if characters > MOST_CHARACTERS:
                raise _TooManyError
            rows[row.gid].messages.append(row)
        for gid, msgid, name in _limited(queries.unreadable(database, gids)):
            rows[gid].unreadable.add((msgid, name))
        for gid, msgid, stored in _limited(corrections.wrong_times(database, gids)):
            rows[gid].wrong_times.append((msgid, stored))
        for gid, tombstone, recalled in _limited(queries.recalls(database, gids)):
            rows[gid].recalls[tombstone] = recalled
        for gid, msgid in _limited(queries.recalled_with_text(database, gids)):
            rows[gid].with_text.append(msgid)
        self._add_trimmed(rows)

    def _add_trimmed(self, rows: dict[str, _Rows]) -> None:
        """Add what SQL has of the messages up to the trim points."""
        trimmed = {gid: self._heads[gid].meta.trimmed for gid in rows if self._heads[gid].meta.trimmed}
        if not trimmed:
            return
        places = list(trimmed.items())
        displaced = self._database.history.displaced_until(places)
        for gid, head in self._database.history.heads_at(places).items():
            rows[gid].below, rows[gid].is_displaced = head, gid in displaced
        for gid, uid, msgid in _limited(queries.own_unread(self._database, list(trimmed), until=max(trimmed.values()))):
            if msgid <= trimmed[gid]:
                rows[gid].own_unread.append((uid, msgid))


def _limited(rows: Iterable[T]) -> Iterator[T]:
    """Yield rows of a batch. Raise _TooManyError if they are too many."""
    for number, row in enumerate(rows):
        if number == MOST_ROWS:
            raise _TooManyError
        yield row


@contextmanager
def _in_flight(client: RedisClient, calls: Sequence[Call[T]]) -> Iterator[Iterator[T | ImError]]:
    """Start calls, and yield their answers in order, which are waited for when they are asked for."""
    started = deque[Answers[T]]()
    try:
        for part in batches(calls, CHUNK):
            started.append(client.start(part))
        yield chain.from_iterable(answers() for answers in _drained(started))
    finally:
        for answers in _drained(started):
            answers()


def _drained(started: deque[T]) -> Iterator[T]:
    while started:
        yield started.popleft()


def _ahead(client: RedisClient, calls: Sequence[Call[T]]) -> Iterator[T | ImError]:
    """Yield the answers of calls. The server answers the next ones while the caller handles these."""
    started = deque[Answers[T]]()
    try:
        for part in batches(calls, _AHEAD):
            started.append(client.start(part))
            if len(started) > 1:
                yield from started.popleft()()
        yield from chain.from_iterable(answers() for answers in _drained(started))
    finally:
        for answers in _drained(started):
            answers()


def _pairs(values: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(values[::2], values[1::2], strict=True)


def _scores(values: Sequence[bytes]) -> dict[str, int]:
    return {wire.text(name): window.packed_score(float(score)) for name, score in _pairs(values)}
