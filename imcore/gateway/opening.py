"""The beginning of a session: the groups of its user, and where it begins in each. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imcore.errors import ConfigurationError, ImError, NotMember, TryAgain, UnknownGroup
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import Session
from imcore.gateway.own_positions import OwnPositions
from imcore.gateway.request import SessionRequest
from imcore.gateway.sessions import Heartbeat
from imcore.operations import queries
from imcore.operations.effects import Effects, raised
from imcore.operations.positions import positions_in
from imcore.streams.calls.group_calls import Position
from imcore.streams.calls.message_calls import UNKNOWN, HandedMessage
from imcore.streams.keys import Keyspace

if TYPE_CHECKING:
    from imcore.gateway.catch_up import CatchUp


@dataclass(eq=False, slots=True)
class Opening:
    """Begins sessions, which are in `sessions` from then on, by sid."""

    _space: Keyspace
    _sessions: dict[str, Session]
    _heartbeat: Heartbeat
    _positions: OwnPositions
    _catch_up: "CatchUp"

    def open(self, request: SessionRequest, session: Session) -> Effects[Session]:
        """Begin a session. One that is late is told of its groups, as of those that are joined."""
        gids = (yield from queries.groups_of(self._space, [session.uid]))[session.uid]
        positions = yield from self._open_at_server(session, gids)
        for gid, position in zip(gids, positions, strict=True):
            if isinstance(position, Position):
                session.starts[gid] = start = request.start_in(gid, position)
                handed = HandedMessage(request.handed_in(gid, position) or start.begin, UNKNOWN)
                session.resume_points[gid] = ResumePoint(start.begin, handed=handed if handed.msgid else None)
                self._positions.begin(session, gid, position, skips=request.skips(gid, start))
            elif not isinstance(position, NotMember | UnknownGroup):  # something is wrong in that group alone
                known = request.after.get(gid)
                session.resume_points[gid] = None if known is None else ResumePoint(known)
                session.whole_after[gid] = known or 0
        self._sessions[session.sid] = session
        self._catch_up.resync(session)
        for gid in list(session.resume_points):
            (self._catch_up.joined if session.is_late else self._catch_up.follow)(session, gid)
        return session

    def _open_at_server(self, session: Session, gids: Sequence[str]) -> Effects[list[Position | ImError]]:
        """Open a session; return the user's position in each group."""
        opening = [self._heartbeat.call(session, opens=True)] if session.beats else []
        positions, answers = yield from positions_in(self._space, session.uid, gids, beside=opening)
        for opened in answers:
            raised(opened)
        for position in positions:
            if isinstance(position, TryAgain | ConfigurationError):
                raise position
        return positions
