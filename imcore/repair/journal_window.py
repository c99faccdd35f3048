"""What the journals tell: what SQL does not have yet, and what happens while somebody looks.

Redis and SQL are never at rest together, so they are compared within a window:

    ends of the journals are noted ── entries not done are read ── both sides are read ── newer entries are read

SQL, with the entries that are not done applied to it (they merge in any order, and again), is where Redis stood when
the window opened. So whatever no newer entry has touched has to be alike. Nobody is made to wait, and it is the same
whether the worker runs, lags or stands.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from imcore import msgid as msgids
from imcore.model.rows import MessageRow, SpanRow, merged
from imcore.operations.creation import first_members
from imcore.operations.performer import stream_from_redis
from imcore.sql import queries
from imcore.streams import events, wire
from imcore.streams.calls import journal_calls, message_calls
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, Created, Entry, Joined, Left, Move, Sent
from imcore.system import System

PAGE = 500
KIND = "persist"
"""The worker that stores what the journals tell."""

START = "0-0"


@dataclass(slots=True)
class Backlog:
    """What SQL may not have of one group yet. Msgids are packed.

    `entries` of the journal tell of it. Messages from `sent_from` on may not be stored; of those, some recall others.
    """

    entries: int = 0
    created_ms: int | None = None
    created: int | None = None
    """The version of the entry that tells of its creation."""
    sent_from: int | None = None
    recalled: set[int] = field(default_factory=set)
    spans: dict[tuple[str, int], SpanRow] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take an entry that is not done."""
        self.entries += 1
        event = entry.event
        if isinstance(event, Created):
            self.created_ms, self.created = entry.time_ms, entry.version
        elif isinstance(event, Sent):
            self.sent_from = min(event.first, self.sent_from or event.first)
        elif isinstance(event, Joined):
            self._merge(SpanRow(*event, left_msgid=None, changed=entry.version, acked_msgid=event.joined))
        elif isinstance(event, Left):
            self._merge(SpanRow(*event, changed=entry.version, acked_msgid=event.joined))
        elif isinstance(event, Acked):
            for move in event.moves:
                for uid in move.uids:
                    self._merge(SpanRow(event.gid, uid, move.joined, None, 0, move.to))

    def add_first_member(self, gid: str, uid: str) -> None:
        """Take one with whom the group was created, as an entry tells that is not done."""
        self._merge(SpanRow(gid, uid, msgids.NONE, None, self.created or 0, msgids.NONE))

    def add_message(self, row: MessageRow, *, moved_sender: bool) -> None:
        """Take a message from `sent_from` on."""
        if moved_sender and row.span is not None:
            self._merge(SpanRow(row.gid, row.sender_uid, row.span, None, 0, row.msgid))
        if row.recalls is not None:
            self.recalled.add(row.recalls)

    def covers(self, msgid: int) -> bool:
        """Return whether SQL may not have this message yet."""
        return self.sent_from is not None and msgid >= self.sent_from

    def applied(self, stored: Iterable[SpanRow]) -> Iterator[SpanRow]:
        """Yield the spans that SQL has, with what it does not have yet."""
        rest = dict(self.spans)
        for row in stored:
            newer = rest.pop((row.uid, row.joined_msgid), None)
            yield merged(row, newer) if newer else row
        yield from rest.values()

    def _merge(self, row: SpanRow) -> None:
        key = row.uid, row.joined_msgid
        known = self.spans.get(key)
        self.spans[key] = merged(known, row) if known else row


