"""Which client_msgids Redis has to know again after a loss: those of messages as old as a repeated send may be."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from imcore import msgid as msgids
from imcore.admin.audit_messages import chunks
from imcore.chat import Chat
from imcore.sql import stored
from imcore.streams import restore_calls
from imcore.streams.calls import Call

PAGE = 200
"""How many client_msgids one call brings back: the server stands still meanwhile."""


def oldest_known(chat: Chat, key: str) -> int:
    """Return the msgid (packed) after which a message's client_msgid is to be known.

    The earlier counts of the clock here and that of the server which has the key: by one that stands ahead nothing is
    forgotten early.
    """
    now_ms = min(time.time_ns() // 1_000_000, chat.link.time_ms(key))
    return msgids.first_at(now_ms - chat.settings.idempotency_ms)


def bring_back(chat: Chat, gids: Sequence[str], *, after: int) -> Iterator[Call[int]]:
    """Yield calls that bring back the client_msgids of messages after a msgid (packed). What is known stays."""
    known = stored.with_client_msgid(chat.database, gids, after=after)
    for gid, each in groupby(known, key=attrgetter("gid")):
        for some in chunks(each, PAGE):
            yield restore_calls.once(chat.link.space.group(gid), some, chat.settings.idempotency_ms)
