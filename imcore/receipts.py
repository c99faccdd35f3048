"""Receipts as the sender sees them: which of their messages' tallies changed, until they confirm it."""

from collections.abc import Sequence

from imcore import reading
from imcore.history import History, raised
from imcore.limits import check_receipts
from imcore.streams.link import Link
from imcore.values import Receipt


class Receipts:
    """Reads and confirms what the worker `receipts` has marked."""

    def __init__(self, link: Link, history: History) -> None:
        self._link = link
        self._answering = history.answering

    def pending(self, uid: str, *, limit: int | None = None) -> list[Receipt]:
        """Return the tallies, as they are now, of the user's messages that changed since they were confirmed."""
        return self._answering.run(reading.pending(self._link.space, uid, limit))

    def confirm(self, uid: str, receipts: Sequence[Receipt]) -> int:
        """Confirm receipts; return how many of them had still been marked. Raise InvalidInput."""
        known = check_receipts(receipts)
        found = self._answering.run(reading.confirmed(self._link.space, {uid: known}))
        return sum(map(raised, found[uid]))
