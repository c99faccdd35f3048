"""Every name in Redis. Nothing else in imcore, workers or cli spells one. `lua/base.lua` says what each key holds.

A gid or uid always comes last in its key, after the hash tag `{p}` of the partition. So no text of a user can become
the tag: Redis takes the first braces only.
"""

import zlib
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache

DEFAULT_PARTITIONS = 8
CONFIG = "im:config"
REBUILDING = "rebuilding"
"""The field of CONFIG that exists from the beginning of a rebuild to its end, even if its process dies."""
REBUILD = "rebuild"
"""The kind of the lease that a rebuild holds."""

QUEUE = "imcore"
"""The queue of rq that the worker `jobs` works off."""
RQ_QUEUED, RQ_RUNNING, RQ_FAILED = f"rq:queue:{QUEUE}", f"rq:wip:{QUEUE}", f"rq:failed:{QUEUE}"
"""A list and two sorted sets of rq: the jobs that are queued, running, failed."""

SEPARATOR = "\x1f"
"""Joins the parts of one name; `imcore.model.limits` keeps it out of uids and gids."""
RECORD_SEPARATOR = "\x1e"


class GroupKeys:
    """The keys of one group and of its partition. Cached, with the tuples of keys that frequent calls need."""

    def __init__(self, gid: str, tag: str, channels: str) -> None:
        self.gid = gid
        self.meta = f"{tag}meta:{gid}"
        self.stream = f"{tag}stream:{gid}"
        self.acked = f"{tag}acked:{gid}"
        self.joined = f"{tag}joined:{gid}"
        self.left = f"{tag}left:{gid}"
        self.idempotency_newer = f"{tag}idempotency_newer:{gid}"
        self.idempotency_older = f"{tag}idempotency_older:{gid}"
        self.recalled = f"{tag}recalled:{gid}"
        self.ahead = f"{tag}ahead:{gid}"
        self.ahead_acked = f"{tag}ahead_acked:{gid}"
        self.bookmarks = f"{tag}bookmarks:{gid}"
        self.shadow = f"{tag}shadow:{gid}"
        self.journal = f"{tag}journal"
        self.groups = f"{tag}groups"
        self.group_locks = f"{tag}group_locks"
        self.creating = f"{tag}creating"
        self.unnotified = f"{tag}unnotified"
        self.rewrites = f"{tag}rewrites"
        self.erasing = f"{tag}erasing"
        self.deleting = f"{tag}deleting"
        self.withdrawn = f"{tag}withdrawn"
        self.version = f"{tag}version"
        self.receipts_off = f"{tag}receipts_off"
        self.channel = f"{tag}{channels}push:{gid}"
        self.inboxes = f"{tag}{channels}inbox:"
        """The prefix of the inbox channels, which end with a uid."""
        self._tag = tag
        self._own = f"{tag}own_unacked:{gid}{SEPARATOR}"
        newer, older = self.idempotency_newer, self.idempotency_older
        self.for_send = (
            *(self.meta, self.stream, self.acked, self.joined, self.left, newer, older, self.journal),
            self.bookmarks,
        )
        """The keys of `im_send`, before the lists of the senders."""
        self.positions = (self.ahead, self.ahead_acked, self.bookmarks)
        """The keys of the positions beside the offset."""
        self.for_ack = (
            self.meta,
            self.stream,
            self.acked,
            self.joined,
            self.journal,
            *self.positions,
            self.receipts_off,
        )
        self.for_tally = (
            *(self.meta, self.stream, self.acked, self.joined, self.left, self.recalled),
            *(self.ahead, self.ahead_acked, self.erasing),
        )
        """The keys of the functions that count readers."""
        self.for_end_of_deletion = (
            *(self.stream, self.acked, self.joined, self.left, self.recalled, newer, older, self.shadow),
            *(self.ahead, self.ahead_acked, self.bookmarks),
        )
        """All keys of the group but `meta`, and but those of one user in it."""

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
    """The names for data of `partitions` partitions, in the database of that number on its server.

    `served` are the partitions that are asked about a user, and that listen for one: all, but for a `lane`.
    """

    config = _per_partition("config")
    """On a cluster: a copy of the partition count in CONFIG."""
    groups = _per_partition("groups")
    journal = _per_partition("journal")
    dead_letters = _per_partition("dead")
    dead_shadow = _per_partition("dead_shadow")
    failures = _per_partition("failures")
    coalescing = _per_partition("coalescing")
    version = _per_partition("version")
    watermarks = _per_partition("watermarks")
    group_locks = _per_partition("group_locks")
    rebuilt = _per_partition("rebuilt")
    creating = _per_partition("creating")
    unnotified = _per_partition("unnotified")
    receipts_off = _per_partition("receipts_off")
    last_seen = _per_partition("last_seen")
    ended_sessions = _per_partition("ended_sessions")
    rewrites = _per_partition("rewrites")
    erasing = _per_partition("erasing")
    deleting = _per_partition("deleting")
    withdrawn = _per_partition("withdrawn")
    """Recalled messages whose texts may still be in an append-only file: by packed msgid, the gid and that."""
    online = _per_partition("online")
    online_ms = _per_partition("online_ms")

    def __init__(self, partitions: int, *, database: int = 0) -> None:
        self.partitions = partitions
        self.served: Sequence[int] = range(partitions)
        # A key belongs to a database of the server, a channel to all of them.
        self._channels = f"{database}:" if database else ""
        self.group = lru_cache(maxsize=4096)(self._group)

    def lane(self, partition: int) -> "Keyspace":
        """Return the same names, for those who serve one partition only."""
        lane = copy(self)
        lane.served = (partition,)
        return lane

    def partition_of(self, name: str) -> int:
        """Return the partition of a gid or, for data that belongs to a user alone, of a uid."""
        return zlib.crc32(name.encode()) % self.partitions

    def _group(self, gid: str) -> GroupKeys:
        return GroupKeys(gid, _tag(self.partition_of(gid)), self._channels)

    def groups_of(self, partition: int, uid: str) -> str:
        return f"{_tag(partition)}groups_of:{uid}"

    def dirty(self, partition: int, uid: str) -> str:
        return f"{_tag(partition)}dirty:{uid}"

    def sessions(self, uid: str) -> str:
        return f"{_tag(self.partition_of(uid))}sessions:{uid}"

    def configurations(self) -> list[str]:
        """Return where the configuration is, and then where its copies on a cluster are."""
        return [CONFIG, *map(self.config, range(self.partitions))]

    def journals(self) -> list[str]:
        return [self.journal(p) for p in range(self.partitions)]

    def inboxes(self, uid: str) -> list[str]:
        """The channels of a user's receipts and memberships, by served partition."""
        return [f"{_tag(p)}{self._channels}inbox:{uid}" for p in self.served]


def lease(kind: str, slot: int, partition: int | None = None) -> str:
    """The lease of a process; with a partition, that of its lane, which is where the partition's other data is."""
    return f"im:lease:{kind}:{slot}" if partition is None else f"im:lease:{{{partition}}}:{kind}:{slot}"


def rq_job(job_id: str) -> str:
    """A hash of rq: what it keeps of a job."""
    return f"rq:job:{job_id}"


def span_key(uid: str, joined: int) -> str:
    """The name of a closed span in the sorted sets."""
    return f"{uid}{SEPARATOR}{joined}"


def uid_of(span: str) -> str:
    """The uid of a span key, open or closed."""
    return span.partition(SEPARATOR)[0]
