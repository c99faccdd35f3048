"""Receipts as the sender sees them: which of their messages' tallies changed, until they confirm it."""

from collections.abc import Sequence

from imcore.model.limits import check_receipts
from imcore.model.values import Receipt
from imcore.operations import queries
from imcore.operations.effects import raised
from imcore.operations.reader import History
from imcore.streams.client import RedisClient


class Receipts:
    """Reads and confirms what the worker `receipts` has marked."""

    def __init__(self, client: RedisClient, history: History) -> None:
        self._client = client
        self._performer = history.performer

    def pending(self, uid: str, *, limit: int | None = None) -> list[Receipt]:
        """Return the tallies, as they are now, of the user's messages that changed since they were confirmed."""
        return self._performer.perform(queries.pending(self._client.space, uid, limit))

    def confirm(self, uid: str, receipts: Sequence[Receipt]) -> int:
        """Confirm receipts; return how many of them had still been marked. Raise InvalidInput."""
        known = check_receipts(receipts)
        found = self._performer.perform(queries.confirmed(self._client.space, {uid: known}))
        return sum(map(raised, found[uid]))
