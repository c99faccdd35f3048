"""Settings of a Redis server that break a promise of README, with their effects and remedies. Only reads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from imcore.admin.acl import USERS
from imcore.errors import ConfigurationError, ImError
from imcore.settings import Settings
from imcore.streams.client import RedisClient, open_client
from imcore.streams.cluster import Cluster
from imcore.streams.cluster_rounds import ask_primaries
from imcore.streams.redis_errors import LostNodeError, address, driver_errors
from imcore.streams.rounds import OTHERS_S, Client
from imcore.streams.server_info import OLDEST, ServerInfo, servers_of, user_of
from imcore.streams.transport import perform_step
from imcore.util.batches import grouped
from imcore.util.steps import perform

_TIMEOUT_S = 2.0
_COUNTED_BYTES = 1_048_576
"""The embedded server's value of min-string-size-avoid-copy-reply."""

_SET = "set noeviction"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """A server, or a primary of a cluster. None means unknown, mostly because this user may not ask.

    It `holds` the chat, or the jobs if IM_JOBS_REDIS_URL names another server. `maxmemory` is in bytes, 0 for no limit.
    `warnings` has a text for each setting that breaks a promise, with its effect and remedy.
    """

    holds: Literal["chat", "jobs"]
    server: str
    version: str | None
    role: str | None
    maxmemory: int | None
    maxmemory_policy: str | None
    appendonly: bool | None
    appendfsync: str | None
    run_id: str | None
    warnings: tuple[str, ...]

    @property
    def drops_anything(self) -> bool:
        """Whether any key may be evicted when the memory is full."""
        return bool(self.maxmemory) and (self.maxmemory_policy or "").startswith("allkeys")


def chat_servers(client: RedisClient) -> list[ServerSettings]:
    """Return the settings of the client's server, or of each primary of its cluster. Raise RedisUnavailable."""
    with driver_errors(client.address):
        return _servers("chat", client.driver, client.address, _chat_warnings)


def jobs_servers(settings: Settings) -> list[ServerSettings]:
    """Return the settings of the jobs' server. Raise ConfigurationError for a bad URL, RedisUnavailable."""
    url = settings.jobs_redis_url
    client = open_client(url, timeout_s=_TIMEOUT_S, block_ms=settings.block_ms)
    with closing(client), driver_errors(url, variable=settings.jobs_variable):
        return _servers("jobs", client, address(url), _jobs_warnings)


def all_servers(client: RedisClient, settings: Settings, tell: Callable[[str], object]) -> tuple[ServerSettings, ...]:
    """Return the settings of the servers of chat and jobs. The error of a server goes to `tell`."""
    servers = _reported(lambda: chat_servers(client), tell)
    if settings.jobs_redis_url != settings.redis_url:
        known = {server.run_id for server in servers if server.run_id}
        servers += [server for server in _reported(lambda: jobs_servers(settings), tell) if server.run_id not in known]
    return tuple(servers)


def _reported(query: Callable[[], list[ServerSettings]], tell: Callable[[str], object]) -> list[ServerSettings]:
    try:
        return query()
    except ImError as error:
        tell(f"the settings of a server are not known: {error}")
        return []


def warning_of(servers: Iterable[ServerSettings]) -> str | None:
    """Return the warnings of all servers in one line, None without a warning."""
    by_text = grouped((text, server.server) for server in servers for text in server.warnings)
    by_servers = grouped((", ".join(names), text) for text, names in by_text.items())
    return ". ".join(f"{names}: {'; '.join(texts)}" for names, texts in by_servers.items()) or None


def refuse_eviction(servers: Sequence[ServerSettings], settings: Settings) -> None:
    """Raise ConfigurationError if a server of the chat may evict any key, unless IM_ALLOW_EVICTION accepts the loss."""
    for server in servers:
        if server.holds == "chat" and server.drops_anything and not settings.allow_eviction:
            raise ConfigurationError(
                f"{server.server} drops groups, messages and offsets when its memory is full (maxmemory-policy "
                f"{server.maxmemory_policy}, maxmemory {server.maxmemory}): set maxmemory-policy noeviction there, or "
                "IM_ALLOW_EVICTION=1 if that may be"
            )


