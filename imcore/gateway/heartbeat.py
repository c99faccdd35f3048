"""Keeps sessions alive at the server, and takes leave of those that were given up. No I/O."""

import math
from collections.abc import Mapping, Sequence

from imcore.errors import ImError, SessionExpired, TryAgain, raise_what_stops_all
from imcore.gateway.delay_queue import DelayQueue
from imcore.gateway.fanout import Session
from imcore.gateway.receipt_delivery import ReceiptDelivery
from imcore.operations.effects import Effects, call_each
from imcore.settings import Settings
from imcore.streams.calls import session_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog


class Heartbeat:
    """A part. With each heartbeat, expired sessions are opened again; where receipts are polled, they are asked for.

    A session whose heartbeat or goodbye is refused waits alone.
    """

    def __init__(
        self,
        space: Keyspace,
        settings: Settings,
        sessions: Mapping[str, Session],
        telling: ReceiptDelivery,
        trouble: ThrottledLog,
        clock: Clock,
    ) -> None:
        self._space = space
        self._online_ms = settings.online_ms
        self._every_s = settings.heartbeat_ms / 1000
        self._sessions = sessions
        self._telling = telling
        self._trouble = trouble
        self._clock = clock
        self._next = clock() + self._every_s
        self._to_beat: DelayQueue[Session] = DelayQueue()
        self._given_up: DelayQueue[Session] = DelayQueue()
        self.polls_receipts = False

    def beat(self, session: Session, *, opens: bool) -> Call[int]:
        """Return the call that keeps a session alive, or opens it."""
        return session_calls.beat(self._space, session.uid, session.sid, self._online_ms, opens=opens)

    def bye(self, sessions: Sequence[Session]) -> Effects[None]:
        """End sessions at the server, and those that were given up. Raise TryAgain where that cannot be done now."""
        yield from self._leave(self._given_up.take(len(self._given_up), math.inf))
        for error in (yield from self._bye(sessions)).values():
            if isinstance(error, TryAgain):
                raise error
            self._note(error)

    def _bye(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """End sessions at the server; return what went wrong with some. Raise what all have to wait for."""
        answers = yield from call_each(
            [session_calls.bye(self._space, session.uid, session.sid) for session in sessions]
        )
        raise_what_stops_all(answers)
        return {each: answer for each, answer in zip(sessions, answers, strict=True) if isinstance(answer, ImError)}

    def give_up(self, sessions: Sequence[Session]) -> None:
        """End sessions at the server as soon as it answers; they end by themselves in time."""
        self._given_up.add(sessions)

    def soon(self) -> None:
        """Sessions may have expired meanwhile."""
        self._next = 0.0

    def due(self) -> float:
        """Return when the next heartbeat is, or the next goodbye."""
        return min(self._given_up.due(), self._to_beat.due(), self._next if self._sessions else math.inf)

    def forget(self, session: Session) -> None:
        """A session has ended."""
        self._to_beat.discard(session)

    def go_on(self) -> Effects[None]:
        """Say goodbye for those that were given up, and keep the others alive."""
        yield from self._leave(self._given_up.take(len(self._given_up), self._clock()))
        now = self._clock()
        is_time = bool(self._sessions) and self._next <= now
        if is_time:
            self._next = now + self._every_s
            self._to_beat.add(self._sessions.values())
        yield from self._beat(self._to_beat.take(len(self._to_beat), now))
        if is_time:
            self._telling.turn()
            if self.polls_receipts:
                self._telling.want(self._sessions.values())

    def _leave(self, sessions: Sequence[Session]) -> Effects[None]:
        try:
            refused = yield from self._bye(sessions)
        except TryAgain:
            self._given_up.add(sessions)
            raise
        self._wait_alone(self._given_up, sessions, refused)

    def _beat(self, sessions: Sequence[Session]) -> Effects[None]:
        try:
            refused = yield from self._keep_alive(sessions)
        except TryAgain:
            self._to_beat.add(sessions)
            self.soon()
            raise
        self._wait_alone(self._to_beat, sessions, refused)

    def _keep_alive(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """Return what went wrong with some of them. Raise what all have to wait for."""
        answers = yield from call_each([self.beat(session, opens=False) for session in sessions])
        raise_what_stops_all(answers)
        refused = {each: answer for each, answer in zip(sessions, answers, strict=True) if isinstance(answer, ImError)}
        expired = [session for session, answer in refused.items() if isinstance(answer, SessionExpired)]
        opened = yield from call_each([self.beat(session, opens=True) for session in expired])
        for session, answer in zip(expired, opened, strict=True):
            if isinstance(answer, ImError):
                refused[session] = answer
            else:
                del refused[session]
        return refused

    def _wait_alone(
        self, todo: DelayQueue[Session], sessions: Sequence[Session], refused: Mapping[Session, ImError]
    ) -> None:
        """Let those be tried again that were refused for now. What is spoiled of a user waits for the next time."""
        todo.done(session for session in sessions if session not in refused)
        for session, error in refused.items():
            self._note(error)
            if isinstance(error, TryAgain):
                todo.postpone(session, self._clock())

    def _note(self, error: ImError) -> None:
        self._trouble.note(error, "that some users are online has to wait: %s")
