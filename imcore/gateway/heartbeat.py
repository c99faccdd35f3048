"""Keeps sessions alive at the server, and ends there those whose clients are gone. No I/O."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from imcore.errors import ImError, SessionExpired, TryAgain, raise_what_stops_all
from imcore.gateway.fanout import Session
from imcore.gateway.receipts import ReceiptDelivery
from imcore.gateway.scheduler import DelayQueue
from imcore.operations.effects import Effects, call_each
from imcore.streams.calls import session_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog


@dataclass(eq=False)
class Heartbeat:
    """A task: beats for all sessions, opens expired ones again, and polls receipts. A refused session waits alone."""

    _space: Keyspace
    _online_ms: int
    _every_s: float
    _sessions: Mapping[str, Session]
    _receipt_delivery: ReceiptDelivery
    _polls_receipts: bool
    _log: ThrottledLog
    _clock: Clock
    _next: float = field(init=False)
    _to_beat: DelayQueue[Session] = field(default_factory=DelayQueue)
    _to_end: DelayQueue[Session] = field(default_factory=DelayQueue)

    def __post_init__(self) -> None:
        self._next = self._clock() + self._every_s

    def call(self, session: Session, *, opens: bool) -> Call[int]:
        return session_calls.heartbeat(self._space, session.uid, session.sid, self._online_ms, opens=opens)

    def end(self, sessions: Sequence[Session]) -> Effects[None]:
        """End sessions at the server, and those of `end_soon`. Raise TryAgain where that cannot be done now."""
        yield from self._run(self._to_end, self._end, math.inf)
        for error in (yield from self._end(sessions)).values():
            if isinstance(error, TryAgain):
                raise error
            self._note(error)

    def end_soon(self, sessions: Sequence[Session]) -> None:
        """End sessions at the server as soon as it answers. Without an answer they expire."""
        self._to_end.add(sessions)

    def beat_now(self) -> None:
        self._next = 0.0

    def forget(self, session: Session) -> None:
        self._to_beat.discard(session)

    def due(self) -> float:
        return min(self._to_end.due(), self._to_beat.due(), self._next if self._sessions else math.inf)

    def step(self) -> Effects[None]:
        """End the sessions whose clients are gone, and keep the others alive."""
        yield from self._run(self._to_end, self._end, self._clock())
        now = self._clock()
        if self._sessions and self._next <= now:
            self._next = now + self._every_s
            self._to_beat.add(self._sessions.values())
            self._receipt_delivery.rotate_versions()
            if self._polls_receipts:
                self._receipt_delivery.fetch(self._sessions.values())
        yield from self._run(self._to_beat, self._beat, now)

    def _run(
        self,
        queue: DelayQueue[Session],
        operation: Callable[[Sequence[Session]], Effects[dict[Session, ImError]]],
        now: float,
    ) -> Effects[None]:
        """Run an operation for the sessions of a queue, which returns the errors of some. These wait alone."""
        sessions = queue.take(len(queue), now)
        try:
            refused = yield from operation(sessions)
        except TryAgain:
            queue.add(sessions)
            raise
        queue.succeeded(session for session in sessions if session not in refused)
        for session, error in refused.items():
            self._note(error)
            if isinstance(error, TryAgain):  # rubbish that Redis holds of a user waits for the next heartbeat
                queue.postpone(session, self._clock())

    def _end(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """End sessions at the server; return the errors of some. Raise the error that all have to wait for."""
        calls = [session_calls.end_session(self._space, session.uid, session.sid) for session in sessions]
        return (yield from self._refused(sessions, calls))

    def _beat(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """Keep sessions alive; return the errors of some. Raise the error that all have to wait for."""
        refused = yield from self._refused(sessions, [self.call(session, opens=False) for session in sessions])
        expired = [session for session, error in refused.items() if isinstance(error, SessionExpired)]
        opened = yield from call_each([self.call(session, opens=True) for session in expired])
        for session, answer in zip(expired, opened, strict=True):
            if isinstance(answer, ImError):
                refused[session] = answer
            else:
                del refused[session]
        return refused

    def _refused(self, sessions: Sequence[Session], calls: Sequence[Call[int]]) -> Effects[dict[Session, ImError]]:
        answers = yield from call_each(calls)
        raise_what_stops_all(answers)
        return {each: answer for each, answer in zip(sessions, answers, strict=True) if isinstance(answer, ImError)}

    def _note(self, error: ImError) -> None:
        self._log.note(error, "that some users are online has to wait: %s")
