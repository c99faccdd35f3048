"""Every name in Redis. Nothing else in imcore, workers or cli spells one.

A gid or uid always comes last in its key, after the hash tag `{p}` of the partition, so no text of a user can become
the tag: Redis takes the first braces only.
"""

import re
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

DEFAULT_PARTITIONS = 8
CONFIG = "im:config"
REBUILDING = "rebuilding"
"""The field of it that is there from the beginning of a rebuild to its end, however that comes."""
REBUILD = "rebuild"
"""The kind of the lease that a process holds while it rebuilds."""
WITHDRAWN = "im:withdrawn"
"""Recalled messages whose texts may still be in an append-only file: by packed msgid, the gid and that."""

QUEUE = "imcore"
"""The queue of rq that the worker `jobs` works off."""
RQ_QUEUED, RQ_RUNNING, RQ_FAILED = f"rq:queue:{QUEUE}", f"rq:wip:{QUEUE}", f"rq:failed:{QUEUE}"
"""A list and two sorted sets of rq's: the jobs that wait, are under way, have failed."""

SEPARATOR = "\x1f"
"""Joins what makes up one name; `imcore.model.limits` keeps it out of uids and gids."""
RECORD_SEPARATOR = "\x1e"


@dataclass(frozen=True)
class GroupKeys:
    """The keys of one group. Kept between calls, with the tuples that the frequent ones take."""

    gid: str
    meta: str
    stream: str
    acked: str
    joined: str
    left: str
    idempotency_newer: str
    idempotency_older: str
    recalled: str
    channel: str
    inboxes: str
    journal: str
    groups: str
    mending: str
    creating: str
    untold: str
    shadow: str
    _partition: str
    _own: str

    @cached_property
    def for_send(self) -> tuple[str, ...]:
        """What `im_send` takes, before the lists of the senders."""
        return (
            self.meta,
            self.stream,
            self.acked,
            self.joined,
            self.idempotency_newer,
            self.idempotency_older,
            self.journal,
        )

    @cached_property
    def for_ack(self) -> tuple[str, ...]:
        """What `im_ack` takes."""
        return (self.meta, self.stream, self.acked, self.joined, self.journal)

    @cached_property
    def for_tally(self) -> tuple[str, ...]:
        """What the functions that count readers take."""
        return (self.meta, self.stream, self.acked, self.joined, self.left, self.recalled)

    def own_unacked(self, uid: str) -> str:
        """The member's own messages past their offset, and perhaps some that it has passed since the last of them."""
        return self._own + uid

    def groups_of(self, uid: str) -> str:
        """The groups of this partition that the user is a member of."""
        return f"{self._partition}groups_of:{uid}"

    def dirty(self, uid: str) -> str:
        """The user's messages in this partition whose tallies changed and were not confirmed yet."""
        return f"{self._partition}dirty:{uid}"

    @property
    def version(self) -> str:
        """The counter that orders the changes of this partition."""
        return f"{self._partition}version"


