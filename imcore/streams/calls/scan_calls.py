"""Calls that read large sets page by page, and single fields. No I/O; see `imcore.streams.calls.call`.

A scan may answer a name twice. Its cursor is "0" before the first page, and again after the last one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace

PAGE = 1000
"""About how many names a page has."""

NamesPage = tuple[str, list[str]]
"""The cursor of the next page, and names."""


def groups(space: Keyspace, partition: int, cursor: str) -> Call[NamesPage]:
    """Read gids of a partition."""
    return Call("", (), ("SSCAN", space.groups(partition), cursor, "COUNT", PAGE), _page_of_names)


def spans(space: Keyspace, gid: str, cursor: str) -> Call[NamesPage]:
    """Read the names of a group's spans: the uids of current members, and keys of closed spans."""
    return Call("", (), ("ZSCAN", space.group(gid).acked, cursor, "COUNT", PAGE), _page_of(lambda _: True), gid)


def first_spans(space: Keyspace, gid: str, cursor: str) -> Call[NamesPage]:
    """Read the names of the spans that began before the first message."""
    return Call("", (), ("ZSCAN", space.group(gid).joined, cursor, "COUNT", PAGE), _page_of(lambda at: at == 0), gid)


def some_spans(space: Keyspace, gid: str, count: int) -> Call[list[str]]:
    """Read the names of some spans of a group."""
    return Call("", (), ("ZRANGE", space.group(gid).acked, 0, count - 1), lambda raw: list(_decodable(raw)), gid)


def are_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Call[bool]:
    """Return whether all of these are members."""
    return Call("", (), ("ZMSCORE", space.group(gid).acked, *uids), lambda scores: None not in scores, gid)


def trimmed(space: Keyspace, gid: str) -> Call[int]:
    """Read up to which message (packed) Redis has trimmed a group."""
    return Call("", (), ("HGET", space.group(gid).meta, "trimmed"), lambda raw: int(raw or 0), gid)


def _page_of_names(answer: Any) -> NamesPage:
    cursor, names = answer
    return cursor.decode(), list(_decodable(names))


def _page_of(is_wanted: Callable[[float], bool]) -> Callable[[Any], NamesPage]:
    def decode(answer: Any) -> NamesPage:
        cursor, flat = answer
        names = (name for name, score in zip(flat[::2], flat[1::2], strict=True) if is_wanted(float(score)))
        return cursor.decode(), list(_decodable(names))

    return decode


def _decodable(names: Iterable[bytes]) -> Iterator[str]:
    for name in names:
        with suppress(UnicodeDecodeError):  # somebody has added it by hand
            yield name.decode()
