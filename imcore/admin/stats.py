"""Figures for an operator: sizes, online users, the backlog of the workers. Only reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imcore.admin.server_settings import ServerSettings, all_servers
from imcore.errors import ConfigurationError, ImError
from imcore.model.values import Group
from imcore.operations.groups import groups as all_groups
from imcore.operations.performer import stream_from_redis
from imcore.settings import Settings
from imcore.streams import keys, urls
from imcore.streams.calls import journal_calls, session_calls
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.consumers import SilentHolder, WorkerStats, lives, silent_holders, worker_stats
from imcore.streams.job_queue import job_queue, open_jobs
from imcore.system import System

LATELY_S = 10
"""Rates are averages over this time."""

_WEIGHED = 100

_MOST_MEMBERS = 2000
"""Only streams of groups with fewer members are measured: it takes the server 0.1 us per member."""


@dataclass(frozen=True, slots=True)
class StreamStats:
    """All streams of a kind. `bytes` is their approximate memory in Redis, None if that is unknown."""

    kind: str
    streams: int
    entries: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class JobStats:
    """The numbers of jobs of the worker `jobs`."""

    queued: int
    running: int
    failed: int


@dataclass(frozen=True, slots=True)
class StormStats:
    """Acks, receipts and digests that the worker `receipts` has handled; rates of the last LATELY_S."""

    acks: int
    receipts: int
    digests: int
    receipts_per_digest: float | None
    messages_per_s: float
    acks_per_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """The whole system at about one moment. `journal` counts all entries in the journals, done or not.

    `jobs` is None if their Redis does not answer, or refuses. `unseen` says why a server is missing in `servers`.
    """

    groups: int
    members: int
    messages: int
    online: int
    journal: int
    dead_letters: int
    workers: tuple[WorkerStats, ...]
    jobs: JobStats | None
    streams: tuple[StreamStats, ...]
    storm: StormStats
    silent: tuple[SilentHolder, ...]
    rebuild: str | None
    """`under way` or `broken off` for a rebuild that has not ended: until then some entries are not stored."""
    servers: tuple[ServerSettings, ...]
    unseen: tuple[str, ...]


def stats(system: System) -> Stats:
    """Return all figures. The time it takes grows with the number of groups, not with that of messages."""
    client, space = system.client, system.client.space
    groups = list(stream_from_redis(client, all_groups()))
    partitions = range(space.partitions)
    unseen: list[str] = []
    journals, dead_letters = (
        client.query_many([("XLEN", key(p)) for p in partitions]) for key in (space.journal, space.dead_letters)
    )
    return Stats(
        groups=len(groups),
        members=sum(group.members for group in groups),
        messages=sum(group.messages for group in groups),
        online=sum(client.call_many([session_calls.count_online(space, p) for p in partitions])),
        journal=sum(journals),
        dead_letters=sum(dead_letters),
        workers=worker_stats(system.client),
        jobs=_jobs(system.settings),
        streams=(_group_streams(client, groups), _journals(client, journals)),
        storm=_storm(client),
        silent=silent_holders(client, system.settings),
        rebuild=rebuild_state(client),
        servers=all_servers(client, system.settings, unseen.append),
        unseen=tuple(unseen),
    )


def rebuild_state(client: RedisClient) -> str | None:
    """Return the state of a rebuild: `under way`, `broken off`, or None without an unfinished rebuild."""
    if not client.query("HGET", keys.CONFIG, keys.REBUILDING):
        return None
    return "under way" if lives(client, keys.REBUILD, [1]) else "broken off"


def online_uids(system: System) -> Iterator[str]:
    """Yield the users with a live session."""
    client, space = system.client, system.client.space
    for partition in range(space.partitions):
        offset = 0
        while page := client.call(session_calls.online_uids(space, partition, offset=offset, count=CHUNK)):
            yield from page
            offset += len(page)


def _group_streams(client: RedisClient, groups: Sequence[Group]) -> StreamStats:
    """Measure the memory of the longest streams, and assume the same memory per entry for all others."""
    names = [client.space.group(group.gid).stream for group in groups]
    lengths: list[int] = client.query_many([("XLEN", name) for name in names])
    streams = zip(lengths, names, groups, strict=True)
    small = [(length, name) for length, name, group in streams if length and group.members <= _MOST_MEMBERS]
    longest = sorted(small, reverse=True)[:_WEIGHED]
    memory = _memory(client, [name for _, name in longest])
    measured, entries = sum(length for length, _ in longest), sum(lengths)
    return StreamStats("groups", len(groups), entries, _extrapolated(memory, measured, entries))


def _extrapolated(memory: int | None, measured: int, entries: int) -> int | None:
    if memory is None or not measured:
        return memory if not entries else None
    return round(memory * entries / measured)


def _journals(client: RedisClient, lengths: Sequence[int]) -> StreamStats:
    names = [name for name, length in zip(client.space.journals(), lengths, strict=True) if length]
    return StreamStats("journals", len(lengths), sum(lengths), _memory(client, names))


def _memory(client: RedisClient, names: Sequence[str]) -> int | None:
    """Return the approximate memory of keys in bytes; None if the server or the role does not allow the question."""
    try:
        return sum(usage or 0 for usage in client.query_many([("MEMORY", "USAGE", name) for name in names]))
    except ConfigurationError:
        return None


def _jobs(settings: Settings) -> JobStats | None:
    if urls.is_cluster(settings.jobs_redis_url):
        return None  # rq does not run there
    open_jobs(settings).close()  # a wrong URL or option is not passed over
    try:
        queue = job_queue(settings)
    except ImError:
        return None
    return JobStats(queue.queued, queue.running, queue.failed)


def _storm(client: RedisClient) -> StormStats:
    space = client.space
    calls = [journal_calls.coalescing(space, p, seconds=LATELY_S) for p in range(space.partitions)]
    acks, receipts, digests, messages_lately, acks_lately = map(sum, zip(*client.call_many(calls), strict=True))
    return StormStats(
        acks=acks,
        receipts=receipts,
        digests=digests,
        receipts_per_digest=round(receipts / digests, 1) if digests else None,
        messages_per_s=messages_lately / LATELY_S,
        acks_per_s=acks_lately / LATELY_S,
    )
