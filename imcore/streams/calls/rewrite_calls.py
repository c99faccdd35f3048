"""Calls that free a stream of recalled texts. No I/O; see `lua/rewrite.lua`."""

import uuid
from typing import Any, NamedTuple

from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.keys import GroupKeys, Keyspace

CHANGED = "CHANGED"
"""The answer of `swap` if the rewrite must begin again."""

REWRITE = "rewrite:"
"""The beginning of the token of a rewrite. Its lock on a group says nothing about the state of the group."""


class BegunRewrite(NamedTuple):
    """The state as a rewrite began. `newest` is packed; `lost_entries` are those that the journal had lost.

    `erased` names the users whose names and texts it removes, too; see `lua/erasure.lua`.
    """

    last_id: str
    newest: int
    journal_end: str
    lost_entries: int
    erased: bytes


def new_lock(k: GroupKeys) -> GroupLock:
    """Return a lock that no other rewrite has."""
    return GroupLock(k, REWRITE + uuid.uuid4().hex)


def wait(k: GroupKeys) -> Call[bool]:
    """Note that a recalled text of a group waits; answers whether none waited before."""
    return Call("im_rewrite_wait", (k.rewrites,), (k.gid,), bool, k.gid, writes=True)


def due(space: Keyspace, partition: int, wait_ms: int, count: int) -> Call[list[str]]:
    """Ask for groups of a partition whose recalled texts have waited for a time."""
    return Call("im_rewrites_due", (space.rewrites(partition),), (wait_ms, count), wire.texts)


def begin(lock: GroupLock) -> Call[BegunRewrite | None]:
    """Begin to rewrite a group; answers None while another process has its lock, or one has died over its repair."""
    k = lock.k

    def decode(answer: Any) -> BegunRewrite | None:
        if isinstance(answer, bytes):
            return None
        last_id, newest, journal_end, lost_entries, erased = answer
        return BegunRewrite(last_id.decode(), int(newest), journal_end.decode(), lost_entries, erased)

    keys = (*lock.keys, k.meta, k.stream, k.journal, k.rewrites)
    return Call("im_rewrite_begin", keys, lock.args, decode, k.gid, writes=True)


def follow(lock: GroupLock, cursor: str, count: int) -> Call[str]:
    """Create the consumer groups of a page of members in the shadow; answers the next cursor, "0" at the end."""
    keys = (*lock.keys, lock.k.meta, lock.k.acked)
    return Call("im_rewrite_follow", keys, (*lock.args, cursor, count), bytes.decode, lock.k.gid, writes=True)


def swap(lock: GroupLock, begun: BegunRewrite, followed: str) -> Call[str]:
    """Replace the stream with its shadow, if the members follow the journal up to its end.

    Answers "" then, CHANGED if the rewrite must begin again, else the id up to which the members follow it now.
    """
    k = lock.k
    keys = (*lock.keys, k.meta, k.stream, k.acked, k.journal, k.recalled, k.rewrites)
    args = (*lock.args, begun.newest, begun.lost_entries, followed, begun.erased)
    return Call("im_rewrite_swap", keys, args, bytes.decode, k.gid, writes=True)
