"""Fetches the messages that journal entries tell of: many ranges of many groups in few round trips."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from imcore import msgid as msgids
from imcore.errors import ImError, TryAgain, concerns_all
from imcore.model.rows import MessageRow
from imcore.operations.creation import first_members
from imcore.sql.database import Database
from imcore.streams import wire
from imcore.streams.client import RedisClient
from imcore.streams.events import Created, Entry, Sent
from imcore.util.batches import batches

PAGE = 1000
"""How many messages one command brings."""

Stored = tuple[MessageRow, bool]
"""A message, and whether its sender's offset moved to it as it was stored."""


@dataclass(slots=True)
class Work:
    """An entry, the messages that it tells of, and why it cannot be handled, if so."""

    entry: Entry
    messages: list[Stored] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    """With whom the group was created that the entry tells of: those that are still to be written."""
    problem: str | None = None


def fetch(client: RedisClient, database: Database, works: Sequence[Work]) -> None:
    """Give each work its messages. It is no problem if Redis has trimmed some that SQL has.

    A group whose stream cannot be read is a problem of its own entries. Raise what the link raises for all.
    """
    streams = [_Stream(gid, each) for gid, each in _by_group(works).items()]
    while streams:
        pages = client.query_each([stream.next_page(client) for stream in streams])
        for stream, page in zip(streams, pages, strict=True):
            if problem := _problem(page):
                stream.give_up(problem)
            else:
                stream.take(page)
        streams = [stream for stream in streams if stream.waiting]
    for work in works:
        event = work.entry.event
        if isinstance(event, Sent) and len(work.messages) < event.messages and not work.problem:
            work.problem = _missing(database, event, work.messages)
    _fetch_recalled(client, works)


def member_counts(client: RedisClient, entries: Sequence[Entry]) -> dict[str, int]:
    """Return about how many first members the groups have, by gid, whose creation entries tell of."""
    gids = sorted({entry.event.gid for entry in entries if isinstance(entry.event, Created)})
    found = client.query_each([("ZCARD", client.space.group(gid).joined) for gid in gids])
    return {gid: count for gid, count in zip(gids, found, strict=True) if isinstance(count, int)}


def member_pages(client: RedisClient, work: Work, size: int) -> Iterator[list[str]]:
    """Yield the first members of the group whose creation a work tells of, so many at a time; some may come twice.

    A group that cannot be read is a problem of the work. Raise what the link raises for all.
    """
    if not isinstance(work.entry.event, Created):
        return
    try:
        for some in batches(first_members(client, work.entry.event.gid), size):
            yield sorted(set(some))
    except ImError as error:
        work.problem = _problem(error)


def _fetch_recalled(client: RedisClient, works: Sequence[Work]) -> None:
    """Give each tombstone the message that it recalls, blank: stored with it, what it said cannot be stored later.

    Another process may have that message in hand. One that Redis has no more, SQL has.
    """
    recalled = [(work, row) for work in works for row, _ in work.messages if row.recalls is not None]
    ids = [msgids.unpack(row.recalls or 0) for _, row in recalled]
    streams = [client.space.group(row.gid).stream for _, row in recalled]
    pages = client.query_each([("XRANGE", stream, each, each) for stream, each in zip(streams, ids, strict=True)])
    for (work, row), page in zip(recalled, pages, strict=True):
        if problem := _problem(page):
            work.problem = problem
            continue
        with suppress(IndexError, ValueError):  # it cannot be read, and is a problem of its own entry
            for entry_id, fields in page:
                said = wire.message_row(row.gid, msgids.pack_id(entry_id), wire.values_of(fields))
                work.messages.append((said._replace(content=""), False))


def _problem(page: Any) -> str | None:
    """Return what is wrong with one group. Raise what is wrong with all, or may pass."""
    if isinstance(page, ImError):
        if isinstance(page, TryAgain) or concerns_all(page):
            raise page
        return str(page)
    return None


def _by_group(works: Sequence[Work]) -> dict[str, list[tuple[Sent, Work]]]:
    groups: dict[str, list[tuple[Sent, Work]]] = {}
    for work in works:
        event = work.entry.event
        if isinstance(event, Sent):
            groups.setdefault(event.gid, []).append((event, work))
    return groups


def _missing(database: Database, event: Sent, messages: Sequence[Stored]) -> str | None:
    stored = database.messages_after(event.gid, event.first - 1, until=event.last)
    known = {row.msgid for row in stored} | {row.msgid for row, _ in messages}
    if len(known) >= event.messages:
        return None
    span = f"{msgids.unpack(event.first)} to {msgids.unpack(event.last)} of {event.gid!r}"
    return f"of {event.messages} messages from {span} only {len(known)} are in Redis or SQL"


class _Stream:
    """Reads the ranges of one group, in order, with what lies between them where it is little."""

    def __init__(self, gid: str, wanted: list[tuple[Sent, Work]]) -> None:
        wanted.sort(key=_first)
        self.waiting = wanted
        self._gid = gid
        self._after = 0
        self._count = 0

    def next_page(self, client: RedisClient) -> tuple[str | int, ...]:
        """Return the command that brings what comes next: a plain one, since a function takes twice the time."""
        first, last = max(self.waiting[0][0].first, self._after + 1), self.waiting[-1][0].last
        self._count = min(PAGE, sum(event.messages for event, _ in self.waiting))
        stream = client.space.group(self._gid).stream
        return "XRANGE", stream, msgids.unpack(first), msgids.unpack(last), "COUNT", self._count

    def take(self, page: Sequence[tuple[bytes, list[bytes]]]) -> None:
        """Give each message of a page to whom it belongs, and strike who has got all that there is."""
        waiting = iter(self.waiting)
        event, work = next(waiting)
        msgid = 0
        for entry_id, fields in page:
            msgid = msgids.pack_id(entry_id)
            while event.last < msgid:
                event, work = next(waiting)
            if event.first <= msgid:
                self._keep(work, msgid, wire.values_of(fields))
        self._after = msgid
        is_last = len(page) < self._count
        self.waiting = [] if is_last else [each for each in self.waiting if each[0].last > msgid]

    def give_up(self, problem: str) -> None:
        """Say of all who wait what keeps them from their messages."""
        for _, work in self.waiting:
            work.problem = problem
        self.waiting = []

    def _keep(self, work: Work, msgid: int, values: list[bytes]) -> None:
        try:
            work.messages.append((wire.message_row(self._gid, msgid, values), wire.moved_with_sender(values)))
        except (IndexError, ValueError) as error:
            work.problem = f"message {msgids.unpack(msgid)} cannot be read: {error!r}"


def _first(wanted: tuple[Sent, Work]) -> int:
    return wanted[0].first
