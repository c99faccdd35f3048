"""The orders of a plan for the spans that Redis has. No I/O.

A message that Redis had lost may lie before the offset of a member who has read on without it. That offset goes back to
before the message, unless SQL knows that it had passed it: the member pulls the message with what follows.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from imcore.model.rows import SpanRow
from imcore.repair.merge import Plan
from imcore.repair.state import is_empty, key_of, offset_of
from imcore.streams.calls.repair_calls import NEVER, Passed, SpanOrder


def lowest_behind(plan: Plan) -> int | None:
    """Return the lowest offset in Redis (packed) that is behind that in SQL, None if none is."""
    in_redis = {(row.uid, row.joined_msgid): row.acked_msgid for rows in plan.live.rows.values() for row in rows}
    pairs = ((in_redis.get(span, span[1]), acked) for span, acked in plan.known.items())
    return min((offset for offset, acked in pairs if offset < acked), default=None)


def passed(plan: Plan) -> Iterator[Passed]:
    """Yield every span that Redis has, with the first lost message that it may have passed."""
    for uid, rows in plan.live.rows.items():
        in_redis = {row.joined_msgid: row for row in rows}
        for row in rows:
            began = plan.spans[uid].void.get(row.joined_msgid)
            if began is None:
                yield _passed(plan, row, row.joined_msgid)
                continue
            # A void span: the offset is that of the span which goes on.
            found = _passed(plan, row, began)
            earlier = in_redis.get(began)
            back = _offset_after(_passed(plan, earlier, began), earlier) if earlier else found.sql_offset
            yield found._replace(lost=row.joined_msgid, rollback_to=back)


def _passed(plan: Plan, row: SpanRow, began: int) -> Passed:
    known = max(plan.known.get((row.uid, began), 0), began)
    i = bisect_right(plan.lost, known)
    lost = plan.lost[i] if i < len(plan.lost) else NEVER
    return Passed(key_of(row), row.joined_msgid, lost, max(known, plan.before.get(lost, 0)), began, known)


def _offset(plan: Plan, row: SpanRow) -> int:
    """Return the desired offset of a span where offsets may have to go back."""
    for actual in plan.live.rows.get(row.uid, ()):
        if actual.joined_msgid == row.joined_msgid:
            return _offset_after(_passed(plan, actual, row.joined_msgid), actual)
    return max(plan.known.get((row.uid, row.joined_msgid), 0), row.joined_msgid)


def _offset_after(found: Passed, row: SpanRow) -> int:
    return found.rollback_to if row.acked_msgid >= found.lost else max(row.acked_msgid, found.sql_offset)


def _drops(plan: Plan, keys: Iterable[str]) -> Iterator[SpanOrder]:
    """Yield the orders that drop keys; those that were no whole spans may have become ones since they were read."""
    whole = {key_of(row) for rows in plan.live.rows.values() for row in rows}
    for key in sorted(keys):
        yield SpanOrder("drop" if key in whole else "sweep", key, seen=plan.live.opened.get(key))


def orders(plan: Plan) -> Iterator[SpanOrder]:
    """Yield what to do about spans: each desired one is asserted, and each other key is dropped."""
    opened = dict(plan.live.opened)
    for key, (actual, instead) in plan.live.beyond.items():
        yield SpanOrder("back", key, 0, actual, instead, opened.get(key))
    wanted = set()
    for row in plan.rows:
        seen = opened.get(row.uid)
        acked = _offset(plan, row) if plan.resets else row.acked_msgid
        if row.left_msgid is None:
            wanted.add(row.uid)
            yield SpanOrder("open", row.uid, row.joined_msgid, None, acked, seen)
            continue
        if not is_empty(row):
            wanted.add(key_of(row))
        if seen == row.joined_msgid:
            wanted.add(row.uid)
            del opened[row.uid]
        elif is_empty(row):
            continue
        offset = offset_of(row._replace(acked_msgid=acked))
        yield SpanOrder("close", row.uid, row.joined_msgid, row.left_msgid, offset, seen)
    yield from _drops(plan, plan.live.keys - wanted)
