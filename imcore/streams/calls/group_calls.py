"""Calls about groups, their members and positions. No I/O; see `lua/groups.lua`.

A scan reads a large set page by page, and may answer a name twice. Its cursor is "0" before the first page, and again
after the last one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Group
from imcore.streams import wire
from imcore.streams.calls.call import Call, checked
from imcore.streams.keys import CONFIG, REBUILDING, Keyspace

MembersCall = Callable[[Keyspace, str, Sequence[str]], Call[Group]]
"""A builder for a change of members: these uids, in this group."""

PAGE = 1000
"""About how many names a page has."""

NamesPage = tuple[str, list[str]]
"""The cursor of the next page, and names."""


class Position(NamedTuple):
    """A member's position (msgids packed): `joined` is the newest message at the join of the present span.

    `not_unread` counts own and recalled messages past the offset.
    """

    head_seq: int
    last: int
    acked: int
    acked_seq: int | None
    not_unread: int
    joined: int

    @property
    def unread(self) -> int | None:
        """The number of unread messages, or None if only SQL knows the seq at the offset."""
        return None if self.acked_seq is None else self.head_seq - self.acked_seq - self.not_unread


def init(partitions: int, dataset: str) -> Call[tuple[int, str]]:
    """Fix the partition count and the dataset id of new data; answers the stored ones."""
    args = (partitions, dataset)
    return Call("im_init", (CONFIG,), args, lambda answer: (int(answer[0]), answer[1].decode()), writes=True)


def add_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    k = space.group(gid)
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, *map(k.groups_of, uids))
    return Call("im_join", keys, (gid, k.inboxes, *uids), group_of(gid), gid, writes=True)


def remove_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    k = space.group(gid)
    pairs = [key for uid in uids for key in (k.groups_of(uid), k.own_unacked(uid))]
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, *pairs)
    return Call("im_leave", keys, (gid, k.inboxes, *uids), group_of(gid), gid, writes=True)


def group(space: Keyspace, gid: str) -> Call[Group]:
    k = space.group(gid)
    return Call("im_group", (k.meta, k.acked, k.left), (), group_of(gid), gid)


def offset(space: Keyspace, gid: str, uid: str) -> Call[int | None]:
    """Ask for the offset of a member (packed); None for no member."""
    return Call("", (), ("ZSCORE", space.group(gid).acked, uid), _score, gid)


def groups_of(space: Keyspace, uid: str) -> list[Call[list[str]]]:
    """Ask for a user's groups, in each partition."""
    return [Call("", (), ("SMEMBERS", space.groups_of(p, uid)), wire.texts) for p in range(space.partitions)]


def being_created(space: Keyspace) -> list[Call[list[str]]]:
    """Ask which groups are being created and do not exist yet, in each partition."""
    return [Call("", (), ("HKEYS", space.creating(p)), wire.texts) for p in range(space.partitions)]


def hidden(space: Keyspace) -> list[Call[list[str]]]:
    """Ask which groups nobody sees, though users list them: they are being created or deleted, in each partition."""
    deleting: list[Call[list[str]]] = [
        Call("", (), ("HKEYS", space.deleting(p)), wire.texts) for p in range(space.partitions)
    ]
    return [*being_created(space), *deleting]


def position(space: Keyspace, gid: str, uid: str) -> Call[Position]:
    k = space.group(gid)

    def decode(answer: Any) -> Position:
        head_seq, last, acked, acked_seq, not_unread, joined = checked(answer, gid, uid=uid)
        seq = None if acked_seq == b"" else int(acked_seq)
        return Position(int(head_seq), int(last), int(acked), seq, not_unread, int(joined))

    keys = (k.meta, k.stream, k.acked, k.own_unacked(uid), k.recalled, k.joined)
    return Call("im_unread", keys, (uid,), decode, gid)


def dataset() -> Call[str | None]:
    """Answers the name of the data in Redis, or None while Redis has no data."""
    return Call("", (), ("HGET", CONFIG, "dataset"), lambda answer: None if answer is None else str(answer, "utf-8"))


def rebuilding() -> Call[bool]:
    """Ask whether a rebuild of Redis was begun and not ended."""
    return Call("", (), ("HGET", CONFIG, REBUILDING), lambda token: token is not None)


def scan_groups(space: Keyspace, partition: int, cursor: str) -> Call[NamesPage]:
    return Call("", (), ("SSCAN", space.groups(partition), cursor, "COUNT", PAGE), _page_of_names)


def scan_spans(space: Keyspace, gid: str, cursor: str) -> Call[NamesPage]:
    """Read the names of a group's spans: the uids of current members, and keys of closed spans."""
    return _zscan(space.group(gid).acked, cursor, lambda _: True, gid)


def scan_first_spans(space: Keyspace, gid: str, cursor: str) -> Call[NamesPage]:
    """Read the names of the spans that began before the first message."""
    return _zscan(space.group(gid).joined, cursor, lambda joined: joined == 0, gid)


def some_spans(space: Keyspace, gid: str, count: int) -> Call[list[str]]:
    return Call("", (), ("ZRANGE", space.group(gid).acked, 0, count - 1), lambda raw: list(_decodable(raw)), gid)


def are_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[bool]:
    return Call("", (), ("ZMSCORE", space.group(gid).acked, *uids), lambda scores: None not in scores, gid)


def trimmed(space: Keyspace, gid: str) -> Call[int]:
    """Read up to which message (packed) Redis has trimmed a group."""
    return Call("", (), ("HGET", space.group(gid).meta, "trimmed"), lambda raw: int(raw or 0), gid)


def group_of(gid: str) -> Callable[[list[Any]], Group]:
    def decode(answer: list[Any]) -> Group:
        members, messages, last = answer
        return Group(gid, members, messages, msgids.unpack_offset(int(last)))

    return decode


def _score(answer: Any) -> int | None:
    return None if answer is None else int(float(answer))  # a text or a number, depending on the driver's protocol


def _page_of_names(answer: Any) -> NamesPage:
    cursor, names = answer
    return cursor.decode(), list(_decodable(names))


def _zscan(key: str, cursor: str, is_wanted: Callable[[float], bool], gid: str) -> Call[NamesPage]:
    def decode(answer: Any) -> NamesPage:
        next_cursor, flat = answer
        names = [name for name, score in zip(flat[::2], flat[1::2], strict=True) if is_wanted(float(score))]
        return _page_of_names((next_cursor, names))

    return Call("", (), ("ZSCAN", key, cursor, "COUNT", PAGE), decode, gid)


def _decodable(names: Iterable[bytes]) -> Iterator[str]:
    for name in names:
        with suppress(UnicodeDecodeError):  # somebody has added it by hand
            yield name.decode()
