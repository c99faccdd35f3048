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
from imcore.streams.keys import SEPARATOR
from imcore.system import System

PAGE = 2000
_FIRST_PAGE = 100
_PAGE_BYTES = 1 << 20
"""The server answers nobody while it reads a page: the next one has as many entries as should have this many bytes."""


class StoredPage(NamedTuple):
    """Messages that SQL has. `last`: the newest of them (packed). `seq`: the highest of their seqs."""

    last: int
    seq: int


class StreamStart:
    """The first messages of a stream, whatever has been dropped meanwhile."""

    def __init__(self, system: System, gid: str) -> None:
        self._system = system
        self._gid = gid
        self._stream = system.client.space.group(gid).stream
        self._count = min(_FIRST_PAGE, PAGE)

    def page(self) -> StoredPage | None:
        """Return the first messages. Return None if there are none, or if SQL may lack one of them."""
        [entries] = self._system.client.query_many([("XRANGE", self._stream, "-", "+", "COUNT", self._count)])
        try:
            return self._stored(entries) if entries else None
        except (IndexError, ValueError):  # an entry is no message
            return None

    def _stored(self, entries: Sequence[Any]) -> StoredPage | None:
        columns = wire.columns_of([wire.values_of(fields) for _, fields in entries])
        self._count = max(1, min(PAGE, len(entries) * _PAGE_BYTES // columns.size))
        packed = [msgids.pack_id(entry_id) for entry_id, _ in entries]
        texts = (SEPARATOR.encode().join(each).decode() for each in columns[:3])
        in_redis = Identities(SEPARATOR.join(map(str, packed)), *texts)
        if in_redis.senders.count(SEPARATOR) != len(packed) - 1:
            return None
        in_sql = self._system.database.history.identities(self._gid, packed[0], packed[-1], SEPARATOR)
        return StoredPage(packed[-1], max(map(int, columns.seqs))) if in_sql == in_redis else None
