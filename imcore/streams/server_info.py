"""What a server says of itself: its version, its role, and those of its settings that promises depend on."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

OLDEST: Mapping[str, tuple[int, int]] = {"Valkey": (7, 2), "Redis": (7, 0)}
"""The oldest versions that have all that imcore needs, by the name of the server."""

_ASKED = ("appendfsync", "no-appendfsync-on-rewrite", "save", "min-string-size-avoid-copy-reply")
"""Settings that only CONFIG GET knows."""

_VERSION_FIELDS = {"Valkey": "valkey_version", "Redis": "redis_version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """One server. None: it is not known, since this user may not ask, or the server does not have that setting."""

    node: str = ""
    """Host and port of a cluster's node; "" for a single server."""
    run_id: str | None = None
    """What tells this process of the server from all others."""
    server: str | None = None
    version: str | None = None
    is_sentinel: bool | None = None
    is_replica: bool | None = None
    replica_takes_writes: bool = False
    maxmemory: int | None = None
    """In bytes; 0: no limit."""
    maxmemory_policy: str | None = None
    appendonly: bool | None = None
    appendfsync: str | None = None
    no_appendfsync_on_rewrite: bool | None = None
    saves_snapshots: bool | None = None
    uncounted_bytes: int | None = None
    """So long a push has to be to escape the count of what waits for a subscriber (Valkey 9)."""

    @property
    def is_too_old(self) -> bool:
        """Whether it is known to be older than what imcore needs."""
        return self.version is not None and _numbers(self.version) < OLDEST[self.server or "Redis"]


def servers_of(client: "redis.Redis | RedisCluster", *, asks_config: bool = True) -> Iterator[ServerInfo]:
    """Ask a server, or each primary of a cluster, what it says of itself. Raise what the driver raises.

    What a user has no right to ask is not known: that is no error. But the server logs it, so leave out CONFIG GET for
    one who is known to have no right to it.
    """
    if not isinstance(client, RedisCluster):
        yield _info_of(client, "", asks_config)
        return
    for node in client.get_primaries():
        yield _info_of(client.get_redis_connection(node), node.name, asks_config)


def user_of(client: "redis.Redis | RedisCluster") -> str | None:
    """Return as whom a client connects, None for the default user."""
    kwargs = (
        client.nodes_manager.connection_kwargs
        if isinstance(client, RedisCluster)
        else client.connection_pool.connection_kwargs
    )
    user: str | None = kwargs.get("username")
    return user


def _info_of(client: redis.Redis, node: str, asks_config: bool) -> ServerInfo:
    info = _answer(client, "INFO")
    config = _answer(client, "CONFIG GET", *_ASKED) if asks_config else {}
    server = None if not info else "Valkey" if "valkey_version" in info else "Redis"
    uncounted = config.get(_ASKED[3])
    return ServerInfo(
        node=node,
        run_id=info.get("run_id"),
        server=server,
        version=_text(info.get(_VERSION_FIELDS[server])) if server else None,
        is_sentinel=_is(info.get("redis_mode"), "sentinel"),
        is_replica=_is(info.get("role"), "slave"),
        replica_takes_writes=info.get("slave_read_only") == 0,
        maxmemory=info.get("maxmemory"),
        maxmemory_policy=info.get("maxmemory_policy"),
        appendonly=_is(info.get("aof_enabled"), 1),
        appendfsync=config.get("appendfsync"),
        no_appendfsync_on_rewrite=_is(config.get("no-appendfsync-on-rewrite"), "yes"),
        saves_snapshots=None if "save" not in config else bool(config["save"]),
        uncounted_bytes=int(uncounted) if uncounted and uncounted.isdecimal() else None,
    )


def _answer(client: redis.Redis, *command: str) -> dict[str, Any]:
    """Return what a server answers, nothing where it refuses to."""
    ask: Any = client.execute_command
    with suppress(ResponseError):  # no right, or, at some who run servers for others, no such command
        answer = ask(*command)
        return answer if isinstance(answer, dict) else {}
    return {}


def _is(value: object, wanted: object) -> bool | None:
    return None if value is None else value == wanted


def _text(value: object) -> str | None:
    """Return a version as text: the driver takes 9.1 for a number."""
    return None if value is None else str(value)


def _numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    parts = [int(part) if part.isdecimal() else 0 for part in version.split(".")]
    return (parts[0], parts[1] if len(parts) > 1 else 0)
