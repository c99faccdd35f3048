"""Calls that erase a user. No I/O; see `lua/erasure.lua`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from imcore.streams import wire
from imcore.streams.calls.call import Call, Value, flat
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.keys import RECORD_SEPARATOR, SEPARATOR, GroupKeys, Keyspace

CHANGED = "CHANGED"
"""The answer of `erase_chat` if the chat has other members than the caller saw."""

FOUND = "FOUND"
"""The answer of `writes` if there is such a message."""

AGAIN = "-"
"""Where the cleaning of dead letters goes on if letters went meanwhile."""

PAGE = 200
"""About how many entries of a set, and of a journal, one call looks at: the server does nothing else meanwhile."""


def begin(space: Keyspace, partition: int, uid: str, alias: str) -> Call[int]:
    """Let nobody of a uid join a group of a partition, until the erasure has ended."""
    return Call("", (), ("HSET", space.erasing(partition), uid, alias), int, writes=True)


def end(space: Keyspace, partition: int, uid: str) -> Call[int]:
    """Let the uid be used again: it is a new user."""
    return Call("", (), ("HDEL", space.erasing(partition), uid), int, writes=True)


def alias(space: Keyspace, uid: str) -> Call[str | None]:
    """Ask for the alias of a user who is being erased."""
    command = ("HGET", space.erasing(space.partition_of(uid)), uid)
    return Call("", (), command, lambda answer: None if answer is None else wire.text(answer))


def latest(space: Keyspace, gid: str) -> Call[str | None]:
    """Ask for the latest erasure of a user in a group: a text that no other erasure has, "" without one; None if the
    group does not exist.
    """

    def decode(answer: Sequence[bytes | None]) -> str | None:
        seq, erasure = answer
        return None if seq is None else wire.text(erasure or b"")

    return Call("", (), ("HMGET", space.group(gid).meta, "seq", "last_erasure"), decode, gid)


class Leaver(NamedTuple):
    """A user who leaves a group for good: the uid, the alias, and where the closed spans in the group began."""

    uid: str
    alias: str
    closed: Sequence[int] = ()


def erase(lock: GroupLock, leaver: Leaver) -> Call[bool]:
    """Let a user leave a group for good; answers whether it exists."""
    args: tuple[Value, ...] = (*lock.args, lock.k.inboxes, leaver.uid, leaver.alias, *leaver.closed)
    return Call("im_erase", _keys(lock, leaver.uid), args, bool, lock.k.gid, writes=True)


def writes(k: GroupKeys, uid: str, first: str) -> Call[str]:
    """Ask whether a page of a stream, from an id on, has a message of a user; answers FOUND, or the id of the last
    entry of the page, "" after the last page.
    """
    return Call("im_erase_writes", (k.stream,), (uid, first, PAGE), bytes.decode, k.gid)


def erase_chat(lock: GroupLock, leaver: Leaver, new: GroupKeys, others: Sequence[str], rebuilt: str) -> Call[str | int]:
    """Let a user leave a one-to-one chat, which gets another gid; answers 1, 0 if there is no such chat, or CHANGED.

    `others` are the other members.
    """
    k = lock.k
    own = (key for uid in others for key in (k.groups_of(uid), k.own_unacked(uid), new.own_unacked(uid)))
    keys = (*_keys(lock, leaver.uid), *_tables(k), k.groups, k.rewrites, rebuilt, *_state(new), *_tables(new), *own)
    names = (leaver.uid, leaver.alias, new.gid)
    args: tuple[Value, ...] = (*lock.args, k.inboxes, *names, len(others), *others, *leaver.closed)

    def decode(answer: bytes | int) -> str | int:
        return answer.decode() if isinstance(answer, bytes) else answer

    return Call("im_erase_chat", keys, args, decode, k.gid, writes=True)


def _keys(lock: GroupLock, uid: str) -> tuple[str, ...]:
    k = lock.k
    return (*lock.keys, *_state(k), k.journal, k.groups_of(uid), k.own_unacked(uid), k.erasing)


def _state(k: GroupKeys) -> tuple[str, ...]:
    return (k.meta, k.stream, k.acked, k.joined, k.left, *k.positions)


def _tables(k: GroupKeys) -> tuple[str, ...]:
    return (k.idempotency_newer, k.idempotency_older, k.recalled)


def hidden(k: GroupKeys) -> Call[dict[str, str]]:
    """Ask for the users whose messages a group hides until its stream is rewritten: their aliases, by uid."""

    def decode(answer: bytes | None) -> dict[str, str]:
        pairs = wire.text(answer or b"").split(RECORD_SEPARATOR)
        return {uid: alias for uid, _, alias in (pair.partition(SEPARATOR) for pair in pairs) if alias}

    return Call("", (), ("HGET", k.meta, "erased"), decode, k.gid)


def unhide(k: GroupKeys, uid: str) -> Call[bool]:
    """End the hiding of a user who has no message in a group's stream."""
    return Call("im_erase_unhide", (k.meta,), (uid,), bool, k.gid, writes=True)


