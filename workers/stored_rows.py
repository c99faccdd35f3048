"""The rows that journal entries make, once their messages are fetched. No I/O."""

from collections.abc import Iterator, Sequence

from imcore.model.rows import Batch, BookmarkRow, ConfirmRow, GroupRow, MoveRow, SpanRow, UserRow
from imcore.msgid import NONE
from imcore.streams.events import (
    Acked,
    BookmarksSet,
    Confirmed,
    Created,
    Delivered,
    PolicySet,
    Sent,
    SpanBegun,
    SpanEnded,
    UserSet,
)
from imcore.workers.fetch import StoredMessage, WorkItem

Spans = tuple[str, int, tuple[str, ...]]
"""Spans of one group (gid) that began at one message (joined), by uid. A gateway's sessions ack together, so most
entries name the same uids together."""

Positions = dict[Spans, int]
"""The newest message that spans have acked, or that has arrived for them. Msgids are packed."""


def batch_of(items: Sequence[WorkItem]) -> Batch:
    """Return the rows that items make; of several positions of one span only the newest."""
    batch = Batch()
    offsets: Positions = {}
    delivered: Positions = {}
    for item in items:
        if not item.is_void:
            _add_positions(item, batch, offsets, delivered)
            _add_rows(item, batch)
    for spans in offsets.keys() | delivered.keys():
        gid, joined, uids = spans
        acked, arrived = offsets.get(spans, joined), delivered.get(spans, 0)
        ahead = arrived if arrived > acked else None
        batch.spans += (SpanRow(gid, uid, joined, None, 0, acked, ahead) for uid in uids)
    return batch


def _add_positions(item: WorkItem, batch: Batch, offsets: Positions, delivered: Positions) -> None:
    event = item.entry.event
    if isinstance(event, Sent):
        _add_messages(item.messages, batch, offsets)
    elif isinstance(event, Acked):
        _add_moves(event, item.entry.version, batch, offsets)
    elif isinstance(event, Delivered):
        _add_delivered(event, delivered)


def _add_delivered(event: Delivered, positions: Positions) -> None:
    for joined, _, to, uids in event.moves:
        spans = (event.gid, joined, uids)
        positions[spans] = max(to, positions.get(spans, 0))


def _add_rows(item: WorkItem, batch: Batch) -> None:
    event, version = item.entry.event, item.entry.version
    if isinstance(event, SpanBegun):
        batch.spans.append(SpanRow(*event, left_msgid=None, changed=version, acked_msgid=event.joined))
    elif isinstance(event, SpanEnded):
        batch.spans.append(SpanRow(*event, changed=version, acked_msgid=event.joined))
    elif isinstance(event, BookmarksSet):
        batch.bookmarks += _bookmarks(event, version)
    elif isinstance(event, PolicySet):
        batch.groups.append(GroupRow(event.gid, item.entry.time_ms, event.receipts, event.asked_by, version))
    elif isinstance(event, UserSet):
        batch.users.append(UserRow(event.uid, event.receipts, version))
    elif isinstance(event, Confirmed):
        batch.confirms += (ConfirmRow(*tally) for tally in event.tallies)
    elif isinstance(event, Created):
        batch.groups.append(GroupRow(event.gid, item.entry.time_ms))
        batch.spans += (SpanRow(event.gid, uid, NONE, None, version, NONE) for uid in item.members)


def _bookmarks(event: BookmarksSet, version: int) -> Iterator[BookmarkRow]:
    for joined, private, mark, uids in event.bookmarks:
        yield from (BookmarkRow(event.gid, uid, joined, private, mark, version) for uid in uids)


def _add_messages(messages: Sequence[StoredMessage], batch: Batch, offsets: Positions) -> None:
    for row, moved_sender in messages:
        batch.messages.append(row)
        if moved_sender and row.span is not None:
            # No MoveRow: nobody asks when senders read their own messages, and they had acked all earlier ones.
            spans = (row.gid, row.span, (row.sender_uid,))
            offsets[spans] = max(row.msgid, offsets.get(spans, 0))


def _add_moves(event: Acked, entry: int, batch: Batch, offsets: Positions) -> None:
    gid = event.gid
    uids: dict[tuple[int, int], tuple[str, ...]] = {}
    for joined, start, to, movers in event.moves:
        uids[start, to] = uids.get((start, to), ()) + movers
        spans = (gid, joined, movers)
        offsets[spans] = max(to, offsets.get(spans, 0))
    batch.moves += (MoveRow(gid, to, start, entry, movers) for (start, to), movers in uids.items())
