"""A difference that may be one: what differs, both sides, and what it depends on. No I/O."""

import reprlib
from dataclasses import dataclass
from typing import Literal

from imcore import msgid as msgids
from imcore.admin.pending import Touched
from imcore.sql.rows import MessageRow, SpanRow

MISSING, THERE = "missing", "there"

Depends = Literal["group", "head", "trim", "message", "tally", "span", "own", "stored"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class Suspicion:
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

    def explained_by(self, touched: Touched) -> bool:
        """Return whether it may come of what happened while the two sides were read."""
        if self.depends == "stored":
            return False
        return touched.anything or touched.created or self._touched_by(touched)

    def _touched_by(self, touched: Touched) -> bool:
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


def of_span(row: SpanRow | None) -> str:
    """Describe a span."""
    if row is None:
        return MISSING
    end = "open" if row.left_msgid is None else f"left at {msgids.unpack(row.left_msgid)}"
    return f"{end}, offset {of_offset(row.acked_msgid)}"


def short(value: object) -> str:
    """Describe any value in one line."""
    return _SHORT.repr(value)


def named(uid: str, joined: int) -> str:
    """Name a span."""
    return f"span of {uid!r} from {msgids.unpack(joined)}"
