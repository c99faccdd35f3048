"""Bulk writes, as far as SQLite and PostgreSQL agree: columns, values, and conflict clauses.

Every conflict clause keeps a maximum, a minimum or a union, so writes commute and may be repeated.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from imcore import msgid as msgids
from imcore.errors import GroupDeleted
from imcore.model.rows import (
    Batch,
    BookmarkRow,
    Erasures,
    GroupRow,
    MessageRow,
    MoveRow,
    SpanRow,
    UserRow,
    WatermarkRow,
)
from imcore.sql.cells import text_of
from imcore.sql.moves import ADD_LINE, line_of
from imcore.sql.tables import reach
from imcore.util.batches import batches

TimeForm = Callable[[int], object]
"""Turns milliseconds since 1970 into the driver's form of a timestamp."""

_Row = TypeVar("_Row", bound=tuple[Any, ...])

ERASURES_QUERY = "SELECT uid, gid, alias FROM erasures"
"""Each transaction reads these rows first, and stores no name of theirs: see `imcore.sql.erasures`."""

_GIDS_AT_ONCE = 500

WATERMARK = "stored"
"""The prefix of watermarks in imcore_meta: see `watermark_name`."""


@dataclass(frozen=True, slots=True)
class BulkTable(Generic[_Row]):
    """The table for rows of one kind. `columns` has names and PostgreSQL types; `appends`: most keys are new."""

    table: str
    columns: str
    on_conflict: str
    values: Callable[[_Row, TimeForm], tuple[object, ...]]
    appends: bool

    @property
    def names(self) -> str:
        return ", ".join(self.columns.split()[::2])

    @property
    def types(self) -> list[str]:
        return self.columns.replace(",", "").split()[1::2]


def by_table(batch: Batch) -> Iterator[tuple[BulkTable[Any], list[Any]]]:
    """Yield each table that has rows, always in the same order: so writers never deadlock."""
    for table, rows in (
        (_GROUPS, batch.groups),
        (_MESSAGES, batch.messages),
        (_SPANS, batch.spans),
        (_BOOKMARKS, batch.bookmarks),
        (_USERS, batch.users),
        (_MOVES, batch.moves),
        (_WATERMARKS, batch.marks),
    ):
        if rows:
            yield table, rows


def check_deletions(batch: Batch, rows_of: Callable[[str, tuple[str, ...]], Iterable[tuple[str, int]]]) -> None:
    """Raise GroupDeleted if the groups of a batch have other deletions than its writer knows.

    Call it in the transaction that writes the batch. `rows_of` runs a statement with its values.
    """
    if batch.known_deletions is None:
        return
    for gids in batches(batch.gids, _GIDS_AT_ONCE):
        names = ", ".join("?" for _ in gids)
        statement = f"SELECT gid, entry FROM deleted_groups WHERE gid IN ({names})"  # noqa: S608 (only question marks)
        for gid, entry in rows_of(statement, tuple(gids)):
            if batch.known_deletions.get(gid) != entry:
                raise GroupDeleted(f"group {gid!r} was deleted just now")


Update = tuple[str, Callable[[Batch], list[tuple[object, ...]]]]
"""A statement for messages that are stored already, with its values. It runs once the rows are in."""

RECALL: Update = (
    """UPDATE group_msgs SET content = '', meta = NULL
    WHERE gid = ? AND msgid = ? AND (content <> '' OR meta IS NOT NULL)""",
    lambda batch: [(row.gid, row.recalls) for row in batch.messages if row.recalls is not None],
)
# One statement for both numbers: each would write the whole row again.
CONFIRM: Update = (
    """UPDATE group_msgs SET
        confirmed_read = CASE WHEN confirmed_read < ? THEN ? ELSE confirmed_read END,
        confirmed_delivered = CASE WHEN confirmed_delivered < ? THEN ? ELSE confirmed_delivered END
    WHERE gid = ? AND msgid = ? AND (confirmed_read < ? OR confirmed_delivered < ?)""",
    lambda batch: [
        (read, read, arrived, arrived, gid, msgid, read, arrived) for gid, msgid, read, arrived in batch.confirms
    ],
)


def erasures_of(rows: Iterable[Sequence[Any]]) -> Erasures:
    """Return the erasures that the rows of the table say."""
    stored = [tuple(map(text_of, row)) for row in rows]
    count = next((alias for uid, _, alias in stored if not uid), "0")
    uids = {uid: alias for uid, gid, alias in stored if uid and not gid}
    gids = {gid: alias for _, gid, alias in stored if gid}
    return Erasures(int(count) if count.isdigit() else 0, uids, gids)


def _message_values(row: MessageRow, time: TimeForm) -> tuple[object, ...]:
    gid, msgid, seq, sender_uid, span, content, client_msgid, sent_at_ms, recalls, _, meta = row
    sent_at = None if sent_at_ms is None else time(sent_at_ms)
    stored_at = time(msgids.time_ms(msgid))
    return gid, msgid, seq, span, stored_at, sent_at, recalls, sender_uid, client_msgid, meta, content


def _move_values(row: MoveRow, _time: TimeForm) -> tuple[object, ...]:
    gid, msgid, start, entry, uids = row
    return gid, reach(msgid - start), msgid, entry, start, line_of(uids)


