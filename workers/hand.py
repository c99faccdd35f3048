"""What the worker `persist` has in hand: entries that were read and not confirmed, as the transactions that store them.

    journals --take--> [ transaction | transaction ... ] --first--> SQL --confirmed--> remove_first
                          being stored   read meanwhile

The order of the journals stays. Nothing here is confirmed: a worker that is killed leaves all of it open.
"""

from collections import deque
from collections.abc import Sequence

from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, BookmarksSet, Created, Delivered, Sent
from imcore.streams.journal import Journal
from imcore.workers.fetch import WorkItem, fetch, member_counts
from imcore.workers.stored_rows import Spans

MOST_ROWS = 5000
"""About how many rows one transaction writes. One entry may bring hundreds of messages, a thousand offsets, or a new
group with any number of members; a larger group takes several transactions."""

MOST_TEXT = 4_000_000
"""About how many characters of messages are read for one transaction: a text may have 64 KiB."""

READS = 8
"""How many reads of the journals make one transaction at most, if each brings a full batch."""


class Transaction:
    """Items that one transaction writes, in the order in which they were read."""

    def __init__(self) -> None:
        self.items: list[WorkItem] = []
        self.is_closed = False
        """Whether it may be on its way to SQL: nothing is added any more."""
        self._rows = 0
        self._known: set[Spans] = set()

    def add(self, item: WorkItem) -> bool:
        """Add an item; return False if its rows are too many for this transaction. The first item always fits."""
        if self.is_closed:
            return False
        rows = self._rows + self._rows_of(item)
        if rows > MOST_ROWS and self.items:
            return False
        self.items.append(item)
        self._rows = rows
        return True

    def _rows_of(self, item: WorkItem) -> int:
        event = item.entry.event
        if isinstance(event, Sent):
            return event.messages
        if isinstance(event, Acked | Delivered):
            return self._rows_of_moves(event)
        if isinstance(event, BookmarksSet):
            return sum(len(each.uids) for each in event.bookmarks)
        return 1 + item.first_members if isinstance(event, Created) else 1

    def _rows_of_moves(self, event: Acked | Delivered) -> int:
        """Return the most rows that moves make. Offsets of spans that an earlier entry moved have rows already."""
        known, rows = self._known, 0
        for joined, _, _, uids in event.moves:
            before = len(known)
            known.add((event.gid, joined, uids))
            rows += 1 + len(uids) * (len(known) - before)
        return rows


class Hand:
    """The entries of one worker. Raises the client's errors and DatabaseUnavailable; after them, `drop` or `keep`."""

    def __init__(self, client: RedisClient, database: Database, journal: Journal, batch_size: int) -> None:
        self._client = client
        self._database = database
        self._journal = journal
        self._batch_size = batch_size
        self._transactions: deque[Transaction] = deque()
        self._entries: set[tuple[int, str]] = set()
        self._have_data = True
        self.has_more = False
        """Whether the journals had more at the last look than was taken."""

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, *, block_ms: int | None = None) -> None:
        """Read entries with their messages, waiting for the first; and if there are many, as many as a transaction has.

        Wait up to `block_ms`, or as the settings say.
        """
        text = 0
        for number in range(READS):
            items = self._read(block_ms if number == 0 else 0)
            is_full = self._add(items)  # before anything can fail: what was read is in hand
            fetch(self._client, self._database, items)
            text += sum(len(row.content) for item in items for row, _ in item.messages)
            if is_full or text > MOST_TEXT or not self.has_more:
                return

    def _read(self, block_ms: int | None) -> list[WorkItem]:
        """Read once; return what is not in hand: after a claim, entries that are in hand are read again."""
        entries = self._journal.read(block_ms=block_ms)
        self.has_more = len(entries) >= self._batch_size
        new = [entry for entry in entries if (entry.partition, entry.id) not in self._entries]
        counts = member_counts(self._client, new)
        items = [WorkItem(entry) for entry in new]
        for item in items if counts else ():
            item.first_members = counts.get(item.gid or "", 0)
        return items

    def first(self) -> Sequence[WorkItem]:
        """Return the items of the oldest transaction, which stays in hand."""
        if not self._transactions:
            return ()
        if not self._have_data:
            for transaction in self._transactions:
                fetch(self._client, self._database, transaction.items)
            self._have_data = True
        oldest = self._transactions[0]
        oldest.is_closed = True
        return oldest.items

    @property
    def wants_more(self) -> bool:
        """Whether there is more to read, and nothing to store after the oldest transaction."""
        return self.has_more and len(self._transactions) == 1

    def remove_first(self) -> None:
        """Forget the oldest transaction: it is stored."""
        if self._transactions:
            done = self._transactions.popleft().items
            self._entries.difference_update((item.entry.partition, item.entry.id) for item in done)

    def keep(self) -> None:
        """Keep the entries, not their messages: these may be others by the time they can be stored."""
        self._have_data = False
        for transaction in self._transactions:
            transaction.items = [item.anew() for item in transaction.items]

    def drop(self) -> None:
        """Forget all: it is read again."""
        self._transactions.clear()
        self._entries.clear()
        self._have_data, self.has_more = True, False

    def _add(self, items: Sequence[WorkItem]) -> bool:
        """Add items to the newest transaction; return whether it is full, and another one was begun."""
        begun = 0
        for item in items:
            self._entries.add((item.entry.partition, item.entry.id))
            if not self._transactions or not self._transactions[-1].add(item):
                self._transactions.append(Transaction())
                self._transactions[-1].add(item)
                begun += 1
        return begun > 1
