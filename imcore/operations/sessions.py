"""Sessions that live by heartbeats, and the receipts that wait for a sender."""

import uuid
from collections.abc import Sequence

from imcore.model.limits import check_limit, check_name, check_receipts
from imcore.model.values import Receipt
from imcore.operations import dirty_receipts
from imcore.operations.effects import Effects, GetKeyspace, call, raised
from imcore.streams.calls import session_calls


def begin(uid: str, *, online_ms: int) -> Effects[str]:
    """See `Chat.begin_session`."""
    session = uuid.uuid4().hex
    yield from _beat(check_name(uid, "uid"), session, online_ms, opens=True)
    return session


def heartbeat(uid: str, session: str, *, online_ms: int) -> Effects[list[Receipt]]:
    """See `Chat.heartbeat`."""
    yield from _beat(check_name(uid, "uid"), check_name(session, "session"), online_ms, opens=False)
    return (yield from receipts(uid, limit=None))


def _beat(uid: str, session: str, online_ms: int, *, opens: bool) -> Effects[None]:
    space = yield from GetKeyspace()
    yield from call(session_calls.heartbeat(space, uid, session, online_ms, opens=opens))


def end(uid: str, session: str) -> Effects[None]:
    """See `Chat.end_session`."""
    check_name(uid, "uid")
    check_name(session, "session")
    space = yield from GetKeyspace()
    yield from call(session_calls.end_session(space, uid, session))


def receipts(uid: str, *, limit: int | None) -> Effects[list[Receipt]]:
    """See `Chat.receipts`."""
    check_name(uid, "uid")
    check_limit(limit)
    space = yield from GetKeyspace()
    return (yield from dirty_receipts.pending(space, uid, limit))


def confirm_receipts(uid: str, confirmed: Sequence[Receipt]) -> Effects[int]:
    """See `Chat.confirm_receipts`."""
    check_name(uid, "uid")
    known = check_receipts(confirmed)
    space = yield from GetKeyspace()
    answers = yield from dirty_receipts.confirmed(space, {uid: known})
    return sum(map(raised, answers[uid]))
