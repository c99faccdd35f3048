"""How rows are written, as far as SQLite and PostgreSQL agree: columns, values, and what to do with a known key.

Every conflict clause keeps a maximum or a minimum, so writes commute and may be repeated.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from imcore import msgid as msgids
from imcore.model.rows import Batch, GroupRow, MessageRow, MoveRow, SpanRow, WatermarkRow
from imcore.sql.tables import reach

TimeForm = Callable[[int], object]
"""Turns milliseconds since 1970 into what a driver takes for a timestamp."""

_Row = TypeVar("_Row", bound=tuple[Any, ...])

MARK = "stored"
"""`stored:{partition}:{consumer}` is the packed id of the last journal entry which that consumer has stored."""


@dataclass(frozen=True, slots=True)
class BulkTable(Generic[_Row]):
    """Where rows of one kind go. `columns` maps names to PostgreSQL types; `appends`: keys are hardly ever known."""

    table: str
    columns: dict[str, str]
    on_conflict: str
    values: Callable[[_Row, TimeForm], tuple[object, ...]]
    appends: bool

    @property
    def names(self) -> str:
        """The columns as SQL lists them."""
        return ", ".join(self.columns)


def by_target(batch: Batch) -> Iterator[tuple[BulkTable[Any], list[Any]]]:
    """Yield every target that has rows, always in the same order: writers then never wait for each other in a ring."""
    for target, rows in (
        (_GROUPS, batch.groups),
        (_MESSAGES, batch.messages),
        (_SPANS, batch.spans),
        (_MOVES, batch.moves),
        (_MARKS, batch.marks),
    ):
        if rows:
            yield target, rows


def _recalls(batch: Batch) -> list[tuple[object, ...]]:
    return [(row.gid, row.recalls) for row in batch.messages if row.recalls is not None]


def _confirms(batch: Batch) -> list[tuple[object, ...]]:
    return [(row.read, row.gid, row.msgid, row.read) for row in batch.confirms]


UPDATES: tuple[tuple[str, Callable[[Batch], list[tuple[object, ...]]]], ...] = (
    ("UPDATE group_msgs SET content = '' WHERE gid = ? AND msgid = ? AND content <> ''", _recalls),
    ("UPDATE group_msgs SET confirmed_read = ? WHERE gid = ? AND msgid = ? AND confirmed_read < ?", _confirms),
)
"""What is done to messages that are stored already, after the rows are in: a statement, and the values for it."""


def _group_values(row: GroupRow, time: TimeForm) -> tuple[object, ...]:
    return row.gid, time(row.created_ms)


def _message_values(row: MessageRow, time: TimeForm) -> tuple[object, ...]:
    gid, msgid, seq, sender_uid, span, content, client_msgid, sent_at_ms, recalls, _ = row
    sent_at = None if sent_at_ms is None else time(sent_at_ms)
    return gid, msgid, seq, span, time(msgids.time_ms(msgid)), sent_at, recalls, sender_uid, client_msgid, content


def _span_values(row: SpanRow, _time: TimeForm) -> tuple[object, ...]:
    return row


def _move_values(row: MoveRow, _time: TimeForm) -> tuple[object, ...]:
    gid, msgid, start, entry, uids = row
    return gid, reach(msgid - start), msgid, entry, start, _json(uids)


@lru_cache(maxsize=256)
def _json(uids: tuple[str, ...]) -> str:
    return json.dumps(uids, ensure_ascii=False)


def _mark_values(row: WatermarkRow, _time: TimeForm) -> tuple[object, ...]:
    return watermark_name(row.partition, row.consumer), str(row.entry)


def watermark_name(partition: int, consumer: str) -> str:
    """Return under which name a mark is kept."""
    return f"{MARK}:{partition}:{consumer}"


_GROUPS = BulkTable(
    table="chat_groups",
    columns={"gid": "text", "created_at": "timestamptz"},
    on_conflict="""(gid) DO UPDATE SET created_at = excluded.created_at
        WHERE excluded.created_at < chat_groups.created_at""",
    values=_group_values,
    appends=False,
)
_MESSAGES = BulkTable(
    table="group_msgs",
    columns={
        "gid": "text",
        "msgid": "int8",
        "seq": "int8",
        "span": "int8",
        "time": "timestamptz",
        "sent_at": "timestamptz",
        "recalls": "int8",
        "sender_uid": "text",
        "client_msgid": "text",
        "content": "text",
    },
    on_conflict="(gid, msgid) DO NOTHING",
    values=_message_values,
    appends=True,
)
_SPAN_IS_NEWER = """(excluded.changed, COALESCE(excluded.left_msgid, -1))
        > (group_spans.changed, COALESCE(group_spans.left_msgid, -1))"""
_SPANS = BulkTable(
    table="group_spans",
    columns={
        "gid": "text",
        "uid": "text",
        "joined_msgid": "int8",
        "left_msgid": "int8",
        "changed": "int8",
        "acked_msgid": "int8",
    },
    # The same as imcore.model.rows.merged.
    on_conflict=f"""(gid, uid, joined_msgid) DO UPDATE SET
        left_msgid = CASE WHEN {_SPAN_IS_NEWER} THEN excluded.left_msgid ELSE group_spans.left_msgid END,
        changed = CASE WHEN {_SPAN_IS_NEWER} THEN excluded.changed ELSE group_spans.changed END,
        acked_msgid = CASE WHEN excluded.acked_msgid > group_spans.acked_msgid
            THEN excluded.acked_msgid ELSE group_spans.acked_msgid END
        WHERE {_SPAN_IS_NEWER} OR excluded.acked_msgid > group_spans.acked_msgid""",
    values=_span_values,
    appends=False,
)
_MOVES = BulkTable(
    table="offset_moves",
    columns={"gid": "text", "reach": "int2", "msgid": "int8", "entry": "int8", "start": "int8", "uids": "text"},
    on_conflict="(gid, reach, msgid, entry, start) DO NOTHING",
    values=_move_values,
    appends=True,
)
_MARKS = BulkTable(
    table="imcore_meta",
    columns={"name": "text", "value": "text"},
    # The higher number, without taking for one what somebody has written by hand.
    on_conflict="""(name) DO UPDATE SET value = excluded.value
        WHERE (length(excluded.value), excluded.value) > (length(imcore_meta.value), imcore_meta.value)""",
    values=_mark_values,
    appends=False,
)
