"""Read status: how many have read a message, and who. Redis first, and SQL for what Redis has trimmed, as if one."""

from collections.abc import Iterable, Sequence

from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, UnknownMessage
from imcore.model.limits import check_handed_over, check_limit, check_list, check_msgid, check_name
from imcore.model.rows import MessageRow
from imcore.model.values import MessageStatus, MessageTally, Reader, Tally
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, Warn, call, raised
from imcore.operations.messages import message as stored
from imcore.operations.policies import permission, permission_about, permitted
from imcore.operations.queries import MessagesBefore, ReadTimes, stored_message
from imcore.streams.calls import receipt_calls
from imcore.streams.calls.receipt_calls import Counts, Names
from imcore.streams.keys import Keyspace
from imcore.util.batches import batches

NAMES = 1000

_TALLIES = 200


def tally(gid: str, msgid: str, by: str | None) -> Effects[Tally]:
    check_name(gid, "gid")
    packed = check_msgid(msgid)
    if by is not None:
        yield from permission_about(gid, by, packed)
    return Tally(gid, msgid, *(yield from _counts_of(gid, packed)))


def tallies(gid: str, of: Iterable[str], by: str | None) -> Effects[list[Tally]]:
    check_handed_over(gid, "gid")
    wanted = {check_msgid(msgid): msgid for msgid in check_list(of, "msgids")}
    if by is not None:
        for part in list(batches(wanted, queries.PAGE)) or [[]]:
            _, refusals = yield from permitted(gid, by, part)
            for packed in filter(refusals.get, part):
                del wanted[packed]
    counts = yield from _counts(gid, list(wanted))
    known = ((wanted[packed], each) for (_, packed), each in counts.items() if not isinstance(each, UnknownMessage))
    return [Tally(gid, msgid, *raised(each)) for msgid, each in known]


def _counts_of(gid: str, packed: int) -> Effects[Counts]:
    [counts] = (yield from _counts(gid, [packed])).values()
    return raised(counts)


def _counts(gid: str, packed: Sequence[int]) -> Effects[queries.Tallies]:
    space = yield from GetKeyspace()
    return (yield from queries.tallies(space, {gid: packed}))


def status(gid: str, *, limit: int, by: str | None) -> Effects[list[MessageTally]]:
    check_limit(limit, lowest=0)
    check_name(gid, "gid")
    if by is None:
        return (yield from _status(gid, limit))
    allowed = yield from permission(gid, by)
    tallies = yield from _status(gid, limit)
    return [
        tally for tally in tallies if allowed.covers(tally.message.sender_uid, msgids.position_of(tally.message.msgid))
    ]


def _status(gid: str, limit: int) -> Effects[list[MessageTally]]:
    space = yield from GetKeyspace()
    most = limit or msgids.HIGHEST
    newest_first: list[MessageTally] = []
    before, more = "+", True
    while more and len(newest_first) < most:
        count = min(_TALLIES, most - len(newest_first))
        page = yield from call(
            receipt_calls.status(space, gid, before=before, count=count, most_bytes=queries.PAGE_BYTES)
        )
        newest_first += page.tallies
        more = page.more
        if more:
            before = f"({page.tallies[-1].message.msgid}"
        elif page.trimmed:
            oldest = msgids.position_of(newest_first[-1].message.msgid) if newest_first else page.trimmed + 1
            left = most - len(newest_first)
            newest_first += yield from _trimmed_status(space, gid, min(oldest, page.trimmed + 1), left)
    return newest_first[::-1]


def _trimmed_status(space: Keyspace, gid: str, before: int, limit: int) -> Effects[list[MessageTally]]:
    """Return the newest messages before one (packed) that only SQL has, newest first."""
    newest_first: list[MessageTally] = []
    while len(newest_first) < limit:
        rows = yield from MessagesBefore(gid, before, min(queries.PAGE, limit - len(newest_first)))
        if not rows:
            break
        newest_first += reversed((yield from _with_tallies(space, gid, rows)))
        before = rows[0].msgid
    return newest_first


def _with_tallies(space: Keyspace, gid: str, rows: Sequence[MessageRow]) -> Effects[list[MessageTally]]:
    counts = yield from queries.counts_of_rows(space, gid, rows)
    messages = yield from queries.messages(space, gid, rows)
    return [MessageTally(message, *raised(counts[gid, row.msgid])) for row, message in zip(rows, messages, strict=True)]


def message_status(gid: str, msgid: str, by: str | None) -> Effects[MessageStatus]:
    """See `Chat.message_status`. In a large group each member counts as they stood when the page of their name came."""
    check_name(gid, "gid")
    packed = check_msgid(msgid)
    if by is not None and not (yield from permission_about(gid, by, packed)).names:
        return (yield from _numbers(gid, packed))
    space = yield from GetKeyspace()
    names = yield from _names(space, gid, packed)
    message = names.message
    if message is None:
        row = yield from stored_message(gid, packed)
        [message] = yield from queries.messages(space, gid, [row])
    read = names.read - {message.sender_uid}
    unread = names.unread - names.read - {message.sender_uid}
    delivered = (names.read | names.arrived) - {message.sender_uid}
    read_at = (yield from read_times(gid, packed)) if read else {}
    readers = (Reader(uid, msgids.from_ms(read_at[uid]) if uid in read_at else None) for uid in sorted(read))
    return MessageStatus(
        message=message,
        read=len(read),
        unread=len(unread),
        delivered=len(delivered),
        read_by=tuple(readers),
        unread_by=tuple(sorted(unread)),
        delivered_to=tuple(sorted(delivered)),
    )


def _numbers(gid: str, packed: int) -> Effects[MessageStatus]:
    """Return the status of a message without names."""
    counts = yield from _counts_of(gid, packed)
    message = yield from stored(gid, packed)
    if message is None:
        raise queries.unknown_message(gid, packed)
    return MessageStatus(message, *counts, has_names=False)


def _names(space: Keyspace, gid: str, packed: int) -> Effects[Names]:
    """Return the names behind a tally, all pages of them; who read it between two pages may be on both sides."""
    first = names = yield from call(receipt_calls.names(space, gid, packed, cursor="0", count=NAMES))
    read, unread, arrived = names.read, names.unread, names.arrived
    while names.cursor != "0":
        names = yield from call(
            receipt_calls.names(space, gid, packed, cursor=names.cursor, newest=first.newest, count=NAMES)
        )
        read |= names.read
        unread |= names.unread
        arrived |= names.arrived
    return first._replace(read=read, unread=unread, arrived=arrived)


def read_times(gid: str, packed: int) -> Effects[dict[str, int]]:
    """Return when each reader read it, as far as a worker has stored it; nothing while the database is away."""
    try:
        return (yield from ReadTimes(gid, packed))
    except DatabaseNotReady:
        return {}
    except DatabaseUnavailable as error:
        yield from Warn(error, "when each has read it cannot be told now: %s")
        return {}
