"""Fetches the messages of journal entries: many ranges of many groups in few round trips."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from imcore import msgid as msgids
from imcore.errors import ImError, TryAgain, concerns_all
from imcore.model.rows import MessageRow
from imcore.operations.creation import first_members
from imcore.operations.performer import stream_from_redis
from imcore.sql.database import Database
from imcore.streams import wire
from imcore.streams.client import RedisClient
from imcore.streams.events import Created, Entry, Sent
from imcore.util.batches import batches, grouped

PAGE = 1000
"""One command fetches this many messages."""

StoredMessage = tuple[MessageRow, bool]
"""A message, and whether its sender's offset moved to it as it was stored."""


@dataclass(slots=True)
class WorkItem:
    """An entry with the data that it needs; `problem` says why it cannot be handled."""

    entry: Entry
    messages: list[StoredMessage] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    """The first members of a new group that are still to be written."""
    first_members: int = 0
    """About how many first members a new group has."""
    problem: str | None = None
    is_void: bool = False
    """Whether the group was deleted since: nothing of the entry is stored."""

    @property
    def gid(self) -> str | None:
        gid: str | None = getattr(self.entry.event, "gid", None)
        return gid

    def anew(self) -> "WorkItem":
        """Return an item for the entry without its data."""
        return WorkItem(self.entry, first_members=self.first_members)

    def forget(self) -> None:
        self.messages, self.members, self.problem, self.is_void = [], [], None, True


def fetch(client: RedisClient, database: Database, items: Sequence[WorkItem]) -> None:
    """Give each item its messages. It is no problem if Redis has trimmed some that SQL has.

    A stream that cannot be read is a problem of the group's own items. Raise the client's errors that concern all.
    """
    ranges = _ranges(items)
    while ranges:
        pages = client.query_each([each.next_page(client) for each in ranges])
        for each, page in zip(ranges, pages, strict=True):
            each.receive(page)
        ranges = [each for each in ranges if each.open]
    for item in items:
        _note_missing(database, item)
    _fetch_recalled(client, items)


def member_counts(client: RedisClient, entries: Sequence[Entry]) -> dict[str, int]:
    """Return by gid how many first members the groups have, about, that the entries create."""
    gids = sorted({entry.event.gid for entry in entries if isinstance(entry.event, Created)})
    counts = client.query_each([("ZCARD", client.space.group(gid).joined) for gid in gids])
    return {gid: count for gid, count in zip(gids, counts, strict=True) if isinstance(count, int)}


def member_pages(client: RedisClient, item: WorkItem, size: int) -> Iterator[list[str]]:
    """Yield the first members of the group that an item creates, `size` at a time; some may come twice.

    A group that cannot be read is a problem of the item. Raise the client's errors that concern all.
    """
    if item.is_void or not isinstance(item.entry.event, Created):
        return
    try:
        for uids in batches(stream_from_redis(client, first_members(item.entry.event.gid)), size):
            yield sorted(set(uids))
    except ImError as error:
        item.problem = _problem(error)


def _fetch_recalled(client: RedisClient, items: Sequence[WorkItem]) -> None:
    """Give each tombstone the message that it recalls, with its text removed.

    Both are stored in one transaction. So another process that has the message in hand cannot store its text later. A
    message that Redis does not have any more is in SQL.
    """
    tombstones = [(item, row) for item in items for row, _ in item.messages if row.recalls is not None]
    pages = client.query_each([_recalled_by(client, row) for _, row in tombstones])
    for (item, row), page in zip(tombstones, pages, strict=True):
        if problem := _problem(page):
            item.problem = problem
            continue
        with suppress(IndexError, ValueError):  # it cannot be read, and is a problem of its own entry
            for entry_id, fields in page:
                message = wire.message_row(row.gid, msgids.pack_id(entry_id), wire.values_of(fields))
                item.messages.append((message.without_text(), False))


def _recalled_by(client: RedisClient, tombstone: MessageRow) -> tuple[str, ...]:
    entry_id = msgids.unpack(tombstone.recalls or 0)
    return "XRANGE", client.space.group(tombstone.gid).stream, entry_id, entry_id


def _problem(page: Any) -> str | None:
    """Return what is wrong with one group. Raise an error that concerns all groups, or may pass."""
    if isinstance(page, ImError):
        if isinstance(page, TryAgain) or concerns_all(page):
            raise page
        return str(page)
    return None


def _note_missing(database: Database, item: WorkItem) -> None:
    """Note as a problem that neither Redis nor SQL has all messages of an item."""
    event = item.entry.event
    if not isinstance(event, Sent) or len(item.messages) >= event.messages or item.problem:
        return
    stored = database.messages_after(event.gid, event.first - 1, until=event.last)
    known = {row.msgid for row in stored} | {row.msgid for row, _ in item.messages}
    if len(known) < event.messages:
        span = f"{msgids.unpack(event.first)} to {msgids.unpack(event.last)} of {event.gid!r}"
        item.problem = f"of {event.messages} messages from {span} only {len(known)} are in Redis or SQL"


class _GroupRanges:
    """The ranges of one group that are still to be read, in order; small gaps between them are read, too."""

    def __init__(self, gid: str, ranges: list[tuple[Sent, WorkItem]]) -> None:
        self.open = sorted(ranges, key=lambda each: each[0].first)
        self._gid = gid
        self._after = 0
        self._count = 0

    def next_page(self, client: RedisClient) -> tuple[str | int, ...]:
        """Return the command for the next page: a plain one, since a function takes twice the time."""
        first, last = max(self.open[0][0].first, self._after + 1), self.open[-1][0].last
        self._count = min(PAGE, sum(event.messages for event, _ in self.open))
        stream = client.space.group(self._gid).stream
        return "XRANGE", stream, msgids.unpack(first), msgids.unpack(last), "COUNT", self._count

    def receive(self, page: Any) -> None:
        """Give each message of a page to its item; an error is the problem of all open items."""
        if problem := _problem(page):
            for _, item in self.open:
                item.problem = problem
            self.open = []
        else:
            self._after = self._give_out(page)
            is_last = len(page) < self._count
            self.open = [] if is_last else [each for each in self.open if each[0].last > self._after]

    def _give_out(self, page: Sequence[tuple[bytes, list[bytes]]]) -> int:
        """Give each message to its item; return the last msgid."""
        ranges = iter(self.open)
        event, item = next(ranges)
        msgid = 0
        for entry_id, fields in page:
            msgid = msgids.pack_id(entry_id)
            while event.last < msgid:
                event, item = next(ranges)
            if event.first > msgid:
                continue
            values = wire.values_of(fields)
            try:
                item.messages.append((wire.message_row(self._gid, msgid, values), wire.was_caught_up(values)))
            except (IndexError, ValueError) as error:
                item.problem = f"message {msgids.unpack(msgid)} cannot be read: {error!r}"
        return msgid


def _ranges(items: Sequence[WorkItem]) -> list[_GroupRanges]:
    sent = ((item.entry.event, item) for item in items)
    by_group = grouped((event.gid, (event, item)) for event, item in sent if isinstance(event, Sent))
    return [_GroupRanges(gid, ranges) for gid, ranges in by_group.items()]
