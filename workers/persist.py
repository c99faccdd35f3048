"""The worker `persist`: what the journals tell becomes rows in SQL.

    journals --take--> entries --fetch--> their messages --mark, fold--> rows --write, one transaction--> SQL
                          `------------------------------ done, only then ------------------------------'

Killed anywhere on the way, it leaves its entries open, and the next one handles them again: rows merge with themselves.
"""

import time
from collections.abc import Mapping, Sequence

from imcore.admin import append_only
from imcore.errors import DatabaseRejected, DatabaseUnavailable, ImError
from imcore.model.rows import Batch, ConfirmRow, GroupRow, MoveRow, SpanRow, WatermarkRow
from imcore.msgid import NONE
from imcore.repair.watch import Watch
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, Confirmed, Created, Entry, Joined, Left, Malformed, Sent
from imcore.streams.journal import Journal
from imcore.workers.fetch import Stored, Work, fetch, member_counts, member_pages

KIND = "persist"

MOST_ROWS = 5000
"""About how many rows one transaction writes: one entry may tell of hundreds of messages, of a thousand offsets, or of
a new group with any number of members, which take several transactions where they are more."""

PACE_S = 0.1
"""So far apart transactions begin, unless more waits than one takes: each costs as much as some hundred rows, and the
offset of a member who has acked many times meanwhile is written once."""

Offsets = dict[tuple[str, int, tuple[str, ...]], int]
"""The newest message that spans have acked: of one group (gid), one beginning (joined), and these uids, who stand
together in most entries, as a gateway's sessions ack together. Msgids are packed."""


class Persist:
    """One process of it. Nothing is sent before the first step."""

    def __init__(self, client: RedisClient, database: Database, settings: Settings) -> None:
        self._client = client
        self._database = database
        self._journal = Journal(client, KIND, settings)
        self._watch = Watch(client, database, settings)
        self._batch_size = settings.batch_size
        self._in_hand: list[Entry] = []
        self._member_counts: dict[str, int] = {}
        """Of the groups whose creation the entries in hand tell of, by gid."""
        self._next = 0.0

    @property
    def name(self) -> str:
        """The name of this process among its kind, from the first step on."""
        return self._journal.consumer

    def step(self) -> int:
        """Handle one batch, waiting a moment for one; return how many entries are out of the way.

        A Redis that came back older than SQL is reconciled with it first. Raise DatabaseUnavailable, and what the link
        raises: the entries stay open, and the next step goes on with them.
        """
        try:
            return self._step()
        except DatabaseUnavailable:
            self._watch.doubt()
            raise  # still in hand: they need not be taken again
        except ImError:
            self._watch.doubt()
            self._let_go()
            raise

    def _step(self) -> int:
        if self._journal.is_working:
            self._journal.hold_on()  # also with nothing in hand, while nothing may be taken: who waits is not dead
        if self._watch.look():
            self._let_go()
        if not self._in_hand:
            self._in_hand = self._take()
            self._member_counts = member_counts(self._client, self._in_hand)
        batch = self._in_hand[: _batch_length(self._in_hand, self._member_counts)]
        self._database.empty_log()  # if a reader was in the way when it was to be emptied
        handled = self._persist(batch) if batch else 0
        del self._in_hand[: len(batch)]
        return handled

    def _take(self) -> list[Entry]:
        time.sleep(max(0.0, self._next - time.monotonic()))
        entries = self._journal.take()
        self._next = time.monotonic() + (PACE_S if len(entries) < self._batch_size else 0.0)
        return entries

    def _let_go(self) -> None:
        """Ask Redis anew what there is to store."""
        self._in_hand = []
        self._journal.look_again()

    def drained(self) -> bool:
        """Return whether all is done that was in the journals when this was asked first, by whichever process."""
        return not self._in_hand and self._journal.drained()

    def close(self) -> None:
        """Let other processes have what is still open here, at once."""
        self._journal.close()

    def _persist(self, entries: Sequence[Entry]) -> int:
        works = [Work(entry) for entry in entries]
        fetch(self._client, self._database, works)
        for work in works:
            if isinstance(work.entry.event, Malformed):
                work.problem = work.entry.event.reason
            self._bring_members(work)
        sound = [work for work in works if not work.problem]
        append_only.note_recalled(self._client, _recalled(sound))
        if sound:
            self._write(sound, self._watch.mark(self._journal.process, [work.entry for work in sound]))
        written = [work.entry for work in works if not work.problem]
        self._journal.done(written)
        return len(written) + sum(self._journal.fail(work.entry, work.problem) for work in works if work.problem)

    def _bring_members(self, work: Work) -> None:
        """Give a work the first members of its group; where one transaction cannot hold them, write all but the last.

        The entry is not done before these are written, too: killed meanwhile, it is handled again from its beginning.
        """
        for some in member_pages(self._client, work, MOST_ROWS):
            if work.members:
                part = Work(work.entry, members=work.members)
                self._write([part], self._watch.mark(self._journal.process, [work.entry]))
                self._journal.hold_on()
                work.problem = part.problem
            work.members = some
            if work.problem:
                return

    def _write(self, works: Sequence[Work], marks: list[WatermarkRow]) -> None:
        """Write what entries tell. Those that SQL refuses are found among the others by halving."""
        try:
            batch = fold(works)
            batch.marks = marks
            self._database.write(batch)
        except DatabaseRejected as error:
            if len(works) == 1:
                works[0].problem = str(error)
                return
            middle = len(works) // 2
            self._write(works[:middle], marks)
            self._write(works[middle:], marks)