def rename_receipts(k: GroupKeys, uid: str, new_gid: str, cursor: str) -> Call[str]:
    """Let a page of a user's unconfirmed receipts name another gid; answers the next cursor, "0" at the end."""
    args = (k.gid, new_gid, cursor, PAGE)
    return Call("im_erase_receipts", (k.dirty(uid),), args, bytes.decode, k.gid, writes=True)


def drop_client_msgids(table: str, uid: str, cursor: str) -> Call[str]:
    """Drop a page of a user's client_msgids from a table of a group; answers the next cursor, "0" at the end."""
    return Call("im_erase_client_msgids", (table,), (uid, cursor, PAGE), bytes.decode, writes=True)


class Erased(NamedTuple):
    """Names that are to go: the uid, the alias in its place, gids that have changed, with the new ones ("" for a group
    that is gone), and the gids of other groups where the user was.
    """

    uid: str
    alias: str
    gids: Mapping[str, str] = {}
    others: Sequence[str] = ()

    @property
    def args(self) -> tuple[Value, ...]:
        return (self.uid, self.alias, len(self.gids), *flat(self.gids.items()), *self.others)


def cut_journal(space: Keyspace, partition: int, erased: Erased) -> Call[str]:
    """Let later entries of a journal lie apart from earlier ones; answers the last id before the cut, "" for none."""
    return Call("im_erase_cut", (space.journal(partition),), erased.args, bytes.decode, writes=True)


def clean_journal(space: Keyspace, partition: int, cut: str, erased: Erased) -> Call[bool]:
    """Let a page of entries before a cut be gone, or after it without these names; answers whether more follow."""
    return Call("im_erase_entries", (space.journal(partition),), (cut, PAGE, *erased.args), bool, writes=True)


class DeadPage(NamedTuple):
    """How far dead letters are cleaned: the id of the last one that was looked at, how many were left out so far, and
    whether one has changed so far. `after` is "" before the first page and after the last one.
    """

    after: str = ""
    left_out: int = 0
    has_changed: bool = False


def clean_dead_letters(space: Keyspace, partition: int, page: DeadPage, erased: Erased) -> Call[DeadPage]:
    """Let a page of dead letters have none of these names; they are replaced after the last page. Answers how far it
    is: AGAIN as `after` if letters went meanwhile, to begin with the first page again.
    """
    keys = (space.dead_letters(partition), space.dead_shadow(partition))
    args: tuple[Value, ...] = (page.after, PAGE, page.left_out, int(page.has_changed), *erased.args)

    def decode(answer: Sequence[Any]) -> DeadPage:
        return DeadPage(answer[0].decode(), int(answer[1]), answer[2] == 1)

    return Call("im_erase_dead", keys, args, decode, writes=True)


def drop_user(space: Keyspace, partition: int, uid: str) -> list[Call[int]]:
    """Drop what a partition has of a user beside the groups."""
    keys = [space.groups_of(partition, uid), space.dirty(partition, uid)]
    calls = [Call("", (), ("SREM", space.receipts_off(partition), uid), int, writes=True)]
    if partition == space.partition_of(uid):
        of_user = space.sessions(uid), space.online(partition), space.last_seen(partition)
        calls.append(Call("im_erase_sessions", (*of_user, space.ended_sessions(partition)), (uid,), int, writes=True))
    return calls + [Call("", (), ("UNLINK", key), int, writes=True) for key in keys]
