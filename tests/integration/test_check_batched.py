"""Many small groups are compared at once: with the same result as one by one, and few round trips.

`IM_DAMAGE_SEEDS=500 pytest tests/integration/test_check_batched.py` damages that many more histories at random.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import RedisError
from sqlalchemy import event

from imcore import Chat
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.repair import small_groups
from imcore.repair.check import check
from imcore.repair.compare import differences
from imcore.repair.diff import Difference
from imcore.repair.window import gids_of
from tests.helpers.checked_group import GID, UIDS, Damage, checked_group
from tests.helpers.workers import persist
from tests.integration.test_check import DAMAGE
from tests.integration.test_check_positions import DAMAGE as DAMAGE_TO_POSITIONS
from tests.integration.test_check_positions import Vandal

SEEDS = range(int(os.environ.get("IM_DAMAGE_SEEDS", "25")))

ALL_DAMAGE: dict[str, Damage] = {kind: damage for kind, (damage, _) in (DAMAGE | DAMAGE_TO_POSITIONS).items()}


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    with checked_group(valkey, sqlite_url) as chat:
        yield chat


def compared(chat: Chat, monkeypatch: pytest.MonkeyPatch, *, batched: bool) -> dict[str, list[Difference]]:
    """Return what differs. A group that is not small is read in pages, by itself."""
    gids = sorted({GID, "other", *gids_of(chat.system, range(2))})
    with monkeypatch.context() as patched:
        patched.setattr(small_groups, "SMALL", 500 if batched else -1)
        return differences(chat.system, gids)


def test_the_batched_comparison_is_used(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    paged: list[str] = []
    page = small_groups.GroupReaders.paged
    monkeypatch.setattr(small_groups.GroupReaders, "paged", lambda self, gid: paged.append(gid) or page(self, gid))

    assert compared(chat, monkeypatch, batched=True) == {GID: [], "other": []}
    assert paged == []

    assert compared(chat, monkeypatch, batched=False) == {GID: [], "other": []}
    assert sorted(paged) == ["other", GID]


@pytest.mark.parametrize("kind", ALL_DAMAGE)
def test_batched_and_paged_comparisons_agree_about_each_damage(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # Given
    ALL_DAMAGE[kind](chat, chat.system.client.space.group(GID))
    # When
    batched, paged = (compared(chat, monkeypatch, batched=each) for each in (True, False))
    # Then
    assert batched == paged
    assert any(batched.values()) or "creat" in kind or "list" in kind


@pytest.mark.parametrize("seed", SEEDS)
def test_batched_and_paged_comparisons_agree_about_random_damage(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Some entries are not stored yet, too."""
    # Given
    vandal = Vandal(chat, seed)
    rand = vandal.random
    for _ in range(rand.randint(0, 3)):
        talk(chat, rand)
    for _ in range(rand.randint(1, 5)):
        with suppress(ImError, RedisError, IndexError, ValueError, AssertionError):  # may leave nothing for the next
            rand.choice([vandal.strike, lambda: rand.choice(list(ALL_DAMAGE.values()))(chat, vandal.k)])()
    # When
    batched, paged = (compared(chat, monkeypatch, batched=each) for each in (True, False))
    # Then
    assert batched == paged
    # And after the repair nothing is left, in either way
    for _ in range(3):
        list(check(chat.system, repair=True))
    batched, paged = (compared(chat, monkeypatch, batched=each) for each in (True, False))
    assert batched == paged


def test_batched_and_paged_comparisons_agree_on_postgresql(
    valkey: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = [ALL_DAMAGE[kind] for kind in sorted(ALL_DAMAGE) if kind.startswith("redis")]
    with checked_group(valkey, postgres_url) as chat:
        assert compared(chat, monkeypatch, batched=True) == {GID: [], "other": []}
        for each in random.Random(7).sample(damage, 12):
            with suppress(ImError, RedisError, IndexError, ValueError, AssertionError):
                each(chat, chat.system.client.space.group(GID))
            batched, paged = (compared(chat, monkeypatch, batched=way) for way in (True, False))
            assert batched == paged
            assert batched[GID]


def talk(chat: Chat, rand: random.Random) -> None:
    gid = rand.choice([GID, "other"])
    actions: list[Callable[[], object]] = [
        lambda: chat.send_many(gid, [Draft("ann", "more"), Draft("bob", "and more")]),
        lambda: chat.ack("bob", gid, chat.status(gid, limit=1)[0].message.msgid),
        lambda: chat.remove_members(gid, ["bob"]),
        lambda: chat.add_members(gid, ["eve", "bob"]),
        lambda: chat.create_group(f"new {rand.random()}", UIDS),
        lambda: chat.recall(gid, chat.status(gid, limit=1)[0].message.msgid, by="ann", admin=True),
        lambda: persist(chat),
    ]
    with suppress(ImError):
        rand.choice(actions)()


@pytest.mark.parametrize("most", ["MOST_ROWS", "MOST_CHARACTERS"])
def test_a_batch_that_holds_too_much_is_read_in_halves(chat: Chat, monkeypatch: pytest.MonkeyPatch, most: str) -> None:
    """Those that are too large even by themselves are read in pages."""
    for number in range(10):
        chat.create_group(f"team {number}", UIDS)
        chat.send(f"team {number}", "hello", sender_uid="ann")
    persist(chat)
    chat.system.client.driver.zrem(chat.system.client.space.group("team 7").joined, "bob")
    whole = compared(chat, monkeypatch, batched=True)

    for limit in (0, 5, 12, 30):
        monkeypatch.setattr(small_groups, most, limit)
        assert compared(chat, monkeypatch, batched=True) == whole

    assert [gid for gid, each in whole.items() if each] == ["team 7"]


def test_groups_that_cannot_be_read_disturb_no_others(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given groups of which keys have other types, and one that lacks a member
    driver = chat.system.client.driver
    for number, key in enumerate(["stream", "acked", "left", "bookmarks", "recalled", "meta", "ahead"]):
        gid = f"team {number}"
        chat.create_group(gid, UIDS)
        persist(chat)
        name = getattr(chat.system.client.space.group(gid), key)
        driver.delete(name)
        driver.set(name, "mine")
    chat.create_group("team 9", UIDS)
    persist(chat)
    driver.zrem(chat.system.client.space.group("team 9").joined, "bob")
    # When
    batched, paged = (compared(chat, monkeypatch, batched=each) for each in (True, False))
    # Then
    assert batched == paged
    assert all(batched[f"team {number}"][0].redis.startswith("cannot be read") for number in range(7))
    assert "beginning of the span of 'bob'" in batched["team 9"][0].what
    assert batched[GID] == batched["other"] == []


def test_many_groups_take_as_many_queries_as_few(chat: Chat) -> None:
    def cost() -> tuple[int, int]:
        """Return how many statements SQL has got, and how many times Redis was waited for."""
        statements, waits = [], []
        engine = chat.system.database._backend.engine
        client: Any = chat.system.client
        begin: Any = client.start
        listen = (engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        event.listen(*listen)
        client.start = lambda batch: waits.append(len(batch)) or begin(batch)
        try:
            assert not any(differences(chat.system, [group.gid for group in chat.groups()]).values())
        finally:
            event.remove(*listen)
            del client.start
        return len(statements), len(waits)

    few = cost()
    for number in range(46):
        chat.create_group(f"team {number}", UIDS)
        chat.send(f"team {number}", "hello", sender_uid="ann")
    persist(chat)

    assert cost() == few
