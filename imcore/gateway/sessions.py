"""Sessions at the server: their heartbeats, and the receipts that wait for them or that they have got. No I/O."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from imcore.errors import ImError, SessionExpired, TryAgain, UserErasing
from imcore.gateway.channels import Inbox
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import ReceiptsChanged, Recipients, Session
from imcore.gateway.scheduler import DelayQueue
from imcore.model.values import Receipt
from imcore.operations import sessions as operations
from imcore.operations.effects import Effects, call_apart, call_each
from imcore.operations.sessions import DirtyCursor
from imcore.settings import Settings
from imcore.streams.calls import session_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoffs, Clock, ThrottledLog
from imcore.util.batches import batches, grouped

SESSIONS_PER_STEP = 32

RECEIPTS_PER_PAGE = 100
"""Per session and partition."""

RECEIPTS_PER_EVENT = 10_000
"""As many as a digest has at most."""

CONFIRMATIONS_PER_STEP = 5000

_RECEIPTS_WAIT = "receipts of some have to wait: %s"
_PRESENCE_WAITS = "that some users are online has to wait: %s"

_Versions = dict[Session, dict[tuple[str, str], int]]
"""By session; then by gid and msgid, the version of the receipt that the session has got by asking."""


class ReceiptDelivery(DelayQueue[Session]):
    """A task: fetches the receipts that wait for sessions.

    A push that was on its way meanwhile is older than the answer: its version says so, and it is dropped.
    """

    def __init__(self, space: Keyspace, deliveries: DeliveryQueue, log: ThrottledLog, clock: Clock) -> None:
        super().__init__(self._fetch_pages, _RECEIPTS_WAIT, log, clock, limit=SESSIONS_PER_STEP)
        self._space = space
        self._deliveries = deliveries
        self._cursors: dict[Session, DirtyCursor] = {}
        self._newer: _Versions = {}
        self._older: _Versions = {}
        """From before the last heartbeat."""

    def fetch(self, sessions: Iterable[Session]) -> None:
        """Fetch, in the next steps, all receipts that wait for sessions."""
        for session in sessions:
            if not session.is_held:  # else once it is resumed
                self._cursors[session] = operations.first_dirty(self._space)
                self.add([session])

    def forget(self, session: Session) -> None:
        self.discard(session)
        self._cursors.pop(session, None)
        self._newer.pop(session, None)
        self._older.pop(session, None)

    def forget_versions(self) -> None:
        """Forget all versions: the server may be another one, and count from below again."""
        self._newer, self._older = {}, {}

    def rotate_versions(self) -> None:
        """Forget the versions from before the last rotation: no push that is older is still on its way."""
        self._newer, self._older = {}, self._newer

    def pushed(self, inbox: Inbox, receipts: Sequence[Receipt]) -> None:
        listening = [session for session in inbox.sessions if not session.is_held]
        asked = {session for session in listening if session in self._newer or session in self._older}
        for session in asked:
            self._deliver([session], self._news(session, receipts))
        self._deliver([session for session in listening if session not in asked], receipts)

    def _fetch_pages(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        """Deliver the next receipts of each session; return the errors of some.

        The database may be away, a partition may move, or Redis may hold rubbish of a user: others continue.
        """
        cursors = [(session.uid, self._cursors[session]) for session in sessions]
        pages = yield from operations.dirty_receipts(self._space, cursors, RECEIPTS_PER_PAGE)
        deliveries = yield from operations.to_deliver(self._space, pages)
        refused: dict[Session, ImError] = {}
        for session, delivery in zip(sessions, deliveries, strict=True):
            if isinstance(delivery, ImError):
                refused[session] = delivery
            else:
                receipts, cursor, left_out = delivery
                if left_out:
                    self._log.note(left_out, _RECEIPTS_WAIT)
                self._deliver_page(session, cursor, receipts)
        return refused

    def _deliver_page(self, session: Session, cursor: DirtyCursor, receipts: list[Receipt]) -> None:
        if receipts:
            self._deliver([session], self._news(session, receipts))
            self._newer.setdefault(session, {}).update({(each.gid, each.msgid): each.version for each in receipts})
        if cursor:
            self._cursors[session] = cursor
            self.add([session])
        else:
            del self._cursors[session]

    def _news(self, session: Session, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Return the receipts that are newer than those that the session has got of the same messages."""
        newer, older = self._newer.get(session, {}), self._older.get(session, {})
        keys = ((receipt, (receipt.gid, receipt.msgid)) for receipt in receipts)
        return [receipt for receipt, key in keys if receipt.version > max(newer.get(key, 0), older.get(key, 0))]

    def _deliver(self, sessions: Sequence[Session], receipts: Sequence[Receipt]) -> None:
        if sessions:
            recipients = sessions[0].as_recipients if len(sessions) == 1 else Recipients(sessions)
            self._deliveries.ready += [
                ReceiptsChanged(recipients, tuple(batch)) for batch in batches(receipts, RECEIPTS_PER_EVENT)
            ]