def _servers(
    holds: Literal["chat", "jobs"], client: Client, at: str, warnings_of: Callable[[ServerInfo], Iterable[str]]
) -> list[ServerSettings]:
    may_ask_config = user_of(client) not in USERS  # the roles of `im acl` may not
    silent = _silent_in(client) if isinstance(client, Cluster) else ()
    return [
        ServerSettings(
            holds=holds,
            server=info.node or at,
            version=f"{info.server} {info.version}" if info.version else None,
            role=None if info.is_replica is None else "replica" if info.is_replica else "primary",
            maxmemory=info.maxmemory,
            maxmemory_policy=info.maxmemory_policy,
            appendonly=info.appendonly,
            appendfsync=info.appendfsync,
            run_id=info.run_id,
            warnings=tuple(warnings_of(info)),
        )
        for info in servers_of(client, asks_config=may_ask_config, silent=silent)
    ]


def _silent_in(client: Cluster) -> set[str]:
    """Return the names of the primaries that do not answer; none if nobody answers."""
    answers = perform(ask_primaries(client, ("PING",), OTHERS_S), perform_step)
    silent = {name for name, answer in answers.items() if isinstance(answer, LostNodeError)}
    return silent if len(silent) < len(answers) else set()


def _chat_warnings(info: ServerInfo) -> Iterator[str]:
    yield from _memory_warnings(info)
    yield from _disk_warnings(info)
    yield from _role_warnings(info)
    if info.is_too_old:
        oldest = " or ".join(f"{name} {major}.{minor}" for name, (major, minor) in OLDEST.items())
        yield f"{info.server} {info.version} is too old: nothing works; use {oldest}, or newer"
    if info.uncounted_bytes is not None and info.uncounted_bytes < _COUNTED_BYTES:
        yield (
            f"min-string-size-avoid-copy-reply is {info.uncounted_bytes}: a session that stops reading is never cut "
            f"off, and what waits for it fills the memory; set {_COUNTED_BYTES}"
        )

    if info.needs_all_nodes:
        yield (
            "cluster-require-full-coverage is yes: while the slots of one node are away, all other nodes refuse "
            "everything; set no"
        )


def _jobs_warnings(info: ServerInfo) -> Iterator[str]:
    if info.maxmemory and info.maxmemory_policy not in {None, "noeviction"}:
        yield (
            f"maxmemory-policy is {info.maxmemory_policy}: jobs that wait may be dropped when its memory is full, and "
            f"a trim comes late; {_SET}"
        )
    yield from _role_warnings(info)


def _memory_warnings(info: ServerInfo) -> Iterator[str]:
    policy = info.maxmemory_policy or ""
    if not info.maxmemory:  # without a limit nothing is evicted
        return
    if policy.startswith("allkeys"):
        yield f"maxmemory-policy is {policy}: groups, messages and offsets are dropped when its memory is full; {_SET}"
    if policy.startswith("volatile"):
        yield (
            f"maxmemory-policy is {policy}: leases and sessions are dropped when its memory is full, so workers take "
            f"each other for dead, and users who are online are shown as offline; {_SET}"
        )


def _disk_warnings(info: ServerInfo) -> Iterator[str]:
    if info.appendonly is False:
        rest = "all that" if info.saves_snapshots is False else "what came since its last snapshot and"
        yield f"appendonly is no: when it ends or is killed, it loses {rest} no worker had stored; set appendonly yes"
        return
    if info.appendfsync == "no":
        yield (
            "appendfsync is no: a power cut loses what the system has not written by itself, often that of 30 s; set "
            "everysec or always"
        )
    if info.no_appendfsync_on_rewrite:
        yield (
            "no-appendfsync-on-rewrite is yes: a power cut during a rewrite of its file loses what came since that "
            "began; set no"
        )


def _role_warnings(info: ServerInfo) -> Iterator[str]:
    if info.is_replica and info.replica_takes_writes:
        yield "replica-read-only is no: what this replica is told is gone once it follows its primary again; set yes"
    elif info.is_replica:
        yield "it is a replica: it takes no writes, and shows what its primary has sent so far; use the primary"
