"""Confirms the receipts that senders have been told, those of many senders at once. No I/O."""

import math
from collections.abc import Collection, Iterable

from imcore.errors import ImError, TryAgain
from imcore.model.values import Receipt
from imcore.operations import dirty_receipts
from imcore.operations.effects import Effects
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoffs, Clock, ThrottledLog

MOST_AT_ONCE = 5000
"""How many receipts are confirmed in one go."""

_Known = dict[tuple[str, str], Receipt]
"""Receipts by gid and msgid: of those of one message, the newest."""


class ReceiptConfirmation:
    """A part. What is known is confirmed `interval_s` after the first of it."""

    def __init__(self, space: Keyspace, interval_s: float, trouble: ThrottledLog, clock: Clock) -> None:
        self._space = space
        self._interval_s = interval_s
        self._trouble = trouble
        self._clock = clock
        self._waits: Backoffs[str] = Backoffs()
        self._known: dict[str, _Known] = {}
        self._due = math.inf

    def known(self, uid: str, receipts: Iterable[Receipt]) -> None:
        """Note that a sender knows these receipts."""
        known = self._known.setdefault(uid, {})
        for receipt in receipts:
            before = known.get((receipt.gid, receipt.msgid))
            if before is None or before.version < receipt.version:
                known[receipt.gid, receipt.msgid] = receipt
        self._due = min(self._due, self._clock() + self._interval_s)

    def due(self) -> float:
        """Return when the next ones are to be confirmed."""
        return self._due

    def go_on(self) -> Effects[None]:
        """Confirm what is known, some of it if it is very much. What is refused about one sender waits alone."""
        yield from self._confirm(self._some(self._clock()))
        self._due = min((max(self._due, self._waits.until(uid)) for uid in self._known), default=math.inf)

    def send_of(self, uids: Collection[str]) -> Effects[None]:
        """Confirm all that these senders know. Raise TryAgain where that cannot be done now."""
        refused = yield from self._confirm({uid: list(self._known[uid].values()) for uid in self._known.keys() & uids})
        if refused:
            raise refused[0]

    def _some(self, now: float) -> dict[str, list[Receipt]]:
        some: dict[str, list[Receipt]] = {}
        room = MOST_AT_ONCE
        for uid, known in self._known.items():
            if self._waits.until(uid) > now:
                continue
            some[uid] = list(known.values())[:room]
            room -= len(some[uid])
            if not room:
                break
        return some

    def _confirm(self, some: dict[str, list[Receipt]]) -> Effects[list[TryAgain]]:
        """Confirm receipts of senders; return what was refused for now. Raise what all of it has to wait for."""
        answers = yield from dirty_receipts.confirmed(self._space, some)
        refused = []
        for uid, receipts in some.items():
            errors = [answer for answer in answers[uid] if isinstance(answer, ImError)]
            for error in errors[:1]:
                self._trouble.note(error, "that some know their receipts has to wait: %s")
            if may_pass := [error for error in errors if isinstance(error, TryAgain)]:
                refused.append(may_pass[0])
                self._waits.failed(uid, self._clock())
            else:  # what somebody has spoiled by hand is told again, to the next session
                self._waits.succeeded([uid])
                self._forget(uid, receipts)
        return refused

    def _forget(self, uid: str, receipts: Iterable[Receipt]) -> None:
        known = self._known[uid]
        for receipt in receipts:
            known.pop((receipt.gid, receipt.msgid), None)
        if not known:
            del self._known[uid]
