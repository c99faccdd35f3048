"""Offsets, and ends of spans, that no message can have: somebody has written them by hand, in SQL or in Redis.

One a little beyond the newest message is none of these: a power cut may have taken that message from both. But one that
is days ahead would take every later msgid with it.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice

from imcore import msgid as msgids
from imcore.model.rows import SpanRow
from imcore.repair.diff import of_span
from imcore.repair.merge import offset_of
from imcore.sql import corrections
from imcore.sql.database import Database

log = logging.getLogger(__name__)

AHEAD_MS = 24 * 60 * 60 * 1000
"""No server's clock is further ahead of ours."""

MOST_NAMES = 3


def highest(newest: int) -> int:
    """Return the highest offset (packed) that can be in a group whose newest message is this one."""
    return min(msgids.HIGHEST, max(newest, msgids.first_at(time.time_ns() // 1_000_000 + AHEAD_MS)))


def possible(rows: Iterable[SpanRow], newest: int, live: Iterable[SpanRow] = ()) -> list[SpanRow]:
    """Return spans of one group, with what can be in place of each offset that cannot, and of each such end.

    That is what Redis has, whose spans are `live`, or else the newest message.
    """
    bound = highest(newest)
    here = {(row.uid, row.joined_msgid): row for row in live}
    return [row if _furthest(row) <= bound else _with(row, here.get(row[1:3]), newest) for row in rows]


def _furthest(row: SpanRow) -> int:
    return max(row.acked_msgid, row.left_msgid or 0)


def _with(row: SpanRow, here: SpanRow | None, newest: int) -> SpanRow:
    bound = highest(newest)

    def instead(there: int | None, stands: int | None) -> int | None:
        if there is None or there <= bound:
            return there
        return max(row.joined_msgid, newest if stands is None or stands > bound else stands)

    left = instead(row.left_msgid, here and here.left_msgid)
    acked = instead(row.acked_msgid, here and here.acked_msgid) or 0
    row = row._replace(left_msgid=left, acked_msgid=acked)
    return row._replace(acked_msgid=offset_of(row))


def lower(database: Database, gid: str, rows: Sequence[SpanRow], newest: int) -> None:
    """Set in SQL what of spans cannot be to what the rows say."""
    corrections.lower_spans(database, rows, above=highest(newest))
    said = "; ".join(f"{row.uid!r} {of_span(row)}" for row in islice(rows, MOST_NAMES))
    more = f"; and {len(rows) - MOST_NAMES} more" if len(rows) > MOST_NAMES else ""
    log.warning("group %r: SQL had offsets or ends that no message can have; now: %s%s", gid, said, more)