@dataclass(slots=True)
class Changes:
    """What of one group has changed within a window; `anything` may have, where its journal was trimmed meanwhile."""

    anything: bool = False
    created: bool = False
    first_sent: int | None = None
    uids: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    """Those of them who came or went."""
    recalled: set[int] = field(default_factory=set)
    moves: list[Move] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Take an entry of the window."""
        event = entry.event
        if isinstance(event, Created):
            self.created = True
        elif isinstance(event, Sent):
            self.first_sent = min(event.first, self.first_sent or event.first)
        elif isinstance(event, Joined | Left):
            self.uids.add(event.uid)
            self.members.add(event.uid)
        elif isinstance(event, Acked):
            self.uids.update(uid for move in event.moves for uid in move.uids)
            self.moves += event.moves

    def add_message(self, sender_uid: str, recalls: int | None) -> None:
        """Take a message of the window."""
        self.uids.add(sender_uid)
        if recalls is not None:
            self.recalled.add(recalls)

    def message(self, msgid: int) -> bool:
        """Return whether a message has come or was recalled."""
        return msgid in self.recalled or (self.first_sent is not None and msgid >= self.first_sent)

    def tally(self, msgid: int) -> bool:
        """Return whether somebody may have read a message."""
        return self.message(msgid) or any(move.start < msgid <= move.to for move in self.moves)

    def own(self, uid: str, msgid: int) -> bool:
        """Return whether it may have changed that an own message is past the offset of its sender, and counts."""
        passed = any(move.start < msgid <= move.to and uid in move.uids for move in self.moves)
        return passed or uid in self.members or self.message(msgid)


class JournalWindow:
    """A stretch of the journals, for some groups. It opens when it is made."""

    def __init__(self, system: System, gids: Sequence[str]) -> None:
        self._client = client = system.client
        self._database = system.database
        self._gids = frozenset(gids)
        self._partitions = sorted({client.space.partition_of(gid) for gid in gids})
        self._ends = {partition: end_of(client, partition) for partition in self._partitions}
        self._undone = {partition: undone_from(client, partition) for partition in self._partitions}
        self.pending = {gid: Backlog() for gid in gids}
        for partition in self._partitions:
            for entry in undone(client, partition):
                for gid in self._concerned(entry):
                    self.pending[gid].add(entry)
        for gid, pending in self.pending.items():
            for uid in stream_from_redis(client, first_members(gid)) if pending.created is not None else ():
                pending.add_first_member(gid, uid)
            if pending.sent_from is not None:
                for row, moved_sender in live(client, gid, first=msgids.unpack(pending.sent_from)):
                    pending.add_message(row, moved_sender=moved_sender)

    def opened_at(self, partition: int) -> str:
        """Return the id of the newest entry of a journal when the window opened."""
        return self._ends[partition]

    def touched(self) -> dict[str, Changes]:
        """Return what has changed since the window opened."""
        found = {gid: Changes() for gid in self._gids}
        for partition, end in self._ends.items():
            for entry in entries(self._client, partition, f"({end}"):
                for gid in self._concerned(entry):
                    found[gid].add(entry)
        trimmed = {partition for partition in self._ends if self._is_trimmed(partition)}
        for gid, touched in found.items():
            touched.anything = self._client.space.partition_of(gid) in trimmed
            if touched.first_sent is not None:
                self._add_messages(gid, touched, touched.first_sent)
        return found

    def _is_trimmed(self, partition: int) -> bool:
        """Return whether entries of the window may be gone: a trim drops all those before them first."""
        end = self._ends[partition]
        if end == START:
            return undone_from(self._client, partition) != self._undone[partition]
        return not self._client.query("XRANGE", self._client.space.journal(partition), end, end)

    def _add_messages(self, gid: str, touched: Changes, first: int) -> None:
        for row, _ in live(self._client, gid, first=msgids.unpack(first)):
            touched.add_message(row.sender_uid, row.recalls)
        for light in queries.light(self._database, [gid], after=first - 1):  # some may have been trimmed already
            touched.add_message(light.sender_uid, light.recalls)

    def _concerned(self, entry: Entry) -> Iterator[str]:
        gid = getattr(entry.event, "gid", None)
        if gid in self._gids:
            yield gid


def end_of(client: RedisClient, partition: int) -> str:
    """Return the id of the newest entry of a journal, as text; START where there is none."""
    newest = client.query("XREVRANGE", client.space.journal(partition), "+", "-", "COUNT", 1)
    return newest[0][0].decode() if newest else START


def undone_from(client: RedisClient, partition: int) -> str:
    """Return where the entries of a journal begin that are not stored."""
    return client.call(journal_calls.undone(client.space, partition, [KIND], only=True)) or "-"


def undone(client: RedisClient, partition: int) -> Iterator[Entry]:
    """Yield the entries of a journal that are not stored, and perhaps some among them that are."""
    return entries(client, partition, undone_from(client, partition))


def entries(client: RedisClient, partition: int, first: str) -> Iterator[Entry]:
    """Yield the entries of a journal from an id on (as XRANGE takes it)."""
    while True:
        page, more = client.call(journal_calls.entries(client.space, partition, first, PAGE))
        for entry_id, fields in page:
            yield events.read(partition, entry_id, fields)
        if not more:
            return
        first = f"({page[-1][0].decode()}"


def live(client: RedisClient, gid: str, *, first: str = "-", last: str = "+") -> Iterator[tuple[MessageRow, bool]]:
    """Yield the messages of a stream that can be read, and whether each one's sender moved with it."""
    for _, row, values in live_entries(client, gid, first=first, last=last):
        if row:
            yield row, wire.was_caught_up(values)


def live_entries(
    client: RedisClient, gid: str, *, first: str = "-", last: str = "+"
) -> Iterator[tuple[bytes, MessageRow | None, list[bytes]]]:
    """Yield the entries of a stream as members see them, oldest first; no row for what is no message."""
    while True:
        page, more = client.call(message_calls.entries(client.space, gid, first, last, PAGE))
        for entry_id, values in page:
            yield entry_id, readable(gid, entry_id, values), values
        if not more:
            return
        first = f"({page[-1][0].decode()}"


def raw_entries(
    client: RedisClient, gid: str, *, first: str = "-", last: str = "+"
) -> Iterator[tuple[bytes, MessageRow | None, list[bytes]]]:
    """Yield the entries of a stream as they are, texts of recalled messages included; no row for what is no message."""
    stream = client.space.group(gid).stream
    while True:
        page = client.query("XRANGE", stream, first, last, "COUNT", PAGE)
        for entry_id, fields in page:
            values = wire.values_of(fields)
            yield entry_id, readable(gid, entry_id, values), values
        if len(page) < PAGE:
            return
        first = f"({page[-1][0].decode()}"


def readable(gid: str, entry_id: bytes, values: list[bytes]) -> MessageRow | None:
    """Return the message of an entry, None if it is none."""
    try:
        return wire.message_row(gid, msgids.pack_id(entry_id), values)
    except (IndexError, ValueError):
        return None
