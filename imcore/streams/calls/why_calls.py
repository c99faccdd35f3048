"""Calls about one user and one message. No I/O; see `lua/why.lua`."""

import re
from typing import Any, NamedTuple

from imcore.streams import wire
from imcore.streams.calls.call import Call, checked
from imcore.streams.keys import SEPARATOR, Keyspace

_SPANS = 1000
_GLOB = re.compile(r"([*?\[\]\\^-])")


class WhyFacts(NamedTuple):
    """What decides whether a user has read a message. Msgids are packed.

    `sender_uid` is '' if only SQL has the message. The positions are those of a span that covers it and began after
    `joined`; they are None without one.
    """

    sender_uid: str
    is_off: bool
    offset: int | None = None
    delivered: int | None = None
    joined: int | None = None


def why(space: Keyspace, gid: str, msgid: int, uid: str, *, span: str = "") -> Call[WhyFacts]:
    """Ask what decides, as far as the user's open span says, or the closed one of that key."""
    k = space.group(gid)

    def decode(answer: Any) -> WhyFacts:
        sender_uid, is_off, *positions = checked(answer, gid, msgid=msgid)
        return WhyFacts(wire.text(sender_uid), is_off == 1, *map(int, positions))

    keys = (k.meta, k.stream, k.acked, k.joined, k.left, k.ahead, k.receipts_off)
    return Call("im_why", keys, (msgid, uid, span), decode, gid)


def closed_spans(space: Keyspace, gid: str, uid: str, cursor: str) -> Call[tuple[str, list[tuple[int, str]]]]:
    """Ask for some of the closed spans of a user: answers the next cursor and, of each, where it began and its key."""
    begin = f"{uid}{SEPARATOR}"
    pattern = _GLOB.sub(r"\\\1", begin) + "*"

    def decode(answer: Any) -> tuple[str, list[tuple[int, str]]]:
        next_cursor, flat = answer
        spans = [(int(float(joined)), wire.text(name)) for name, joined in zip(flat[::2], flat[1::2], strict=True)]
        return wire.text(next_cursor), [(joined, name) for joined, name in spans if name.startswith(begin)]

    command = ("ZSCAN", space.group(gid).joined, cursor, "MATCH", pattern, "COUNT", _SPANS)
    return Call("", (), command, decode, gid)
