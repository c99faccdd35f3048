"""A day of traffic in fast motion, with workers that die over it: Redis stays as it is, and nothing is left behind.

24 hours of the real chat's rates, and the next morning, are played through gateways whose sessions come and go, with
`trim` after each part of an hour. Times that are a day in life (retention, client_msgids, the wait of recalled texts)
are shortened, so that they go round many times. `IM_STEADY_SCALE=1 pytest tests/integration/test_steady.py` plays as
much as the real channel says.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median

import pytest

from imcore import Chat
from imcore.admin.retention import trim
from imcore.cli.bench.harness.traffic import data_memory
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.repair import rewriting
from imcore.settings import Settings
from imcore.workers.persist import Persist
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.deadline import wait_until
from tests.helpers.key_counts import KINDS, KeyCounts, all_keys, bytes_of, count_keys, kind_of
from tests.helpers.persist_runs import new_persist
from tests.helpers.servers import require_server, start_valkey
from tests.helpers.steady_traffic import SteadyTraffic, hours

SCALE = float(os.environ.get("IM_STEADY_SCALE", "0.1"))
"""Of the real channel's traffic."""

FLAT = 1.05
"""What the later hours may take of what the earlier ones did."""

WINDOW_MS = 1000
LEASE_MS = 200
PARTS = 3
HOURS = 28
SETTLED, LATER, MORNING = range(4, 12), range(12, 24), range(24, HOURS)
"""By the first of these hours every window has gone round, and the others must be like them; above all the next
morning, when there is as much talk as then."""

MORE, A_FEW = 1.2, 10
"""Keys of a kind grow if there are a fifth more of it, and a few more."""

KEPT = 500
"""How many of a thing are made, to weigh what Redis keeps of each for good."""


@dataclass(slots=True)
class Day:
    """What was counted after each part of each hour; once all have gone; and the bytes of an empty server."""

    counts: list[list[KeyCounts]] = field(default_factory=list)
    at_the_end: KeyCounts | None = None
    empty_bytes: int = 0

    def growth(self, value: Callable[[KeyCounts], float], hours_of: Sequence[int]) -> float:
        """Return the middle value of these hours over that of the settled ones: the median of the parts of an hour."""
        ratios = []
        for part in range(PARTS):
            settled, later = (median(value(self.counts[hour][part]) for hour in each) for each in (SETTLED, hours_of))
            ratios.append(later / settled)
        return median(ratios)

    def bytes_of(self, counts: KeyCounts) -> int:
        """Return the bytes in Redis beyond those of an empty server."""
        return counts.bytes - self.empty_bytes

    def growing_kinds(self) -> list[str]:
        """Return the kinds of keys whose number grows all the time."""
        kinds = {kind for counts in self.counts[-1] for kind in counts.keys}
        return sorted(kind for kind in kinds if self._keys(kind, MORNING) > MORE * self._keys(kind, SETTLED) + A_FEW)

    def _keys(self, kind: str, hours_of: Sequence[int]) -> float:
        return median(counts.keys.get(kind, 0) for hour in hours_of for counts in self.counts[hour])


class Crew:
    """One worker of each kind; each hour one of them dies without a goodbye, and another takes over."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = settings
        self.persist = self._new_persist()
        self.receipts = self._new_receipts()

    def _new_persist(self) -> Persist:
        return new_persist(self._chat.system.client, self._chat.system.database, self._settings)

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
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A server that notes nothing about commands.

    Others keep a histogram of 25 kB for each command from its first call on, and the arguments of 128 slow commands:
    more than a day of traffic leaves, and all the later the slower a machine is.
    """
    require_server()
    quiet = ("--latency-tracking", "no", "--slowlog-max-len", "0")
    server = start_valkey(tmp_path / "server", *quiet, appendonly=False)
    yield server.url
    server.stop()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(
        settings,
        idempotency_ms=WINDOW_MS,
        online_ms=WINDOW_MS,
        heartbeat_ms=WINDOW_MS // 4,
        keep_messages=int(200 * SCALE),
    )


@pytest.fixture(autouse=True)
def _recalled_texts_leave_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "WAIT_MS", WINDOW_MS)
    monkeypatch.setattr(rewriting, "LOOK_EVERY_S", WINDOW_MS / 4000)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


@pytest.fixture
def crew(chat: Chat) -> Iterator[Crew]:
    # No wait for entries: the server counts in 0.1 s
    crew = Crew(chat, replace(chat.system.settings, block_ms=0, receipt_window_ms=0, lease_ms=LEASE_MS))
    yield crew
    crew.close()


