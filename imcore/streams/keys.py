"""Every name in Redis. Nothing else in imcore, workers or cli spells one. `lua/base.lua` says what each key holds.

A gid or uid always comes last in its key, after the hash tag `{p}` of the partition. So no text of a user can become
the tag: Redis takes the first braces only.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

DEFAULT_PARTITIONS = 8
CONFIG = "im:config"
REBUILDING = "rebuilding"
"""The field of CONFIG that exists from the beginning of a rebuild to its end, even if its process dies."""
REBUILD = "rebuild"
"""The kind of the lease that a rebuild holds."""
WITHDRAWN = "im:withdrawn"
"""Recalled messages whose texts may still be in an append-only file: by packed msgid, the gid and that."""

QUEUE = "imcore"
"""The queue of rq that the worker `jobs` works off."""
RQ_QUEUED, RQ_RUNNING, RQ_FAILED = f"rq:queue:{QUEUE}", f"rq:wip:{QUEUE}", f"rq:failed:{QUEUE}"
"""A list and two sorted sets of rq: the jobs that are queued, running, failed."""

SEPARATOR = "\x1f"
"""Joins the parts of one name; `imcore.model.limits` keeps it out of uids and gids."""
RECORD_SEPARATOR = "\x1e"

_PER_GROUP = (
    *("meta", "stream", "acked", "joined", "left"),
    *("recalled", "shadow", "idempotency_newer", "idempotency_older"),
)
_PARTITION_OF_GROUP = ("journal", "groups", "group_locks", "creating", "unnotified", "version")


@dataclass(frozen=True)
class GroupKeys:
    """The keys of one group and of its partition. Cached, with the tuples of keys that frequent calls need."""

    gid: str
    meta: str
    stream: str
    acked: str
    joined: str
    left: str
    idempotency_newer: str
    idempotency_older: str
    recalled: str
    shadow: str
    journal: str
    groups: str
    group_locks: str
    creating: str
    unnotified: str
    version: str
    channel: str
    inboxes: str
    """The prefix of the inbox channels, which end with a uid."""
    _tag: str
    _own: str

    @cached_property
    def for_send(self) -> tuple[str, ...]:
        """The keys of `im_send`, before the lists of the senders."""
        newer, older = self.idempotency_newer, self.idempotency_older
        return (self.meta, self.stream, self.acked, self.joined, newer, older, self.journal)

    @cached_property
    def for_ack(self) -> tuple[str, ...]:
        return (self.meta, self.stream, self.acked, self.joined, self.journal)

    @cached_property
    def for_tally(self) -> tuple[str, ...]:
        """The keys of the functions that count readers."""
        return (self.meta, self.stream, self.acked, self.joined, self.left, self.recalled)

    def own_unacked(self, uid: str) -> str:
        """A member's own messages past their offset, and perhaps some that it has passed since the last of them."""
        return self._own + uid

    def groups_of(self, uid: str) -> str:
        return f"{self._tag}groups_of:{uid}"

    def dirty(self, uid: str) -> str:
        return f"{self._tag}dirty:{uid}"


def _tag(partition: int) -> str:
    return f"im:{{{partition}}}:"


def _per_partition(kind: str) -> Callable[["Keyspace", int], str]:
    return lambda _, partition: f"{_tag(partition)}{kind}"


class Keyspace:
    """The names for data of `partitions` partitions, in the database of that number on its server."""

    groups = _per_partition("groups")
    journal = _per_partition("journal")
    dead_letters = _per_partition("dead")
    failures = _per_partition("failures")
    coalescing = _per_partition("coalescing")
    version = _per_partition("version")
    watermarks = _per_partition("watermarks")
    group_locks = _per_partition("group_locks")
    rebuilt = _per_partition("rebuilt")
    creating = _per_partition("creating")
    unnotified = _per_partition("unnotified")
    online = _per_partition("online")
    online_ms = _per_partition("online_ms")

    def __init__(self, partitions: int, *, database: int = 0) -> None:
        self.partitions = partitions
        # A key belongs to a database of the server, a channel to all of them.
        self._channels = f"{database}:" if database else ""
        self.group = lru_cache(maxsize=4096)(self._group)

    def partition_of(self, name: str) -> int:
        """Return the partition of a gid or, for data that belongs to a user alone, of a uid."""
        return zlib.crc32(name.encode()) % self.partitions

    def _group(self, gid: str) -> GroupKeys:
        tag = _tag(self.partition_of(gid))
        return GroupKeys(
            gid=gid,
            **{kind: f"{tag}{kind}:{gid}" for kind in _PER_GROUP},
            **{kind: f"{tag}{kind}" for kind in _PARTITION_OF_GROUP},
            channel=f"{tag}{self._channels}push:{gid}",
            inboxes=f"{tag}{self._channels}inbox:",
            _tag=tag,
            _own=f"{tag}own_unacked:{gid}{SEPARATOR}",
        )

    def groups_of(self, partition: int, uid: str) -> str:
        return f"{_tag(partition)}groups_of:{uid}"

    def dirty(self, partition: int, uid: str) -> str:
        return f"{_tag(partition)}dirty:{uid}"

    def sessions(self, uid: str) -> str:
        return f"{_tag(self.partition_of(uid))}sessions:{uid}"

    def journals(self) -> list[str]:
        return [self.journal(p) for p in range(self.partitions)]

    def inboxes(self, uid: str) -> list[str]:
        """The channels of a user's receipts and memberships, by partition."""
        return [f"{_tag(p)}{self._channels}inbox:{uid}" for p in range(self.partitions)]


def lease(kind: str, slot: int) -> str:
    return f"im:lease:{kind}:{slot}"


def span_key(uid: str, joined: int) -> str:
    """The name of a closed span in the sorted sets."""
    return f"{uid}{SEPARATOR}{joined}"


def uid_of(span: str) -> str:
    """The uid of a span key, open or closed."""
    return span.partition(SEPARATOR)[0]
