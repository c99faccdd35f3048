"""Calls that read the spans of a group from its sorted sets. No I/O; see `lua/base.lua`.

A key that is no text, and a score that is no packed msgid, were written by hand. They are left out.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from imcore import msgid as msgids
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace

PAGE = 1000
"""About how many spans a page has."""

SpansPage = tuple[str, dict[str, int]]
"""The cursor of the next page, and by span key where each span began."""


def scan(space: Keyspace, gid: str, cursor: str) -> Call[SpansPage]:
    """Read a page of spans; the cursor is "0" before the first page, and again after the last one."""

    def decode(answer: Any) -> SpansPage:
        next_cursor, flat = answer
        began = zip(map(_key, flat[::2]), map(_packed, flat[1::2]), strict=True)
        return next_cursor.decode(), {key: joined for key, joined in began if key is not None and joined is not None}

    return Call("", (), ("ZSCAN", space.group(gid).joined, cursor, "COUNT", PAGE), decode, gid)


def began(space: Keyspace, gid: str, keys: Sequence[str]) -> Call[list[int | None]]:
    """Ask after which message each span began."""
    return _scores(space.group(gid).joined, gid, keys)


def offsets(space: Keyspace, gid: str, keys: Sequence[str]) -> Call[list[int | None]]:
    return _scores(space.group(gid).acked, gid, keys)


def deliveries(space: Keyspace, gid: str, keys: Sequence[str]) -> Call[list[int | None]]:
    """Ask up to where messages have arrived in each span; None where that is not past the offset."""
    return _scores(space.group(gid).ahead, gid, keys)


def bookmark(space: Keyspace, gid: str, uid: str) -> Call[tuple[int, int]]:
    """Ask for a member's bookmark: read in private up to there, and marked unread after; 0 for neither."""

    def decode(raw: bytes | None) -> tuple[int, int]:
        private, _, mark = (raw or b"").partition(b" ")
        return _packed(private or None) or 0, _packed(mark or None) or 0

    return Call("", (), ("HGET", space.group(gid).bookmarks, uid), decode, gid)


def ends(space: Keyspace, gid: str, keys: Sequence[str]) -> Call[list[int | None]]:
    """Ask with which message each span ended; None while it is open."""
    return _scores(space.group(gid).left, gid, keys)


def ended(space: Keyspace, gid: str, since: int, skip: int) -> Call[list[str]]:
    """Read the keys of a page of the spans that ended with a message (packed) or a later one, but for the first ones.

    A page with fewer than PAGE keys is the last one.
    """
    command = ("ZRANGEBYSCORE", space.group(gid).left, since, "+inf", "LIMIT", skip, PAGE)
    return Call("", (), command, lambda keys: [_key(key) or "" for key in keys], gid)


def _scores(name: str, gid: str, keys: Sequence[str]) -> Call[list[int | None]]:
    return Call("", (), ("ZMSCORE", name, *keys), lambda scores: list(map(_packed, scores)), gid)


def _key(raw: bytes) -> str | None:
    with suppress(UnicodeDecodeError):
        return raw.decode()
    return None


def _packed(score: bytes | float | None) -> int | None:
    """Return a score, a text or a number depending on the driver's protocol, as a packed msgid."""
    number = -1.0 if score is None else float(score)
    return int(number) if 0 <= number <= msgids.HIGHEST and number.is_integer() else None