def played_day(chat: Chat, crew: Crew) -> Day:
    """Play it, and count everything after each part of an hour."""
    day = Day()
    with ExitStack() as things:
        gateways = [things.enter_context(chat.gateway(ack_interval_s=0.02)) for _ in range(2)]
        traffic = SteadyTraffic("town", chat, gateways)
        for hour, parts in enumerate(hours(HOURS, SCALE, PARTS)):
            traffic.join_and_leave()
            day.counts.append([counts_after(traffic, crew, messages) for messages in parts])
            crew.lose_one(hour)
        assert traffic.received > traffic.sent > 0
    crew.catch_up()
    crew.close()
    time.sleep(2 * WINDOW_MS / 1000)  # by then a session that nobody has has expired
    day.at_the_end = count_keys(chat)
    chat.system.client.driver.flushdb()
    wait_until(lambda: not chat.system.client.query("INFO", "memory")["lazyfree_pending_objects"])
    day.empty_bytes = data_memory(chat)
    return day


def counts_after(traffic: SteadyTraffic, crew: Crew, messages: int) -> KeyCounts:
    """Let a part of an hour happen, and count when all is stored, told, confirmed and trimmed."""
    traffic.play(messages)
    for _ in range(2):  # receipts that came are confirmed, and so there is something to store again
        traffic.settle()
        crew.catch_up()
    trim(traffic.chat.system)
    return count_keys(traffic.chat)


def test_a_day_of_traffic_leaves_redis_no_larger(chat: Chat, crew: Crew) -> None:
    day = played_day(chat, crew)

    for value, hours_of in product((day.bytes_of, lambda counts: counts.key_bytes), (LATER, MORNING)):
        assert day.growth(value, hours_of) <= FLAT
    assert day.growing_kinds() == []
    for counts in (each for parts in day.counts for each in parts):
        assert counts.keys.keys() <= KINDS
        assert counts.members["journal"] == 0
        assert counts.foreign_consumers == 0  # members never become consumers of a group's stream
        assert counts.consumers.keys() == {"persist", "receipts"}
        assert max(counts.consumers.values()) <= 2  # the one that lives, and one that died within the lease
    assert day.at_the_end is not None
    assert not day.at_the_end.keys.keys() & {"sessions", "lease", "shadow", "unfinished", "rebuilt"}
    assert day.at_the_end.members["journal"] <= 2 * len(day.at_the_end.sessions) + 100


def test_key_counts_find_a_key_that_grows() -> None:
    """The checks above can fail."""
    day = Day()
    for hour in range(HOURS):
        counts = KeyCounts(1000 + 20 * hour, 900 + 20 * hour, {"dirty": 5 * hour, "meta": 7}, {}, {}, {}, 0)
        day.counts.append([counts] * PARTS)

    assert day.growing_kinds() == ["dirty"]
    assert day.growth(day.bytes_of, LATER) > FLAT


def sent_by_ann(chat: Chat) -> list[str]:
    return [raised(message).msgid for message in chat.send_many("kept", [Draft("ann", "x" * 100)] * KEPT)]


def end_memberships(chat: Chat) -> None:
    uids = [f"left-{number:08}" for number in range(KEPT)]
    chat.add_members("kept", uids)
    chat.send("kept", "x" * 100, sender_uid="ann")
    chat.remove_members("kept", uids)


def recall_messages(chat: Chat) -> None:
    for msgid in sent_by_ann(chat):
        chat.recall("kept", msgid, by="ann")


def read_messages(chat: Chat) -> None:
    sent_by_ann(chat)
    chat.ack("bob", "kept")


@pytest.mark.parametrize(
    ("act", "bytes_at_most"), [(end_memberships, 350), (recall_messages, 200), (read_messages, 140)]
)
def test_redis_keeps_little_of_past_members_and_groups(
    chat: Chat, crew: Crew, act: Callable[[Chat], None], bytes_at_most: int
) -> None:
    """Counts and receipts follow from it, whatever retention says: 290, 160 and 110 bytes of each were measured."""

    def kept_bytes() -> int:
        crew.catch_up()
        trim(chat.system, keep_messages=0)
        # The worker `jobs` would empty the list of what was withdrawn.
        return bytes_of(chat, [key for key in all_keys(chat) if kind_of(key) != "withdrawn"])

    # Given a group whose sender never confirms receipts
    chat.create_group("kept", ["ann", "bob"])
    before = kept_bytes()

    # When memberships end that cover a message, messages are recalled, or messages are read
    act(chat)

    # Then little of it stays, but not nothing
    assert 0 < (kept_bytes() - before) / KEPT <= bytes_at_most


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("im:{0}:meta:team", "meta"),
        ("im:{12}:own_unacked:{0}:journal\x1fann", "own_unacked"),
        ("im:{3}:journal", "journal"),
        ("im:config", "config"),
        ("im:lease:persist:1", "lease"),
        ("im:{3}:leftover:team", None),
        ("im:bench", None),
        ("theirs", None),
    ],
)
def test_key_counts_know_the_kind_of_each_key(key: str, kind: str | None) -> None:
    assert kind_of(key) == kind
