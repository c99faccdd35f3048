"""Offsets that no message can have, since somebody has written them by hand, in SQL or in Redis.

One a little beyond the newest message is none of these: a power cut may have taken that message from both. But one that
is days ahead would take every later msgid with it.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice

from imcore import msgid as msgids
from imcore.admin.merging import offset_of
from imcore.sql import corrections
from imcore.sql.database import Database
from imcore.sql.rows import SpanRow

log = logging.getLogger(__name__)

AHEAD_MS = 24 * 60 * 60 * 1000
"""No server's clock is further ahead of ours."""

MOST_NAMES = 3


def highest(newest: int) -> int:
    """Return the highest offset (packed) that can be in a group whose newest message is this one."""
    return min(msgids.HIGHEST, max(newest, msgids.first_at(time.time_ns() // 1_000_000 + AHEAD_MS)))


def possible(rows: Iterable[SpanRow], newest: int, live: Iterable[SpanRow] = ()) -> list[SpanRow]:
    """Return spans of one group, with what can be in place of each offset that cannot.

    That is what Redis has, whose spans are `live`, or else the newest message.
    """
    bound = highest(newest)
    here = {(row.uid, row.joined_msgid): row.acked_msgid for row in live if row.acked_msgid <= bound}
    return [row if row.acked_msgid <= bound else _with(row, here.get(row[1:3], newest)) for row in rows]


def _with(row: SpanRow, offset: int) -> SpanRow:
    return row._replace(acked_msgid=offset_of(row._replace(acked_msgid=max(offset, row.joined_msgid))))


def lower(database: Database, gid: str, rows: Sequence[SpanRow], newest: int) -> None:
    """Set in SQL the offsets of spans to what the rows say, where they cannot be."""
    corrections.lower_offsets(database, rows, above=highest(newest))
    said = ", ".join(f"{row.uid!r} {msgids.unpack(row.acked_msgid)}" for row in islice(rows, MOST_NAMES))
    more = f" and {len(rows) - MOST_NAMES} more" if len(rows) > MOST_NAMES else ""
    log.warning("group %r: SQL had offsets that no message can have; now have %s%s", gid, said, more)
