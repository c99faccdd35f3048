"""What an operator asks first: how much there is, who is online, how far the workers are behind. Only reads."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from imcore.admin.holders import SilentHolder, lives, silent_holders
from imcore.admin.lag import WorkerStats, worker_stats
from imcore.admin.server_settings import ServerSettings, all_servers
from imcore.errors import ConfigurationError, ImError
from imcore.model.values import Group
from imcore.operations.groups import groups as all_groups
from imcore.operations.performer import stream_from_redis
from imcore.settings import Settings
from imcore.streams import keys, urls
from imcore.streams.calls import journal_calls, session_calls
from imcore.streams.client import CHUNK, RedisClient, open_client
from imcore.streams.redis_errors import driver_errors
from imcore.system import System

LATELY_S = 10
"""Over how many seconds what happens a second is averaged."""

_WEIGHED = 100
_MOST_MEMBERS = 2000
"""So many streams are weighed, of groups with so few members: it takes the server 0.1 us for each of them."""
_JOBS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class StreamStats:
    """All streams of a kind. `bytes` are about what they take of Redis's memory, None where it does not say."""

    kind: str
    streams: int
    entries: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class JobStats:
    """The queue of the worker `jobs`: how many wait, are under way, have failed."""

    queued: int
    running: int
    failed: int


@dataclass(frozen=True, slots=True)
class StormStats:
    """How acks became receipts, since the data is in this Redis, as far as the worker `receipts` has come.

    So many `acks` (moves of an offset) stood for so many `receipts` (one recipient, one message), of which senders were
    told in so many `digests`; and the rates of late, over LATELY_S.
    """

    acks: int
    receipts: int
    digests: int
    receipts_per_digest: float | None
    messages_per_s: float
    acks_per_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """The whole system at about one moment. `journal` counts the entries that are kept, done or not.

    `jobs` is None where their Redis does not answer, or refuses us. `unseen` says why a server is missing in `servers`.
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
    """Processes that have entries in hand and are heard of no more."""
    rebuild: str | None
    """`under way` or `broken off`, if one has begun and not ended: what has to wait for it is not stored."""
    servers: tuple[ServerSettings, ...]
    unseen: tuple[str, ...]


def stats(system: System) -> Stats:
    """Count everything. Takes longer with the number of groups, not with that of messages."""
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
        workers=worker_stats(system),
        jobs=_jobs(system.settings),
        streams=(_group_streams(client, groups), _journals(client, journals)),
        storm=_storm(client),
        silent=silent_holders(client, system.settings),
        rebuild=_rebuild(client),
        servers=all_servers(client, system.settings, unseen.append),
        unseen=tuple(unseen),
    )


def _rebuild(client: RedisClient) -> str | None:
    if not client.query("HGET", keys.CONFIG, keys.REBUILDING):
        return None
    return "under way" if lives(client, keys.REBUILD, [1]) else "broken off"


def online_uids(system: System) -> Iterator[str]:
    """Yield who has a live session."""
    client, space = system.client, system.client.space
    for partition in range(space.partitions):
        offset = 0
        while page := client.call(session_calls.online_uids(space, partition, offset=offset, count=CHUNK)):
            yield from page
            offset += len(page)


def _group_streams(client: RedisClient, groups: Sequence[Group]) -> StreamStats:
    """Weigh some streams, and take the others for the same by entry."""
    names = [client.space.group(group.gid).stream for group in groups]
    lengths = client.query_many([("XLEN", name) for name in names])
    small = [i for i, group in enumerate(groups) if group.members <= _MOST_MEMBERS and lengths[i]]
    chosen = sorted(small, key=lambda i: -lengths[i])[:_WEIGHED]
    weight, weighed = _weigh(client, [names[i] for i in chosen]), sum(lengths[i] for i in chosen)
    entries = sum(lengths)
    known = weight is not None and (weighed or not entries)
    return StreamStats(
        "groups", len(groups), entries, round((weight or 0) * entries / (weighed or 1)) if known else None
    )


def _journals(client: RedisClient, lengths: Sequence[int]) -> StreamStats:
    names = [name for name, length in zip(client.space.journals(), lengths, strict=True) if length]
    return StreamStats("journals", len(lengths), sum(lengths), _weigh(client, names))


def _weigh(client: RedisClient, names: Sequence[str]) -> int | None:
    """Return about how much memory keys take; None where a server or a role does not know how."""
    try:
        return sum(found or 0 for found in client.query_many([("MEMORY", "USAGE", name) for name in names]))
    except ConfigurationError:
        return None


def _jobs(settings: Settings) -> JobStats | None:
    """Ask rq's keys, not rq: its own way of counting tidies up, which is to write."""
    url = settings.jobs_redis_url
    if urls.is_cluster(url):
        return None  # rq does not run there
    jobs = open_client(url, timeout_s=_JOBS_TIMEOUT_S, block_ms=settings.block_ms)
    try:
        with driver_errors(url), closing(jobs) as client:
            return JobStats(client.llen(keys.RQ_QUEUED), client.zcard(keys.RQ_RUNNING), client.zcard(keys.RQ_FAILED))
    except ImError:
        return None


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
