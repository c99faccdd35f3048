"""Compares whole groups while the system runs: reads both sides within a window, and holds them against each other."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import filterfalse

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, ImError, TryAgain
from imcore.model.rows import MessageRow, SpanRow
from imcore.repair import deletion, diff, state, window
from imcore.repair.bookmarks import Bookmarks, own_floor
from imcore.repair.diff import BEGUN, MISSING, THERE, UNREADABLE, Difference, MessageDiff, SpanDiff
from imcore.repair.group_readers import SETS, PagedReader
from imcore.repair.small_groups import GroupReaders
from imcore.repair.state import Changes, GroupMeta, is_empty, key_of, paired
from imcore.repair.window import PAGE, JournalWindow, StreamEntry, now_ms
from imcore.sql import deletion as sql_deletion
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.repair_calls import NEVER
from imcore.streams.client import CHUNK
from imcore.streams.journal import one_line
from imcore.system import System
from imcore.util.batches import batches, grouped

ROUNDS = 10
"""The most comparisons of a group that changes meanwhile."""

COUNTED_AT_ONCE = 20_000
"""For how many messages the spans are read once."""

HAND_WRITTEN = (ImError, ValueError, TypeError, IndexError, KeyError, OverflowError)
"""Errors that come of data which somebody has written by hand."""


def differences(system: System, gids: Sequence[str], *, after: int | None = None) -> dict[str, list[Difference]]:
    """Return what differs in each group, and is not explained by what happened while both sides were read.

    With `after` (packed), older messages are left out, except for the newest page in SQL. A difference is `unsure` if
    it was there at every look, but the group changed each time. It is a difference too if a group's repair has begun
    and not ended, or if a group cannot be read. Raise RedisUnavailable, DatabaseUnavailable, ConfigurationError.
    """
    partitions = {system.client.space.partition_of(gid) for gid in gids}
    begun = {gid for partition in partitions for gid in window.unfinished(system, partition)}
    deletions = sql_deletion.known(system.database, gids)
    compared = _compared(system, gids, after)
    deleted = deletion.begun_since(system, [gid for gid, each in compared.items() if each], deletions)
    compared |= {gid: [] for gid in deleted}
    return {gid: [replace(one, gid=gid) for one in ([BEGUN] * (gid in begun) + each)] for gid, each in compared.items()}


def _compared(system: System, gids: Sequence[str], after: int | None) -> dict[str, list[Difference]]:
    try:
        return _looked_again(system, gids, after)
    except (TryAgain, ConfigurationError):
        raise
    except HAND_WRITTEN as error:
        if len(gids) == 1:
            return {gids[0]: [Difference("data", f"cannot be read: {one_line(str(error))}", "not compared")]}
    middle = len(gids) // 2
    return _compared(system, gids[:middle], after) | _compared(system, gids[middle:], after)


def _looked_again(system: System, gids: Sequence[str], after: int | None) -> dict[str, list[Difference]]:
    sure: defaultdict[str, dict[str, Difference]] = defaultdict(dict)
    doubtful: defaultdict[str, Counter[Difference]] = defaultdict(Counter)
    changing: Sequence[str] = gids
    for _ in range(ROUNDS):
        opened = JournalWindow(system, changing)
        seen = _look(system, opened, changing, after)
        changes = opened.changes()
        changing = [gid for gid in seen if _has_doubts(seen[gid], changes[gid], sure[gid], doubtful[gid])]
        if not changing:
            break
    for gid in changing:
        for difference, times in doubtful[gid].items():
            if times == ROUNDS:
                sure[gid].setdefault(difference.what, replace(difference, unsure=True))
    return {gid: list(sure[gid].values()) for gid in gids}


def _has_doubts(
    seen: Sequence[Difference], changes: Changes, sure: dict[str, Difference], doubtful: Counter[Difference]
) -> bool:
    """Note the differences of one look; return whether any may come of what happened meanwhile."""
    doubts = [difference for difference in seen if difference.explained_by(changes)]
    sure.update((difference.what, difference) for difference in seen if difference not in doubts)
    doubtful.update(doubts)
    return bool(doubts)


def _look(system: System, opened: JournalWindow, gids: Sequence[str], after: int | None) -> dict[str, list[Difference]]:
    """Return how each group differs, except for what a trim explains."""
    in_sql = queries.listed(system.database, gids)
    heads = window.heads_of(system.client, gids)
    readers = GroupReaders(system, heads, opened.backlogs)
    seen: dict[str, list[Difference]] = {}
    for gid, reader in readers.all() if after is None else ((gid, readers.paged(gid)) for gid in gids):
        group = GroupComparison(system, gid, heads[gid].meta, opened.backlogs[gid], reader, after=after)
        seen[gid] = list(group.differences(is_listed=heads[gid].is_listed, is_stored=gid in in_sql))
    now = window.metas_of(system.client, [gid for gid, each in seen.items() if each])
    return seen | {
        gid: [one for one in seen[gid] if not _concerns_trim(one, heads[gid].meta, meta)] for gid, meta in now.items()
    }


def oldest_of(differences: Sequence[Difference]) -> int | None:
    """Return the oldest message (packed) that differs, None if none does.

    If only tallies differ, return the oldest of these: its neighbours show which span has the wrong end on both sides.
    """
    differences = [difference for difference in differences if difference.what != BEGUN.what]
    about = {"message"} if any(difference.depends != "tally" for difference in differences) else {"tally"}
    return min((each.msgid for each in differences if each.depends in about and each.msgid), default=None)


def _concerns_trim(difference: Difference, before: GroupMeta, after: GroupMeta) -> bool:
    """Return whether a difference may come of a trim between two looks at the group's hash."""
    concerned = difference.depends in {"head", "trim", "own"} or 0 < difference.msgid <= after.trimmed
    return after.trimmed > before.trimmed and concerned


