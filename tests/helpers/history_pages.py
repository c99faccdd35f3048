"""How long a page of history takes, in groups of 5,000 and of a million messages.

    python -m tests.helpers.history_pages [MESSAGES...]

Each group is written to SQL in bulk and brought into Redis by a rebuild, which leaves the older messages to SQL. Prints
for each place the median of the calls, and what one call asks of Redis and of SQL.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from imcore import Chat
from imcore import msgid as msgids
from imcore.model.rows import Batch, GroupRow, MessageRow, SpanRow
from imcore.operations.effects import Effect, RedisCalls, SqlQuery
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.calls.history_calls import HistoryPart
from tests.helpers.servers import start_valkey

GID, READER, SENDER = "team", "bob", "ann"
CALLS = 100
_ROWS_AT_ONCE = 20_000
_FIRST_MS = msgids.EPOCH_MS + 1000


def fill(database: Database, messages: int, *, read: int = 0) -> None:
    """Write a group of two to SQL, one message a millisecond, of which the reader has read the first `read`."""
    last = packed(messages)
    spans = [SpanRow(GID, SENDER, 0, None, 1, last), SpanRow(GID, READER, 0, None, 1, packed(read) if read else 0)]
    database.write(Batch(groups=[GroupRow(GID, _FIRST_MS)], spans=spans))
    for first in range(1, messages + 1, _ROWS_AT_ONCE):
        seqs = range(first, min(first + _ROWS_AT_ONCE, messages + 1))
        rows = [MessageRow(GID, packed(seq), seq, SENDER, 0, f"message {seq}", None, None) for seq in seqs]
        database.write(Batch(messages=rows))


def packed(seq: int) -> int:
    """The msgid of a message that `fill` writes."""
    return msgids.first_at(_FIRST_MS + seq)


class Costs:
    """Counts what operations of a Chat ask for."""

    def __init__(self, chat: Chat) -> None:
        self._perform_one = chat.performer.perform_one
        chat.performer.perform_one = self._count  # type: ignore[method-assign]
        self.clear()

    def clear(self) -> None:
        self.redis = self.sql = self.sql_rows = self.redis_messages = 0

    def _count(self, effect: Effect[Any]) -> Any:
        answer = self._perform_one(effect)
        if isinstance(effect, RedisCalls):
            self.redis += 1
            parts = [each for each in answer if isinstance(each, HistoryPart)]
            self.redis_messages += sum(len(part.older) + len(part.newer) for part in parts)
        elif isinstance(effect, SqlQuery):
            self.sql += 1
            self.sql_rows += sum(map(len, answer))
        return answer


@contextmanager
def filled(messages: int, redis_url: str, folder: Path) -> Iterator[Chat]:
    url = f"sqlite:///{folder / f'{messages}.db'}"
    settings = replace(Settings.from_env({}, redis_url=redis_url, database_url=url), keep_ms=10**12, keep_messages=1000)
    with Chat.connect(settings=settings) as chat:
        chat.system.client.driver.flushall()
        chat.system.database.upgrade()
        fill(chat.system.database, messages, read=messages // 3)
        rebuild(chat.system)
        yield chat


def places(messages: int, trimmed: int) -> dict[str, dict[str, Any]]:
    return {
        "newest": {},
        "before the newest page": {"before": msgids.unpack(packed(messages - 50))},
        "around the trim line": {"around": msgids.unpack(trimmed or packed(1))},
        "before the middle": {"before": msgids.unpack(packed(messages // 2))},
        "around the middle": {"around": msgids.unpack(packed(messages // 2))},
        "first unread": {"first_unread": True},
        "start": {"after": msgids.unpack(1)},
    }


def main(counts: list[int]) -> None:
    with TemporaryDirectory() as name:
        server = start_valkey(Path(name), appendonly=False)
        try:
            for messages in counts:
                with filled(messages, server.url, Path(name)) as chat:
                    _measure(chat, messages)
        finally:
            server.stop()


def _measure(chat: Chat, messages: int) -> None:
    trimmed = int(chat.system.client.query("HGET", chat.system.client.space.group(GID).meta, "trimmed") or 0)
    costs = Costs(chat)
    print(f"{messages} messages, pages of 50", f"{'':24}{'ms':>8} {'Redis':>6} {'SQL':>4} {'rows':>5}", sep="\n")
    for place, where in places(messages, trimmed).items():
        times = []
        for _ in range(CALLS):
            costs.clear()
            began = time.perf_counter()
            chat.history(READER, GID, **where)
            times.append(time.perf_counter() - began)
        rows = costs.sql_rows + costs.redis_messages
        print(f"{place:24}{1000 * median(times):8.2f} {costs.redis:6} {costs.sql:4} {rows:5}")


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [5000, 1_000_000])
