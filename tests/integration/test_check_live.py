"""`check` while the system runs: it reports no change of that time as damage, and finds and repairs damage."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin.retention import trim
from imcore.errors import InvalidInput, NotMember, TryAgain, UnknownMessage
from imcore.repair import check as check_module
from imcore.repair.check import check
from imcore.repair.compare import GroupComparison
from imcore.repair.diff import Difference
from imcore.streams import keys
from tests.helpers.checked_group import GID, UIDS, checked_group, lose_message, nth, opened, redis, said
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import deliver_receipts, persist

ROUNDS = int(os.environ.get("IM_CHECK_ROUNDS", "10"))
"""How often all is checked while people use the system."""
PAUSE_S = 0.01
"""How long each of them waits between two steps: the machine is to do other things, too."""


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    with checked_group(valkey, sqlite_url) as chat:
        yield chat


def test_check_finds_damage_in_a_group_that_changes_all_the_time(chat: Chat, valkey: str, sqlite_url: str) -> None:
    # Given, in a group where somebody speaks at every moment
    k = chat.system.client.space.group(GID)
    strange = msgids.pack(nth(chat, 15))
    chat.system.client.driver.zadd(k.recalled, {str(strange): strange})
    chat.add_members(GID, ["zoe"])
    said(chat, 77)
    chat.system.client.driver.rpush(k.own_unacked("zoe"), msgids.pack(nth(chat, -1)))
    persist(chat)
    with Crowd(valkey, sqlite_url):
        # When
        damages = {each.what for each in check(chat.system) if not each.unsure}
    # Then
    assert any(what.startswith("recall of message") for what in damages)
    assert any("of 'zoe' past the offset" in what for what in damages)


def test_check_reports_nothing_that_happens_meanwhile(chat: Chat, valkey: str, sqlite_url: str) -> None:
    """People talk, ack, come and go; the worker stores it; retention trims: and all the while `check` finds nothing."""
    # Given
    with Crowd(valkey, sqlite_url) as crowd:
        for number in range(ROUNDS):
            crowd.trims = number >= ROUNDS // 2
            # When, then
            differences = list(check(chat.system))
            assert differences == []
    persist(chat)
    assert list(check(chat.system)) == []


def test_repair_mends_damage_while_the_system_runs(chat: Chat, valkey: str, sqlite_url: str) -> None:
    # Given
    k = chat.system.client.space.group(GID)
    with Crowd(valkey, sqlite_url):
        lost = redis("DEL", "left"), redis("DEL", "own_unacked"), redis("DEL", "ahead"), redis("DEL", "bookmarks")
        for damage in (lose_message, redis("ZREM", "acked", "bob"), *lost, redis("DEL", "ahead_acked")):
            chat.remove_members(GID, ["bob"])
            chat.add_members(GID, ["bob"])
            said(chat, 0, "bob")
            # When
            with suppress(AssertionError):  # nothing was there to be lost
                damage(chat, k)
            # Then
            assert [each for each in check(chat.system, repair=True) if not each.repaired] == []
    persist(chat)
    assert list(check(chat.system)) == []


class Crowd:
    """Threads that use the system until the end of the block."""

    def __init__(self, valkey: str, database_url: str) -> None:
        self.trims = False
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        tasks = (self._talk, self._ack, self._move_otherwise, self._come_and_go, self._store, self._trim)
        self._chats = [opened(valkey, database_url) for _ in tasks]
        self._threads = [
            threading.Thread(target=self._run, args=(task, chat)) for task, chat in zip(tasks, self._chats, strict=True)
        ]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        client = self._chats[0].system.client.driver
        wait_until(lambda: client.exists(keys.lease("persist", 1)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for chat in self._chats:
            chat.close()
        assert self._errors == []

    def _run(self, task: Callable[[Chat, random.Random], object], chat: Chat) -> None:
        try:
            chance = random.Random(1)
            while not self._stop.wait(PAUSE_S):
                with suppress(NotMember, UnknownMessage):
                    task(chat, chance)
        except BaseException as error:  # for the test to see
            self._errors.append(error)

    def _talk(self, chat: Chat, chance: random.Random) -> None:
        chat.send(chance.choice((GID, "other")), "talk", sender_uid=chance.choice(UIDS[:3]))

    def _ack(self, chat: Chat, chance: random.Random) -> None:
        gid = chance.choice((GID, "other"))
        tallies = chat.status(gid, limit=5)
        chat.ack(chance.choice(UIDS), gid, chance.choice(tallies).message.msgid if tallies else None)

    def _move_otherwise(self, chat: Chat, chance: random.Random) -> None:
        """Let messages arrive, be read in private, and be marked unread."""
        gid, uid = chance.choice((GID, "other")), chance.choice(UIDS)
        for tally in chat.status(gid, limit=chance.randint(1, 6))[:1]:
            msgid = tally.message.msgid
            steps = [chat.delivered, chat.delivered, partial(chat.ack, private=True), chat.mark_unread]
            with suppress(InvalidInput):  # no tombstone can be marked
                chance.choice([*steps, lambda uid, gid, _: chat.unmark(uid, gid)])(uid, gid, msgid)

    def _come_and_go(self, chat: Chat, chance: random.Random) -> None:
        uid = chance.choice(UIDS)
        chance.choice((chat.add_members, chat.remove_members))("other", [uid])

    def _store(self, chat: Chat, _: random.Random) -> None:
        self._worker = getattr(self, "_worker", None) or new_persist(
            chat.system.client, chat.system.database, chat.system.settings
        )
        with suppress(TryAgain):  # somebody mends: a worker waits, and goes on
            self._worker.step()
        if self._stop.is_set():
            self._worker.close()

    def _trim(self, chat: Chat, chance: random.Random) -> None:
        if self.trims:
            trim(chat.system, keep_messages=chance.randrange(3, 30))


def test_check_reports_nothing_if_the_journal_is_trimmed_meanwhile(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given somebody who reads while both sides are read, and a trim before check asks what has happened meanwhile
    deliver_receipts(chat)
    trim(chat.system)
    tallies, acks = GroupComparison._tallies, iter([20, 25])

    def meanwhile(self: GroupComparison, batch: list[Any]) -> list[Difference]:
        answer = list(tallies(self, batch))
        for number in islice(acks, 1):
            chat.ack("ann", GID, nth(chat, number))
            answer = list(tallies(self, batch))
            persist(chat)
            deliver_receipts(chat)
            assert trim(chat.system).journal_entries
        return answer

    monkeypatch.setattr(GroupComparison, "_tallies", meanwhile)
    # Then
    assert list(check(chat.system)) == []


def test_check_reports_no_unstored_recall_of_a_trimmed_message(chat: Chat) -> None:
    # Given an own message past the offset, which is in SQL only
    chat.create_group("team", ["ann", "bob"])
    chat.send("team", "not read by ann", sender_uid="bob")
    own = chat.send("team", "a slip", sender_uid="ann")
    persist(chat)
    trim(chat.system, keep_messages=0)
    # When
    chat.recall("team", own.msgid, by="ann")
    # Then
    assert [difference for difference in check(chat.system) if difference.gid == "team"] == []


def test_repair_keeps_the_listing_of_members_who_join_meanwhile(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a user who lists a group, is no member, and joins it while a repair looks
    client, looked = chat.system.client, check_module._is_strange
    chat.create_group("zoo", ["dee"])
    chat.remove_members("zoo", ["dee"])
    persist(chat)
    client.driver.sadd(client.space.group("zoo").groups_of("dee"), "zoo")

    def joins(*args: Any) -> bool:
        is_strange = looked(*args)
        chat.add_members("zoo", ["dee"])
        return is_strange

    monkeypatch.setattr(check_module, "_is_strange", joins)
    # When
    list(check(chat.system, repair=True))
    # Then
    assert "zoo" in chat.groups_of("dee")
