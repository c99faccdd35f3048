"""A difference that may be one: what differs, both sides, and what it depends on. No I/O."""

import reprlib
from dataclasses import dataclass
from typing import Literal

from imcore import msgid as msgids
from imcore.model.rows import MessageRow, SpanRow
from imcore.repair.journal_window import Changes
from imcore.sql.tables import to_iso

MISSING, THERE, NOTHING, UNREADABLE = "missing", "there", "nothing", "cannot be read"

Depends = Literal["group", "head", "trim", "message", "tally", "span", "own", "stored"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """Both sides of what differs, as people see them, and what that depends on: at times a `uid` or packed `msgid`.

    What is `stored` depends on nothing that goes on. `unsure`: it differed at every look, but what it depends on
    changed each time.
    """

    what: str
    redis: str
    sql: str
    depends: Depends
    uid: str = ""
    msgid: int = 0
    unsure: bool = False

    def explained_by(self, touched: Changes) -> bool:
        """Return whether it may come of what happened while the two sides were read."""
        if self.depends == "stored":
            return False
        return touched.anything or touched.created or self._touched_by(touched)

    def _touched_by(self, touched: Changes) -> bool:
        match self.depends:
            case "span":
                return self.uid in touched.uids
            case "own":
                return touched.own(self.uid, self.msgid)
            case "message":
                return touched.message(self.msgid)
            case "tally":
                return touched.tally(self.msgid)
            case "head":
                return touched.first_sent is not None
        return False


def of_message(row: MessageRow | None) -> str:
    """Describe a message in a few words."""
    return MISSING if row is None else f"seq {row.seq} by {row.sender_uid!r}"


def of_offset(msgid: int | None) -> str:
    """Describe an offset."""
    if msgid is None:
        return MISSING
    return msgids.unpack(msgid) if msgid <= msgids.HIGHEST else "no msgid"


def of_end(left: int | None) -> str:
    """Describe the end of a span."""
    return "open" if left is None else f"left at {of_offset(left)}"


def of_place(seq: int | None, msgid: int | None) -> str:
    """Describe a place in a group: that of a message, or before all."""
    if (seq, msgid) == (0, 0):
        return "before the first message"
    return f"seq {_number(seq)} at {'no msgid' if msgid is None else of_offset(msgid)}"


def _number(number: int | None) -> str:
    return "that is no number" if number is None else str(number)


def of_field(name: str, value: str | int | None) -> str:
    """Describe a field of a message."""
    if value is None:
        return NOTHING
    match name, value:
        case (("span" | "recalls"), int()):
            return of_offset(value)
        case "sent_at_ms", int():
            return _iso(value)
    return short(value)


def _iso(ms: int) -> str:
    try:
        return to_iso(ms)
    except ValueError:
        return UNREADABLE


def of_span(row: SpanRow | None) -> str:
    """Describe a span."""
    if row is None:
        return MISSING
    return f"{of_end(row.left_msgid)}, offset {of_offset(row.acked_msgid)}"


def short(value: object) -> str:
    """Describe any value in one line."""
    return _SHORT.repr(value)


def named(uid: str, joined: int) -> str:
    """Name a span."""
    return f"span of {uid!r} from {msgids.unpack(joined)}"
