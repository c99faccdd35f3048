"""Lists of own messages come back in steps, between which people go on."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat, Draft
from imcore.admin.retention import trim
from imcore.errors import ImError, TryAgain, UnknownMessage
from imcore.repair import bulk_apply, own_messages
from imcore.repair.apply import mend
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.dying import Dying, KilledError, bury_the_dead
from tests.helpers.workers import persist, run_workers

GID = "team"
UIDS = ("ann", "bob", "cy", "dee")


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_messages, "ENTRIES", 7)
    monkeypatch.setattr(own_messages, "MOST_LISTED", 9)


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    """A group whose members have read little of much; some is trimmed, some recalled, some marked unread."""
    settings = replace(Settings.from_env({}), block_ms=0, retry_ms=0, partitions=2)
    with Chat.connect(valkey, sqlite_url, settings=settings) as chat:
        chat.system.database.upgrade()
        chat.create_group(GID, UIDS)
        say(chat, 60)
        chat.ack("bob", GID, nth(chat, 20))
        chat.ack("ann", GID, nth(chat, 58))
        chat.mark_unread("ann", GID, nth(chat, 30))
        for number in (24, 44):
            chat.recall(GID, nth(chat, number), by="dee", admin=True)
        run_workers(chat)
        trim(chat.system, keep_messages=45)
        yield chat


def say(chat: Chat, count: int) -> None:
    chat.send_many(GID, [Draft(UIDS[number % 3], f"message {number}") for number in range(count)])


def nth(chat: Chat, number: int) -> str:
    return chat.status(GID, limit=0)[number].message.msgid


def lists(chat: Chat) -> dict[str, list[bytes]]:
    k = chat.system.client.space.group(GID)
    return {uid: chat.system.client.driver.lrange(k.own_unacked(uid), 0, -1) for uid in UIDS}


def lose_lists(chat: Chat) -> dict[str, list[bytes]]:
    """Return the lists, and damage all of them: lost, empty, in disorder, with what is no message."""
    before, driver, k = lists(chat), chat.system.client.driver, chat.system.client.space.group(GID)
    driver.delete(k.own_unacked("ann"))
    driver.delete(k.own_unacked("bob"))
    driver.lpush(k.own_unacked("bob"), 5, *before["bob"])
    driver.rpush(k.own_unacked("cy"), before["cy"][3])
    driver.lpush(k.own_unacked("dee"), before["cy"][3])
    return before


class Watched(RedisClient):
    """A client with a hook before each of its calls of some functions."""

    before: Callable[[str], None] = staticmethod(lambda _: None)

    def call_each(self, batch: Any, **options: Any) -> list[Any]:
        for call in batch:
            if "own" in call.function:
                self.before(call.function)
        return super().call_each(batch, **options)


def test_lists_come_back_in_many_steps(chat: Chat, watched: tuple[System, Watched]) -> None:
    # Given
    system, client = watched
    before, steps = lose_lists(chat), []
    client.before = steps.append
    # When
    mend(system, GID)
    # Then
    assert lists(chat) == {uid: wanted(own, chat, uid) for uid, own in before.items()}
    assert list(check(chat.system)) == []
    assert steps.count("im_repair_find_own") > 5
    assert steps.count("im_repair_own_unacked") > 2


def wanted(own: list[bytes], chat: Chat, uid: str) -> list[bytes]:
    """Return those of a list past the offset, or past the mark before it."""
    k, driver = chat.system.client.space.group(GID), chat.system.client.driver
    offset = int(driver.zscore(k.acked, uid))
    mark = int((driver.hget(k.bookmarks, uid) or b"0 0").split()[1])
    return [each for each in own if int(each) > (min(offset, mark) if mark else offset)]


@pytest.fixture
def watched(chat: Chat, valkey: str) -> Iterator[tuple[System, Watched]]:
    client = Watched.connect(replace(chat.system.settings, redis_url=valkey))
    yield System(client, chat.system.database, chat.system.settings), client
    client.close()


def trim_in_repair(chat: Chat, keep: int) -> None:
    """Trim a group whose repair has lost its lock: nobody trims one that is locked."""
    chat.system.client.driver.hdel(chat.system.client.space.group(GID).group_locks, GID)
    trim(chat.system, keep_messages=keep)


BETWEEN: dict[str, Callable[[Chat], object]] = {
    "a message": lambda chat: say(chat, 3),
    "a message of who is caught up": lambda chat: (chat.ack("bob", GID), chat.send(GID, "mine", sender_uid="bob")),
    "an ack": lambda chat: chat.ack("cy", GID, nth(chat, 40)),
    "an ack of all": lambda chat: chat.ack("cy", GID),
    "a recall of an old message": lambda chat: chat.recall(GID, nth(chat, 46), by="dee", admin=True),
    "a recall of a new message": lambda chat: (say(chat, 1), chat.recall(GID, nth(chat, -1), by="dee", admin=True)),
    "a mark of older messages": lambda chat: chat.mark_unread("bob", GID, nth(chat, 18)),
    "a mark of what only SQL has": lambda chat: chat.mark_unread("bob", GID, nth(chat, 4)),
    "a mark that is removed": lambda chat: chat.unmark("ann", GID),
    "a leave": lambda chat: chat.remove_members(GID, ["cy"]),
    "a leave and a join": lambda chat: (
        chat.remove_members(GID, ["cy"]),
        chat.add_members(GID, ["cy"]),
        chat.send(GID, "other", sender_uid="dee"),
        chat.send(GID, "mine", sender_uid="cy"),
    ),
    "all leave and one comes back": lambda chat: (
        chat.remove_members(GID, list(UIDS)),
        chat.add_members(GID, ["ann"]),
        chat.send(GID, "mine", sender_uid="ann"),
    ),
    "a trim": lambda chat: trim_in_repair(chat, 15),
}


@pytest.mark.parametrize("step", [0, 1, 4, -1])
@pytest.mark.parametrize("what", BETWEEN)
def test_what_happens_between_the_steps_is_in_the_lists(
    chat: Chat, watched: tuple[System, Watched], what: str, step: int
) -> None:
    # Given
    system, client = watched
    lose_lists(chat)
    seen: list[str] = []

    def before(function: str) -> None:
        """Let it happen before one of the steps that read, or before the first that writes."""
        is_now = function == "im_repair_own_unacked" if step < 0 else len(seen) == step
        seen.append(function)
        if is_now:
            client.before = lambda _: None
            BETWEEN[what](chat)

    client.before = before
    # When
    mend(system, GID)
    # Then
    run_workers(chat)
    assert list(check(chat.system)) == []


@pytest.mark.parametrize("seed", range(25))
def test_random_traffic_between_the_steps_leaves_the_lists_right(
    chat: Chat, watched: tuple[System, Watched], seed: int
) -> None:
    system, client = watched
    rand, happened = random.Random(seed), []
    lose_lists(chat)

    def before(function: str) -> None:
        if len(happened) < 6 and rand.random() < 0.3:
            happened.append(rand.choice(list(BETWEEN)))
            with suppress(ImError):
                BETWEEN[happened[-1]](chat)

    client.before = before
    mend(system, GID)
    run_workers(chat)

    left = [each for each in check(chat.system) if "own message" in each.what]
    assert left == [], happened


def test_who_changes_all_the_time_is_not_mended_for_ever(
    chat: Chat, watched: tuple[System, Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    system, client = watched
    monkeypatch.setattr(own_messages, "_MOST_TIMES", 3)
    lose_lists(chat)
    bounds = iter(range(44, 0, -1))

    def before(function: str) -> None:
        if function == "im_repair_own_unacked" and (bound := next(bounds, 0)):
            trim_in_repair(chat, bound)

    client.before = before
    with pytest.raises(TryAgain, match="changes all the time"):
        mend(system, GID)

    client.before = lambda _: None
    list(check(chat.system, repair=True))
    assert list(check(chat.system)) == []


def test_a_repair_that_is_killed_at_any_step_leaves_what_the_next_one_ends(chat: Chat, valkey: str) -> None:
    death, lived = 1, False
    while not lived:
        lose_lists(chat)
        client = Dying.connect(replace(chat.system.settings, redis_url=valkey))
        client.left = death
        try:
            list(check(System(client, chat.system.database, chat.system.settings), repair=True))
            lived = True
        except KilledError:
            pass
        client.close()
        bury_the_dead(chat)

        list(check(chat.system, repair=True))
        assert list(check(chat.system)) == []
        chat.ack("cy", GID, nth(chat, 30))
        persist(chat)
        death += 2
    assert death > 30


def test_a_rebuild_takes_the_lists_from_sql(chat: Chat, watched: tuple[System, Watched]) -> None:
    # Given
    before, steps = lists(chat), list[str]()
    system, client = watched
    chat.system.client.driver.flushdb()
    client.before = steps.append
    # When
    rebuild(system)
    # Then no stream was read
    assert lists(chat) == {uid: wanted(own, chat, uid) for uid, own in before.items()}
    assert list(check(chat.system)) == []
    assert set(steps) == {"im_repair_own_unacked"}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_happens_within_a_rebuild_is_in_the_lists(chat: Chat, watched: tuple[System, Watched], what: str) -> None:
    # Given
    system, client = watched
    chat.system.client.driver.flushdb()
    happened: list[str] = []

    def before(function: str) -> None:
        client.before = lambda _: None
        happened.append(function)
        with suppress(UnknownMessage):  # one that the settings would trim is not there
            BETWEEN[what](chat)

    client.before = before
    # When
    rebuild(system)
    # Then
    assert happened
    run_workers(chat)
    assert list(check(chat.system)) == []


def test_a_rebuild_reads_the_stream_for_whom_sql_knew_too_little(
    chat: Chat, watched: tuple[System, Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given offsets of SQL that are ahead of those of Redis, as after a mark of older messages
    system, client = watched
    before, steps = lists(chat), list[str]()
    chat.system.client.driver.flushdb()
    client.before = steps.append
    monkeypatch.setattr(bulk_apply, "own_floor", lambda offset, _mark: offset + 1)
    # When
    rebuild(system)
    # Then
    assert lists(chat) == {uid: wanted(own, chat, uid) for uid, own in before.items()}
    assert list(check(chat.system)) == []
    assert "im_repair_find_own" in steps
