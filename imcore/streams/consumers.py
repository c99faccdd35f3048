"""The kinds of worker on the journals: how far each is behind, and which processes are silent. Only reads.

The server's own figure (XINFO GROUPS, `lag`) is unreliable: it relies on the number of entries that a consumer group
has read, which a failover may leave wrong for good. Then Redis 7.0 reports a backlog that does not exist.

A worker claims the pending entries of a dead process as soon as its lease has ended. A process is silent if nobody
claims its entries: no worker runs, or the server's clock was put back and the lease ends days from now.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from imcore.settings import Settings
from imcore.streams import keys
from imcore.streams.client import RedisClient
from imcore.util.batches import grouped

Query = Callable[[Sequence[tuple[str | int, ...]]], list[Any]]
"""Returns the raw answers of plain commands that only read."""

KINDS = ("persist", "receipts")
"""The kinds of worker that read the journals."""

PAGE = 100
"""The entries that are read at once to count them. One entry may name a thousand users."""

MOST_COUNTED = 1000
"""The entries of one journal that are counted for one kind of worker. Above it the backlog may be inexact."""

SLOTS = 16
"""The leases of a kind that are looked at at once."""

_IS_GONE = -2
"""The answer of PTTL for a missing key: a lease may end between the two commands."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """The backlog of one kind of worker, over all partitions.

    `backlog` counts the journal entries that are not done, `pending` those of them that a process has read. Above
    MOST_COUNTED in a partition it is the server's figure if that is possible, else the length of the journal. `lag_ms`
    is the age of the oldest of them by the server's clock.
    """

    worker: str
    backlog: int
    pending: int
    lag_ms: int


def worker_stats(client: RedisClient) -> tuple[WorkerStats, ...]:
    """Return the backlog of each kind of worker that has begun."""
    by_worker = grouped((stats.worker, stats) for _, stats in partition_stats(client, MOST_COUNTED))
    return tuple(
        WorkerStats(
            worker=worker,
            backlog=sum(stats.backlog for stats in own),
            pending=sum(stats.pending for stats in own),
            lag_ms=max(stats.lag_ms for stats in own),
        )
        for worker, own in sorted(by_worker.items())
    )


def partition_stats(client: RedisClient, most_counted: int) -> list[tuple[int, WorkerStats]]:
    """Return the backlog of each kind of worker in each partition where it has begun, in few round trips.

    At most about `most_counted` entries of each are counted.
    """
    backlogs = [_Backlog(partition, journal, group) for partition, journal, group in _groups(client)]
    reading = backlogs
    while reading:
        pages = client.query_many([each.next_page() for each in reading])
        for backlog, page in zip(reading, pages, strict=True):
            backlog.receive(page)
        reading = [each for each in reading if each.has_more and each.count < most_counted]
    _add_pending(client, backlogs)
    clock = _clock(client)
    return [(each.partition, each.stats(client, clock)) for each in backlogs]


def _add_pending(client: RedisClient, backlogs: "Iterable[_Backlog]") -> None:
    """Give each backlog the oldest entry that a process has in hand."""
    pending = [each for each in backlogs if each.pending]
    summaries = client.query_many([each.pending_summary() for each in pending])
    for backlog, summary in zip(pending, summaries, strict=True):
        backlog.receive_pending(summary)


def _clock(client: RedisClient) -> Callable[[str], int]:
    """Return a function for the time of the server that has a journal; a single server is asked once."""
    times: dict[str, int] = {}

    def time_ms(journal: str) -> int:
        server = journal if client.is_cluster else ""
        if server not in times:
            times[server] = client.time_ms(journal)
        return times[server]

    return time_ms


def _groups(client: RedisClient) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each journal that has begun with what the server says of each consumer group."""
    journals = client.space.journals()
    begun = client.query_many([("EXISTS", journal) for journal in journals])
    known = [(partition, journal) for partition, journal in enumerate(journals) if begun[partition]]
    answers = client.query_many([("XINFO", "GROUPS", journal) for _, journal in known])
    for (partition, journal), groups in zip(known, answers, strict=True):
        for group in groups:
            yield partition, journal, _fields(group)


def _fields(answer: Any) -> dict[str, Any]:
    """Return the fields of a raw answer, which protocol 3 makes a map and protocol 2 a flat list."""
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


class _Backlog:
    """The entries of one journal that one kind of worker has not done. This class counts them."""

    def __init__(self, partition: int, journal: str, group: dict[str, Any]) -> None:
        self.partition = partition
        self.pending: int = group["pending"]
        self.count = 0
        """The entries after the last one that the kind has read, as far as they were counted."""
        self.has_more = True
        self._journal = journal
        self._worker: str = group["name"].decode()
        self._last: str = group["last-delivered-id"].decode()
        self._lag: int | None = group["lag"]
        self._oldest: list[bytes] = []

    def next_page(self) -> tuple[str | int, ...]:
        return "XRANGE", self._journal, f"({self._last}", "+", "COUNT", PAGE

    def receive(self, page: Sequence[Any]) -> None:
        self.count += len(page)
        self._oldest = self._oldest or [entry_id for entry_id, _ in page[:1]]
        self.has_more = len(page) == PAGE
        if page:
            self._last = page[-1][0].decode()

    def pending_summary(self) -> tuple[str, ...]:
        return "XPENDING", self._journal, self._worker

    def receive_pending(self, summary: Sequence[Any]) -> None:
        self._oldest += [lowest for lowest in summary[1:2] if lowest]  # None if all were done just now

    def stats(self, client: RedisClient, clock: Callable[[str], int]) -> WorkerStats:
        unread = self._unread(client) if self.has_more else self.count
        times = [int(entry_id.partition(b"-")[0]) for entry_id in self._oldest]
        age_ms = clock(self._journal) - min(times) if times else 0
        return WorkerStats(self._worker, unread + self.pending, self.pending, max(0, age_ms))

    def _unread(self, client: RedisClient) -> int:
        """Return the server's figure if it is possible, else the length of the journal."""
        length: int = client.query("XLEN", self._journal)
        return self._lag if self._lag is not None and self.count <= self._lag <= length else length


