"""Keeps sessions alive at the server, and ends there those whose clients are gone. No I/O."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

_WAIT = "that some users are online has to wait: %s"


@dataclass(eq=False)
class Heartbeat:
    """A task: beats for all sessions, opens expired ones again, and polls receipts. A refused session waits alone."""

    _space: Keyspace
    _settings: Settings
    _sessions: Mapping[str, Session]
    _receipt_delivery: ReceiptDelivery
    _polls_receipts: bool
    _log: ThrottledLog
    _clock: Clock

    def __post_init__(self) -> None:
        self._next = self._clock() + self.every_s
        self._to_beat = DelayQueue(self._beat, _WAIT, self._log, self._clock)
        self._to_end = DelayQueue(self._end, _WAIT, self._log, self._clock)

    @property
    def every_s(self) -> float:
        return self._settings.heartbeat_ms / 1000

    def call(self, session: Session, *, opens: bool) -> Call[int]:
        return session_calls.heartbeat(self._space, session.uid, session.sid, self._settings.online_ms, opens=opens)

    def end(self, sessions: Sequence[Session]) -> Effects[None]:
        """End sessions at the server, and those of `end_soon`. Raise TryAgain where that cannot be done now."""
        yield from self._to_end.run(math.inf)
        for error in (yield from self._end(sessions)).values():
            raise error

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
        yield from self._to_end.step()
        now = self._clock()
        if self._sessions and self._next <= now:
            self._next = now + self.every_s
            self._to_beat.add(self._sessions.values())
            self._receipt_delivery.rotate_versions()
            if self._polls_receipts:
                self._receipt_delivery.fetch(self._sessions.values())
        yield from self._to_beat.step()

    def _end(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """End sessions at the server; return the errors of some that may pass. Raise the error that stops all."""
        calls = [session_calls.end_session(self._space, session.uid, session.sid) for session in sessions]
        return self._may_pass((yield from self._refused(sessions, calls)))

    def _beat(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """Keep sessions alive; return the errors of some that may pass. Raise the error that stops all."""
        refused = yield from self._refused(sessions, [self.call(session, opens=False) for session in sessions])
        expired = [session for session, error in refused.items() if isinstance(error, SessionExpired)]
        opened = yield from call_each([self.call(session, opens=True) for session in expired])
        for session, answer in zip(expired, opened, strict=True):
            if isinstance(answer, ImError):
                refused[session] = answer
            else:
                del refused[session]
        return self._may_pass(refused)

    def _refused(self, sessions: Sequence[Session], calls: Sequence[Call[int]]) -> Effects[dict[Session, ImError]]:
        answers = yield from call_each(calls)
        raise_what_stops_all(answers)
        return {each: answer for each, answer in zip(sessions, answers, strict=True) if isinstance(answer, ImError)}

    def _may_pass(self, refused: dict[Session, ImError]) -> dict[Session, ImError]:
        """Log the errors that do not pass: rubbish that Redis holds of a user waits for the next heartbeat."""
        for error in refused.values():
            if not isinstance(error, TryAgain):
                self._log.note(error, _WAIT)
        return {session: error for session, error in refused.items() if isinstance(error, TryAgain)}
