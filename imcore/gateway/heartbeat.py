"""Keeps sessions alive at the server, and ends there those whose clients are gone. No I/O."""

import math
from collections.abc import Mapping, Sequence

from imcore.errors import ImError, SessionExpired, TryAgain, raise_what_stops_all
from imcore.gateway.fanout import Session
from imcore.gateway.receipts import ReceiptDelivery
from imcore.gateway.scheduler import DelayQueue
from imcore.operations.effects import Effects, call_each
from imcore.settings import Settings
from imcore.streams.calls import session_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog


class Heartbeat:
    """A task: beats for all sessions, opens those again that have expired, and fetches receipts if they are polled.

    If Redis refuses the beat or the end of a session, this session waits alone.
    """

    def __init__(
        self,
        space: Keyspace,
        settings: Settings,
        sessions: Mapping[str, Session],
        receipt_delivery: ReceiptDelivery,
        throttled_log: ThrottledLog,
        clock: Clock,
    ) -> None:
        self._space = space
        self._online_ms = settings.online_ms
        self._every_s = settings.heartbeat_ms / 1000
        self._sessions = sessions
        self._receipt_delivery = receipt_delivery
        self._log = throttled_log
        self._clock = clock
        self._next = clock() + self._every_s
        self._to_beat: DelayQueue[Session] = DelayQueue()
        self._to_end: DelayQueue[Session] = DelayQueue()
        self.polls_receipts = False

    def call(self, session: Session, *, opens: bool) -> Call[int]:
        """Return the call that keeps a session alive, or opens it."""
        return session_calls.beat(self._space, session.uid, session.sid, self._online_ms, opens=opens)

    def end(self, sessions: Sequence[Session]) -> Effects[None]:
        """End sessions at the server, and those of `end_soon`. Raise TryAgain where that cannot be done now."""
        yield from self._end_some(self._to_end.take(len(self._to_end), math.inf))
        for error in (yield from self._end(sessions)).values():
            if isinstance(error, TryAgain):
                raise error
            self._note(error)

    def end_soon(self, sessions: Sequence[Session]) -> None:
        """End sessions at the server as soon as it answers. Without an answer they expire."""
        self._to_end.add(sessions)

    def beat_now(self) -> None:
        """Make the next heartbeat due: sessions may have expired meanwhile."""
        self._next = 0.0

    def forget(self, session: Session) -> None:
        """Beat no more for a session that has ended."""
        self._to_beat.discard(session)

    def due(self) -> float:
        return min(self._to_end.due(), self._to_beat.due(), self._next if self._sessions else math.inf)

    def step(self) -> Effects[None]:
        """End the sessions whose clients are gone, and keep the others alive."""
        yield from self._end_some(self._to_end.take(len(self._to_end), self._clock()))
        now = self._clock()
        is_time = bool(self._sessions) and self._next <= now
        if is_time:
            self._next = now + self._every_s
            self._to_beat.add(self._sessions.values())
        yield from self._beat_some(self._to_beat.take(len(self._to_beat), now))
        if is_time:
            self._receipt_delivery.rotate_versions()
            if self.polls_receipts:
                self._receipt_delivery.fetch(self._sessions.values())

    def _end_some(self, sessions: Sequence[Session]) -> Effects[None]:
        try:
            refused = yield from self._end(sessions)
        except TryAgain:
            self._to_end.add(sessions)
            raise
        self._postpone(self._to_end, sessions, refused)

    def _beat_some(self, sessions: Sequence[Session]) -> Effects[None]:
        try:
            refused = yield from self._beat(sessions)
        except TryAgain:
            self._to_beat.add(sessions)
            self.beat_now()
            raise
        self._postpone(self._to_beat, sessions, refused)

    def _end(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """End sessions at the server; return the errors of some. Raise the error that all have to wait for."""
        return (
            yield from self._refused(
                sessions, [session_calls.bye(self._space, session.uid, session.sid) for session in sessions]
            )
        )

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

    def _postpone(
        self, queue: DelayQueue[Session], sessions: Sequence[Session], refused: Mapping[Session, ImError]
    ) -> None:
        """Try those again later whose refusal may pass. Rubbish that Redis holds of a user waits for the next time."""
        queue.succeeded(session for session in sessions if session not in refused)
        for session, error in refused.items():
            self._note(error)
            if isinstance(error, TryAgain):
                queue.postpone(session, self._clock())

    def _note(self, error: ImError) -> None:
        self._log.note(error, "that some users are online has to wait: %s")
