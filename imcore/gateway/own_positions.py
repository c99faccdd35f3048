"""Tells sessions what another device of their user has read or marked. No I/O."""

from collections.abc import Iterable, Sequence

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.gateway.channels import Inbox
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import PositionMoved, Recipients, Session
from imcore.gateway.scheduler import DelayQueue
from imcore.operations.effects import Effects, call_apart
from imcore.streams.calls import group_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.group_calls import OwnPosition, Position
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog
from imcore.util.batches import batches

SESSIONS_PER_STEP = 32
CURSORS_PER_STEP = 2000
"""Of these sessions in their groups: for more, the step fetches for fewer sessions."""
UIDS_PER_CALL = 500

_POSITIONS_WAIT = "how far some have read has to wait: %s"


class OwnPositions(DelayQueue[Session]):
    """A task: fetches the offsets of sessions that may have missed pushes, and tells what has moved meanwhile.

    A session that has acked as far, or was told, is not told again. What lies beside the offset of a user (what they
    have read in private, or marked) makes less or more unread: all sessions of the user are told when it changes.
    """

    def __init__(
        self, space: Keyspace, deliveries: DeliveryQueue, log: ThrottledLog, clock: Clock, *, acks_all: bool
    ) -> None:
        """`acks_all`: sessions ack all that they are handed."""
        super().__init__(self._fetch, _POSITIONS_WAIT, log, clock, limit=SESSIONS_PER_STEP)
        self._space = space
        self._deliveries = deliveries
        self._acks_all = acks_all

    def begin(self, session: Session, gid: str, position: Position, *, skips: bool) -> None:
        """Note what a session knows that has just begun. Its start has the offset. `skips`: it leaves messages out."""
        if skips:
            session.whole_after[gid] = session.starts[gid].begin
        if position.private or position.mark:
            session.known_bookmarks[gid] = position.private, position.mark

    def pushed(self, inbox: Inbox, gid: str, offset: int, *, is_bookmark: bool) -> None:
        """Tell sessions of a user where the offset is. `is_bookmark`: what lies beside it has changed, too."""
        listening = [session for session in inbox.sessions if not session.is_held]
        if is_bookmark:
            for session in listening:
                session.known_bookmarks[gid] = None
        else:
            listening = [session for session in listening if offset > self._known_offset(session, gid)]
        self._tell(listening, gid, offset)

    def forget_group(self, session: Session, gid: str) -> None:
        """Forget what is noted of a group, which the user of a session has left."""
        for noted in (session.whole_after, session.known_offsets, session.known_bookmarks):
            noted.pop(gid, None)

    def _known_offset(self, session: Session, gid: str) -> int:
        start, cursor = session.starts.get(gid), session.cursors.get(gid)
        known = session.known_offsets.get(gid, start.offset if start else 0)
        if self._acks_all and cursor and cursor.msgid and (start is None or cursor.msgid > start.begin):
            return max(known, cursor.msgid)
        return known

    def _tell(self, sessions: Sequence[Session], gid: str, offset: int) -> None:
        if sessions:
            recipients = sessions[0].as_recipients if len(sessions) == 1 else Recipients(sessions)
            self._deliveries.ready.append(PositionMoved(recipients, gid, msgids.unpack_offset(offset)))
            for session in sessions:
                session.known_offsets[gid] = max(offset, session.known_offsets.get(gid, 0))

    def _fetch(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """Tell sessions what has moved in their groups; return the errors of some. Others continue."""
        by_group = self._by_group(sessions)
        parts = [(gid, uids) for gid, of_uid in by_group.items() for uids in batches(of_uid, UIDS_PER_CALL)]
        calls: list[Call[list[OwnPosition | None]]] = [
            group_calls.own_positions(self._space, gid, uids) for gid, uids in parts
        ]
        answers = yield from call_apart(calls)
        refused: dict[Session, ImError] = {}
        for (gid, uids), answer in zip(parts, answers, strict=True):
            asked = by_group[gid]
            if isinstance(answer, ImError):
                refused.update((session, answer) for uid in uids for session in asked[uid])
            else:
                for uid, position in zip(uids, answer, strict=True):
                    self._compare(asked[uid], gid, position)
        return refused

    def _by_group(self, sessions: Iterable[Session]) -> dict[str, dict[str, list[Session]]]:
        """Return sessions by group and uid: as many as one step may fetch for. The others wait for the next one."""
        by_group: dict[str, dict[str, list[Session]]] = {}
        size = 0
        for session in sessions:
            if size > CURSORS_PER_STEP:
                self.add([session])
                continue
            size += len(session.cursors)
            for gid in session.cursors:
                by_group.setdefault(gid, {}).setdefault(session.uid, []).append(session)
        return by_group

    def _compare(self, sessions: Iterable[Session], gid: str, position: OwnPosition | None) -> None:
        if position is None:  # the user has left the group meanwhile
            return
        bookmark = position.private, position.mark
        moved = []
        for session in sessions:
            if session.is_held or gid not in session.cursors:
                continue
            known = session.known_bookmarks.get(gid, (0, 0))
            if known != bookmark or position.offset > max(position.joined, self._known_offset(session, gid)):
                moved.append(session)
            if any(bookmark):
                session.known_bookmarks[gid] = bookmark
            else:
                session.known_bookmarks.pop(gid, None)
        self._tell(moved, gid, position.offset)
