"""Which offsets no message can have, and what takes their place."""

import pytest

from imcore import msgid as msgids
from imcore.model.rows import SpanRow
from imcore.repair.state import highest_offset, outside, possible
from imcore.streams import events
from imcore.streams.events import Malformed

HOUR_MS = 3_600_000
NOW_MS = 1_796_000_000_000
ENTRY = b"1767225600123-4"


def at(hours: int) -> int:
    return msgids.first_at(NOW_MS + hours * HOUR_MS)


def span(uid: str, acked: int, left: int | None = None) -> SpanRow:
    return SpanRow("g", uid, 5, left, 1, acked)


def test_offset_may_be_ahead_by_a_day_or_at_the_newest_message() -> None:
    assert at(23) < highest_offset(7, NOW_MS) < at(25)
    assert highest_offset(at(50), NOW_MS) == at(50)
    assert highest_offset(msgids.IMPOSSIBLE, NOW_MS) == msgids.HIGHEST


def test_impossible_offset_becomes_that_of_redis_or_the_newest_message() -> None:
    rows = [span("ann", at(30)), span("bob", at(30)), span("cy", at(30), left=8), span("dee", 11), span("eve", at(2))]
    live = [span("ann", 7), span("bob", msgids.IMPOSSIBLE)]
    assert [row.acked_msgid for row in possible(rows, 9, live, bound=highest_offset(9, NOW_MS))] == [
        7,
        9,
        8,
        11,
        rows[-1].acked_msgid,
    ]


def test_impossible_position_of_what_has_arrived_becomes_that_of_redis_or_the_offset() -> None:
    def ahead(uid: str, delivered: int, acked: int = 7, left: int | None = None) -> SpanRow:
        return span(uid, acked, left)._replace(delivered_msgid=delivered)

    rows = [ahead("ann", at(30)), ahead("bob", at(30)), ahead("cy", 10, left=9), ahead("dee", 6), ahead("eve", 8)]
    live = [ahead("ann", 8), ahead("bob", msgids.IMPOSSIBLE)]
    bound = highest_offset(9, NOW_MS)
    assert [row.delivered_msgid for row in possible(rows, 9, live, bound=bound)] == [8, None, None, None, 8]


def test_positions_past_the_desired_end_of_a_span_become_that_end() -> None:
    known = [span("ann", 9), span("bob", 7)._replace(delivered_msgid=9), span("cy", 8), span("dee", 9)]
    desired = {(uid, 5): span(uid, 7, left=8) for uid in ("ann", "bob", "cy")}
    assert list(outside(known, desired)) == [
        span("ann", 8, left=8),
        span("bob", 7, left=8)._replace(delivered_msgid=8),
    ]


def test_impossible_end_becomes_that_of_redis_or_the_newest_message() -> None:
    rows = [span("ann", 7, left=at(30)), span("bob", at(30), left=at(30)), span("cy", 7, left=msgids.IMPOSSIBLE)]
    live = [span("ann", 7, left=8), span("bob", 6)]
    assert possible(rows, 9, live, bound=highest_offset(9, NOW_MS)) == [
        span("ann", 7, left=8),
        span("bob", 6, left=9),
        span("cy", 7, left=9),
    ]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("number", ["9000000000000000000", str(msgids.IMPOSSIBLE), "1e9", "inf"])
def test_entry_with_an_impossible_position_is_malformed(place: int, number: str) -> None:
    moves = ["0", "0", "9", "bob"]
    moves[place] = number
    fields = {b"kind": b"ack", b"gid": b"g", b"moves": "\x1f".join(moves).encode()}
    assert isinstance(events.read(0, ENTRY, fields).event, Malformed)
    joined = {b"kind": b"join", b"gid": b"g", b"uid": b"bob", b"joined": number.encode()}
    assert isinstance(events.read(0, ENTRY, joined).event, Malformed)
    left = {b"kind": b"leave", b"gid": b"g", b"uid": b"bob", b"joined": b"0", b"left": number.encode()}
    assert isinstance(events.read(0, ENTRY, left).event, Malformed)