@dataclass(frozen=True, slots=True)
class SilentHolder:
    """A silent process with pending entries. `silent_ms` is None if its lease ends later than any lease can."""

    worker: str
    process: str
    entries: int
    silent_ms: int | None


def silent_holders(client: RedisClient, settings: Settings) -> tuple[SilentHolder, ...]:
    """Return the processes with pending entries that have been silent for more than two leases (IM_LEASE_MS).

    On a cluster a process has a name in each partition; those of one name are counted as one.
    """
    pending = _pending(client)
    leases = _leases(client.query_many, (_lease_of(name, p) for name, p in pending))
    silent: dict[str, list[tuple[int, int | None]]] = {}
    for ((name, _), (entries, idle_ms)), (lives, is_too_long) in zip(pending.items(), leases, strict=True):
        if is_too_long or (not lives and idle_ms > 2 * settings.lease_ms):
            silent.setdefault(name, []).append((entries, None if is_too_long else idle_ms))
    return tuple(_silent_holder(name, silent[name]) for name in sorted(silent))


def _silent_holder(name: str, found: Sequence[tuple[int, int | None]]) -> SilentHolder:
    idle_ms = [idle_ms for _, idle_ms in found if idle_ms is not None]
    entries = sum(entries for entries, _ in found)
    return SilentHolder(name.rpartition("-")[0], name, entries, min(idle_ms) if len(idle_ms) == len(found) else None)


def lives(client: RedisClient, kind: str, slots: Iterable[int]) -> bool:
    """Return whether a process of a kind holds one of these leases, and may have renewed it."""
    return any(alive for alive, _ in _leases(client.query_many, [keys.lease(kind, slot) for slot in slots]))


def alive_in(client: RedisClient, kind: str) -> dict[int, int]:
    """Return by partition how many processes of a kind of worker serve it: a process holds a lease of each."""
    partitions = range(client.space.partitions)
    if client.is_cluster:
        return {p: count_alive(client.query_many, kind, p) for p in partitions}
    return dict.fromkeys(partitions, count_alive(client.query_many, kind))


def count_alive(query: Query, kind: str, partition: int | None = None) -> int:
    """Return how many processes of a kind hold a lease and may have renewed it. The server needs no functions."""
    alive = 0
    for first in count(1, SLOTS):
        slots = [keys.lease(kind, first + n, partition) for n in range(SLOTS)]
        living = sum(lives for lives, _ in _leases(query, slots))
        alive += living
        if not living:  # a process takes the lowest free slot
            break
    return alive


def missing_kinds(client: RedisClient) -> list[str]:
    """Return the kinds of worker of which no process serves some partition."""
    return [kind for kind in KINDS if not min(alive_in(client, kind).values())]


def _pending(client: RedisClient) -> dict[tuple[str, int | None], tuple[int, int]]:
    """Return by holder of a lease the number of its pending entries, and the time since its last command in ms.

    A holder is a consumer's name, and its partition where each has leases of its own.
    """
    pending: dict[tuple[str, int | None], tuple[int, int]] = {}
    for partition, journal, group in _groups(client):
        consumers = client.query("XINFO CONSUMERS", journal, group["name"].decode()) if group["pending"] else ()
        for consumer in consumers:
            name, idle_ms = consumer["name"].decode(), consumer["idle"]
            if consumer["pending"]:
                holder = name, partition if client.is_cluster else None
                entries, shortest_ms = pending.get(holder, (0, idle_ms))
                pending[holder] = entries + consumer["pending"], min(idle_ms, shortest_ms)
    return pending


def _lease_of(consumer: str, partition: int | None) -> str:
    kind, _, slot = consumer.rpartition("-")
    return keys.lease(kind, int(slot) if slot.isdecimal() else 0, partition)


def _leases(query: Query, leases: Iterable[str]) -> list[tuple[bool, bool]]:
    """Return for each lease whether its holder may live, and whether it ends later than a new lease would."""
    answers = query([(command, lease) for lease in leases for command in ("GET", "PTTL")])
    return [_lease(value, left_ms) for value, left_ms in zip(answers[::2], answers[1::2], strict=True)]


def _lease(value: bytes | None, left_ms: int) -> tuple[bool, bool]:
    length = (value or b"").rpartition(b" ")[2]
    if not length.isdigit() or left_ms == _IS_GONE:
        return False, False
    is_too_long = not 0 <= left_ms <= int(length)
    return not is_too_long, is_too_long
