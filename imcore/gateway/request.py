"""The input of clients, checked: requests to open a session, and msgids. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self, get_args

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.gateway.fanout import SessionStart
from imcore.model.limits import check_count, check_msgid, check_name, check_resume_points
from imcore.streams.calls.group_calls import Position

StartMode = Literal["unread", "live", "join"]


_packed = lru_cache(maxsize=1024)(check_msgid)


def packed_msgid(msgid: str) -> int:
    """Do as `check_msgid` does, at less cost where many clients receive one message after the other."""
    return _packed(msgid) if type(msgid) is str else check_msgid(msgid)  # a cache raises TypeError for a list


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """The checked arguments of `Gateway.open`. Msgids are packed."""

    uid: str
    start: StartMode
    after: Mapping[str, int]
    most: int | None
    tag: Any

    @classmethod
    def checked(
        cls, uid: str, start: StartMode, after: Mapping[str, str] | None, most: int | None = None, tag: Any = None
    ) -> Self:
        """Raise InvalidInput for values that `Gateway.open` refuses."""
        check_name(uid, "uid")
        if start not in get_args(StartMode):
            raise InvalidInput(f"start must be one of {', '.join(get_args(StartMode))}; it is {start!r}")
        if most is not None:
            check_count(most, "most", lowest=0)
        return cls(uid, start, check_resume_points(after), most, tag)

    def start_in(self, gid: str, position: Position) -> SessionStart:
        # `most` counts from the offset: what is delivered would show a Gap elsewhere, and so what was read in private
        unread = position.read if self.most is None else position.acked
        begins = {"unread": unread, "live": position.last, "join": position.joined}
        begin = begins[self.start]
        if gid in self.after:  # no message comes from before the join, and none is passed over that is to come
            begin = min(max(self.after[gid], position.joined), position.last)
        return SessionStart(begin, position.acked, position.last, position.unread)

    def handed_in(self, gid: str, position: Position) -> int | None:
        """Return the newest message that the client has been given in this membership, as it says."""
        after = self.after.get(gid, msgids.NONE)
        return after if after > position.joined else None

    def skips(self, gid: str, start: SessionStart) -> bool:
        """Return whether a session that begins there leaves out messages that its user may not have.

        The answer depends on nothing that only the user may know: what is delivered would show it. So a session that
        begins with what is unread skips nothing, though messages before it may be read in private only.
        """
        begins_at_unread = self.start == "unread" and gid not in self.after
        return start.begin > start.offset and not begins_at_unread
