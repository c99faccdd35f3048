"""Calls that delete a group, step by step. No I/O; see `lua/deletion.lua`."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from imcore.streams import wire
from imcore.streams.calls.call import Call, or_empty
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.keys import SEPARATOR, GroupKeys, Keyspace, uid_of

DELETE = "delete:"
"""The beginning of the token of a deletion. Its lock on a group says nothing about the state of the group."""


class BegunDeletion(NamedTuple):
    """A deletion: the number of messages of the group, and the last journal entry (packed id) that may be about it."""

    messages: int
    entry: int


class ReceiptsCursor(NamedTuple):
    """Where a page of users is gone on with: the number of a user, and the cursor of their receipts."""

    number: int = 1
    cursor: str = "0"


def begin(lock: GroupLock, born_before: int | None = None) -> Call[BegunDeletion]:
    """Hide a group, and lock it; or resume its deletion; or renew the lock.

    With `born_before` (packed entry): hide it only if it is older than that; 0: only resume.
    """
    k = lock.k
    keys = (k.group_locks, k.meta, k.journal, k.deleting, k.groups, k.creating, k.unnotified, k.rewrites)
    args = (*lock.args, or_empty(born_before))
    return Call("im_delete_begin", keys, args, lambda answer: BegunDeletion(*map(int, answer)), k.gid, writes=True)


def spans(k: GroupKeys, count: int) -> Call[list[str]]:
    """Read the keys of some spans of a group."""
    return Call("", (), ("ZRANGE", k.joined, 0, count - 1), wire.texts, k.gid)


def receipts(lock: GroupLock, uids: Sequence[str], start: ReceiptsCursor) -> Call[ReceiptsCursor | None]:
    """Forget which receipts of a group are dirty, for some users; answers where to go on, None at the end."""
    keys = (lock.k.group_locks, *map(lock.k.dirty, uids))

    def decode(answer: Any) -> ReceiptsCursor | None:
        return ReceiptsCursor(answer[0], answer[1].decode()) if answer else None

    return Call("im_delete_receipts", keys, (*lock.args, *start), decode, lock.k.gid, writes=True)


def members(lock: GroupLock, spans: Sequence[str]) -> Call[int]:
    """Remove spans with what the group keeps of their users; answers how many were members."""
    k = lock.k
    own = (key for span in spans for key in (k.groups_of(uid_of(span)), k.own_unacked(uid_of(span))))
    keys = (k.group_locks, k.acked, k.joined, k.left, *own)
    return Call("im_delete_members", keys, (*lock.args, k.inboxes, *spans), int, k.gid, writes=True)


def end(lock: GroupLock) -> Call[bool]:
    """Remove the rest of a group; its gid is free then."""
    keys = (lock.k.group_locks, lock.k.deleting, *lock.k.for_end_of_deletion)
    return Call("im_delete_end", keys, lock.args, bool, lock.k.gid, writes=True)


def note_texts(k: GroupKeys, entry: int) -> Call[int]:
    """Note that texts of a deleted group may be in an append-only file."""
    return Call("", (), ("ZADD", k.withdrawn, entry, f"{k.gid}{SEPARATOR}{entry}"), int, k.gid, writes=True)


def deleting(space: Keyspace, gids: Sequence[str]) -> list[Call[bool]]:
    """Ask of each group whether it is being deleted."""
    keys = [space.deleting(space.partition_of(gid)) for gid in gids]
    return [Call("", (), ("HGET", key, gid), _is_there, gid) for key, gid in zip(keys, gids, strict=True)]


def being_deleted(space: Keyspace, partitions: Iterable[int] | None = None) -> list[Call[list[str]]]:
    """Ask which groups are being deleted, in each partition, or in each of some."""
    asked = range(space.partitions) if partitions is None else partitions
    return [Call("", (), ("HKEYS", space.deleting(p)), wire.texts) for p in asked]


def have_stored(space: Keyspace) -> list[Call[bool]]:
    """Ask of each partition whether a worker has ever stored anything of it."""
    return [
        Call("", (), ("HKEYS", space.watermarks(p)), lambda names: any(map(_is_worker, names)))
        for p in range(space.partitions)
    ]


def _is_worker(name: bytes) -> bool:
    return not name.startswith(SEPARATOR.encode())


def born(k: GroupKeys) -> Call[int | None]:
    """Ask after which journal entry (packed id) a group began, None if there is none; 0 if that is not known."""

    def decode(answer: Any) -> int | None:
        exists, born = answer
        return None if exists is None else int(born or 0)

    return Call("", (), ("HMGET", k.meta, "seq", "born"), decode, k.gid)


def _is_there(answer: object) -> bool:
    return answer is not None
