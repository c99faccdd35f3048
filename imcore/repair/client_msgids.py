"""Which client_msgids Redis has to know again after a loss: those of messages as old as a repeated send may be."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from imcore import msgid as msgids
from imcore.repair.check_messages import chunks
from imcore.sql import queries
from imcore.streams.calls import repair_calls
from imcore.streams.calls.call import Call
from imcore.system import System

PAGE = 200
"""How many client_msgids one call brings back: the server stands still meanwhile."""


def oldest_known(system: System, key: str) -> int:
    """Return the msgid (packed) after which a message's client_msgid is to be known.

    The earlier counts of the clock here and that of the server which has the key: by one that stands ahead nothing is
    forgotten early.
    """
    now_ms = min(time.time_ns() // 1_000_000, system.client.time_ms(key))
    return msgids.first_at(now_ms - system.settings.idempotency_ms)


def bring_back(system: System, gids: Sequence[str], *, after: int) -> Iterator[Call[int]]:
    """Yield calls that bring back the client_msgids of messages after a msgid (packed). What is known stays."""
    known = queries.with_client_msgid(system.database, gids, after=after)
    for gid, each in groupby(known, key=attrgetter("gid")):
        for some in chunks(each, PAGE):
            yield repair_calls.restore_idempotency(system.client.space.group(gid), some, system.settings.idempotency_ms)
