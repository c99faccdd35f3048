"""Coalescing: what many moves have changed; and every ack and receipt is counted once, also if the worker dies."""

import random
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore import Chat
from imcore.admin import stats
from imcore.settings import Settings
from imcore.streams.calls import journal_calls, receipt_calls
from imcore.streams.calls.journal_calls import CoalescingCounts, CoalescingTotals
from imcore.streams.events import Move
from imcore.streams.journal import Journal
from imcore.streams.keys import lease
from imcore.workers.receipts import ReceiptsWorker, segments
from tests.helpers.workers import drain

SETTINGS = replace(Settings.from_env({}, data_dir="/nowhere"), block_ms=0, retry_ms=0, receipt_window_ms=0)
UIDS = [f"user{number}" for number in range(8)]
POSITIONS = st.integers(0, 12)
MOVERS = st.sets(st.sampled_from("abc"), min_size=1).map(tuple)
MOVES = st.lists(
    st.builds(Move, st.just(0), POSITIONS, POSITIONS, MOVERS),
    max_size=12,
)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The senders who got digests."""
    sent: list[str] = []
    tell = receipt_calls.publish_receipts

    def note(space: Any, gid: str, sender_uid: str, changed: Any) -> Any:
        sent.append(sender_uid)
        return tell(space, gid, sender_uid, changed)

    monkeypatch.setattr(receipt_calls, "publish_receipts", note)
    return sent


def worker(chat: Chat) -> ReceiptsWorker:
    return ReceiptsWorker(chat.system.client, chat.system.database, SETTINGS)


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_of_acks_receipts_and_digests_are_exact(chat: Chat, digests: list[str], seed: int) -> None:
    # Given a history of acks, with members who come and go, and a worker that takes it in pieces
    chance = random.Random(seed)
    working = worker(chat)
    gids = ["a", "b", "c"]
    for gid in gids:
        chat.create_group(gid, UIDS)
    acks = 0
    for _ in range(300):
        gid, uid = chance.choice(gids), chance.choice(UIDS)
        what = chance.random()
        member = any(each.uid == uid for each in chat.members(gid))
        if what < 0.05:
            (chat.remove_members if member else chat.add_members)(gid, [uid])
        elif member and what < 0.5:
            chat.send(gid, "hi", sender_uid=uid)
        elif member:
            waiting = chat.pull(uid, gid, limit=chance.randrange(1, 9))
            acks += bool(waiting) and chat.ack(uid, gid, waiting[-1].msgid).advanced
        if chance.random() < 0.1:
            working.step()
    drain(working)

    # Then every ack is counted, and every read message of every recipient
    storm = stats.stats(chat.system).storm
    assert storm.acks == acks
    assert storm.receipts == sum(tally.read for gid in gids for tally in chat.status(gid, limit=0))
    assert storm.digests == len(digests)
    assert storm.receipts_per_digest == round(storm.receipts / len(digests), 1)


def test_unconfirmed_digests_of_a_killed_worker_count_once(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.create_group("team", UIDS)
    chat.send("team", "hi", sender_uid=UIDS[0])
    for uid in UIDS[1:]:
        chat.ack(uid, "team")

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "done", killed)
        with pytest.raises(Killed):
            worker(chat).step()
    chat.system.client.driver.delete(lease("receipts", 1))  # as it does by itself in time
    drain(worker(chat))

    storm = stats.stats(chat.system).storm
    assert (storm.acks, storm.receipts, storm.digests) == (7, 7, 1)


def count(chat: Chat, seconds: dict[int, tuple[int, int]], *, acks: int = 0) -> None:
    """Confirm an entry with these counts."""
    chat.create_group("team")
    space = chat.system.client.space
    journal = Journal(chat.system.client, "receipts", SETTINGS)
    chat.system.client.driver.xadd(space.journal(0), {"kind": "nonsense"})
    for entry in journal.read():
        journal.done([entry], {0: CoalescingCounts(acks, 0, 0, seconds)} if entry.partition == 0 else None)
    journal.close()


def counted(chat: Chat, seconds: int = 10) -> CoalescingTotals:
    return chat.system.client.call(journal_calls.coalescing(chat.system.client.space, 0, seconds=seconds))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> int:
    """A second that does not end while the test runs, at the server neither."""
    second = int(time.time())
    monkeypatch.setattr(time, "time", lambda: second + 0.5)
    return second


def test_rates_are_of_the_last_whole_seconds(chat: Chat, now: int) -> None:
    # Given the counts of some seconds, reported in pieces
    count(chat, {now - 5: (20, 40), now - 4: (1, 1), now - 40: (1000, 1000)}, acks=3)
    count(chat, {now - 5: (5, 0), now: (1000, 1000), now + 5: (1000, 1000)}, acks=4)

    # Then those before and after do not count
    assert counted(chat) == CoalescingTotals(7, 0, 0, 26, 41)
    assert counted(chat, 50).messages_lately == 1026


def test_a_second_long_ago_does_not_take_the_place_of_a_later_one(chat: Chat, now: int) -> None:
    count(chat, {now - 5: (20, 40)})
    count(chat, {now - 5 - 64: (1, 1)})
    assert counted(chat)[3:] == (20, 40)
    count(chat, {now - 5 + 64: (1, 1)})
    assert counted(chat)[3:] == (0, 0)


def test_entries_done_by_another_worker_are_counted_once(chat: Chat) -> None:
    chat.create_group("team", UIDS)
    journal = Journal(chat.system.client, "receipts", SETTINGS)
    entries = journal.read()
    storm = {entry.partition: CoalescingCounts(1, 1, 1, {}) for entry in entries}
    journal.done(entries, storm)
    journal.done(entries, storm)
    assert stats.stats(chat.system).storm.acks == 1


@given(MOVES)
def test_a_message_is_covered_when_anyone_but_its_sender_moved_over_it(moves: list[Move]) -> None:
    # When
    cut = segments(moves)
    # Then
    for message in range(1, 13):
        over = {uid for move in moves if move.start < message <= move.to for uid in move.uids}
        covering = [segment for segment in cut if segment.after < message <= segment.until]
        assert len(covering) == bool(over)
        for sender in "abc":
            changed = any(segment.only != sender for segment in covering)
            assert changed == bool(over - {sender})


@given(MOVES)
def test_segments_are_in_order_and_as_few_as_can_be(moves: list[Move]) -> None:
    cut = segments(moves)
    assert all(segment.after < segment.until for segment in cut)
    for one, two in pairwise(cut):
        assert one.until <= two.after
        assert one.until < two.after or one.only != two.only
