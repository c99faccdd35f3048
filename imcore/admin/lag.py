"""How far the workers are behind on the journals. Only reads.

The server's own count (XINFO GROUPS, `lag`) is not relied on. It follows from how many entries a consumer group is said
to have read, which a failover may leave wrong, for good: Redis 7.0 then tells of a backlog where nothing waits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imcore.streams.client import RedisClient
from imcore.streams.keys import Keyspace
from imcore.system import System

PAGE = 100
"""How many entries are read at once to be counted: one may name a thousand users."""

MOST_COUNTED = 1000
"""How many entries of one journal are counted for one kind of worker. What is beyond need not be exact."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """How far one kind of worker is behind, over all partitions.

    `backlog` counts the journal entries that it has not done; `pending` are those of them that some process has in
    hand. The backlog of a partition is exact up to MOST_COUNTED; beyond it is what the server says, if that can be, or
    else all that the journal holds. `lag_ms` is the age of the oldest of them by the server's clock, which has named
    them; 0 when nothing waits.
    """

    worker: str
    backlog: int
    pending: int
    lag_ms: int


@dataclass(slots=True)
class _Behind:
    """One consumer group on one journal."""

    worker: str
    backlog: int
    pending: int
    age_ms: int


def worker_stats(system: System) -> tuple[WorkerStats, ...]:
    """Return how far each kind of worker is behind, of those that have begun."""
    return tuple(_workers(system.client, system.client.space))


def _workers(client: RedisClient, space: Keyspace) -> Iterator[WorkerStats]:
    behind = [
        _behind(client, journal, info) for journal in _journals(client, space) for info in _groups(client, journal)
    ]
    for worker in sorted({each.worker for each in behind}):
        mine = [each for each in behind if each.worker == worker]
        yield WorkerStats(
            worker=worker,
            backlog=sum(each.backlog for each in mine),
            pending=sum(each.pending for each in mine),
            lag_ms=max(each.age_ms for each in mine),
        )


def _journals(client: RedisClient, space: Keyspace) -> list[str]:
    journals = space.journals()
    there = client.query_many([("EXISTS", journal) for journal in journals])
    return [journal for journal, exists in zip(journals, there, strict=True) if exists]


def _groups(client: RedisClient, journal: str) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = client.query("XINFO GROUPS", journal)
    return groups


def _behind(client: RedisClient, journal: str, info: dict[str, Any]) -> _Behind:
    worker, pending, read_up_to = info["name"].decode(), info["pending"], info["last-delivered-id"].decode()
    unread, oldest = _unread(client, journal, read_up_to, info["lag"])
    if pending and (lowest := client.query("XPENDING", journal, worker)["min"]):  # none, if all was done just now
        oldest.append(lowest)
    return _Behind(worker, unread + pending, pending, _age_ms(client, journal, oldest))


def _unread(client: RedisClient, journal: str, last: str, lag: int | None) -> tuple[int, list[bytes]]:
    """Return how many entries come after one, and the first of them if there is one. `lag`: what the server says."""
    count = 0
    first: list[bytes] = []
    while count < MOST_COUNTED:
        page = client.query("XRANGE", journal, f"({last}", "+", "COUNT", PAGE)
        count += len(page)
        first = first or [entry_id for entry_id, _ in page[:1]]
        if len(page) < PAGE:
            return count, first
        last = page[-1][0].decode()
    held = client.query("XLEN", journal)
    return (lag if lag is not None and count <= lag <= held else held), first


def _age_ms(client: RedisClient, journal: str, ids: Sequence[bytes]) -> int:
    if not ids:
        return 0
    return max(0, client.time_ms(journal) - min(int(entry_id.partition(b"-")[0]) for entry_id in ids))