@dataclass(eq=False)
class ReceiptConfirmation:
    """A task: confirms the receipts that senders have got, some time after the first, many senders at once."""

    _space: Keyspace
    _interval_s: float
    _log: ThrottledLog
    _clock: Clock
    _backoffs: Backoffs[str] = field(default_factory=Backoffs)
    _received: dict[str, dict[tuple[str, str], Receipt]] = field(default_factory=dict)
    """By uid; then by gid and msgid, the newest receipt of the message."""
    _due: float = math.inf

    def received(self, uid: str, receipts: Iterable[Receipt]) -> None:
        newest = self._received.setdefault(uid, {})
        for receipt in receipts:
            before = newest.get((receipt.gid, receipt.msgid))
            if before is None or before.version < receipt.version:
                newest[receipt.gid, receipt.msgid] = receipt
        self._due = min(self._due, self._clock() + self._interval_s)

    def due(self) -> float:
        return self._due

    def step(self) -> Effects[None]:
        """Confirm receipts, many at a time. If Redis refuses those of a sender, this sender waits alone."""
        yield from self._confirm(self._next(self._clock()))
        self._due = min((max(self._due, self._backoffs.until(uid)) for uid in self._received), default=math.inf)

    def holds(self, uid: str) -> bool:
        return uid in self._received

    def flush(self, uids: Collection[str] | None) -> Effects[None]:
        """Confirm all that these senders have got, or all senders. Raise TryAgain where that cannot be done now."""
        known = self._received.keys() if uids is None else self._received.keys() & uids
        refused = yield from self._confirm({uid: list(self._received[uid].values()) for uid in known})
        if refused:
            raise refused[0]

    def _next(self, now: float) -> dict[str, list[Receipt]]:
        ready = (
            (uid, receipt)
            for uid, newest in self._received.items()
            if self._backoffs.until(uid) <= now
            for receipt in newest.values()
        )
        return grouped(islice(ready, CONFIRMATIONS_PER_STEP))

    def _confirm(self, receipts: dict[str, list[Receipt]]) -> Effects[list[TryAgain]]:
        """Confirm receipts by sender; return the refusals that may pass. Raise the error that all have to wait for."""
        answers = yield from operations.confirm_many(self._space, receipts)
        refused = []
        for uid, confirmed in receipts.items():
            errors = [answer for answer in answers[uid] if isinstance(answer, ImError)]
            for error in errors[:1]:
                self._log.note(error, "that some know their receipts has to wait: %s")
            if may_pass := [error for error in errors if isinstance(error, TryAgain)]:
                refused.append(may_pass[0])
                self._backoffs.failed(uid, self._clock())
            else:  # receipts that somebody spoiled by hand come again with the next session
                self._backoffs.succeeded([uid])
                self._forget(uid, confirmed)
        return refused

    def _forget(self, uid: str, receipts: Iterable[Receipt]) -> None:
        newest = self._received[uid]
        for receipt in receipts:
            if newest.get((receipt.gid, receipt.msgid)) is receipt:  # else a newer one has come meanwhile
                del newest[receipt.gid, receipt.msgid]
        if not newest:
            del self._received[uid]


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
    _on_erased: Callable[[Session], None]
    """Gets a session whose user was erased."""

    def __post_init__(self) -> None:
        self._next = self._clock() + self.every_s
        self._to_beat = DelayQueue(self._beat, _PRESENCE_WAITS, self._log, self._clock)
        self._to_end = DelayQueue(self._end, _PRESENCE_WAITS, self._log, self._clock)

    @property
    def every_s(self) -> float:
        return self._settings.heartbeat_ms / 1000

    def call(self, session: Session, *, opens: bool) -> Call[int]:
        return session_calls.heartbeat(self._space, session.uid, session.sid, self._settings.online_ms, opens=opens)

    def flush(self) -> Effects[None]:
        """End the sessions of `end_soon` now. Raise TryAgain if some of them have to wait."""
        for error in (yield from self._to_end.run(math.inf)).values():
            raise error

    def end_soon(self, sessions: Sequence[Session]) -> None:
        """End sessions at the server as soon as it answers. Without an answer they expire."""
        self._to_end.add(session for session in sessions if session.beats)

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
            self._to_beat.add(session for session in self._sessions.values() if session.beats)
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
            del refused[session]
            if isinstance(answer, UserErasing | SessionExpired):
                self._on_erased(session)
            elif isinstance(answer, ImError):
                refused[session] = answer
        return self._may_pass(refused)

    def _refused(self, sessions: Sequence[Session], calls: Sequence[Call[int]]) -> Effects[dict[Session, ImError]]:
        answers = yield from call_apart(calls)
        return {each: answer for each, answer in zip(sessions, answers, strict=True) if isinstance(answer, ImError)}

    def _may_pass(self, refused: dict[Session, ImError]) -> dict[Session, ImError]:
        """Log the errors that do not pass: rubbish that Redis holds of a user waits for the next heartbeat."""
        for error in refused.values():
            if not isinstance(error, TryAgain):
                self._log.note(error, _PRESENCE_WAITS)
        return {session: error for session, error in refused.items() if isinstance(error, TryAgain)}
