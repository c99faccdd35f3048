"""How far the workers are behind on the journals. Only reads.

The server's own figure (XINFO GROUPS, `lag`) is unreliable: it relies on the number of entries that a consumer group
has read, which a failover may leave wrong for good. Then Redis 7.0 reports a backlog that does not exist.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imcore.streams.client import RedisClient
from imcore.system import System

PAGE = 100
"""The entries that are read at once to count them. One entry may name a thousand users."""

MOST_COUNTED = 1000
"""The entries of one journal that are counted for one kind of worker. Above it the backlog may be inexact."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """How far one kind of worker is behind, over all partitions.

    `backlog` counts the journal entries that are not done; `pending` counts those of them that a process has read. The
    backlog of a partition is exact up to MOST_COUNTED. Above, it is the server's figure if that is possible, else the
    length of the journal. `lag_ms` is the age of the oldest of them by the server's clock, which has named them; 0
    without a backlog.
    """

    worker: str
    backlog: int
    pending: int
    lag_ms: int


def worker_stats(system: System) -> tuple[WorkerStats, ...]:
    """Return the backlog of each kind of worker that has begun."""
    client = system.client
    lags = [_lag(client, journal, group) for journal in begun_journals(client) for group in groups_of(client, journal)]
    return tuple(_sums(lags))


def begun_journals(client: RedisClient) -> list[str]:
    """Return the journals that exist."""
    journals = client.space.journals()
    exists = client.query_many([("EXISTS", journal) for journal in journals])
    return [journal for journal, is_there in zip(journals, exists, strict=True) if is_there]


def groups_of(client: RedisClient, journal: str) -> list[dict[str, Any]]:
    """Return XINFO GROUPS of a journal."""
    groups: list[dict[str, Any]] = client.query("XINFO GROUPS", journal)
    return groups


def _sums(lags: list[WorkerStats]) -> Iterator[WorkerStats]:
    for worker in sorted({lag.worker for lag in lags}):
        own = [lag for lag in lags if lag.worker == worker]
        yield WorkerStats(
            worker=worker,
            backlog=sum(lag.backlog for lag in own),
            pending=sum(lag.pending for lag in own),
            lag_ms=max(lag.lag_ms for lag in own),
        )


def _lag(client: RedisClient, journal: str, group: dict[str, Any]) -> WorkerStats:
    """Return the lag of one consumer group on one journal."""
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
