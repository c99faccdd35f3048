"""Finds out whether SQL has what a stream begins with, a page at a time.

A trim looks at every message that it drops. Here neither side is decoded message by message: Redis gives the bytes of a
column and SQL gives one text, and these are held against each other. Whatever is unusual counts as not stored, and is
left to a comparison message by message.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.sql.history import Identities
from imcore.streams import wire
from imcore.streams.calls import message_calls
from imcore.streams.keys import SEPARATOR
from imcore.system import System

PAGE = 2000
"""The most messages of a page. Long ones are fewer: the server answers nobody while it reads a page."""


class StoredPage(NamedTuple):
    """Messages that SQL has. `last`: the newest of them (packed). `seq`: the highest of their seqs."""

    last: int
    seq: int


class StreamStart:
    """The first messages of a stream, whatever has been dropped meanwhile."""

    def __init__(self, system: System, gid: str) -> None:
        self._system = system
        self._gid = gid

    def page(self) -> StoredPage | None:
        """Return the first messages; None if SQL may lack one of them, and if the group has none."""
        client = self._system.client
        page = client.call(message_calls.entries(client.space, self._gid, "-", "+", PAGE))
        try:
            return self._stored(page.entries) if page.entries else None
        except (IndexError, ValueError):  # an entry is no message
            return None

    def _stored(self, entries: Sequence[Any]) -> StoredPage | None:
        columns = wire.columns_of([wire.values_of(fields) for _, fields in entries])
        packed = [msgids.pack_id(entry_id) for entry_id, _ in entries]
        texts = (SEPARATOR.encode().join(each).decode() for each in columns)
        in_redis = Identities(SEPARATOR.join(map(str, packed)), *texts)
        if in_redis.senders.count(SEPARATOR) != len(packed) - 1:
            return None
        in_sql = self._system.database.history.identities(self._gid, packed[0], packed[-1], SEPARATOR)
        return StoredPage(packed[-1], max(map(int, columns.seqs))) if in_sql == in_redis else None
