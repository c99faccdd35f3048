"""A difference that may be one: what differs, both sides, and what it depends on. No I/O."""

import reprlib
from dataclasses import dataclass
from typing import Literal

from imcore import msgid as msgids
from imcore.admin.pending import Touched
from imcore.sql.rows import MessageRow, SpanRow

MISSING = "missing"

Depends = Literal["group", "head", "trim", "message", "tally", "span", "own"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Both sides of what differs, as people see them, and what that depends on: at times a `uid` or packed `msgid`."""

    what: str
    redis: str
    sql: str
    depends: Depends
    uid: str = ""
    msgid: int = 0

    def explained_by(self, touched: Touched) -> bool:
        """Return whether it may come of what happened while the two sides were read."""
        if touched.anything:
            return True
        match self.depends:
            case "span" | "own":  # own messages may be recalled by somebody else
                recalled = self.depends == "own" and bool(touched.recalled)
                return touched.created or self.uid in touched.uids or recalled
            case "message":
                return touched.created or touched.message(self.msgid)
            case "tally":
                return touched.created or touched.tally(self.msgid)
            case "head":
                return touched.created or touched.first_sent is not None
            case "group" | "trim":
                return touched.created


def of_message(row: MessageRow | None) -> str:
    """Describe a message in a few words."""
    return MISSING if row is None else f"seq {row.seq} by {row.sender_uid!r}"


def of_offset(msgid: int | None) -> str:
    """Describe an offset."""
    return MISSING if msgid is None else msgids.unpack(msgid)


def of_span(row: SpanRow | None) -> str:
    """Describe a span."""
    if row is None:
        return MISSING
    end = "open" if row.left_msgid is None else f"left at {msgids.unpack(row.left_msgid)}"
    return f"{end}, offset {msgids.unpack(row.acked_msgid)}"


def short(value: object) -> str:
    """Describe any value in one line."""
    return _SHORT.repr(value)


def named(uid: str, joined: int) -> str:
    """Name a span."""
    return f"span of {uid!r} from {msgids.unpack(joined)}"
