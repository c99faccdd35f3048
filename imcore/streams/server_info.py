"""The version and role of a server, and those of its settings that promises depend on."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import ResponseError

from imcore.streams.cluster import Cluster

OLDEST: Mapping[str, tuple[int, int]] = {"Valkey": (7, 2), "Redis": (7, 0)}
"""The oldest versions that have all that imcore needs, by the name of the server."""

_BUFFER_LIMIT = "min-string-size-avoid-copy-reply"
_COVERAGE = "cluster-require-full-coverage"
_SETTINGS = ("appendfsync", "no-appendfsync-on-rewrite", "save", _BUFFER_LIMIT, _COVERAGE)
"""Settings that only CONFIG GET knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """One server. None: unknown, since this user may not ask, or the server does not have that setting."""

    node: str = ""
    """Host and port of a cluster's node; "" for a single server."""
    run_id: str | None = None
    """Identifies this process of the server."""
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
    """A push of this size or more is not counted in a subscriber's output buffer (Valkey 9)."""
    replicas: int | None = None
    """How many replicas are connected."""
    needs_all_nodes: bool = False
    """Whether a cluster's node refuses everything while a slot has no node."""

    @property
    def is_too_old(self) -> bool:
        """Whether it is known to be older than what imcore needs."""
        return is_older(self, OLDEST[self.server or "Redis"])


def servers_of(
    client: "redis.Redis | Cluster", *, asks_config: bool = True, silent: Collection[str] = ()
) -> Iterator[ServerInfo]:
    """Yield the information of a server, or of each primary of a cluster. Raise what the driver raises.

    What a user has no right to ask is unknown: that is no error. But the server logs it, so leave out CONFIG GET for
    a user who is known to have no right to it. Nodes that are known to be `silent`, by name, are not asked.
    """
    for name, node in primaries_of(client):
        yield ServerInfo(node=name) if name in silent else info_of(node, name, asks_config=asks_config)


def primaries_of(client: "redis.Redis | Cluster") -> Iterator[tuple[str, redis.Redis]]:
    """Yield the server of a client with the name "", or each primary of a cluster with its host and port."""
    if not isinstance(client, Cluster):
        yield "", client
        return
    for node in client.get_primaries():
        yield node.name, client.get_redis_connection(node)


def user_of(client: "redis.Redis | Cluster") -> str | None:
    """Return the user name of a client, None for the default user."""
    source = client.nodes_manager if isinstance(client, Cluster) else client.connection_pool
    user: str | None = source.connection_kwargs.get("username")
    return user


def is_older(info: ServerInfo, version: tuple[int, int]) -> bool:
    """Return whether a server is known to be older than a version."""
    return info.version is not None and _numbers(info.version) < version


def info_of(client: redis.Redis, node: str, *, asks_config: bool) -> ServerInfo:
    """Return the information of one server; see `servers_of`."""
    info = _answer(client, "INFO")
    config = _answer(client, "CONFIG GET", *_SETTINGS) if asks_config else {}
    server = None if not info else "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info.get("redis_version"))
    uncounted = config.get(_BUFFER_LIMIT)
    return ServerInfo(
        node=node,
        run_id=info.get("run_id"),
        server=server,
        version=None if version is None else str(version),  # the driver takes 9.1 for a number
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
        replicas=info.get("connected_slaves"),
        needs_all_nodes=bool(info.get("cluster_enabled")) and config.get(_COVERAGE) == "yes",
    )


def _answer(client: redis.Redis, *command: str) -> dict[str, Any]:
    """Return the answer of a server, nothing if it refuses."""
    execute: Any = client.execute_command
    with suppress(ResponseError):  # no right or, on some hosted servers, no such command
        answer = execute(*command)
        return answer if isinstance(answer, dict) else {}
    return {}


def _is(value: object, wanted: object) -> bool | None:
    return None if value is None else value == wanted


def _numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = (int(part) if part.isdecimal() else 0 for part in f"{version}.0".split("."))
    return major, minor