def watermark_name(partition: int, consumer: str) -> str:
    """Return the name in imcore_meta whose value is the packed id of the last entry that the consumer has stored."""
    return f"{WATERMARK}:{partition}:{consumer}"


_POLICY_IS_NEWER = "excluded.policy_changed > chat_groups.policy_changed"
_GROUPS: BulkTable[GroupRow] = BulkTable(
    table="chat_groups",
    columns="gid text, created_at timestamptz, receipts text, asked_by text, policy_changed int8",
    on_conflict=f"""(gid) DO UPDATE SET
        created_at = CASE WHEN excluded.created_at < chat_groups.created_at
            THEN excluded.created_at ELSE chat_groups.created_at END,
        receipts = CASE WHEN {_POLICY_IS_NEWER} THEN excluded.receipts ELSE chat_groups.receipts END,
        asked_by = CASE WHEN {_POLICY_IS_NEWER} THEN excluded.asked_by ELSE chat_groups.asked_by END,
        policy_changed = CASE WHEN {_POLICY_IS_NEWER} THEN excluded.policy_changed ELSE chat_groups.policy_changed END
        WHERE excluded.created_at < chat_groups.created_at OR {_POLICY_IS_NEWER}""",
    values=lambda row, time: (row.gid, time(row.created_ms), *row[2:]),
    appends=False,
)
_MESSAGES: BulkTable[MessageRow] = BulkTable(
    table="group_msgs",
    columns="""gid text, msgid int8, seq int8, span int8, time timestamptz, sent_at timestamptz, recalls int8,
        sender_uid text, client_msgid text, meta text, content text""",
    on_conflict="(gid, msgid) DO NOTHING",
    values=_message_values,
    appends=True,
)
_SPAN_IS_NEWER = """(excluded.changed, COALESCE(excluded.left_msgid, -1))
        > (group_spans.changed, COALESCE(group_spans.left_msgid, -1))"""
_FURTHER_ACKED = """CASE WHEN excluded.acked_msgid > group_spans.acked_msgid
            THEN excluded.acked_msgid ELSE group_spans.acked_msgid END"""
_FURTHER_DELIVERED = """CASE WHEN COALESCE(excluded.delivered_msgid, 0) > COALESCE(group_spans.delivered_msgid, 0)
            THEN excluded.delivered_msgid ELSE group_spans.delivered_msgid END"""
_SPANS: BulkTable[SpanRow] = BulkTable(
    table="group_spans",
    columns="""gid text, uid text, joined_msgid int8, left_msgid int8, changed int8, acked_msgid int8,
        delivered_msgid int8""",
    # As imcore.model.rows.merged_span does.
    on_conflict=f"""(gid, uid, joined_msgid) DO UPDATE SET
        left_msgid = CASE WHEN {_SPAN_IS_NEWER} THEN excluded.left_msgid ELSE group_spans.left_msgid END,
        changed = CASE WHEN {_SPAN_IS_NEWER} THEN excluded.changed ELSE group_spans.changed END,
        acked_msgid = {_FURTHER_ACKED},
        delivered_msgid = CASE WHEN {_FURTHER_DELIVERED} > {_FURTHER_ACKED} THEN {_FURTHER_DELIVERED} END
        WHERE {_SPAN_IS_NEWER} OR excluded.acked_msgid > group_spans.acked_msgid
            OR excluded.delivered_msgid > COALESCE(group_spans.delivered_msgid, group_spans.acked_msgid)""",
    values=lambda row, _time: row,
    appends=False,
)
_BOOKMARKS: BulkTable[BookmarkRow] = BulkTable(
    table="bookmarks",
    columns="gid text, uid text, joined_msgid int8, private_msgid int8, mark_msgid int8, changed int8",
    on_conflict="""(gid, uid) DO UPDATE SET joined_msgid = excluded.joined_msgid,
        private_msgid = excluded.private_msgid, mark_msgid = excluded.mark_msgid, changed = excluded.changed
        WHERE excluded.changed > bookmarks.changed""",
    values=lambda row, _time: row,
    appends=False,
)
_USERS: BulkTable[UserRow] = BulkTable(
    table="user_settings",
    columns="uid text, receipts text, changed int8",
    on_conflict="""(uid) DO UPDATE SET receipts = excluded.receipts, changed = excluded.changed
        WHERE excluded.changed > user_settings.changed""",
    values=lambda row, _time: row,
    appends=False,
)
_MOVES: BulkTable[MoveRow] = BulkTable(
    table="offset_moves",
    columns="gid text, reach int2, msgid int8, entry int8, start int8, uids text",
    on_conflict=f"(gid, reach, msgid, entry, start) DO UPDATE SET {ADD_LINE}",
    values=_move_values,
    appends=True,
)
_WATERMARKS: BulkTable[WatermarkRow] = BulkTable(
    table="imcore_meta",
    columns="name text, value text",
    # Compares numbers as texts: somebody may have written any text by hand.
    on_conflict="""(name) DO UPDATE SET value = excluded.value
        WHERE (length(excluded.value), excluded.value) > (length(imcore_meta.value), imcore_meta.value)""",
    values=lambda row, _time: (watermark_name(row.partition, row.consumer), str(row.entry)),
    appends=False,
)
