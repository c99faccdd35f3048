"""How far the workers are behind on the journals. Only reads."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imcore.chat import Chat
from imcore.streams.keys import Keyspace
from imcore.streams.link import CHUNK, Link


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """How far one kind of worker is behind, over all partitions.

    `backlog` counts the journal entries that it has not done; `pending` are those of them that some process has in
    hand. `lag_ms` is the age of the oldest of them by this machine's clock; 0 when nothing waits.
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
    oldest_ms: int | None


def worker_stats(chat: Chat) -> tuple[WorkerStats, ...]:
    """Return how far each kind of worker is behind, of those that have begun."""
    return tuple(_workers(chat.link, chat.link.space))


def _workers(link: Link, space: Keyspace) -> Iterator[WorkerStats]:
    behind = [_behind(link, journal, info) for journal in _journals(link, space) for info in _groups(link, journal)]
    now_ms = time.time_ns() // 1_000_000
    for worker in sorted({each.worker for each in behind}):
        mine = [each for each in behind if each.worker == worker]
        oldest_ms = min((each.oldest_ms for each in mine if each.oldest_ms is not None), default=now_ms)
        yield WorkerStats(
            worker=worker,
            backlog=sum(each.backlog for each in mine),
            pending=sum(each.pending for each in mine),
            lag_ms=max(0, now_ms - oldest_ms),
        )


def _journals(link: Link, space: Keyspace) -> list[str]:
    journals = space.journals()
    there = link.read_many([("EXISTS", journal) for journal in journals])
    return [journal for journal, exists in zip(journals, there, strict=True) if exists]


def _groups(link: Link, journal: str) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = link.read("XINFO GROUPS", journal)
    return groups


def _behind(link: Link, journal: str, info: dict[str, Any]) -> _Behind:
    worker, pending, read_up_to = info["name"].decode(), info["pending"], info["last-delivered-id"].decode()
    unread = link.read("XRANGE", journal, f"({read_up_to}", "+", "COUNT", 1)
    oldest = [entry_id for entry_id, _ in unread]
    if pending and (lowest := link.read("XPENDING", journal, worker)["min"]):  # none, if all was done just now
        oldest.append(lowest)
    # Redis knows no lag any more once an entry was deleted out of the middle.
    lag = _count_after(link, journal, read_up_to) if info["lag"] is None else info["lag"]
    return _Behind(worker, lag + pending, pending, min((_ms(each) for each in oldest), default=None))


def _count_after(link: Link, journal: str, last: str) -> int:
    count = 0
    while page := link.read("XRANGE", journal, f"({last}", "+", "COUNT", CHUNK):
        count += len(page)
        last = page[-1][0].decode()
    return count


def _ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
