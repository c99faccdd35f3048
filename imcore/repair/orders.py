"""The orders of a plan for the spans that Redis has. No I/O.

A message that Redis had lost may lie before the offset of a member who has read on without it. That offset goes back to
before the message, unless SQL knows that it had passed it: the member pulls the message with what follows. What has
arrived, and what a member has read in private, goes back likewise.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain

from imcore.model.rows import SpanRow
from imcore.repair.merge import Plan
from imcore.repair.state import ahead_of, delivered_of, is_empty, key_of, offset_of
from imcore.streams.calls.repair_calls import NEVER, Passed, Rollback, SpanOrder


def lowest_behind(plan: Plan) -> int | None:
    """Return the lowest position in Redis (packed) that is behind that in SQL, None if none is."""
    in_redis = {(row.uid, row.joined_msgid): row for rows in plan.live.rows.values() for row in rows}
    pairs = [(in_redis.get(span, _begun(row)), row) for span, row in plan.known.items()]
    offsets = ((live.acked_msgid, row.acked_msgid) for live, row in pairs)
    delivered = ((delivered_of(live), delivered_of(row)) for live, row in pairs)
    return min((actual for actual, stored in chain(offsets, delivered) if actual < stored), default=None)


def _begun(row: SpanRow) -> SpanRow:
    return row._replace(acked_msgid=row.joined_msgid, delivered_msgid=None)


def passed(plan: Plan) -> Iterator[Passed]:
    """Yield every span that Redis has, with the first lost message that each position may have passed."""
    for uid, rows in plan.live.rows.items():
        in_redis = {row.joined_msgid: row for row in rows}
        for row in rows:
            began = plan.spans[uid].void.get(row.joined_msgid)
            if began is None:
                yield _passed(plan, row, row.joined_msgid)
                continue
            # A void span: the positions are those of the span which goes on.
            found = _passed(plan, row, began)
            offset, delivered = found.sql_offset, found.sql_delivered
            if earlier := in_redis.get(began):
                offset, delivered = _positions_after(_passed(plan, earlier, began), earlier)
            yield found._replace(
                offset=Rollback(row.joined_msgid, offset),
                delivered=Rollback(row.joined_msgid, delivered),
                private=Rollback(row.joined_msgid, plan.private.get((uid, began), 0)),
            )


def _passed(plan: Plan, row: SpanRow, began: int) -> Passed:
    known, span = plan.known.get((row.uid, began)), (row.uid, began)
    offset, delivered = (max(known.acked_msgid, began), max(delivered_of(known), began)) if known else (began, began)
    rollbacks = (_rollback(plan, position) for position in (offset, delivered, max(offset, plan.private.get(span, 0))))
    return Passed(key_of(row), row.joined_msgid, began, offset, delivered, *rollbacks)


def _rollback(plan: Plan, known: int) -> Rollback:
    """Return how far a position goes back that has passed a lost message which SQL does not know it to have passed."""
    i = bisect_right(plan.lost, known)
    lost = plan.lost[i] if i < len(plan.lost) else NEVER
    return Rollback(lost, max(known, plan.before.get(lost, 0)))


def _positions(plan: Plan, row: SpanRow) -> tuple[int, int]:
    """Return the desired offset of a span, and up to where messages have arrived, where both may have to go back."""
    for actual in plan.live.rows.get(row.uid, ()):
        if actual.joined_msgid == row.joined_msgid:
            return _positions_after(_passed(plan, actual, row.joined_msgid), actual)
    known = plan.known.get((row.uid, row.joined_msgid), _begun(row))
    return max(known.acked_msgid, row.joined_msgid), max(delivered_of(known), row.joined_msgid)


def _positions_after(found: Passed, row: SpanRow) -> tuple[int, int]:
    offset = max(found.offset.of(row.acked_msgid), found.sql_offset)
    return offset, max(found.delivered.of(delivered_of(row)), found.sql_delivered, offset)


def _drops(plan: Plan, keys: Iterable[str]) -> Iterator[SpanOrder]:
    """Yield the orders that drop keys; those that were no whole spans may have become ones since they were read."""
    whole = {key_of(row) for rows in plan.live.rows.values() for row in rows}
    for key in sorted(keys):
        yield SpanOrder("drop" if key in whole else "sweep", key, seen=plan.live.opened.get(key))


def orders(plan: Plan) -> Iterator[SpanOrder]:
    """Yield what to do about spans: each desired one is asserted, and each other key is dropped."""
    opened = dict(plan.live.opened)
    for key, (actual, instead) in plan.live.beyond.items():
        yield SpanOrder("back", key, 0, actual, instead, seen=opened.get(key))
    for key, (actual, instead) in plan.live.withdrawn.items():
        yield SpanOrder("withdraw", key, 0, actual, delivered=instead, seen=opened.get(key))
    wanted = set()
    for row in plan.rows:
        seen = opened.get(row.uid)
        acked, delivered = _positions(plan, row) if plan.resets else (row.acked_msgid, delivered_of(row))
        if row.left_msgid is None:
            wanted.add(row.uid)
            yield SpanOrder("open", row.uid, row.joined_msgid, None, acked, delivered, seen)
            continue
        if not is_empty(row):
            wanted.add(key_of(row))
        if seen == row.joined_msgid:
            wanted.add(row.uid)
            del opened[row.uid]
        elif is_empty(row):
            continue
        yield close_order(row._replace(acked_msgid=acked, delivered_msgid=delivered), seen)
    yield from _drops(plan, plan.live.keys - wanted)


def close_order(row: SpanRow, seen: int | None = None) -> SpanOrder:
    """Return the order that closes a span."""
    return SpanOrder(
        "close", row.uid, row.joined_msgid, row.left_msgid, offset_of(row), ahead_of(row) or offset_of(row), seen
    )
