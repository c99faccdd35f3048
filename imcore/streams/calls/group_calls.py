"""Calls about groups, their members and positions. No I/O; see `lua/groups.lua`.

A scan reads a large set page by page, and may answer a name twice. Its cursor is "0" before the first page, and again
after the last one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.values import Group
from imcore.streams import wire
from imcore.streams.calls.call import Call, checked, error_of, or_empty
from imcore.streams.keys import CONFIG, REBUILDING, Keyspace

MembersCall = Callable[[Keyspace, str, Sequence[str]], Call[Group]]
"""A builder for a change of members: these uids, in this group."""

PAGE = 1000
"""About how many names a page has."""

NamesPage = tuple[str, list[str]]
"""The cursor of the next page, and names."""


class Position(NamedTuple):
    """A member's position (msgids packed): `joined` is the newest message at the join of the present span.

    Read in private up to `private`, and marked unread after `mark`; 0 for neither. What comes after `unread_after` is
    unread, except the `not_unread` own and recalled messages there; `seq` is the seq at that position.
    """

    head_seq: int
    last: int
    acked: int
    seq: int | None
    not_unread: int
    joined: int
    private: int = 0
    mark: int = 0

    @property
    def read(self) -> int:
        """Up to where the member has read, in private or not: a pull and a session begin there."""
        return max(self.acked, self.private)

    @property
    def unread_after(self) -> int:
        return self.mark or self.read

    @property
    def unread(self) -> int | None:
        """The number of unread messages, or None if only SQL knows the seq at their position."""
        return None if self.seq is None else self.head_seq - self.seq - self.not_unread


class OwnPosition(NamedTuple):
    """A member's offset, and what else only the member may know; see Position."""

    offset: int
    joined: int
    private: int
    mark: int


def init(partitions: int, dataset: str) -> Call[tuple[int, str]]:
    """Fix the partition count and the dataset id of new data; answers the stored ones."""
    args = (partitions, dataset)
    return Call("im_init", (CONFIG,), args, lambda answer: (int(answer[0]), answer[1].decode()), writes=True)


def copy_init(key: str, partitions: int, dataset: str) -> Call[int]:
    """Write a partition's copy of what `init` has fixed."""
    return Call("", (), ("HSET", key, "partitions", partitions, "dataset", dataset), int, writes=True)


def add_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    k = space.group(gid)
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, k.erasing, *map(k.groups_of, uids))
    return Call("im_join", keys, (gid, k.inboxes, *uids), group_of(gid), gid, writes=True)


def remove_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[Group]:
    k = space.group(gid)
    pairs = [key for uid in uids for key in (k.groups_of(uid), k.own_unacked(uid))]
    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.journal, *k.positions, *pairs)
    return Call("im_leave", keys, (gid, k.inboxes, *uids), group_of(gid), gid, writes=True)


def group(space: Keyspace, gid: str) -> Call[Group]:
    k = space.group(gid)
    return Call("im_group", (k.meta, k.acked, k.left), (), group_of(gid), gid)


def offset(space: Keyspace, gid: str, uid: str) -> Call[int | None]:
    """Ask for the offset of a member (packed); None for no member."""
    return Call("", (), ("ZSCORE", space.group(gid).acked, uid), _score, gid)


def groups_of(space: Keyspace, uid: str) -> list[Call[list[str]]]:
    """Ask for a user's groups, in each served partition."""
    return [Call("", (), ("SMEMBERS", space.groups_of(p, uid)), wire.texts) for p in space.served]


def being_created(space: Keyspace) -> list[Call[list[str]]]:
    """Ask which groups are being created and do not exist yet, in each served partition."""
    return [Call("", (), ("HKEYS", space.creating(p)), wire.texts) for p in space.served]


def hidden(space: Keyspace) -> list[Call[list[str]]]:
    """Ask which groups nobody sees, though users list them: those created or deleted now, in each served partition."""
    deleting: list[Call[list[str]]] = [Call("", (), ("HKEYS", space.deleting(p)), wire.texts) for p in space.served]
    return [*being_created(space), *deleting]


def position(space: Keyspace, gid: str, uid: str, *, for_others: bool = False) -> Call[Position]:
    """Ask for a member's position; `for_others`: without the bookmark, which only the member may know."""
    keys = position_keys(space, gid, uid)
    return Call("im_unread", keys, (uid, int(for_others)), lambda answer: _position(answer, gid, uid), gid)


def positions_in(space: Keyspace, gids: Sequence[str], uid: str) -> Call[list[Position | ImError]]:
    """Ask for a user's positions in groups of one partition; one of whom they are no member has an error instead."""

    def decode(answer: list[Any]) -> list[Position | ImError]:
        return [_position_or_error(each, gid, uid) for gid, each in zip(gids, answer, strict=True)]

    keys = tuple(key for gid in gids for key in position_keys(space, gid, uid))
    return Call("im_unread_in", keys, (uid,), decode)


def positions_of(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[list[Position | ImError]]:
    """Ask for the positions of members as anybody may see them; one who has left has an error instead."""
    k = space.group(gid)

    def decode(answer: list[Any]) -> list[Position | ImError]:
        return [_position_or_error(each, gid, uid) for uid, each in zip(uids, answer, strict=True)]

    keys = (k.meta, k.stream, k.acked, k.recalled, k.joined, *map(k.own_unacked, uids))
    return Call("im_unread_of", keys, tuple(uids), decode, gid)


def own_positions(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[list[OwnPosition | None]]:
    """Ask for the positions of members, for themselves; None for no member."""
    k = space.group(gid)

    def decode(answer: list[Any]) -> list[OwnPosition | None]:
        return [None if isinstance(each, bytes) else OwnPosition(*map(int, each)) for each in answer]

    return Call("im_positions", (k.acked, k.joined, k.bookmarks), tuple(uids), decode, gid)


def mark(
    space: Keyspace, gid: str, uid: str, msgid: int | None, *, seq: int | None = None, own: Sequence[int] = ()
) -> Call[Position]:
    """Mark a message (packed; None: none) and all later ones unread for a member; answers the position then.

    If only SQL has it, `seq` is its seq, and `own` are the member's own messages from there on that SQL has.
    """
    k = space.group(gid)
    args = (gid, k.inboxes + uid, uid, or_empty(msgid), or_empty(seq), *own)

    def decode(answer: Any) -> Position:
        return _position(answer, gid, uid, msgid)

    return Call("im_mark", (*position_keys(space, gid, uid), k.journal), args, decode, gid, writes=True)


def position_keys(space: Keyspace, gid: str, uid: str) -> tuple[str, ...]:
    """Return the keys of the functions that answer a position."""
    k = space.group(gid)
    return k.meta, k.stream, k.acked, k.own_unacked(uid), k.recalled, k.joined, k.bookmarks


def _position(answer: Any, gid: str, uid: str, msgid: int | None = None) -> Position:
    return position_of(checked(answer, gid, uid=uid, msgid=msgid))


def _position_or_error(answer: Any, gid: str, uid: str) -> Position | ImError:
    return error_of(answer, gid, uid=uid) if isinstance(answer, bytes) else position_of(answer)


def position_of(answer: list[Any]) -> Position:
    head_seq, last, acked, seq, *rest = answer
    return Position(int(head_seq), int(last), int(acked), None if seq == b"" else int(seq), *map(int, rest))


def dataset(place: str = CONFIG) -> Call[str | None]:
    """Ask for the name of the data in Redis, at a place that has it. Answers None while Redis has no data."""
    return Call("", (), ("HGET", place, "dataset"), lambda answer: None if answer is None else str(answer, "utf-8"))


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
