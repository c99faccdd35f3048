"""Fetching the messages and members of journal entries, on fakeredis and SQLite."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import DatabaseUnavailable
from imcore.model.rows import Batch
from imcore.model.values import Draft
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.calls import message_calls
from imcore.streams.keys import lease
from imcore.workers import fetch, hand
from imcore.workers.persist import KIND, Persist
from tests.helpers.persist_runs import SETTINGS, new_persist, raw, tell_again
from tests.helpers.rows import stored
from tests.helpers.workers import drain


@pytest.fixture
def worker(chat: Chat) -> Persist:
    return new_persist(chat.system.client, chat.system.database, SETTINGS)


def test_a_spoiled_group_delays_no_other_group(chat: Chat, worker: Persist) -> None:
    # Given messages, and a tombstone, of two groups, one with a stream that another program wrote
    for gid in ("spoiled", "sound"):
        chat.create_group(gid, ["ann"])
        sent = chat.send(gid, "hi", sender_uid="ann")
        chat.recall(gid, sent.msgid, by="ann")
    raw(chat).set(chat.system.client.space.group("spoiled").stream, "by hand")
    # When
    drain(worker)
    # Then the other one is stored, and what cannot be is put aside with the reason
    assert {row.gid for row in stored(chat.system.database).messages} == {"sound"}
    letters = list(dead_letters.list_dead(chat.system.client))
    assert {letter.fields["gid"] for letter in letters} == {"spoiled"}
    assert all("WRONGTYPE" in letter.reason for letter in letters)


class TestFetching:
    @pytest.mark.parametrize("page", [1, 2, 3, 100])
    def test_ranges_are_read_page_by_page(
        self, chat: Chat, worker: Persist, monkeypatch: pytest.MonkeyPatch, page: int
    ) -> None:
        # Given sends of several messages each, in two groups, and pages that are shorter or longer than they
        monkeypatch.setattr(fetch, "PAGE", page)
        for gid in ("g", "h"):
            chat.create_group(gid, ["ann"])
            for n in (1, 4, 2, 3):
                drafts = [Draft("ann", f"{number} of {n}") for number in range(n)]
                chat.system.client.call(message_calls.send(chat.system.client.space, gid, drafts, 1000))

        # When they are stored
        drain(worker)

        # Then none is missing
        assert [(row.gid, row.seq) for row in stored(chat.system.database).messages] == [
            (gid, seq) for gid in ("g", "h") for seq in range(1, 11)
        ]

    def test_messages_between_the_ranges_are_left_to_their_own_entries(self, chat: Chat, worker: Persist) -> None:
        # Given two workers who share the entries of a group: every other one
        chat.create_group("g", ["ann"])
        drain(worker)
        worker_a = new_persist(chat.system.client, chat.system.database, replace(SETTINGS, batch_size=1))
        worker_b = new_persist(chat.system.client, chat.system.database, replace(SETTINGS, batch_size=1))
        steps = []
        for number in range(6):
            chat.send("g", f"{number}", sender_uid="ann")
            steps.append((worker_b if number % 2 else worker_a).step())
        assert steps == [1] * 6
        assert [row.seq for row in stored(chat.system.database).messages] == [1, 2, 3, 4, 5, 6]

    def test_big_batches_are_cut(self, chat: Chat, worker: Persist, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given three sends of four messages, where a transaction takes five
        monkeypatch.setattr(hand, "MOST_ROWS", 5)
        chat.create_group("g", ["ann"])
        drain(worker)
        for _ in range(3):
            chat.system.client.call(message_calls.send(chat.system.client.space, "g", [Draft("ann", "x")] * 4, 1000))

        # Then each makes a transaction of its own
        assert [worker.step() for _ in range(4)] == [1, 1, 1, 0]
        assert len(stored(chat.system.database).messages) == 12

    def test_acks_of_many_make_a_big_batch_and_repeated_acks_do_not(
        self, chat: Chat, worker: Persist, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given acks of three at once, in two groups, where a transaction takes five rows
        monkeypatch.setattr(hand, "MOST_ROWS", 5)
        readers = ["bob", "cy", "dora"]
        for gid in ("g", "h"):
            chat.create_group(gid, ["ann", *readers])
        messages = [chat.send(gid, "x", sender_uid="ann") for gid in ("g", "g", "h")]
        drain(worker)
        for message in messages:
            chat.ack_many(message.gid, [(uid, message.msgid) for uid in readers])

        # Then a row for each move and one for each offset that has moved are counted
        assert [worker.step() for _ in range(3)] == [2, 1, 0]

    def test_new_groups_with_many_members_make_a_big_batch(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given groups with a few members each, and one with more than a transaction takes
        monkeypatch.setattr(hand, "MOST_ROWS", 12)
        database = Watching(chat.system.database)
        worker = new_persist(chat.system.client, database, SETTINGS)
        for number, members in enumerate([5, 5, 5, 40, 5]):
            chat.create_group(f"g{number}", [f"u{member}" for member in range(members)])
        chat.send("g4", "one", sender_uid="u1")
        # When
        assert drain(worker) == 6
        # Then no transaction has more members than that, and some have those of more than one group
        assert max(spans for spans, _ in database.wrote) == 12
        assert len(database.wrote) <= 7
        # And all of it is there
        rows = stored(chat.system.database)
        assert [len([span for span in rows.spans if span.gid == group.gid]) for group in rows.groups] == [
            5,
            5,
            5,
            40,
            5,
        ]
        assert len(rows.messages) == 1

    @pytest.mark.parametrize("fails_at", range(5))
    def test_a_new_group_is_not_done_before_all_its_members_are_stored(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch, fails_at: int
    ) -> None:
        # Given a group with more members than a transaction takes, and a worker that dies over one of these
        monkeypatch.setattr(hand, "MOST_ROWS", 12)
        database = Watching(chat.system.database)
        database.left = fails_at
        dying = new_persist(chat.system.client, database, SETTINGS)
        chat.create_group("g", [f"u{member}" for member in range(50)])
        with pytest.raises(DatabaseUnavailable):
            dying.step()
        # When another one continues
        raw(chat).delete(lease(KIND, 1))
        assert drain(new_persist(chat.system.client, chat.system.database, SETTINGS)) == 1
        # Then all are there
        rows = stored(chat.system.database)
        assert (len(rows.groups), len(rows.spans)) == (1, 50)

    def test_a_worker_shows_signs_of_life_while_it_stores_a_group(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a worker whose lease is over whenever it has written something
        monkeypatch.setattr(hand, "MOST_ROWS", 12)
        database = Watching(chat.system.database)
        worker = new_persist(chat.system.client, database, SETTINGS)
        worker.step()
        chat.create_group("g", [f"u{member}" for member in range(50)])

        def end_lease() -> None:
            database.wrote[-1] = (database.wrote[-1][0], bool(raw(chat).exists(lease(KIND, 1))))
            raw(chat).delete(lease(KIND, 1))
            worker._journal.lease._renew_at = 0

        database.after = end_lease
        # When it stores more than one transaction takes
        worker.step()
        # Then each of them has found it alive
        assert [lived for _, lived in database.wrote] == [True] * 5

    def test_trimmed_messages_are_not_missed_if_they_are_stored(self, chat: Chat, worker: Persist) -> None:
        # Given a message that was stored and trimmed, and a second entry for it
        chat.create_group("g", ["ann"])
        message = chat.send("g", "one", sender_uid="ann")
        drain(worker)
        chat.system.client.call(message_calls.trim(chat.system.client.space, "g", msgids.pack(message.msgid)))
        tell_again(chat)

        # Then it is simply done
        assert drain(worker) == 1
        assert list(dead_letters.list_dead(chat.system.client)) == []


class Watching(Database):
    """A database that counts the spans of each write, and calls `after`. It goes away when no write is `left`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._backend)
        self.wrote: list[tuple[int, bool]] = []
        self.left = 1000
        self.after: Callable[[], None] = lambda: None

    def write(self, batch: Batch) -> None:
        if len(self.wrote) == self.left:
            raise DatabaseUnavailable
        super().write(batch)
        self.wrote.append((len(batch.spans), True))
        self.after()
