"""Keeps sessions alive at the server, and takes leave of those that were given up. No I/O."""

import math
from collections.abc import Mapping, Sequence

from imcore.asking import Asking, ask
from imcore.errors import ImError, SessionExpired, TryAgain, concerns_all
from imcore.live.parts import Clock, Trouble
from imcore.live.rooms import Session
from imcore.live.telling import Telling
from imcore.settings import Settings
from imcore.streams import session_calls
from imcore.streams.calls import Call
from imcore.streams.keys import Keyspace


class Beating:
    """A part. With each heartbeat, expired sessions are opened again; where receipts are polled, they are asked for."""

    def __init__(
        self, space: Keyspace, settings: Settings, sessions: Mapping[str, Session], telling: Telling, clock: Clock
    ) -> None:
        self._space = space
        self._online_ms = settings.online_ms
        self._every_s = settings.heartbeat_ms / 1000
        self._sessions = sessions
        self._telling = telling
        self._clock = clock
        self._next = clock() + self._every_s
        self._given_up: list[Session] = []
        self._trouble = Trouble("that some users are online has", clock)
        self.polls_receipts = False

    def beat(self, session: Session, *, opens: bool) -> Call[int]:
        """Return the call that keeps a session alive, or opens it."""
        return session_calls.beat(self._space, session.uid, session.sid, self._online_ms, opens=opens)

    def bye(self, sessions: Sequence[Session]) -> Asking[None]:
        """End sessions at the server, and those that were given up."""
        given_up, self._given_up = self._given_up, []
        try:
            ending = [*given_up, *sessions]
            gone = yield from ask([session_calls.bye(self._space, session.uid, session.sid) for session in ending])
            for answer in gone:
                self._check(answer)
        except TryAgain:
            self._given_up = given_up
            raise

    def give_up(self, sessions: Sequence[Session]) -> None:
        """End sessions at the server as soon as it answers; they end by themselves in time."""
        self._given_up += sessions

    def soon(self) -> None:
        """Sessions may have expired meanwhile."""
        self._next = 0.0

    def due(self) -> float:
        """Return when the next heartbeat is, or the next goodbye."""
        if self._given_up:
            return 0.0
        return self._next if self._sessions else math.inf

    def go_on(self) -> Asking[None]:
        """Say goodbye for those that were given up, and keep the others alive."""
        yield from self.bye([])
        if self._sessions and self._next <= self._clock():
            yield from self._beat(list(self._sessions.values()))

    def _beat(self, sessions: Sequence[Session]) -> Asking[None]:
        self._next = self._clock() + self._every_s
        try:
            yield from self._keep_alive(sessions)
        except TryAgain:
            self.soon()
            raise
        self._telling.turn()
        if self.polls_receipts:
            self._telling.want(sessions)

    def _keep_alive(self, sessions: Sequence[Session]) -> Asking[None]:
        answers = yield from ask([self.beat(session, opens=False) for session in sessions])
        expired = []
        for session, answer in zip(sessions, answers, strict=True):
            if isinstance(answer, SessionExpired):
                expired.append(session)
            else:
                self._check(answer)
        for opened in (yield from ask([self.beat(session, opens=True) for session in expired])):
            self._check(opened)

    def _check(self, answer: int | ImError) -> None:
        """Pass over what Redis has of one user and cannot be used: the others go on. Raise any other error."""
        if isinstance(answer, TryAgain) or (isinstance(answer, ImError) and concerns_all(answer)):
            raise answer
        if isinstance(answer, ImError):
            self._trouble.note(answer)
