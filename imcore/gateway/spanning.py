"""The cores of all lanes as one, and sessions that span them: each has a part in every lane. No I/O.

A group is in one partition, so all of it is in one lane. What is of a user alone is in the lane of their partition.
"""

from collections import ChainMap
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from imcore.errors import InvalidInput
from imcore.gateway.fanout import Ended, Event, Session
from imcore.gateway.request import SessionRequest
from imcore.model.values import Receipt
from imcore.streams.keys import Keyspace
from imcore.util.batches import grouped

if TYPE_CHECKING:
    from imcore.gateway.core import Core


class SpanningCore:
    """Cores by partition. `Core` says what each operation does; sessions are those of the caller."""

    def __init__(self, space: Keyspace, cores: "Sequence[Core]") -> None:
        self._space = space
        self._cores = cores
        self._sessions: dict[str, Session] = {}
        self.ending: dict[Session, None] = {}
        """Sessions that have ended for the caller, and not yet in a lane that is held up."""
        self.erased: list[Session] = []
        """Of users that were erased, as the caller was told: they have to end in all lanes."""
        self._taken: list[int] = []
        """The number of events that each core has given last."""

    @property
    def ack_calls(self) -> int:
        return sum(core.ack_calls for core in self._cores)

    @property
    def sessions(self) -> Collection[Session]:
        return self._sessions.values()

    def begin(self, request: SessionRequest) -> Session:
        """Return a session with a part for each lane. It is `there` once its lanes have opened these."""
        whole = Session(request.uid, request.most, request.tag)
        home = self._space.partition_of(whole.uid)
        whole.parts = parts = tuple(
            Session(whole.uid, whole.most, sid=whole.sid, whole=whole, beats=partition == home)
            for partition in range(len(self._cores))
        )
        whole.starts = ChainMap(*(part.starts for part in parts))
        whole.cursors = ChainMap(*(part.cursors for part in parts))
        whole.resume_points = ChainMap(*(part.resume_points for part in parts))
        whole.whole_after = ChainMap(*(part.whole_after for part in parts))
        whole.known_offsets = ChainMap(*(part.known_offsets for part in parts))
        whole.known_bookmarks = ChainMap(*(part.known_bookmarks for part in parts))
        return whole

    def home(self, session: Session) -> Session:
        """Return the part of a session that is kept alive at the server."""
        return session.parts[self._space.partition_of(session.uid)]

    def there(self, session: Session) -> None:
        self._sessions[session.sid] = session

    def begin_end(self, session: Session) -> bool:
        """Let a session get no more events; return False if it has ended before."""
        is_here = self._sessions.pop(session.sid, None) is not None
        if is_here:
            self.ending[session] = None
        return is_here

    def pause(self, session: Session) -> None:
        self._set_paused(session, True)

    def resume(self, session: Session) -> None:
        self._set_paused(session, False)

    def _set_paused(self, session: Session, is_paused: bool) -> None:
        if session.sid in self._sessions:
            session.is_paused = is_paused
            for core, part in zip(self._cores, session.parts, strict=True):
                (core.pause if is_paused else core.resume)(part)

    # What clients have received.

    def received(self, session: Session, gid: str, msgid: int, private: bool = False) -> bool:
        if session.sid not in self._sessions:
            return False
        p = self._space.partition_of(gid)
        return self._cores[p].received(session.parts[p], gid, msgid, private)

    def delivered(self, session: Session, gid: str, msgid: int) -> bool:
        if session.sid not in self._sessions:
            return False
        p = self._space.partition_of(gid)
        return self._cores[p].delivered(session.parts[p], gid, msgid)

    def fetched(self, session: Session, gid: str, after: int, until: int) -> None:
        if session.sid in self._sessions:
            p = self._space.partition_of(gid)
            self._cores[p].fetched(session.parts[p], gid, after, until)

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        if session.sid in self._sessions:
            for p, own in grouped((self._space.partition_of(each.gid), each) for each in receipts).items():
                self._cores[p].confirm_receipts(session.parts[p], own)

    # Events.

    def confirm(self) -> None:
        for core in self._cores:
            core.confirm()
        self._taken = []

    def has_events(self) -> bool:
        return any(core.has_events() for core in self._cores)

    def take(self) -> list[Event]:
        """Return the events of one core after the other: those of a group are in order, and in one core."""
        events: list[Event] = []
        self._taken = []
        for partition, core in enumerate(self._cores):
            core.deliveries.end(session.parts[partition] for session in self.ending)
            taken = core.take()
            self._taken.append(len(taken))
            for event in taken:
                events.append(event._replace(recipients=event.recipients.whole))
                if isinstance(event, Ended):
                    self.erased += filter(self.begin_end, event.recipients.whole.sessions)
        return events

    def requeue(self, count: int) -> None:
        if not 0 <= count <= sum(self._taken):
            raise InvalidInput(f"{count} events cannot be taken back: {sum(self._taken)} were returned")
        for partition, core in reversed(list(enumerate(self._cores))):
            own = min(count, self._taken[partition]) if count else 0
            if own:
                core.requeue(own)
                self._taken[partition] -= own
                count -= own