def _recalled(works: Sequence[Work]) -> list[tuple[str, int]]:
    return [(row.gid, row.recalls) for work in works for row, _ in work.messages if row.recalls is not None]


def fold(works: Sequence[Work]) -> Batch:
    """Return the rows that entries tell of."""
    batch = Batch()
    offsets: Offsets = {}
    for work in works:
        event = work.entry.event
        if isinstance(event, Sent):
            _fold_messages(work.messages, batch, offsets)
        elif isinstance(event, Acked):
            _fold_moves(event, work.entry.version, batch, offsets)
        elif isinstance(event, Joined):
            batch.spans.append(SpanRow(*event, left_msgid=None, changed=work.entry.version, acked_msgid=event.joined))
        elif isinstance(event, Left):
            batch.spans.append(SpanRow(*event, changed=work.entry.version, acked_msgid=event.joined))
        elif isinstance(event, Confirmed):
            batch.confirms += (ConfirmRow(*tally) for tally in event.tallies)
        elif isinstance(event, Created):
            batch.groups.append(GroupRow(event.gid, work.entry.time_ms))
            spans = (SpanRow(event.gid, uid, NONE, None, work.entry.version, NONE) for uid in work.members)
            batch.spans += spans
    for (gid, joined, uids), to in offsets.items():
        batch.spans += (SpanRow(gid, uid, joined, None, 0, to) for uid in uids)
    return batch


def _fold_messages(messages: Sequence[Stored], batch: Batch, offsets: Offsets) -> None:
    for row, moved_sender in messages:
        batch.messages.append(row)
        if moved_sender and row.span is not None:
            # No MoveRow: nobody asks when the sender read their own message, and what came before it they had acked.
            spans = (row.gid, row.span, (row.sender_uid,))
            offsets[spans] = max(row.msgid, offsets.get(spans, 0))


def _fold_moves(event: Acked, entry: int, batch: Batch, offsets: Offsets) -> None:
    gid = event.gid
    uids: dict[tuple[int, int], tuple[str, ...]] = {}
    for joined, start, to, movers in event.moves:
        uids[start, to] = uids.get((start, to), ()) + movers
        spans = (gid, joined, movers)
        offsets[spans] = max(to, offsets.get(spans, 0))
    batch.moves += (MoveRow(gid, to, start, entry, movers) for (start, to), movers in uids.items())


def _batch_length(entries: Sequence[Entry], member_counts: Mapping[str, int]) -> int:
    """Return how many of the entries, one at least, make a transaction."""
    rows = 0
    known: set[tuple[str, int, tuple[str, ...]]] = set()
    for length, entry in enumerate(entries):
        event = entry.event
        if isinstance(event, Acked):
            rows += _rows_of_moves(event, known)
        elif isinstance(event, Created):
            rows += 1 + member_counts.get(event.gid, 0)
        else:
            rows += event.messages if isinstance(event, Sent) else 1
        if rows > MOST_ROWS:
            return length or 1
    return len(entries)


def _rows_of_moves(event: Acked, known: set[tuple[str, int, tuple[str, ...]]]) -> int:
    """Return how many rows an entry makes. Offsets that are `known` have theirs; from now on its own are known, too."""
    rows = 0
    for joined, _, _, uids in event.moves:
        before = len(known)
        known.add((event.gid, joined, uids))
        rows += 1 + len(uids) * (len(known) - before)
    return rows
