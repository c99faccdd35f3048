"""Keeps the tallies of a user's own messages in a local database up to date by asking for them.

Digests are not enough: they end with the first device that confirms them, and this one may have been away.
"""

from collections.abc import Callable, Sequence

from imcore.device.local_database import PAGE, LocalDatabase, UnreadOwnMessage
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, UnknownGroup
from imcore.model.values import Message, Tally


class OwnTallies:
    """Asks for all own messages that may be unread by someone: a page at each step, the newest first."""

    def __init__(self, fetch: Callable[[str, list[str]], list[Tally]], local: LocalDatabase) -> None:
        """`fetch` is `Chat.tallies`."""
        self._fetch = fetch
        self._local = local
        self._last: UnreadOwnMessage | None = None
        self.done = True

    def begin(self) -> None:
        """Begin with the newest."""
        self._last, self.done = None, False

    def step(self) -> None:
        """Ask for a page, and keep the tallies that have changed. If RedisUnavailable is raised, none is kept."""
        page = self._local.unread_own_messages(self._last)
        self._ask(page)
        self._last = page[-1] if page else None
        self.done = len(page) < PAGE

    def ask(self, messages: Sequence[Message]) -> None:
        """Ask for own messages that have just come: their earlier receipts went to other devices."""
        for start in range(0, len(messages), PAGE):
            self._ask([UnreadOwnMessage(each.gid, each.msgid, 0, None) for each in messages[start : start + PAGE]])

    def _ask(self, page: Sequence[UnreadOwnMessage]) -> None:
        by_gid: dict[str, list[str]] = {}
        for each in page:
            by_gid.setdefault(each.gid, []).append(each.msgid)
        known = {(each.gid, each.msgid): (each.read, each.unread) for each in page}
        tallies = [tally for gid, msgids in by_gid.items() for tally in self._fetched(gid, msgids)]
        # A message that nobody has read yet is no news.
        news = (tally for tally in tallies if tally.read or not tally.unread)
        self._local.keep(tally for tally in news if known[tally.gid, tally.msgid] != (tally.read, tally.unread))

    def _fetched(self, gid: str, msgids: list[str]) -> list[Tally]:
        try:
            return self._fetch(gid, msgids)
        except (UnknownGroup, DatabaseNotReady, DatabaseUnavailable):  # other groups may answer
            return []
