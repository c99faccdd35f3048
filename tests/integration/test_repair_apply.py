"""Repair beside everything else: trims, other repairs, lost answers, people who come and go, power cuts."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import text

from imcore import Chat, Draft
from imcore import msgid as msgids
from imcore.admin.retention import trim
from imcore.errors import ImError, InvalidInput, TryAgain
from imcore.model.rows import Batch
from imcore.repair import apply, bulk_apply, watermarks, window
from imcore.repair.apply import mend
from imcore.repair.check import check
from imcore.repair.locks import PartitionLock
from imcore.repair.rebuild import rebuild
from imcore.repair.window import lost_watermarks
from imcore.settings import Settings
from imcore.streams import dead_letters, transport
from imcore.streams.client import RedisClient
from imcore.streams.keys import SEPARATOR, GroupKeys
from imcore.streams.rounds import Command
from imcore.streams.transport import InFlight
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import persist
from tests.integration.test_reconcile import Snapshot, bury_the_dead

GID = "team"
UIDS = ("ann", "bob", "cy", "dee")


@pytest.fixture
def open_chat(valkey: str, sqlite_url: str) -> Iterator[Callable[[], Chat]]:
    chats: list[Chat] = []

    def another() -> Chat:
        settings = replace(Settings.from_env({}), block_ms=0, partitions=2, lease_ms=200)
        chats.append(Chat.connect(valkey, sqlite_url, settings=settings))
        return chats[-1]

    yield another
    for chat in chats:
        chat.close()


@pytest.fixture
def chat(open_chat: Callable[[], Chat]) -> Chat:
    """A group of four whose messages are stored; nobody has read all."""
    chat = open_chat()
    chat.system.database.upgrade()
    chat.create_group(GID, UIDS)
    say(chat, 60)
    chat.ack("bob", GID, nth(chat, 20))
    persist(chat)
    return chat


def say(chat: Chat, count: int) -> None:
    chat.send_many(GID, [Draft(UIDS[number % 3], f"message {number}", f"c{number}") for number in range(count)])


def nth(chat: Chat, number: int) -> str:
    return chat.status(GID, limit=0)[number].message.msgid


def keys_of(chat: Chat) -> GroupKeys:
    return chat.system.client.space.group(GID)


def lose(chat: Chat, number: int) -> str:
    msgid = nth(chat, number)
    assert chat.system.client.driver.xdel(keys_of(chat).stream, msgid)
    return msgid


def lose_answer(monkeypatch: pytest.MonkeyPatch, function: str) -> list[str]:
    """Let the first answer of a function get lost; return what was lost, once it is."""
    lost: list[str] = []

    class Losing(InFlight):
        def __init__(self, driver: Any, commands: Sequence[Command]) -> None:
            self.holds_it = any(command[1:2] == (function,) for command in commands)
            super().__init__(driver, commands)

        def answers(self, until: float | None = None) -> list[Any]:
            answers = super().answers(until)
            if self.holds_it and not lost:
                lost.append(function)
                raise RedisTimeoutError
            return answers

    monkeypatch.setattr(transport, "InFlight", Losing)
    return lost


def assert_whole(chat: Chat, messages: int) -> None:
    """Everybody pulls everything, and the two sides agree."""
    assert list(check(chat.system)) == []
    assert [message.seq for message in chat.pull("dee", GID)] == list(range(1, messages + 1))


def test_repair_leaves_no_hole_if_the_group_is_trimmed_meanwhile(
    chat: Chat, open_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given somebody who trims just as the new stream is made
    lose(chat, 55)
    make_shadow, trimmer = apply._Attempt._make_shadow, open_chat()
    trimmed = []

    def meanwhile(self: Any, plan: Any) -> int:
        trimmed.append(trim(trimmer.system, keep_messages=20, gid=GID).entries)
        return make_shadow(self, plan)

    monkeypatch.setattr(apply._Attempt, "_make_shadow", meanwhile)
    # When
    assert all(difference.repaired for difference in check(chat.system, repair=True))
    # Then it was passed over, and is trimmed the next time
    assert trimmed == [0]
    assert_whole(chat, 60)
    assert trim(trimmer.system, keep_messages=20, gid=GID).entries == 40
    assert_whole(chat, 60)


@pytest.mark.parametrize("function", ["lock", "copy", "add", "swap", "spans", "release"])
def test_repair_survives_lost_answers(chat: Chat, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    # Given
    since = lose(chat, 30)
    lost = lose_answer(monkeypatch, f"im_repair_{function}")
    # When
    assert mend(chat.system, GID, since=msgids.pack(since)).restored == 1
    # Then
    assert lost or function in {"lock", "release"}  # these travel together with others
    assert_whole(chat, 60)


def test_repair_stops_once_its_group_lock_is_lost(
    chat: Chat, open_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a repair that stalls over the new stream until its locks are over, and another one that continues
    since = msgids.pack(lose(chat, 30))
    stored, other, restored = apply._Attempt._stored, open_chat(), []

    def meanwhile(self: Any, plan: Any) -> Iterator[Any]:
        yield from stored(self, plan)
        if not restored:
            bury_the_dead(chat)
            restored.append(0)
            restored.append(mend(other.system, GID, since=since).restored)

    monkeypatch.setattr(apply._Attempt, "_stored", meanwhile)
    # When, then
    with pytest.raises(TryAgain, match="another process"):
        mend(chat.system, GID, since=since)
    assert restored == [0, 1]
    assert_whole(chat, 60)
    assert (
        chat.system.client.driver.hlen(chat.system.client.space.group_locks(chat.system.client.space.partition_of(GID)))
        == 0
    )


def test_two_repairs_at_once_run_one_after_the_other(chat: Chat, open_chat: Callable[[], Chat]) -> None:
    # Given
    lose(chat, 10)
    outcomes: list[list[bool]] = []
    others = [open_chat() for _ in range(3)]

    def repair(other: Chat) -> None:
        outcomes.append([difference.repaired for difference in check(other.system, repair=True)])

    threads = [threading.Thread(target=repair, args=(other,)) for other in others]
    # When
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then
    assert len(outcomes) == len(threads)
    assert all(all(each) for each in outcomes)
    assert_whole(chat, 60)


def test_reconciliation_leaves_the_partition_lock_of_another_one(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given one that stalls until another one has begun
    partition = chat.system.client.space.partition_of(GID)
    differences, second = watermarks.differences, PartitionLock(chat.system, partition)

    def meanwhile(*given: Any, **named: Any) -> Any:
        bury_the_dead(chat)
        second.__enter__()
        return differences(*given, **named)

    monkeypatch.setattr(watermarks, "differences", meanwhile)
    # When, then
    with suppress(TryAgain):
        watermarks.reconcile(chat.system, partition)
    second.renew()
    assert chat.system.client.driver.hexists(chat.system.client.space.watermarks(partition), SEPARATOR)


def test_repair_mends_a_large_group_while_members_join_and_leave(chat: Chat, open_chat: Callable[[], Chat]) -> None:
    # Given
    chat.add_members(GID, [f"user-{number}" for number in range(2000)])
    persist(chat)
    lost = [lose(chat, 50) for _ in range(3)]
    stop, other = threading.Event(), open_chat()

    def come_and_go() -> None:
        number = 0
        while not stop.wait(0.05):
            number += 1
            other.add_members(GID, [f"new-{number}"])
            other.remove_members(GID, [f"user-{number}"])
            other.send(GID, "meanwhile", sender_uid="ann")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    # When
    try:
        assert mend(chat.system, GID, since=msgids.pack(lost[0])).restored == 3
    finally:
        stop.set()
        thread.join()
    # Then
    persist(chat)
    assert list(check(chat.system)) == []
    assert chat.system.client.driver.exists(keys_of(chat).shadow) == 0


@pytest.mark.parametrize("moment", [1, 2, 3])
@pytest.mark.parametrize(
    ("change", "uid"), [("add_members", "new"), ("remove_members", "dee"), ("remove_members", "eve")]
)
def test_repair_keeps_joins_and_leaves_between_two_reads(
    chat: Chat, open_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch, change: str, uid: str, moment: int
) -> None:
    # Given eve, who joined after the last message, so that nothing is left of her span once it ends
    chat.add_members(GID, ["eve"])
    persist(chat)
    # And members who come or go while the indexes of the spans are read, one after the other
    lost, other, read = lose(chat, 50), open_chat(), window.scan
    reads: list[str] = []

    def meanwhile(client: RedisClient, key: str) -> Iterator[tuple[str, int]]:
        reads.append(key)
        if len(reads) == moment:
            getattr(other, change)(GID, [uid])
        return iter(list(read(client, key)))

    monkeypatch.setattr(window, "scan", meanwhile)
    # When
    assert mend(chat.system, GID, since=msgids.pack(lost)).restored == 1
    # Then
    monkeypatch.undo()
    persist(chat)
    assert list(check(chat.system)) == []
    assert (uid in {member.uid for member in chat.members(GID)}) == (change == "add_members")


def test_watermarks_show_a_loss_of_mended_messages(chat: Chat) -> None:
    # Given a repair that stores what no worker has stored, in the second before the power goes
    lose(chat, 30)
    snapshot = Snapshot.of(chat.system.client.driver)
    last = chat.send(GID, "in the last second", sender_uid="ann")
    assert any(difference.repaired for difference in check(chat.system, repair=True))
    assert chat.system.database.message(GID, msgids.pack(last.msgid)) is not None
    snapshot.restore(chat.system.client.driver)
    since = chat.send(GID, "since", sender_uid="bob")
    # When
    persist(chat)
    # Then
    assert lost_watermarks(chat.system) == {}
    assert [tally.message.msgid for tally in chat.status(GID, limit=2)] == [last.msgid, since.msgid]
    assert_whole(chat, 62)


def test_watermarks_show_a_late_commit(
    chat: Chat, open_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that stalls in its commit until another one has its name
    slow, other = new_persist(chat.system.client, chat.system.database, chat.system.settings), open_chat()
    slow.step()
    snapshot = Snapshot.of(chat.system.client.driver)
    late = chat.send(GID, "stored late", sender_uid="ann")
    heir = new_persist(other.system.client, other.system.database, other.system.settings)
    write = chat.system.database.write

    def stall(batch: Batch) -> None:
        if batch.messages:
            snapshot.restore(chat.system.client.driver)
            bury_the_dead(chat)
            other.send(GID, "since", sender_uid="bob")
            while heir.step():
                pass
            assert heir._journal.lease.name == "persist-1"
        write(batch)

    monkeypatch.setattr(chat.system.database, "write", stall)
    with suppress(ImError):
        slow.step()
    monkeypatch.undo()
    assert chat.system.database.message(GID, msgids.pack(late.msgid)) is not None
    # When
    deadline = time.monotonic() + 10
    while list(check(chat.system)) and time.monotonic() < deadline:
        for worker in (slow, heir):
            with suppress(ImError):
                worker.step()
    # Then
    assert_whole(chat, 62)


def test_watermarks_do_not_pile_up(chat: Chat) -> None:
    # Given many processes, one after the other
    for number in range(5):
        chat.send(GID, f"more {number}", sender_uid="ann")
        persist(chat)
    # Then one has inherited from all
    partition = chat.system.client.space.partition_of(GID)
    names = {name.decode() for name in chat.system.client.driver.hkeys(chat.system.client.space.watermarks(partition))}
    assert len([name for name in names if name.startswith("persist-1.")]) == 1
    assert lost_watermarks(chat.system) == {}
    with chat.system.database.connection() as connection:
        stored = connection.scalars(text("SELECT name FROM imcore_meta WHERE name LIKE 'stored:%'")).all()
    assert len(stored) == 1


def test_rebuild_keeps_members_that_join_meanwhile(
    chat: Chat, open_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that has lost everything, and somebody who adds a member in the middle of its rebuilding
    unread = chat.unread("bob")
    chat.system.client.driver.flushall()
    other, add_spans = open_chat(), bulk_apply.BulkApply._add_spans

    def meanwhile(self: Any, gid: str) -> None:
        other.add_members(GID, ["bob", "eve"])
        add_spans(self, gid)

    monkeypatch.setattr(bulk_apply.BulkApply, "_add_spans", meanwhile)
    # When
    rebuild(open_chat().system)
    # Then
    assert chat.unread("bob") == unread
    persist(other)
    assert list(check(other.system)) == []
    assert {member.uid for member in other.members(GID)} == {*UIDS, "eve"}


def test_repair_keeps_text_despite_a_stray_recall(chat: Chat) -> None:
    # Given, beside a message that only Redis has
    said = chat.send(GID, "words", sender_uid="ann")
    packed = msgids.pack(said.msgid)
    chat.system.client.driver.zadd(keys_of(chat).recalled, {str(packed): packed})
    # When
    list(check(chat.system, repair=True))
    persist(chat)
    # Then
    row = chat.system.database.message(GID, packed)
    assert row is not None
    assert row.content == "words"
    assert chat.system.client.driver.xrange(keys_of(chat).stream, said.msgid)[0][1][b"text"] == b"words"


def test_repair_keeps_recalled_message_recalled(chat: Chat) -> None:
    # Given a database that has lost which message a tombstone recalls
    recalled = nth(chat, 40)
    chat.recall(GID, recalled, by="ann", admin=True)
    persist(chat)
    with chat.system.database.connection() as connection:
        connection.execute(text("UPDATE group_msgs SET recalls = NULL"))
    # When
    assert [difference for difference in check(chat.system, repair=True) if not difference.repaired] == []
    # Then
    assert chat.message_status(GID, recalled).message.recalled
    assert_whole(chat, 61)
    trim(chat.system, keep_messages=0)
    assert chat.message_status(GID, recalled).message.recalled


def test_repair_ignores_an_offset_beyond_all_messages(chat: Chat) -> None:
    # Given
    chat.system.client.driver.zadd(keys_of(chat).acked, {"bob": 1 << 52})
    # When
    list(check(chat.system, repair=True))
    # Then
    said = chat.send(GID, "now", sender_uid="ann")
    assert said.time.year < 2100
    assert msgids.pack(said.msgid) < 1 << 52
    persist(chat)
    assert list(check(chat.system)) == []


def test_repair_drops_a_name_that_is_no_group(chat: Chat) -> None:
    # Given
    k = chat.system.client.space.group("ghost")
    chat.system.client.driver.sadd(k.groups, "ghost")
    # When, then
    assert all(difference.repaired for difference in check(chat.system, repair=True))
    assert list(check(chat.system)) == []
    assert [group.gid for group in chat.groups()] == [GID]
    assert chat.system.database.message("ghost", 1) is None


def test_repair_puts_an_entry_aside_that_is_no_message(chat: Chat) -> None:
    # Given
    entry_id = chat.system.client.driver.xadd(keys_of(chat).stream, {"nonsense": "1"})
    assert any("cannot be read" in difference.what for difference in check(chat.system))
    # When
    assert all(difference.repaired for difference in check(chat.system, repair=True))
    # Then
    (letter,) = dead_letters.list_dead(chat.system.client)
    assert (letter.entry, dict(letter.fields)) == (entry_id.decode(), {"nonsense": "1"})
    assert GID in letter.reason
    assert_whole(chat, 60)
    # It never was in the journal, where every worker would pass over it
    with pytest.raises(InvalidInput, match="can only be dropped"):
        dead_letters.requeue(chat.system.client, letter.id)
    assert list(dead_letters.list_dead(chat.system.client)) == [letter]


def test_an_offset_at_a_message_that_both_sides_lost_still_counts(chat: Chat) -> None:
    # Given an ack that was stored, of a message that was not, when the power went
    persist(chat)
    snapshot = Snapshot.of(chat.system.client.driver)
    lost = chat.send(GID, "lost", sender_uid="ann")
    chat.ack("bob", GID, lost.msgid)
    first, second = (
        new_persist(chat.system.client, chat.system.database, replace(chat.system.settings, batch_size=1))
        for _ in range(2)
    )
    first._journal.read()
    assert second.step() == 1
    snapshot.restore(chat.system.client.driver)
    bury_the_dead(chat)
    persist(chat)
    # When
    chat.send_many(GID, [Draft("ann", f"later {number}") for number in range(5)])
    persist(chat)
    assert chat.unread("bob")[0].unread == 5
    trim(chat.system, keep_messages=2)
    # Then
    assert chat.unread("bob")[0].unread == 5
    assert [message.content for message in chat.pull("bob", GID)] == [f"later {number}" for number in range(5)]
    assert {member.uid: member.unread for member in chat.members(GID)}["bob"] == 5
    assert list(check(chat.system)) == []
