"""Why a user has not read a message, or that they have: the first word that applies."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, DatabaseUnavailable
from imcore.model.limits import check_msgid, check_name
from imcore.model.values import Why
from imcore.operations.effects import Effects, GetKeyspace, SqlQuery, Warn, call
from imcore.operations.policies import check_names, permission_about
from imcore.operations.queries import stored_message
from imcore.operations.tallies import read_times
from imcore.streams.calls import session_calls, why_calls
from imcore.streams.calls.why_calls import WhyFacts
from imcore.streams.keys import Keyspace

if TYPE_CHECKING:
    from imcore.sql.database import Database


WORDS = ("sender", "not-a-member", "receipts-off", "read", "left", "delivered", "online", "offline")
"""In the order in which they are looked at."""


@dataclass(frozen=True, slots=True)
class LeaveTime(SqlQuery[int | None]):
    """When a user left a group, in ms since 1970, by the msgid after which that span began; None if it is unknown."""

    gid: str
    uid: str
    joined: int

    def run(self, database: "Database") -> int | None:
        return database.history.left_ms(self.gid, self.uid, self.joined)


def why(gid: str, msgid: str, uid: str, by: str | None) -> Effects[Why]:
    check_name(gid, "gid")
    packed = check_msgid(msgid)
    check_name(uid, "uid")
    if by is not None:
        check_names(gid, (yield from permission_about(gid, by, packed)))
    word, since = yield from _answer(gid, packed, uid)
    return Why(gid, msgid, uid, word, since)


Answer = tuple[str, datetime | None]


def _answer(gid: str, packed: int, uid: str) -> Effects[Answer]:
    space = yield from GetKeyspace()
    facts = yield from call(why_calls.why(space, gid, packed, uid))
    sender_uid = facts.sender_uid or (yield from stored_message(gid, packed)).sender_uid
    if sender_uid == uid:
        return "sender", None
    is_open = facts.offset is not None
    if not is_open:
        facts = yield from _closed(space, gid, packed, uid, facts)
    if facts.offset is None:
        return "not-a-member", None
    if facts.is_off:
        return "receipts-off", None
    if facts.offset >= packed:
        return "read", _time((yield from read_times(gid, packed)).get(uid))
    return (yield from (_not_read(space, uid, packed, facts) if is_open else _left(gid, uid, facts)))


def _closed(space: Keyspace, gid: str, packed: int, uid: str, facts: WhyFacts) -> Effects[WhyFacts]:
    """Return the facts of the closed span that covers a message; those of the open one, which does not, without one."""
    cursor, latest = "0", (-1, "")
    while True:
        cursor, spans = yield from call(why_calls.closed_spans(space, gid, uid, cursor))
        latest = max([latest, *(span for span in spans if span[0] < packed)])
        if cursor == "0":
            break
    return (yield from call(why_calls.why(space, gid, packed, uid, span=latest[1]))) if latest[1] else facts


def _left(gid: str, uid: str, facts: WhyFacts) -> Effects[Answer]:
    try:
        return "left", _time((yield from LeaveTime(gid, uid, facts.joined or 0)))
    except DatabaseNotReady:
        return "left", None
    except DatabaseUnavailable as error:
        yield from Warn(error, "when they left cannot be told now: %s")
        return "left", None


def _not_read(space: Keyspace, uid: str, packed: int, facts: WhyFacts) -> Effects[Answer]:
    if (facts.delivered or 0) >= packed:
        return "delivered", None
    seen = yield from call(session_calls.seen(space, uid))
    return ("online", None) if seen.is_online else ("offline", _time(seen.last_seen_ms))


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else msgids.from_ms(ms)