class Keyspace:
    """The names for data of so many partitions, in the database of that number on its server."""

    def __init__(self, partitions: int, *, database: int = 0) -> None:
        self.partitions = partitions
        # A key belongs to a database of the server, a channel to all of them.
        self._channels = f"{database}:" if database else ""
        self.group = lru_cache(maxsize=4096)(self._group)

    def partition_of(self, name: str) -> int:
        """Return the partition of a gid or, for what belongs to a user alone, of a uid."""
        return zlib.crc32(name.encode()) % self.partitions

    def _group(self, gid: str) -> GroupKeys:
        tag = self._tag(self.partition_of(gid))
        return GroupKeys(
            gid=gid,
            meta=f"{tag}meta:{gid}",
            stream=f"{tag}stream:{gid}",
            acked=f"{tag}acked:{gid}",
            joined=f"{tag}joined:{gid}",
            left=f"{tag}left:{gid}",
            idempotency_newer=f"{tag}idempotency_newer:{gid}",
            idempotency_older=f"{tag}idempotency_older:{gid}",
            recalled=f"{tag}recalled:{gid}",
            channel=f"{tag}{self._channels}push:{gid}",
            inboxes=self._inboxes(tag),
            journal=f"{tag}journal",
            groups=f"{tag}groups",
            mending=f"{tag}mending",
            creating=f"{tag}creating",
            untold=f"{tag}untold",
            shadow=f"{tag}shadow:{gid}",
            _partition=tag,
            _own=f"{tag}own_unacked:{gid}{SEPARATOR}",
        )

    def groups_of(self, partition: int, uid: str) -> str:
        """The groups of one partition that the user is a member of."""
        return f"{self._tag(partition)}groups_of:{uid}"

    def dirty(self, partition: int, uid: str) -> str:
        """The user's messages in one partition whose tallies changed and were not confirmed yet."""
        return f"{self._tag(partition)}dirty:{uid}"

    def inboxes(self, uid: str) -> list[str]:
        """The channels on which a user's live sessions hear of receipts and memberships, by partition."""
        return [f"{self._inboxes(self._tag(p))}{uid}" for p in range(self.partitions)]

    def _inboxes(self, tag: str) -> str:
        return f"{tag}{self._channels}inbox:"

    def sessions(self, uid: str) -> str:
        """The user's live sessions."""
        return f"{self._tag(self.partition_of(uid))}sessions:{uid}"

    def online(self, partition: int) -> str:
        """The users of a partition who have a live session."""
        return f"{self._tag(partition)}online"

    def online_ms(self, partition: int) -> str:
        """The greatest length of any session of a partition's users."""
        return f"{self._tag(partition)}online_ms"

    def creating(self, partition: int) -> str:
        """The groups of a partition that somebody creates in steps, or has begun to: they are not there yet."""
        return f"{self._tag(partition)}creating"

    def untold(self, partition: int) -> str:
        """The groups of a partition that were created in steps, and whose members may not have been told."""
        return f"{self._tag(partition)}untold"

    def groups(self, partition: int) -> str:
        """All groups of a partition."""
        return f"{self._tag(partition)}groups"

    def journal(self, partition: int) -> str:
        """What happened in a partition, in order, for the workers."""
        return f"{self._tag(partition)}journal"

    def journals(self) -> list[str]:
        """All journals, by partition."""
        return [self.journal(p) for p in range(self.partitions)]

    def dead_letters(self, partition: int) -> str:
        """Journal entries that no worker could handle."""
        return f"{self._tag(partition)}dead"

    def failures(self, partition: int) -> str:
        """How often entries of a journal have failed that are not done: by kind of worker and id."""
        return f"{self._tag(partition)}failures"

    def storm(self, partition: int) -> str:
        """How many acks there were, what they came to, and how many in each of the last seconds."""
        return f"{self._tag(partition)}storm"

    def version(self, partition: int) -> str:
        """The counter that orders the changes of tallies."""
        return f"{self._tag(partition)}version"

    def watermarks(self, partition: int) -> str:
        """Up to where each process of the worker `persist` was about to store the journal."""
        return f"{self._tag(partition)}watermarks"

    def mending(self, partition: int) -> str:
        """The groups that somebody mends, or has begun to: by gid, whose claim it is."""
        return f"{self._tag(partition)}mending"

    def rebuilt(self, partition: int) -> str:
        """The groups that a rebuild under way has done."""
        return f"{self._tag(partition)}rebuilt"

    @staticmethod
    def _tag(partition: int) -> str:
        return f"im:{{{partition}}}:"


KINDS = frozenset(
    (
        *(
            "meta",
            "stream",
            "acked",
            "joined",
            "left",
            "idempotency_newer",
            "idempotency_older",
            "recalled",
            "own_unacked",
            "groups",
        ),
        *("groups_of", "dirty", "version", "sessions", "online", "online_ms", "journal", "dead", "failures", "storm"),
        *("watermarks", "shadow", "mending", "rebuilt", "creating", "untold"),
        *("config", "lease", "withdrawn"),
    )
)
"""The kinds of all keys there are: the word after the partition, or after `im:` where there is none."""

_KIND = re.compile(r"im:(?:\{[0-9]+\}:)?([a-z_]+)")


def kind_of(key: str) -> str | None:
    """Return of which of the KINDS a key is; None for a name that is none of ours."""
    match = _KIND.match(key)
    return match[1] if match and match[1] in KINDS else None


def lease(kind: str, slot: int) -> str:
    """The sign of life of one worker process."""
    return f"im:lease:{kind}:{slot}"


def span_key(uid: str, joined: int) -> str:
    """The name of a closed span in the sorted sets."""
    return f"{uid}{SEPARATOR}{joined}"


def uid_of(span: str) -> str:
    """The uid of a span key, open or closed."""
    return span.partition(SEPARATOR)[0]
