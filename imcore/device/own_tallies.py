"""Keeps the tallies of a user's own messages up to date in a local database, by asking for them.

Digests alone do not: they end with the first device that confirms them, and another one may have been away.
"""

from collections.abc import Sequence

from imcore.chat import Chat
from imcore.device.local_database import PAGE, LocalDatabase, UnreadOwnMessage
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, UnknownGroup
from imcore.model.values import Message, Tally


class OwnTallies:
    """Asks for every message that is not known to be read by all: a page at each step, the newest first."""

    def __init__(self, chat: Chat, local: LocalDatabase) -> None:
        self._chat = chat
        self._local = local
        self._last: UnreadOwnMessage | None = None
        self.done = True

    def begin(self) -> None:
        """Begin with the newest."""
        self._last, self.done = None, False

    def step(self) -> None:
        """Ask for the tallies of a page, and keep those that have changed. Raise RedisUnavailable; then nothing is."""
        page = self._local.unsettled(self._last)
        self._ask(page)
        self._last = page[-1] if page else None
        self.done = len(page) < PAGE

    def ask(self, messages: Sequence[Message]) -> None:
        """Ask for the tallies of own messages that have just come: what was told of them before was told others."""
        for start in range(0, len(messages), PAGE):
            self._ask([UnreadOwnMessage(each.gid, each.msgid, 0, None) for each in messages[start : start + PAGE]])

    def _ask(self, page: Sequence[UnreadOwnMessage]) -> None:
        by_gid: dict[str, list[str]] = {}
        for each in page:
            by_gid.setdefault(each.gid, []).append(each.msgid)
        known = {(each.gid, each.msgid): (each.read, each.unread) for each in page}
        found = [tally for gid, msgids in by_gid.items() for tally in self._found(gid, msgids)]
        # That nobody has read it yet is no news.
        told = (each for each in found if each.read or not each.unread)
        self._local.keep(each for each in told if known[each.gid, each.msgid] != (each.read, each.unread))

    def _found(self, gid: str, msgids: list[str]) -> list[Tally]:
        try:
            return self._chat.tallies(gid, msgids)
        except (UnknownGroup, DatabaseNotReady, DatabaseUnavailable):  # the others can be had
            return []
