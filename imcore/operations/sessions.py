"""Sessions that live by heartbeats, and the receipts that wait for a sender. No I/O.

A receipt is dirty if the tally of its message changed since the sender confirmed it.
"""

import uuid
from collections.abc import Container, Mapping, Sequence

from imcore import msgid as msgids
from imcore.errors import (
    ConfigurationError,
    DatabaseRejected,
    ImError,
    TryAgain,
    UnknownGroup,
    UnknownMessage,
)
from imcore.model.limits import check_limit, check_name, check_receipts
from imcore.model.values import Receipt
from imcore.operations.effects import Effects, GetKeyspace, call, call_apart, raised
from imcore.operations.policies import groups_without_receipts
from imcore.operations.queries import PAGE, Tallies, tallies
from imcore.streams.calls import receipt_calls, session_calls
from imcore.streams.calls.receipt_calls import Counts, DirtyReceipt
from imcore.streams.keys import Keyspace
from imcore.util.batches import batches, grouped

DirtyCursor = dict[int, int]
"""The version up to which a user's dirty receipts are read, by partition. Partitions that are done are left out."""

DirtyPage = tuple[list[DirtyReceipt], DirtyCursor]
"""Dirty receipts of a user, and the cursor after them."""


def first_dirty(space: Keyspace) -> DirtyCursor:
    return dict.fromkeys(space.served, 0)


def dirty_receipts(
    space: Keyspace, cursors: Sequence[tuple[str, DirtyCursor]], count: int
) -> Effects[list[DirtyPage | ImError]]:
    """Return the next dirty receipts after each cursor of a user (uid), or the error of that user."""
    answers = yield from call_apart(
        [
            receipt_calls.dirty(space, partition, uid, after=after, count=count)
            for uid, cursor in cursors
            for partition, after in cursor.items()
        ]
    )
    rest = iter(answers)
    return [_dirty_page(cursor, [next(rest) for _ in cursor], count) for _, cursor in cursors]


def _dirty_page(
    cursor: DirtyCursor, answers: Sequence[list[DirtyReceipt] | ImError], count: int
) -> DirtyPage | ImError:
    receipts: list[DirtyReceipt] = []
    after: DirtyCursor = {}
    for partition, answer in zip(cursor, answers, strict=True):
        if isinstance(answer, ImError):
            return answer
        receipts += answer
        if len(answer) == count:
            after[partition] = answer[-1].version
    return receipts, after


Delivery = tuple[list[Receipt], DirtyCursor, ImError | None]
"""Receipts of one user, by gid and age; the cursor after them; and the error of a group whose receipts are left out."""


def to_deliver(space: Keyspace, pages: Sequence[DirtyPage | ImError]) -> Effects[list[Delivery | ImError]]:
    """Return the receipts of each page; or its error, or that of SQL or a partition for which all of them wait.

    An unknown group or message has no receipt, and a group whose receipts are off gives none: they wait.
    """
    dirty = (each for page in pages if not isinstance(page, ImError) for each in page[0])
    wanted = grouped((each.gid, each.msgid) for each in dirty)
    off = yield from groups_without_receipts(space, list(wanted))
    counts = yield from tallies(space, {gid: messages for gid, messages in wanted.items() if gid not in off})
    return [page if isinstance(page, ImError) else _to_deliver(counts, off, *page) for page in pages]


def _to_deliver(
    tallies: Tallies, off: Container[str], dirty: Sequence[DirtyReceipt], cursor: DirtyCursor
) -> Delivery | ImError:
    ready: list[Receipt] = []
    left_out: ImError | None = None
    told = (each for each in dirty if each.gid not in off)
    for each in sorted(told, key=lambda each: (each.gid, each.msgid)):
        counts = tallies[each.gid, each.msgid]
        if isinstance(counts, Counts):
            ready.append(Receipt(each.gid, msgids.unpack(each.msgid), *counts, each.version))
        elif isinstance(counts, TryAgain | ConfigurationError | DatabaseRejected):
            return counts
        elif not isinstance(counts, UnknownGroup | UnknownMessage):
            left_out = counts
    return ready, cursor, left_out


def _pending(space: Keyspace, uid: str, limit: int | None) -> Effects[list[Receipt]]:
    """Return the receipts that wait for a sender, by gid and age. Raise what SQL raises."""
    cursor = first_dirty(space)
    dirty: list[DirtyReceipt] = []
    while cursor and (limit is None or len(dirty) < limit):
        page, cursor = raised((yield from dirty_receipts(space, [(uid, cursor)], PAGE))[0])
        dirty += page
    [delivery] = yield from to_deliver(space, [(dirty[:limit], cursor)])
    receipts, _, left_out = raised(delivery)
    if left_out:
        raise left_out
    return receipts


def confirm_many(space: Keyspace, receipts: Mapping[str, Sequence[Receipt]]) -> Effects[dict[str, list[int | ImError]]]:
    """Confirm receipts of users; return for each how many were still dirty, call by call."""
    batch = [
        (uid, call)
        for uid, of_user in receipts.items()
        for page in batches(of_user, PAGE)
        for call in receipt_calls.confirm(space, uid, page)
    ]
    answers = yield from call_apart([call for _, call in batch])
    by_uid: dict[str, list[int | ImError]] = {uid: [] for uid in receipts}
    for (uid, _), answer in zip(batch, answers, strict=True):
        by_uid[uid].append(answer)
    return by_uid


def begin(uid: str, *, online_ms: int) -> Effects[str]:
    session = uuid.uuid4().hex
    yield from _beat(check_name(uid, "uid"), session, online_ms, opens=True)
    return session


def heartbeat(uid: str, session: str, *, online_ms: int) -> Effects[list[Receipt]]:
    yield from _beat(check_name(uid, "uid"), check_name(session, "session"), online_ms, opens=False)
    return (yield from receipts(uid, limit=None))


def _beat(uid: str, session: str, online_ms: int, *, opens: bool) -> Effects[None]:
    space = yield from GetKeyspace()
    yield from call(session_calls.heartbeat(space, uid, session, online_ms, opens=opens))


def end(uid: str, session: str) -> Effects[None]:
    check_name(uid, "uid")
    check_name(session, "session")
    space = yield from GetKeyspace()
    yield from call(session_calls.end_session(space, uid, session))


def receipts(uid: str, *, limit: int | None) -> Effects[list[Receipt]]:
    check_name(uid, "uid")
    check_limit(limit)
    space = yield from GetKeyspace()
    return (yield from _pending(space, uid, limit))


def confirm_receipts(uid: str, confirmed: Sequence[Receipt]) -> Effects[int]:
    check_name(uid, "uid")
    known = check_receipts(confirmed)
    space = yield from GetKeyspace()
    answers = yield from confirm_many(space, {uid: known})
    return sum(map(raised, answers[uid]))
