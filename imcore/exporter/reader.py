"""Reads the spans and the messages of a group, page by page, while people use it. No I/O.

An export has the messages up to the one that is the newest when it begins. What changes later may be in it or not.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from imcore import msgid as msgids
from imcore.model.rows import SpanRow
from imcore.model.values import Message
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, Pages, call
from imcore.operations.queries import MessagesAfter
from imcore.streams import wire
from imcore.streams.calls import group_calls, message_calls, span_calls
from imcore.streams.keys import SEPARATOR, Keyspace, uid_of

_SQL_PAGE = 200
"""The most messages that SQL answers at once: it does not count bytes."""

_Spans = dict[tuple[str, int], SpanRow]


def spans(gid: str, last: int, uid: str | None) -> Effects[list[SpanRow]]:
    """Return the spans of a group as they were at its message `last` (packed), or later; of one user, if given.

    A span without messages is left out once it is closed. Read `last` first: so no message up to it lacks the span of
    its sender.
    """
    space = yield from GetKeyspace()
    found: _Spans = {}
    cursor = ""
    while cursor != "0":
        cursor, began = yield from call(span_calls.scan(space, gid, cursor or "0"))
        found |= yield from _spans_of(space, gid, {key: at for key, at in began.items() if uid in {None, uid_of(key)}})
    found |= yield from _ended(space, gid, last, uid)
    return [clipped for span in found.values() for clipped in _clipped(span, last)]


def _ended(space: Keyspace, gid: str, last: int, uid: str | None) -> Effects[_Spans]:
    """Return the spans that ended at a message or later: a span that ended during a scan may be missing there."""
    found: _Spans = {}
    keys = [""] * span_calls.PAGE
    read = 0
    while len(keys) == span_calls.PAGE:
        keys = yield from call(span_calls.ended(space, gid, last, read))
        read += len(keys)
        wanted = [key for key in keys if key and uid in {None, uid_of(key)}]
        began = (yield from call(span_calls.began(space, gid, wanted))) if wanted else []
        known = {key: at for key, at in zip(wanted, began, strict=True) if at is not None}
        found |= yield from _spans_of(space, gid, known)
    return found


def _spans_of(space: Keyspace, gid: str, began: dict[str, int]) -> Effects[_Spans]:
    """Return the spans of some keys. One that is gone has ended meanwhile, and has another key."""
    if not began:
        return {}
    keys = list(began)
    offsets = yield from call(span_calls.offsets(space, gid, keys))
    ends = yield from call(span_calls.ends(space, gid, keys))
    arrived = yield from call(span_calls.deliveries(space, gid, keys))
    return {
        (uid_of(key), joined): SpanRow(gid, uid_of(key), joined, left, 0, acked, delivered)
        for (key, joined), acked, left, delivered in zip(began.items(), offsets, ends, arrived, strict=True)
        if acked is not None and (left is None) == (SEPARATOR not in key)
    }


def _clipped(span: SpanRow, last: int) -> Iterator[SpanRow]:
    """Yield a span as it was when a message was the newest, unless it began later or has no message."""
    left = None if span.left_msgid is None or span.left_msgid > last else span.left_msgid
    if span.joined_msgid <= last and left != span.joined_msgid:
        end = last if left is None else left
        acked = max(min(span.acked_msgid, end), span.joined_msgid)
        delivered = min(span.delivered_msgid or 0, end)
        ahead = delivered if delivered > acked else None
        yield span._replace(left_msgid=left, acked_msgid=acked, delivered_msgid=ahead)


def messages(gid: str, after: int, until: int) -> Pages[Message]:
    """Yield the messages with after < msgid <= until (packed), oldest first: from SQL those that Redis has trimmed."""
    space = yield from GetKeyspace()
    while after < until:
        trimmed = min(until, (yield from call(group_calls.trimmed(space, gid))))
        if trimmed > after:
            rows = yield from MessagesAfter(gid, after, trimmed, _SQL_PAGE)
            yield (yield from queries.messages(space, gid, rows))
            after = rows[-1].msgid if len(rows) == _SQL_PAGE else trimmed
            continue
        first, last = f"({msgids.unpack(after)}", msgids.unpack(until)
        page = yield from call(message_calls.entries(space, gid, first, last, queries.PAGE))
        if (yield from call(group_calls.trimmed(space, gid))) > after:
            continue  # some were trimmed just before they were read
        yield list(_messages_in(gid, page.entries))
        after = msgids.pack_id(page.entries[-1][0]) if page.more else until


def _messages_in(gid: str, entries: Sequence[wire.Entry]) -> Iterator[Message]:
    for entry in entries:
        with suppress(IndexError, ValueError):  # somebody has added an entry by hand that is no message
            yield wire.message(gid, entry)
