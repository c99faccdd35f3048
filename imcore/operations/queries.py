"""What is read of messages, tallies and marks, as questions: Redis first, and SQL for what is trimmed there. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.errors import (
    ConfigurationError,
    DatabaseRejected,
    ImError,
    TryAgain,
    UnknownGroup,
    UnknownMessage,
    raise_what_stops_all,
)
from imcore.model.rows import MessageRow
from imcore.model.values import Message, Receipt
from imcore.operations.effects import Effects, call_each, call_many, raised
from imcore.operations.sql_queries import MessagesAfter, MessagesByMsgid
from imcore.streams import wire
from imcore.streams.calls import group_calls, message_calls, receipt_calls
from imcore.streams.calls.call import Call, Trimmed
from imcore.streams.calls.message_calls import PullResult
from imcore.streams.calls.receipt_calls import Counts, DirtyReceipt
from imcore.streams.keys import Keyspace

T = TypeVar("T")

PAGE = 500
"""How many messages one call of Redis brings, or tallies, at most."""

PAGE_BYTES = 1 << 20
"""How many bytes of text one pull brings, or tallies come with, at most: so many take the server some milliseconds."""

SQL_PAGE = 100
"""How many messages SQL brings at once for a pull: there nobody counts bytes."""


class MessagePage(NamedTuple):
    """Messages in order; with `more`, others come after them."""

    messages: list[Message]
    more: bool


def groups_of(space: Keyspace, uids: Sequence[str]) -> Effects[dict[str, list[str]]]:
    """Return the gids of the groups of each user, in order."""
    found = yield from groups_or_errors(space, uids)
    return {uid: raised(gids) for uid, gids in found.items()}


def groups_or_errors(space: Keyspace, uids: Sequence[str]) -> Effects[dict[str, list[str] | ImError]]:
    """Return the gids of the groups of each user, in order, or why just these cannot be had."""
    # Asked last what is being created: what has been made meanwhile counts.
    batch = [*(call for uid in uids for call in group_calls.groups_of(space, uid)), *group_calls.being_created(space)]
    answers = yield from call_each(batch)
    raise_what_stops_all(answers)
    found = iter(answers)
    listed = {uid: [next(found) for _ in range(space.partitions)] for uid in uids}
    being_created = list(found)
    return {uid: _without(gids, being_created) for uid, gids in listed.items()}


def _without(answers: Sequence[list[str] | ImError], hidden: Sequence[list[str] | ImError]) -> list[str] | ImError:
    problem = _first_error([*answers, *hidden])
    return problem or sorted(_gids(answers) - _gids(hidden))


def _gids(answers: Sequence[list[str] | ImError]) -> set[str]:
    return {gid for gids in answers if not isinstance(gids, ImError) for gid in gids}


def _first_error(answers: Iterable[object]) -> ImError | None:
    return next((answer for answer in answers if isinstance(answer, ImError)), None)


def page(space: Keyspace, gid: str, pulled: PullResult, most: int) -> Effects[MessagePage | ImError]:
    """Return what was pulled, with the messages before it that SQL alone still has; at most so many.

    Where SQL does not answer, return why.
    """
    if pulled.start >= pulled.trimmed:
        return MessagePage(pulled.messages, pulled.more)
    limit = min(most, SQL_PAGE)
    try:
        rows = yield from MessagesAfter(gid, pulled.start, pulled.trimmed, limit)
    except ImError as error:
        return error
    trimmed = yield from messages(space, gid, rows)
    if len(rows) == limit:
        return MessagePage(trimmed, more=True)
    found = [*trimmed, *pulled.messages]
    return MessagePage(found[:most], pulled.more or len(found) > most)


def messages(space: Keyspace, gid: str, rows: Sequence[MessageRow]) -> Effects[list[Message]]:
    """Return messages that came from SQL. Redis knows of recalls that no worker has stored yet."""
    if not rows:
        return []
    [recalled] = yield from call_many([message_calls.recalled(space, gid, [row.msgid for row in rows])])
    return [
        wire.message_of_row(row._replace(content="", recalled=True) if is_recalled and row.recalls is None else row)
        for row, is_recalled in zip(rows, recalled, strict=True)
    ]


Messages = Mapping[str, Sequence[int]]
"""Msgids (packed) by gid."""
Tallies = dict[tuple[str, int], Counts | ImError]
"""By gid and msgid, read and unread, or why just these cannot be had: UnknownGroup, UnknownMessage, RedisRefuses (while
their partition moves to another node), RedisUnavailable (while the node of a cluster that has it is away), what SQL
raises, or what Redis answers about a group that somebody spoiled."""


def tallies(space: Keyspace, wanted: Messages) -> Effects[Tallies]:
    """Return how many have read each message and how many have not."""
    found = yield from _counted(space, {gid: [(msgid, "", "") for msgid in some] for gid, some in wanted.items()})
    for gid, some in wanted.items():
        trimmed = [msgid for msgid in some if isinstance(found[gid, msgid], Trimmed)]
        if trimmed:
            found.update((yield from _trimmed_tallies(space, gid, trimmed)))
    return found


def _trimmed_tallies(space: Keyspace, gid: str, trimmed: Sequence[int]) -> Effects[Tallies]:
    """Return the tallies of messages that SQL alone still has: Redis counts them, too, once their senders are known."""
    try:
        rows = yield from MessagesByMsgid(gid, trimmed)
    except ImError as error:
        return {(gid, msgid): error for msgid in trimmed}
    unknown: Tallies = {
        (gid, msgid): UnknownMessage(f"{msgids.unpack(msgid)} is not a message of {gid!r}") for msgid in trimmed
    }
    return unknown | (yield from counts_of_rows(space, gid, list(rows.values())))


def counts_of_rows(space: Keyspace, gid: str, rows: Iterable[MessageRow]) -> Effects[Tallies]:
    """Return the tallies of messages that came from SQL, whether Redis still has them or not."""
    return (yield from _counted(space, {gid: [_named(row) for row in rows]}))


def _named(row: MessageRow) -> tuple[int, str, int | str]:
    return row.msgid, row.sender_uid, "" if row.span is None else row.span


def _counted(space: Keyspace, wanted: Mapping[str, Sequence[tuple[int, str, int | str]]]) -> Effects[Tallies]:
    parts = [(gid, some[at : at + PAGE]) for gid, some in wanted.items() for at in range(0, len(some), PAGE)]
    answers = yield from call_each([receipt_calls.tallies(space, gid, part) for gid, part in parts])
    raise_what_stops_all(answers)
    found: Tallies = {}
    for (gid, part), answer in zip(parts, answers, strict=True):
        each = [answer] * len(part) if isinstance(answer, ImError) else answer
        found.update(((gid, message[0]), count) for message, count in zip(part, each, strict=True))
    return found


# What waits for senders.


@dataclass(slots=True)
class DirtyCursor:
    """How far the marks of a user are read: by partition, up to which version; a partition that is done is left out."""

    uid: str
    after: dict[int, int]

    @classmethod
    def of(cls, space: Keyspace, uid: str) -> "DirtyCursor":
        """Return where to begin."""
        return cls(uid, dict.fromkeys(range(space.partitions), 0))

    def calls(self, space: Keyspace, count: int) -> list[Call[list[DirtyReceipt]]]:
        """Ask for the next marks, so many of each partition."""
        return [
            receipt_calls.dirty(space, partition, self.uid, after=after, count=count)
            for partition, after in self.after.items()
        ]

    def read(self, pages: Sequence[list[DirtyReceipt]], count: int) -> list[DirtyReceipt]:
        """Go forward over what was asked for; return it."""
        read = list(zip(self.after, pages, strict=True))
        self.after = {partition: page[-1].version for partition, page in read if len(page) == count}
        return [mark for _, page in read for mark in page]


def dirty_receipts(
    space: Keyspace, cursors: Sequence[DirtyCursor], count: int
) -> Effects[list[list[DirtyReceipt] | ImError]]:
    """Return the next messages of each user whose tallies changed, or why just these cannot be had.

    The cursors move over them.
    """
    batches = [cursor.calls(space, count) for cursor in cursors]
    answers = yield from call_each([call for batch in batches for call in batch])
    raise_what_stops_all(answers)
    pages = iter(answers)
    return [
        _marked(cursor, [next(pages) for _ in batch], count) for cursor, batch in zip(cursors, batches, strict=True)
    ]


def _marked(
    cursor: DirtyCursor, pages: Sequence[list[DirtyReceipt] | ImError], count: int
) -> list[DirtyReceipt] | ImError:
    problem = _first_error(pages)
    return problem or cursor.read([page for page in pages if not isinstance(page, ImError)], count)


class ReceiptsToDeliver(NamedTuple):
    """What is to be told of marked messages, by gid and age.

    `waits`: why all of it has to wait, since SQL or a partition does not answer; then there are no receipts.
    `left_out`: what is wrong with a group whose marks are left as they are.
    """

    receipts: list[Receipt]
    waits: ImError | None = None
    left_out: ImError | None = None


def receipts(space: Keyspace, marked: Sequence[Sequence[DirtyReceipt]]) -> Effects[list[ReceiptsToDeliver]]:
    """Return what is to be told of marked messages. A mark of what is unknown by now tells nothing."""
    wanted: dict[str, list[int]] = {}
    for mark in (mark for some in marked for mark in some):
        wanted.setdefault(mark.gid, []).append(mark.msgid)
    found = yield from tallies(space, wanted)
    return [_to_tell(found, some) for some in marked]


def _to_tell(found: Tallies, marked: Sequence[DirtyReceipt]) -> ReceiptsToDeliver:
    told: list[Receipt] = []
    left_out: ImError | None = None
    for mark in sorted(marked, key=lambda mark: (mark.gid, mark.msgid)):
        count = found[mark.gid, mark.msgid]
        if isinstance(count, Counts):
            told.append(Receipt(mark.gid, msgids.unpack(mark.msgid), *count, mark.version))
        elif isinstance(count, TryAgain | ConfigurationError | DatabaseRejected):
            return ReceiptsToDeliver([], waits=count)
        elif not isinstance(count, UnknownGroup | UnknownMessage):
            left_out = count
    return ReceiptsToDeliver(told, left_out=left_out)


def pending(space: Keyspace, uid: str, limit: int | None) -> Effects[list[Receipt]]:
    """Return what waits for a sender, by gid and age. Raise what SQL raises."""
    cursor = DirtyCursor.of(space, uid)
    marked: list[DirtyReceipt] = []
    while cursor.after and (limit is None or len(marked) < limit):
        marked += raised((yield from dirty_receipts(space, [cursor], PAGE))[0])
    [told] = yield from receipts(space, [marked[:limit]])
    if problem := told.waits or told.left_out:
        raise problem
    return told.receipts


def confirmed(space: Keyspace, receipts: Mapping[str, Sequence[Receipt]]) -> Effects[dict[str, list[int | ImError]]]:
    """Confirm receipts of users; return of each how many had still been marked, in each of several calls."""
    batch = [
        (uid, call)
        for uid, some in receipts.items()
        for at in range(0, len(some), PAGE)
        for call in receipt_calls.confirm(space, uid, some[at : at + PAGE])
    ]
    answers = yield from call_each([call for _, call in batch])
    raise_what_stops_all(answers)
    found: dict[str, list[int | ImError]] = {uid: [] for uid in receipts}
    for (uid, _), answer in zip(batch, answers, strict=True):
        found[uid].append(answer)
    return found
