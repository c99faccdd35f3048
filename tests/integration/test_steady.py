"""A day of traffic in fast motion, with workers that die over it: Redis stays as it is, and nothing is left behind.

`IM_STEADY_SCALE=1 pytest tests/integration/test_steady.py` plays as much as the real channel says.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from imcore import Chat
from imcore.cli.bench import key_counts
from imcore.cli.bench.steady import HOURS, LATER, MORNING, Day, end, growing_kinds, key_bytes, play_hour
from imcore.cli.bench.steady_traffic import SteadyTraffic, hours
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.keys import KINDS, kind_of
from imcore.workers.persist import Persist
from imcore.workers.receipts import ReceiptsWorker

SCALE = float(os.environ.get("IM_STEADY_SCALE", "0.1"))
"""Of the real channel's traffic."""

FLAT = 1.05
"""What the later hours may take of what the earlier ones did, as in `im bench steady`."""

WINDOW_MS = 1000
LEASE_MS = 200
PARTS = 3


class Crew:
    """One worker of each kind; each hour one of them dies without a goodbye, and another takes over."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = settings
        self.persist = self._new_persist()
        self.receipts = self._new_receipts()

    def _new_persist(self) -> Persist:
        return Persist(self._chat.system.client, self._chat.system.database, self._settings)

    def _new_receipts(self) -> ReceiptsWorker:
        return ReceiptsWorker(self._chat.system.client, self._chat.system.database, self._settings)

    def lose_one(self, hour: int) -> None:
        if hour % 2:
            self.persist = self._new_persist()
        else:
            self.receipts = self._new_receipts()

    def catch_up(self) -> None:
        while self.persist.step() + self.receipts.step():
            pass

    def close(self) -> None:
        self.persist.close()
        self.receipts.close()


@pytest.fixture
def chat(valkey: str, tmp_path: Path) -> Iterator[Chat]:
    settings = replace(
        Settings.from_env({}, redis_url=valkey, database_url=f"sqlite:///{tmp_path / 'imcore.db'}"),
        idempotency_ms=WINDOW_MS,
        online_ms=WINDOW_MS,
        heartbeat_ms=WINDOW_MS // 4,
        keep_messages=int(200 * SCALE),
    )
    with Database.connect(settings.database_url) as database:
        database.upgrade()
    with Chat.connect(settings=settings) as chat:
        yield chat


def played_day(chat: Chat) -> Day:
    """Play it, and look at everything after each part of an hour."""
    day = Day()
    # No wait for entries: the server counts in 0.1 s
    crew = Crew(chat, replace(chat.system.settings, block_ms=0, receipt_window_ms=0, lease_ms=LEASE_MS))
    with ExitStack() as things:
        gateways = [things.enter_context(chat.gateway(ack_interval_s=0.02)) for _ in range(2)]
        town = SteadyTraffic("town", chat, gateways)
        for hour, parts in enumerate(hours(HOURS, SCALE, PARTS)):
            play_hour(town, day, parts, crew.catch_up)
            crew.lose_one(hour)
        assert town.received > town.said > 0
    crew.catch_up()
    crew.close()
    end(day, chat, WINDOW_MS, chat.system.client.driver.flushdb)
    return day


def test_a_day_leaves_redis_as_it_is(chat: Chat) -> None:
    day = played_day(chat)

    for value, hours_of in product((day.bytes_of, key_bytes), (LATER, MORNING)):
        assert day.growth(value, hours_of).median <= FLAT
    assert growing_kinds(day) == []
    for found in (each for parts in day.found for each in parts):
        assert found.keys.keys() <= KINDS
        assert found.members["journal"] == 0
        assert found.foreign_consumers == 0  # members never become consumers of a group's stream
        assert found.consumers.keys() == {"persist", "receipts"}
        assert max(found.consumers.values()) <= 2  # the one that lives, and one that died within the lease
    assert day.at_the_end is not None
    assert not day.at_the_end.keys.keys() & {"sessions", "lease", "shadow", "unfinished", "rebuilt"}
    assert day.at_the_end.members["journal"] <= 2 * len(day.at_the_end.sessions) + 100


def test_what_grows_is_found() -> None:
    """The checks above can fail."""
    day = Day()
    for hour in range(HOURS):
        found = key_counts.KeyCounts(1000 + 20 * hour, 900 + 20 * hour, {"dirty": 5 * hour, "meta": 7}, {}, {}, {}, 0)
        day.found.append([found] * PARTS)

    assert growing_kinds(day) == ["dirty"]
    assert day.growth(day.bytes_of, LATER).median > FLAT


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("im:{0}:meta:team", "meta"),
        ("im:{12}:own:{0}:journal\x1fann", "own"),
        ("im:{3}:journal", "journal"),
        ("im:config", "config"),
        ("im:lease:persist:1", "lease"),
        ("im:{3}:leftover:team", None),
        ("im:bench", None),
        ("theirs", None),
    ],
)
def test_the_kind_of_a_key(key: str, kind: str | None) -> None:
    assert kind_of(key) == kind
