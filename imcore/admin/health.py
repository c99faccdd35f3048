"""Whether Redis, SQL, each kind of worker and the dead letters are well, within seconds even if something hangs.

Not well is what somebody has to look after: what nothing here mends by itself. Only reads.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Thread

from imcore.admin.acl import READER
from imcore.admin.stats import rebuild_state
from imcore.errors import ImError, RedisRefuses
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import urls
from imcore.streams.client import RedisClient, open_client
from imcore.streams.consumers import KINDS, WorkerStats, alive_in, worker_stats
from imcore.streams.job_queue import job_queue
from imcore.streams.server_info import user_of

LONGEST_S = 4.0
"""The longest time that an answer takes."""

MAX_AGE_S = 60.0
"""A backlog that is older is not well, unless the caller says otherwise."""

_TIMEOUT_S = 2.0

REDIS, SQL, JOBS, DEAD_LETTERS = "redis", "sql", "jobs", "dead_letters"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether one thing is well, and in one line why, or what to do."""

    what: str
    ok: bool
    detail: str


Look = Callable[[], Iterator[Health]]
"""Yields the state of some things. It may raise an ImError instead, or hang."""


def health(settings: Settings, *, max_age_s: float = MAX_AGE_S) -> list[Health]:
    """Return the state of `redis`, `sql`, `persist`, `receipts`, `jobs` and `dead_letters`, in this order.

    All are looked at at once, for LONGEST_S at most. A backlog whose oldest entry is older than `max_age_s` is not
    well. Threads that hang are left behind: end the process soon.
    """
    probes = [
        _Probe((REDIS, *KINDS, DEAD_LETTERS), lambda: _of_redis(settings, max_age_s)),
        _Probe((SQL,), lambda: _of_sql(settings)),
        _Probe((JOBS,), lambda: _of_jobs(settings, max_age_s)),
    ]
    until = time.monotonic() + LONGEST_S
    for probe in probes:
        probe.start()
    found = {each.what: each for probe in probes for each in probe.found_by(until)}
    return [found[what] for what in (REDIS, SQL, *KINDS, JOBS, DEAD_LETTERS)]


class _Probe(Thread):
    """Looks at some things in a thread of its own."""

    def __init__(self, things: Sequence[str], look: Look) -> None:
        super().__init__(name=f"health of {things[0]}", daemon=True)
        self._things = things
        self._look = look
        self._found: list[Health] = []
        self._error = f"no answer within {LONGEST_S:g} s"

    def run(self) -> None:
        try:
            for each in self._look():
                self._found.append(each)
        except ImError as error:
            self._error = str(error)

    def found_by(self, until: float) -> list[Health]:
        """Return the state of all things at this time (monotonic clock) or earlier, if all are known."""
        self.join(max(0.0, until - time.monotonic()))
        found, error = self._found.copy(), self._error
        missing = self._things[len(found) :]
        for what in missing:
            found.append(Health(what, False, error if what == missing[0] else f"not known: see {missing[0]}"))
        return found


def _of_redis(settings: Settings, max_age_s: float) -> Iterator[Health]:
    driver = open_client(settings.redis_url, timeout_s=_TIMEOUT_S, block_ms=settings.block_ms)
    with closing(RedisClient(driver, partitions=settings.partitions, url=settings.redis_url)) as client:
        yield _redis(client)
        backlogs = {stats.worker: stats for stats in worker_stats(client)}
        for kind in KINDS:
            yield _worker(kind, min(alive_in(client, kind).values()), backlogs.get(kind), max_age_s)
        yield _dead_letters(client)


def _redis(client: RedisClient) -> Health:
    client.require_functions(writes=False)
    _ = client.space  # the partitions that the settings ask for are those of the data
    try:
        if user_of(client.driver) != READER.user:  # who may not ask that; the server would log it
            client.require_writes()
    except RedisRefuses as error:
        return Health(REDIS, False, str(error))
    rebuild = rebuild_state(client)
    if rebuild == "broken off":
        return Health(
            REDIS, False, f"{client.address}: a rebuild was broken off, and nothing is stored: run im rebuild"
        )
    return Health(REDIS, True, client.address + f": a rebuild is {rebuild}" * bool(rebuild))


def _worker(kind: str, alive: int, stats: WorkerStats | None, max_age_s: float) -> Health:
    entries, age_s = (stats.backlog, stats.lag_ms / 1000) if stats else (0, 0.0)
    is_old = age_s > max_age_s
    return Health(
        kind, bool(alive) and not is_old, f"{_alive(kind, alive)}; {_backlog('entry', entries, age_s, is_old)}"
    )


def _alive(kind: str, alive: int) -> str:
    return f"{alive} alive" if alive else f"none alive: run im worker {kind}, or im up"


def _backlog(noun: str, count: int, age_s: float, is_old: bool) -> str:
    if not count:
        return "nothing waits"
    nouns = noun if count == 1 else f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    wait = "waits" if count == 1 else "wait"
    return f"{count} {nouns} {wait}, the oldest for {age_s:.1f} s" + ": too long" * is_old


def _dead_letters(client: RedisClient) -> Health:
    space = client.space
    dead: int = sum(client.query_many([("XLEN", space.dead_letters(p)) for p in range(space.partitions)]))
    return Health(DEAD_LETTERS, not dead, f"{dead}: see im dead list; requeue or drop them" if dead else "none")


def _of_sql(settings: Settings) -> Iterator[Health]:
    with Database.connect(settings.database_url, data_dir=settings.data_dir) as database:
        database.check_version()
        yield Health(SQL, True, database.address)


def _of_jobs(settings: Settings, max_age_s: float) -> Iterator[Health]:
    if urls.is_cluster(settings.jobs_redis_url):
        yield Health(JOBS, False, "rq does not run on Redis Cluster: set IM_JOBS_REDIS_URL to a Redis that is none")
        return
    queue = job_queue(settings)
    age_s = queue.waiting_ms / 1000
    is_old = age_s > max_age_s and not queue.running  # one that runs may take hours
    failed = f"; {queue.failed} failed lately" * bool(queue.failed)
    detail = f"{_alive(JOBS, queue.alive)}; {_backlog('job', queue.queued, age_s, is_old)}{failed}"
    yield Health(JOBS, bool(queue.alive) and not is_old, detail)
