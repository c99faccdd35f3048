"""The kinds of worker on the journals: how far each is behind, and which processes are silent. Only reads.

The server's own figure (XINFO GROUPS, `lag`) is unreliable: it relies on the number of entries that a consumer group
has read, which a failover may leave wrong for good. Then Redis 7.0 reports a backlog that does not exist.

A worker claims the pending entries of a dead process as soon as its lease has ended. A process is silent if nobody
claims its entries: no worker runs, or the server's clock was put back and the lease ends days from now.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any

from imcore.settings import Settings
from imcore.streams import keys
from imcore.streams.client import RedisClient
from imcore.util.batches import grouped

PAGE = 100
"""The entries that are read at once to count them. One entry may name a thousand users."""

MOST_COUNTED = 1000
"""The entries of one journal that are counted for one kind of worker. Above it the backlog may be inexact."""

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
    lags = (_lag(client, journal, group) for journal, group in _groups(client))
    by_worker = grouped((lag.worker, lag) for lag in lags)
    return tuple(
        WorkerStats(
            worker=worker,
            backlog=sum(lag.backlog for lag in own),
            pending=sum(lag.pending for lag in own),
            lag_ms=max(lag.lag_ms for lag in own),
        )
        for worker, own in sorted(by_worker.items())
    )


def _groups(client: RedisClient) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each journal that has begun with what the server says of each consumer group."""
    journals = client.space.journals()
    for journal in compress(journals, client.query_many([("EXISTS", journal) for journal in journals])):
        for group in client.query("XINFO GROUPS", journal):
            yield journal, group


def _lag(client: RedisClient, journal: str, group: dict[str, Any]) -> WorkerStats:
    worker, pending = group["name"].decode(), group["pending"]
    unread, oldest = _unread(client, journal, group["last-delivered-id"].decode(), group["lag"])
    if pending and (lowest := client.query("XPENDING", journal, worker)["min"]):  # None if all were done just now
        oldest.append(lowest)
    age_ms = client.time_ms(journal) - min(int(entry_id.partition(b"-")[0]) for entry_id in oldest) if oldest else 0
    return WorkerStats(worker, unread + pending, pending, max(0, age_ms))


def _unread(client: RedisClient, journal: str, last: str, lag: int | None) -> tuple[int, list[bytes]]:
    """Return the number of entries after `last`, and the id of the first one, if any. `lag` is the server's figure."""
    count = 0
    first: list[bytes] = []
    while count < MOST_COUNTED:
        page = client.query("XRANGE", journal, f"({last}", "+", "COUNT", PAGE)
        count += len(page)
        first = first or [entry_id for entry_id, _ in page[:1]]
        if len(page) < PAGE:
            return count, first
        last = page[-1][0].decode()
    length = client.query("XLEN", journal)
    return (lag if lag is not None and count <= lag <= length else length), first


@dataclass(frozen=True, slots=True)
class SilentHolder:
    """A silent process with pending entries. `silent_ms` is None if its lease ends later than any lease can."""

    worker: str
    process: str
    entries: int
    silent_ms: int | None


def silent_holders(client: RedisClient, settings: Settings) -> tuple[SilentHolder, ...]:
    """Return the processes with pending entries that have been silent for more than two leases (IM_LEASE_MS)."""
    pending = _pending(client)
    leases = dict(zip(pending, _leases(client, map(_lease_of, pending)), strict=True))
    holders = []
    for name, (entries, idle_ms) in sorted(pending.items()):
        lives, is_too_long = leases[name]
        if is_too_long or (not lives and idle_ms > 2 * settings.lease_ms):
            kind = name.rpartition("-")[0]
            holders.append(SilentHolder(kind, name, entries, None if is_too_long else idle_ms))
    return tuple(holders)


def lives(client: RedisClient, kind: str, slots: Iterable[int]) -> bool:
    """Return whether a process of a kind holds one of these leases, and may have renewed it."""
    return any(alive for alive, _ in _leases(client, [keys.lease(kind, slot) for slot in slots]))


def _pending(client: RedisClient) -> dict[str, tuple[int, int]]:
    """Return by consumer the number of its pending entries, and the time since its last command in ms."""
    pending: dict[str, tuple[int, int]] = {}
    for journal, group in _groups(client):
        consumers = client.query("XINFO CONSUMERS", journal, group["name"].decode()) if group["pending"] else ()
        for consumer in consumers:
            name, idle_ms = consumer["name"].decode(), consumer["idle"]
            if consumer["pending"]:
                entries, shortest_ms = pending.get(name, (0, idle_ms))
                pending[name] = entries + consumer["pending"], min(idle_ms, shortest_ms)
    return pending


def _lease_of(consumer: str) -> str:
    kind, _, slot = consumer.rpartition("-")
    return keys.lease(kind, int(slot) if slot.isdecimal() else 0)


def _leases(client: RedisClient, leases: Iterable[str]) -> list[tuple[bool, bool]]:
    """Return for each lease whether its holder may live, and whether it ends later than a new lease would."""
    answers = client.query_many([(command, lease) for lease in leases for command in ("GET", "PTTL")])
    return [_lease(value, left_ms) for value, left_ms in zip(answers[::2], answers[1::2], strict=True)]


def _lease(value: bytes | None, left_ms: int) -> tuple[bool, bool]:
    length = (value or b"").rpartition(b" ")[2]
    if not length.isdigit() or left_ms == _IS_GONE:
        return False, False
    is_too_long = not 0 <= left_ms <= int(length)
    return not is_too_long, is_too_long
