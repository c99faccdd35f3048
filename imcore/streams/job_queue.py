"""The queue of rq on the jobs' Redis: its figures, and the leases that show which workers `jobs` live.

rq's own keys do not show that soon: one outlives a worker that was killed by more than a minute, or, while a job ran,
by hours. The jobs' Redis may be another server, without the functions of imcore, so a lease there is plain commands.
"""

import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any

from redis import Redis

from imcore.settings import Settings
from imcore.streams import keys
from imcore.streams.client import open_client
from imcore.streams.consumers import Query, count_alive
from imcore.streams.redis_errors import driver_errors
from imcore.streams.rounds import Client

KIND = "jobs"

TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class JobQueue:
    """The queue of the worker `jobs` at about one moment. `waiting_ms` is the age of the oldest queued job."""

    alive: int
    queued: int
    running: int
    failed: int
    waiting_ms: int


def open_jobs(settings: Settings) -> Client:
    """Return a client of the jobs' Redis. Raise ConfigurationError for a wrong URL or option. Nothing is sent yet."""
    return open_client(settings.jobs_redis_url, timeout_s=TIMEOUT_S, block_ms=settings.block_ms)


def job_queue(settings: Settings) -> JobQueue:
    """Return the figures of the queue. Only reads. Raise ConfigurationError, RedisUnavailable and others of Redis.

    rq's own functions would delete old jobs.
    """
    with (
        closing(open_jobs(settings)) as driver,
        driver_errors(settings.jobs_redis_url, variable=settings.jobs_variable),
    ):
        query = partial(_query, driver)
        queued, running, failed, oldest = query(
            [
                ("LLEN", keys.RQ_QUEUED),
                ("ZCARD", keys.RQ_RUNNING),
                ("ZCARD", keys.RQ_FAILED),
                ("LINDEX", keys.RQ_QUEUED, 0),
            ]
        )
        return JobQueue(count_alive(query, KIND), queued, running, failed, _waiting_ms(query, oldest))


def _query(driver: Client, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
    pipeline: Any = driver.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    answers: list[Any] = pipeline.execute()
    return answers


def _waiting_ms(query: Query, job_id: bytes | None) -> int:
    """Return the age of a queued job; 0 without one, or if it says no time."""
    if not job_id:
        return 0
    enqueued_at, (seconds, micros) = query([("HGET", keys.rq_job(job_id.decode()), "enqueued_at"), ("TIME",)])
    try:
        enqueued_ms = int(datetime.fromisoformat((enqueued_at or b"").decode()).timestamp() * 1000)
    except ValueError:
        return 0
    return max(0, int(seconds) * 1000 + int(micros) // 1000 - enqueued_ms)


class JobsLease:
    """The lease of a process on the lowest free slot: as `imcore.streams.leases.Lease`, without functions."""

    def __init__(self, connection: "Redis", lease_ms: int) -> None:
        self._redis: Any = connection
        self._lease_ms = lease_ms
        self._value = f"{uuid.uuid4().hex} {lease_ms}".encode()
        self._slot = 0

    def renew(self) -> None:
        """Take the lease, or renew it; take another one if it has ended meanwhile. Raise what the driver raises."""
        if self._slot and self._is_held():
            self._redis.pexpire(keys.lease(KIND, self._slot), self._lease_ms)
        else:
            self._slot = next(slot for slot in count(1) if self._takes(slot))

    def release(self) -> None:
        if self._slot and self._is_held():
            self._redis.delete(keys.lease(KIND, self._slot))
        self._slot = 0

    def _is_held(self) -> bool:
        held: bool = self._redis.get(keys.lease(KIND, self._slot)) == self._value
        return held

    def _takes(self, slot: int) -> bool:
        return bool(self._redis.set(keys.lease(KIND, slot), self._value, nx=True, px=self._lease_ms))