class GroupComparison:
    def __init__(
        self,
        system: System,
        gid: str,
        meta: GroupMeta,
        backlog: Changes,
        reader: PagedReader,
        *,
        after: int | None,
    ) -> None:
        self._client = system.client
        self._database: Database = system.database
        self._gid = gid
        self._meta = meta
        self._backlog = backlog
        self._reader = reader
        self._after = after
        self._soon = state.highest_offset(0, now_ms())

    def differences(self, *, is_listed: bool, is_stored: bool) -> Iterator[Difference]:
        """Yield what differs. `is_listed`: Redis lists the group. `is_stored`: SQL does."""
        if not self._meta.exists:
            if is_stored or self._has_rows():
                yield Difference("group", MISSING, THERE, "group")
            elif is_listed:
                yield Difference("name in the list of all groups", THERE, MISSING, "group")
            return
        if not is_stored and self._backlog.created_ms is None:
            yield Difference("group", THERE, MISSING, "group")
        if not is_listed:
            yield Difference("group in the list of all", MISSING, THERE, "group")
        messages = self._message_diff()
        yield from self._messages(messages)
        own = self._own(messages) if messages.is_whole else None
        yield from self._spans(own)
        if messages.is_whole:
            yield from self._recalls(messages)

    def _has_rows(self) -> bool:
        """Return whether SQL has anything of a group that it does not list."""
        head = queries.head(self._database, self._gid, until=NEVER)
        return bool(head.messages) or any(self._reader.spans())

    # Messages.

    def _message_diff(self) -> MessageDiff:
        is_whole = self._after is None
        if self._after is not None:
            newest = self._database.messages_before(self._gid, NEVER, limit=PAGE)
            self._after = min(self._after, newest[0].msgid - 1 if newest else 0)
        unreadable = self._reader.unreadable() if is_whole else set()
        return MessageDiff(self._meta, self._reader.below(), self._backlog, is_whole, unreadable)

    def _messages(self, messages: MessageDiff) -> Iterator[Difference]:
        counted: list[tuple[int, str]] = []
        for entry, stored_row in self._pairs():
            entry_id, row, values = entry or (b"", None, [])
            if entry and row is None:
                yield diff.of_entry(entry_id, values)
                continue
            yield from messages.compare(row, stored_row, values)
            counted += [(row.msgid, row.sender_uid)] if row else []
            if len(counted) == COUNTED_AT_ONCE:
                yield from self._tallies(counted)
                counted = []
        yield from self._tallies(counted)
        yield from messages.head()
        if messages.is_whole:
            yield from self._stored(messages)

    def _stored(self, messages: MessageDiff) -> Iterator[Difference]:
        """Yield what is wrong in SQL by itself."""
        if self._meta.trimmed and messages.is_trim_sound:
            for msgid in self._reader.displaced():
                yield diff.of_message("place of message", msgid, "trimmed", "another seq", "stored")
        for msgid, field in sorted(messages.unreadable):
            yield diff.of_message(f"{field} of message", msgid, "not compared", UNREADABLE, "stored")
        for msgid, wrong in self._reader.wrong_times():
            yield diff.of_message("time of message", msgid, diff.described_time(msgids.time_ms(msgid)), wrong, "stored")

    def _pairs(self) -> Iterator[tuple[StreamEntry | None, MessageRow | None]]:
        """Yield each message with its other side, in order. What SQL has up to the trim point is no pair."""
        after = max(self._after or 0, self._meta.trimmed)
        first = "-" if self._after is None else f"({msgids.unpack(self._after)}"
        entries, rows = self._reader.entries(first), self._reader.stored(after)
        for entry, stored_row in paired(entries, rows, lambda each: each[1].msgid if each[1] else 0):
            row = entry[1] if entry else None
            is_trimmed = row is not None and row.msgid <= after
            yield entry, self._reader.stored_message(row.msgid) if row and is_trimmed else stored_row

    def _tallies(self, messages: list[tuple[int, str]]) -> Iterator[Difference]:
        """Count from SQL who has read each message, and compare that with what Redis answers."""
        if not messages:
            return
        counter = state.Counter(messages)
        for span in self._desired_spans():
            counter.add(span)
        counts = iter(counter.counts())
        for batch in batches(messages, CHUNK):
            answers = self._reader.tallies([msgid for msgid, _ in batch])
            for (msgid, _), answer, count in zip(batch, answers, counts, strict=False):
                if answer != count and not isinstance(answer, Trimmed):
                    sides = diff.described_tally(answer), diff.described_tally(count)
                    yield diff.of_message("tally of", msgid, *sides, "tally")

    # Spans, and what is indexed by them.

    def _desired_spans(self) -> Iterator[SpanRow]:
        return self._backlog.applied(self._reader.spans())

    def _own(self, messages: MessageDiff) -> dict[str, list[int]]:
        """Return the own messages of all who may have some past their offset."""
        trimmed = self._meta.trimmed
        own = self._trimmed_own(trimmed) if trimmed else {}
        for uid, sent in messages.own.items():
            own.setdefault(uid, []).extend(msgid for msgid in sent if msgid > trimmed)
        return own

    def _trimmed_own(self, trimmed: int) -> dict[str, list[int]]:
        own = grouped(self._reader.own_unread())
        for row in self._backlog.bookmarks.values():  # SQL does not know their marks yet
            if 0 < row.mark_msgid < trimmed:
                after = min(own.get(row.uid, [trimmed + 1])[0] - 1, row.mark_msgid)
                own[row.uid] = queries.own_after(self._database, self._gid, row.uid, after=after, until=trimmed)
        return {uid: [msgid for msgid in sent if msgid not in self._backlog.recalled] for uid, sent in own.items()}

    def _spans(self, own: dict[str, list[int]] | None) -> Iterator[Difference]:
        spans = SpanDiff(self._is_impossible)
        offsets = self._reader.followers()
        bookmarks = self._bookmarks()
        members: dict[str, int] = {}
        for batch in batches(filterfalse(is_empty, self._desired_spans()), CHUNK):
            listed = self._reader.listed([row.uid for row in batch if row.left_msgid is None])
            for row, span in zip(batch, self._reader.scores(list(map(key_of, batch))), strict=True):
                yield from spans.compare(row, span)
                if row.left_msgid is None and span.acked is not None:
                    is_listed, listed_own = listed[row.uid]
                    members[row.uid] = span.acked
                    yield from spans.member(row, span.acked, offsets.pop(row.uid, None), is_listed=is_listed)
                    if own is not None:
                        floor = own_floor(span.acked, bookmarks.marks(row.uid).mark) if bookmarks else span.acked
                        yield from diff.of_own(row.uid, floor, list(map(int, listed_own)), own.get(row.uid, []))
        if bookmarks:
            yield from bookmarks.differences(self._desired_spans(), members)
        yield from self._strangers(spans, offsets)

    def _bookmarks(self) -> Bookmarks | None:
        """Return the bookmarks of Redis, the journal and SQL. Return None if no side has any."""
        live, stored = self._reader.bookmarks(), self._reader.stored_bookmarks()
        if not (live or stored or self._backlog.bookmarks):
            return None
        newest = self._database.messages_before(self._gid, NEVER, limit=1)
        bound = state.highest_offset(max(self._meta.last or 0, *(row.msgid for row in newest), 0), now_ms())
        journal = self._client.space.journal(self._client.space.partition_of(self._gid))
        latest_change = window.latest_change(window.end_of(self._client, journal))
        return Bookmarks(stored, live, self._backlog, bound=bound, latest_change=latest_change)

    def _strangers(self, spans: SpanDiff, offsets: Mapping[str, int]) -> Iterator[Difference]:
        """Yield what Redis has and SQL has not; `offsets` are those of its consumer groups that are left over."""
        for uid, offset in offsets.items():
            yield diff.of_span(uid, f"consumer group of {uid!r}", diff.described_offset(offset), MISSING)
        everyone = len(spans.known)
        expected = everyone, everyone, spans.closed, spans.ahead, spans.ahead_acked
        for name, wanted, count in zip(SETS, expected, self._reader.counts(), strict=True):
            for span, score in self._reader.members_of(name) if count != wanted else ():
                if span not in spans.known:
                    yield diff.of_stranger(span, score, name)

    def _recalls(self, messages: MessageDiff) -> Iterator[Difference]:
        recalls = {**self._reader.stored_recalls(), **messages.tombstones}
        yield from diff.of_recalls(dict(self._reader.members_of("recalled")), {*recalls, *recalls.values()})
        for msgid in self._reader.recalled_with_text():
            yield diff.of_message("text of recalled message", msgid, MISSING, THERE, "stored")

    def _is_impossible(self, offset: int | None) -> bool:
        """Return whether no message can have an offset. The newest one is hardly ever asked for."""
        if offset is None or offset <= self._soon:
            return False
        newest = self._database.messages_before(self._gid, NEVER, limit=1)
        return offset > state.highest_offset(max(self._meta.last or 0, 0, *(row.msgid for row in newest)), now_ms())
