"""The worker `receipts`, step by step, on fakeredis and SQLite: who gets which receipts, and how entries fail."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, ImError, RedisUnavailable
from imcore.model.values import Receipt
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.calls import message_calls, receipt_calls
from imcore.streams.calls.call import Call
from imcore.streams.journal import Journal
from imcore.streams.keys import lease
from imcore.workers import receipts
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.persist_runs import new_persist
from tests.helpers.talk import say_many
from tests.helpers.workers import drain

KIND = ReceiptsWorker.kind
SETTINGS = replace(
    Settings.from_env({}, data_dir="/nowhere"), block_ms=0, retry_ms=0, max_deliveries=3, receipt_window_ms=0
)


@pytest.fixture
def worker(chat: Chat) -> ReceiptsWorker:
    return new_worker(chat)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """The digests that go out: group, sender, and how many messages each names."""
    published: list[tuple[str, str, int]] = []
    tell = receipt_calls.publish_receipts

    def counted(space: Any, gid: str, sender_uid: str, changed: Sequence[receipt_calls.TallyChange]) -> Call[int]:
        published.append((gid, sender_uid, len(changed)))
        return tell(space, gid, sender_uid, changed)

    monkeypatch.setattr(receipt_calls, "publish_receipts", counted)
    return published


def new_worker(chat: Chat) -> ReceiptsWorker:
    return ReceiptsWorker(chat.system.client, chat.system.database, SETTINGS)


def counts_of(all_receipts: Sequence[Receipt]) -> list[tuple[str, int, int]]:
    return [(each.msgid, each.read, each.unread) for each in all_receipts]


def test_there_is_no_digest_before_a_message_is_read(chat: Chat, worker: ReceiptsWorker) -> None:
    chat.create_group("team", ["ann", "bob"])
    say_many(chat, 3)
    chat.add_members("team", ["cyd"])
    chat.remove_members("team", ["cyd"])
    drain(worker)
    assert chat.receipts("ann") == []


def test_one_message_read_by_forty_makes_one_digest(
    chat: Chat, worker: ReceiptsWorker, digests: list[tuple[str, str, int]]
) -> None:
    # Given
    uids = [f"u{number}" for number in range(40)]
    chat.create_group("team", ["ann", *uids])
    [message] = say_many(chat, 1)
    # When
    for uid in uids:
        chat.ack(uid, "team")
    worker.step()
    # Then
    assert digests == [("team", "ann", 1)]
    assert counts_of(chat.receipts("ann")) == [(message, 40, 0)]


def test_a_digest_names_only_messages_of_its_sender(
    chat: Chat, worker: ReceiptsWorker, digests: list[tuple[str, str, int]]
) -> None:
    chat.create_group("team", ["ann", "bob", "cyd"])
    chat.create_group("home", ["ann", "cyd"])
    hers, his, home = say_many(chat, 2), say_many(chat, 1, sender="bob"), say_many(chat, 1, gid="home")
    chat.ack("cyd", "team")
    chat.ack("cyd", "home")
    worker.step()
    assert sorted(digests) == [("home", "ann", 1), ("team", "ann", 2), ("team", "bob", 1)]
    assert counts_of(chat.receipts("ann")) == [(home[0], 1, 0), (hers[0], 1, 1), (hers[1], 1, 1)]
    assert counts_of(chat.receipts("bob")) == [(his[0], 1, 1)]


def test_an_ack_of_own_messages_changes_no_receipt(
    chat: Chat, worker: ReceiptsWorker, digests: list[tuple[str, str, int]]
) -> None:
    # Given ann, who is not caught up, so that her own messages wait for her ack
    chat.create_group("team", ["ann", "bob"])
    say_many(chat, 1, sender="bob")
    say_many(chat, 2)
    # When
    chat.ack("ann", "team")
    drain(worker)
    # Then
    assert digests == [("team", "bob", 1)]
    assert chat.receipts("ann") == []


def test_digests_name_all_messages_of_several_pages(chat: Chat, worker: ReceiptsWorker) -> None:
    chat.create_group("team", ["ann", "bob", "cyd"])
    sent = say_many(chat, 1300)
    chat.ack("bob", "team", sent[1249])
    chat.ack("cyd", "team", sent[5])
    drain(worker)
    assert counts_of(chat.receipts("ann")) == [
        (msgid, 2 if at <= 5 else 1, 0 if at <= 5 else 1) for at, msgid in enumerate(sent[:1250])
    ]


def test_a_very_long_digest_is_several(
    chat: Chat, worker: ReceiptsWorker, digests: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "LONGEST_DIGEST", 40)
    monkeypatch.setattr(receipts, "PAGE", 7)
    chat.create_group("team", ["ann", "bob"])
    sent = say_many(chat, 100)
    chat.ack("bob", "team")
    worker.step()
    assert [count for _, _, count in digests] == [40, 40, 20]
    assert counts_of(chat.receipts("ann")) == [(each, 1, 0) for each in sent]


def test_a_page_ends_anywhere(chat: Chat, worker: ReceiptsWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in range(1, 12):
        monkeypatch.setattr(receipts, "PAGE", page)
        gid = f"g{page}"
        chat.create_group(gid, ["ann", "bob", "cyd"])
        first, second = say_many(chat, 5, gid=gid), say_many(chat, 5, gid=gid, sender="bob")
        chat.ack("bob", gid, first[2])
        chat.ack("cyd", gid, second[1])
        worker.step()
        assert [(each.read, each.unread) for each in chat.receipts("ann") if each.gid == gid] == [(2, 0)] * 3 + [
            (1, 1)
        ] * 2
        assert [each.msgid for each in chat.receipts("bob") if each.gid == gid] == second[:2]


def test_a_sender_who_left_still_gets_digests(chat: Chat, worker: ReceiptsWorker) -> None:
    chat.create_group("team", ["ann", "bob", "cyd"])
    sent = say_many(chat, 2)
    chat.remove_members("team", ["ann"])
    chat.ack("bob", "team", sent[0])
    drain(worker)
    assert counts_of(chat.receipts("ann")) == [(sent[0], 1, 1)]
    assert chat.confirm_receipts("ann", chat.receipts("ann") * 2) == 1
    assert chat.receipts("ann") == []


def test_digests_count_reads_of_members_who_left(chat: Chat, worker: ReceiptsWorker) -> None:
    chat.create_group("team", ["ann", "bob"])
    sent = say_many(chat, 2)
    chat.ack("bob", "team", sent[0])
    chat.remove_members("team", ["bob"])
    chat.add_members("team", ["bob"])
    sent += say_many(chat, 1)
    chat.ack("bob", "team")
    drain(worker)
    assert counts_of(chat.receipts("ann")) == [(sent[0], 1, 0), (sent[2], 1, 0)]


# What is trimmed.


def trim(chat: Chat, gid: str, msgid: str) -> None:
    drain(new_persist(chat.system.client, chat.system.database, SETTINGS))
    chat.system.client.call(message_calls.trim(chat.system.client.space, gid, msgids.pack(msgid)))


def test_digests_name_trimmed_messages_from_sql(
    chat: Chat, worker: ReceiptsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in (1, 3, 100):
        monkeypatch.setattr(receipts, "PAGE", page)
        gid = f"g{page}"
        chat.create_group(gid, ["ann", "bob", "cyd"])
        sent = say_many(chat, 10, gid=gid)
        chat.ack("cyd", gid, sent[1])
        chat.ack("bob", gid, sent[8])
        trim(chat, gid, sent[5])
        worker.step()
        assert counts_of(each for each in chat.receipts("ann") if each.gid == gid) == [
            (msgid, 2 if at <= 1 else 1, 0 if at <= 1 else 1) for at, msgid in enumerate(sent[:9])
        ]


def test_digests_name_messages_trimmed_between_two_pages(
    chat: Chat, worker: ReceiptsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that has seen the first page
    monkeypatch.setattr(receipts, "PAGE", 3)
    chat.create_group("team", ["ann", "bob"])
    sent = say_many(chat, 10)
    chat.ack("bob", "team")
    pages: list[Any] = []
    changes = receipts.receipt_calls.changes

    def trim_before_second(*arguments: Any) -> Any:
        pages.append(arguments)
        if len(pages) == 2:
            trim(chat, "team", sent[7])
        return changes(*arguments)

    monkeypatch.setattr(receipts.receipt_calls, "changes", trim_before_second)
    # When
    drain(worker)
    # Then
    assert counts_of(chat.receipts("ann")) == [(each, 1, 0) for each in sent]


# What fails.


@pytest.mark.parametrize("at", ["changes", "publish_receipts"])
def test_an_answer_that_never_came_is_asked_for_again(
    chat: Chat, worker: ReceiptsWorker, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    [message] = say_many(chat, 1)
    chat.ack("bob", "team")
    build = getattr(receipt_calls, at)

    def lost(*_: Any) -> Any:
        monkeypatch.setattr(receipt_calls, at, build)
        raise RedisUnavailable

    monkeypatch.setattr(receipt_calls, at, lost)
    # When
    with pytest.raises(RedisUnavailable):
        worker.step()
    assert chat.receipts("ann") == []
    drain(worker)
    # Then
    assert counts_of(chat.receipts("ann")) == [(message, 1, 0)]


@pytest.mark.parametrize("why", [DatabaseUnavailable, DatabaseNotReady])
def test_a_database_that_is_away_is_waited_for(
    chat: Chat, worker: ReceiptsWorker, monkeypatch: pytest.MonkeyPatch, why: type[ImError]
) -> None:
    chat.create_group("team", ["ann", "bob"])
    sent = say_many(chat, 2)
    chat.ack("bob", "team")
    trim(chat, "team", sent[0])
    messages_after = Database.messages_after

    def away(*_: Any, **__: Any) -> Any:
        raise why

    monkeypatch.setattr(Database, "messages_after", away)
    for _ in range(5):
        with pytest.raises(DatabaseUnavailable):
            worker.step()
    monkeypatch.setattr(Database, "messages_after", messages_after)
    drain(worker)
    assert counts_of(chat.receipts("ann")) == [(each, 1, 0) for each in sent]
    assert list(dead_letters.list_dead(chat.system.client)) == []


def test_entries_without_any_possible_digest_become_dead_letters_and_others_are_handled(
    chat: Chat, worker: ReceiptsWorker
) -> None:
    # Given an entry that says nothing, and one of a group that is gone
    chat.create_group("gone", ["ann", "bob"])
    chat.create_group("team", ["ann", "bob"])
    say_many(chat, 1, gid="gone")
    [message] = say_many(chat, 1)
    chat.ack("bob", "gone")
    chat.ack("bob", "team")
    gone = chat.system.client.space.group("gone")
    chat.system.client.driver.delete(gone.meta)
    chat.system.client.driver.xadd(gone.journal, {"kind": "nonsense"})
    # When
    drain(worker)
    # Then
    assert counts_of(chat.receipts("ann"))[-1] == (message, 1, 0)
    assert len(list(dead_letters.list_dead(chat.system.client))) == 2


@pytest.mark.parametrize("told_already", [False, True])
def test_the_next_worker_sends_the_digests_of_a_killed_one(
    chat: Chat, worker: ReceiptsWorker, told_already: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that is killed before it published receipts, or before it confirmed their entries
    chat.create_group("team", ["ann", "bob", "cyd"])
    [message] = say_many(chat, 1)
    chat.ack("bob", "team")

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        owner, name = (Journal, "done") if told_already else (receipt_calls, "publish_receipts")
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            worker.step()
    chat.system.client.driver.delete(lease(KIND, 1))  # as it does by itself in time
    # When
    chat.ack("cyd", "team")
    drain(new_worker(chat))
    # Then
    assert counts_of(chat.receipts("ann")) == [(message, 2, 0)]


# Pulling and confirming.


def test_a_receipt_that_changed_meanwhile_stays(chat: Chat, worker: ReceiptsWorker) -> None:
    # Given
    chat.create_group("team", ["ann", "bob", "cyd"])
    sent = say_many(chat, 2)
    chat.ack("bob", "team")
    drain(worker)
    seen = chat.receipts("ann")
    # When
    chat.ack("cyd", "team", sent[0])
    drain(new_worker(chat))
    # Then
    assert chat.confirm_receipts("ann", seen) == 1
    assert counts_of(chat.receipts("ann")) == [(sent[0], 2, 0)]
    assert chat.confirm_receipts("ann", seen) == 0
    assert chat.confirm_receipts("ann", chat.receipts("ann")) == 1
    assert chat.receipts("ann") == []


def test_a_reader_without_a_digest_yet_is_in_the_tally_and_comes_again(chat: Chat, worker: ReceiptsWorker) -> None:
    chat.create_group("team", ["ann", "bob", "cyd"])
    [message] = say_many(chat, 1)
    chat.ack("bob", "team")
    worker.step()
    chat.ack("cyd", "team")
    seen = chat.receipts("ann")
    assert counts_of(seen) == [(message, 2, 0)]
    chat.confirm_receipts("ann", seen)
    drain(worker)
    assert counts_of(chat.receipts("ann")) == [(message, 2, 0)]


def test_receipts_of_others_cannot_be_confirmed(chat: Chat, worker: ReceiptsWorker) -> None:
    chat.create_group("team", ["ann", "bob"])
    say_many(chat, 1)
    chat.ack("bob", "team")
    drain(worker)
    assert chat.confirm_receipts("bob", chat.receipts("ann")) == 0
    assert len(chat.receipts("ann")) == 1


def test_however_many_wait_all_are_answered_once(chat: Chat, worker: ReceiptsWorker) -> None:
    # Given more than a page of marks in each of several groups, also of one partition
    gids = ["a", "b", "c"]
    assert len({chat.system.client.space.partition_of(gid) for gid in gids}) < len(gids)
    sent = []
    for gid in gids:
        chat.create_group(gid, ["ann", "bob"])
        sent += [(gid, each) for each in say_many(chat, 1100, gid=gid)]
        chat.ack("bob", gid)
    drain(worker)
    # Then
    assert [(each.gid, each.msgid) for each in chat.receipts("ann")] == sent
    # And by a cursor: page after page, each confirmed
    pages = []
    while page := chat.receipts("ann", limit=700):
        assert chat.confirm_receipts("ann", page) == len(page)
        pages.append(page)
    assert [len(page) for page in pages] == [700, 700, 700, 700, 500]
    assert {(each.gid, each.msgid) for page in pages for each in page} == set(sent)


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_against_counting_by_hand(chat: Chat, worker: ReceiptsWorker, seed: int) -> None:
    """After any acks, the receipts are exactly those of messages newly read by others, with the tallies of `status`."""
    chance = random.Random(seed)
    uids, gids = ["ann", "bob", "cyd", "dan"], ["team", "home"]
    for gid in gids:
        chat.create_group(gid, uids)
    changed: set[tuple[str, str, str]] = set()

    def ack(gid: str, uid: str) -> None:
        waiting = chat.pull(uid, gid)
        if waiting:
            upto = chance.randrange(len(waiting)) + 1
            chat.ack(uid, gid, waiting[upto - 1].msgid)
            changed.update((each.sender_uid, gid, each.msgid) for each in waiting[:upto] if each.sender_uid != uid)

    def come_and_go(gid: str, uid: str) -> None:
        change = chat.remove_members if uid in {each.uid for each in chat.members(gid)} else chat.add_members
        change(gid, [uid])

    events: list[Callable[[str, str], object]] = [
        lambda gid, _: say_many(
            chat, chance.randrange(1, 4), gid=gid, sender=chance.choice(present(chat, gid) or ["ann"])
        ),
        lambda gid, uid: ack(gid, uid) if uid in present(chat, gid) else None,
        come_and_go,
    ]
    for _ in range(8):
        for event in chance.choices(events, [6, 10, 1], k=12):
            event(chance.choice(gids), chance.choice(uids))
        drain(new_worker(chat))
        statuses = {
            (each.message.gid, each.message.msgid): (each.read, each.unread)
            for gid in gids
            for each in chat.status(gid, limit=0)
        }
        receipts_of = {uid: chat.receipts(uid) for uid in uids}
        assert {(uid, each.gid, each.msgid) for uid in uids for each in receipts_of[uid]} == changed
        assert all(
            (each.read, each.unread) == statuses[each.gid, each.msgid] for uid in uids for each in receipts_of[uid]
        )
        for uid in chance.sample(uids, 2):
            chat.confirm_receipts(uid, receipts_of[uid])
            changed = {each for each in changed if each[0] != uid}


def present(chat: Chat, gid: str) -> list[str]:
    return [each.uid for each in chat.members(gid)]
