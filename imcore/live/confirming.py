"""Confirms the receipts that senders have been told, those of many senders at once. No I/O."""

import math
from collections.abc import Collection, Iterable

from imcore import reading
from imcore.asking import Asking
from imcore.errors import TryAgain
from imcore.live.parts import Clock, Trouble
from imcore.streams.keys import Keyspace
from imcore.values import Receipt

MOST_AT_ONCE = 5000
"""How many receipts are confirmed in one go."""

_Known = dict[tuple[str, str], Receipt]
"""Receipts by gid and msgid: of those of one message, the newest."""


class Confirming:
    """A part. What is known is confirmed `interval_s` after the first of it."""

    def __init__(self, space: Keyspace, interval_s: float, clock: Clock) -> None:
        self._space = space
        self._interval_s = interval_s
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._due = math.inf
        self._trouble = Trouble("that some know their receipts has", clock)

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

    def go_on(self) -> Asking[None]:
        """Confirm what is known, some of it if it is very much."""
        yield from self._confirm(self._some())

    def send_of(self, uids: Collection[str]) -> Asking[None]:
        """Confirm all that these senders know."""
        yield from self._confirm({uid: list(self._known[uid].values()) for uid in self._known.keys() & uids})

    def _some(self) -> dict[str, list[Receipt]]:
        some: dict[str, list[Receipt]] = {}
        room = MOST_AT_ONCE
        for uid, known in self._known.items():
            some[uid] = list(known.values())[:room]
            room -= len(some[uid])
            if not room:
                break
        return some

    def _confirm(self, some: dict[str, list[Receipt]]) -> Asking[None]:
        answers = yield from reading.confirmed(self._space, some)
        for answer in answers:
            if isinstance(answer, TryAgain):
                raise answer
        if problem := reading.first_error(answers):
            self._trouble.note(problem)  # of one user's receipts; they are told again, to the next session
        for uid, receipts in some.items():
            self._forget(uid, receipts)
        if not self._known:
            self._due = math.inf

    def _forget(self, uid: str, receipts: Iterable[Receipt]) -> None:
        known = self._known[uid]
        for receipt in receipts:
            known.pop((receipt.gid, receipt.msgid), None)
        if not known:
            del self._known[uid]
