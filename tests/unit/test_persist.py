"""The worker `persist`, step by step, on fakeredis and SQLite: what becomes of entries, and of those that fail."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy import select

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import DatabaseUnavailable, ImError, RedisUnavailable
from imcore.model.rows import FOLD_MS, Batch, GroupRow, MessageRow, MoveRow, SpanRow
from imcore.sql.database import Database
from imcore.sql.tables import OFFSET_MOVES
from imcore.streams import dead_letters
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget
from imcore.streams.keys import lease
from imcore.streams.rounds import Pause, Run, Send
from imcore.streams.transport import perform_step
from imcore.workers import hand
from imcore.workers.persist import KIND, Persist
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import SETTINGS, UIDS, new_persist, packed, raw
from tests.helpers.rows import stored
from tests.helpers.workers import drain


@pytest.fixture
def worker(chat: Chat) -> Persist:
    return new_persist(chat.system.client, chat.system.database, SETTINGS)


def journal_times(chat: Chat) -> dict[bytes, list[int]]:
    """The packed ids of the journal's entries, by kind."""
    times: dict[bytes, list[int]] = {}
    for key in chat.system.client.space.journals():
        for entry_id, fields in raw(chat).xrange(key):
            times.setdefault(fields[b"kind"], []).append(msgids.pack_id(entry_id))
    return times


class TestRows:
    def test_messages(self, chat: Chat, worker: Persist) -> None:
        # Given two messages, one with all that a message can have
        chat.create_group("g", ["ann", "bob"])
        sent_at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
        one = chat.send("g", "o'neil 群主\n", sender_uid="bob", client_msgid="c1", sent_at=sent_at)
        two = chat.send("g", "x" * 3000, sender_uid="ann")

        # When they are stored
        assert drain(worker) == 3

        # Then every field is there
        first, second = packed(one.msgid, two.msgid)
        assert stored(chat.system.database).messages == [
            MessageRow("g", first, 1, "bob", 0, "o'neil 群主\n", "c1", msgids.to_ms(sent_at)),
            MessageRow("g", second, 2, "ann", 0, "x" * 3000, None, None),
        ]

    def test_groups_and_spans(self, chat: Chat, worker: Persist) -> None:
        # Given one who stays, one who leaves, and one who leaves and comes back
        chat.create_group("g", ["ann", "bob", "cy"])
        one = chat.send("g", "one", sender_uid="ann")
        chat.remove_members("g", ["bob", "cy"])
        two = chat.send("g", "two", sender_uid="ann")
        chat.add_members("g", ["cy"])

        # When it is stored
        drain(worker)

        # Then each membership has a row, with the version of what was said of it last
        times, (first, second) = journal_times(chat), packed(one.msgid, two.msgid)
        rows = stored(chat.system.database)
        assert rows.groups == [GroupRow("g", msgids.time_ms(times[b"group"][0]))]
        assert rows.spans == [
            SpanRow("g", "ann", 0, None, times[b"group"][0], second),
            SpanRow("g", "bob", 0, first, times[b"leave"][0], 0),
            SpanRow("g", "cy", 0, first, times[b"leave"][1], 0),
            SpanRow("g", "cy", second, None, times[b"join"][0], second),
        ]

    def test_acks(self, chat: Chat, worker: Persist) -> None:
        # Given two who acked, one of them twice, in one call and in another
        chat.create_group("g", ["ann", "bob", "cy"])
        one = chat.send("g", "one", sender_uid="ann")
        chat.ack("bob", "g", one.msgid)
        two = chat.send("g", "two", sender_uid="ann")
        chat.system.client.call(message_calls.ack(chat.system.client.space, "g", [AckTarget(None, ["bob", "cy"])]))

        # When it is stored
        drain(worker)

        # Then each move has its row, and each span the last offset
        first, second = packed(one.msgid, two.msgid)
        early, late = journal_times(chat)[b"ack"]
        rows = stored(chat.system.database)
        assert rows.moves == [
            MoveRow("g", first, 0, early, ("bob",)),
            MoveRow("g", second, 0, late, ("cy",)),
            MoveRow("g", second, first, late, ("bob",)),
        ]
        assert [(span.uid, span.acked_msgid) for span in rows.spans] == [
            ("ann", second),
            ("bob", second),
            ("cy", second),
        ]

    def test_acks_of_one_message_make_one_row_in_a_batch(self, chat: Chat, worker: Persist) -> None:
        # Given three who ack a message by themselves, two of them at once
        chat.create_group("g", ["ann", "bob", "cy", "dan"])
        sent = chat.send("g", "one", sender_uid="ann")
        [msgid] = packed(sent.msgid)
        began = (msgids.time_ms(msgid) // FOLD_MS + 2) * FOLD_MS
        for ms, uid in ((began, "cy"), (began, "bob"), (began + 7, "dan")):
            fields = {"kind": "ack", "gid": "g", "moves": f"0\x1f0\x1f{msgid}\x1f{uid}"}
            raw(chat).xadd(chat.system.client.space.group("g").journal, fields, id=f"{ms}-*")

        # When they are stored
        drain(worker)

        # Then one row has all of them, each with its time
        assert chat.system.database.fetch(select(OFFSET_MOVES.c.uids)) == [('["bob","cy",7,"dan"]',)]
        assert chat.system.database.read_times("g", msgid) == {"bob": began, "cy": began, "dan": began + 7}

    def test_a_senders_offset_moves_without_an_ack_only_if_caught_up(self, chat: Chat, worker: Persist) -> None:
        # Given ann, who is caught up, and bob, who has something to read
        chat.create_group("g", ["ann", "bob"])
        one = chat.send("g", "one", sender_uid="ann")
        chat.send("g", "two", sender_uid="bob")

        # When it is stored
        drain(worker)

        # Then only ann's offset has moved, which needs no time: she read nothing
        rows = stored(chat.system.database)
        assert [(span.uid, span.acked_msgid) for span in rows.spans] == [("ann", packed(one.msgid)[0]), ("bob", 0)]
        assert rows.moves == []

    def test_the_same_entries_again_change_nothing(self, chat: Chat, worker: Persist) -> None:
        # Given what is stored
        chat.create_group("g", ["ann", "bob"])
        chat.send("g", "one", sender_uid="ann")
        chat.ack("bob", "g")
        chat.remove_members("g", ["bob"])
        drain(worker)
        before = stored(chat.system.database)

        # When all workers forget that they have done it
        for key in chat.system.client.space.journals():
            raw(chat).xgroup_destroy(key, KIND)
        drain(new_persist(chat.system.client, chat.system.database, SETTINGS))

        # Then nothing has changed
        assert stored(chat.system.database) == before


class TestPoison:
    @pytest.fixture
    def poisoned(self, chat: Chat) -> Callable[[], None]:
        """Puts an entry that cannot be stored between others that can."""

        def poison() -> None:
            chat.create_group("g", ["ann"])
            chat.send("g", "before", sender_uid="ann")
            write(chat, gid="g", first="1767225600000-0", last="1767225600000-1", n="2")
            chat.send("g", "after", sender_uid="ann")

        return poison

    def test_lost_messages_make_a_dead_letter(self, chat: Chat, worker: Persist, poisoned: Callable[[], None]) -> None:
        # When it is handled
        poisoned()
        assert drain(worker) == 4

        # Then only that entry has become a dead letter, and what came after it is stored
        [letter] = dead_letters.list_dead(chat.system.client)
        assert "only 0 are in Redis or SQL" in letter.reason
        assert letter.deliveries == SETTINGS.max_deliveries
        assert [row.content for row in stored(chat.system.database).messages] == ["before", "after"]

    def test_a_poisoned_entry_blocks_no_other_entry(
        self, chat: Chat, worker: Persist, poisoned: Callable[[], None]
    ) -> None:
        poisoned()
        worker.step()
        assert [row.content for row in stored(chat.system.database).messages] == ["before", "after"]
        assert list(dead_letters.list_dead(chat.system.client)) == []
        assert not worker.drained()

    def test_unreadable_messages_make_dead_letters(self, chat: Chat, worker: Persist) -> None:
        # Given a message that is not UTF-8, and one that lacks half its fields, written by others
        chat.create_group("g", ["ann"])
        stream = chat.system.client.space.group("g").stream
        whole = {"seq": 1, "uid": "ann", "span": 0, "cid": "", "sent": "", "caught_up": 0, "text": b"\xff"}
        for fields in (whole, {"seq": 2}):
            msgid = raw(chat).xadd(stream, fields).decode()
            write(chat, gid="g", first=msgid, last=msgid, n="1")
        chat.send("g", "fine", sender_uid="ann")

        # When they are handled
        drain(worker)

        # Then so are the others
        assert ["cannot be read" in letter.reason for letter in dead_letters.list_dead(chat.system.client)] == [
            True,
            True,
        ]
        assert [row.content for row in stored(chat.system.database).messages] == ["fine"]

    @pytest.mark.parametrize("place", [0, 3, 6])
    def test_entries_that_sql_refuses_are_found_among_the_others(self, chat: Chat, place: int) -> None:
        # Given a message that SQL refuses, somewhere in a batch
        worker = new_persist(chat.system.client, RefusingOdd(chat.system.database), SETTINGS)
        chat.create_group("g", ["ann"])
        stream = chat.system.client.space.group("g").stream
        fields = {"seq": 99, "uid": "ann", "span": 0, "cid": "", "sent": "", "caught_up": 0, "text": "odd"}
        for number in range(7):
            if number == place:
                msgid = raw(chat).xadd(stream, fields).decode()
                write(chat, gid="g", first=msgid, last=msgid, n="1")
            chat.send("g", f"{number}", sender_uid="ann")

        # When the batch is handled
        drain(worker)

        # Then just that one is a dead letter
        assert ["cannot be stored" in letter.reason for letter in dead_letters.list_dead(chat.system.client)] == [True]
        assert [row.content for row in stored(chat.system.database).messages] == [f"{number}" for number in range(7)]

    def test_a_requeued_join_does_not_undo_a_later_leave(self, chat: Chat, worker: Persist) -> None:
        # Given a join that SQL refused for a while, so that the leave after it is stored and it is not
        chat.create_group("g")
        drain(worker)
        chat.add_members("g", ["ann"])
        drain(new_persist(chat.system.client, Refusing(chat.system.database), SETTINGS))
        chat.remove_members("g", ["ann"])
        drain(worker)
        [letter] = dead_letters.list_dead(chat.system.client)

        # When it is requeued
        dead_letters.requeue(chat.system.client, letter.id)
        drain(worker)

        # Then the leave, which was later, still holds
        assert [(span.uid, span.left_msgid) for span in stored(chat.system.database).spans] == [("ann", 0)]


class TestServersAway:
    def test_sql_away_and_back(self, chat: Chat) -> None:
        # Given a database that is away when entries come, for longer than an entry may fail
        database = Flaky(chat.system.database)
        worker = new_persist(chat.system.client, database, SETTINGS)
        chat.create_group("g", ["ann"])
        chat.send("g", "one", sender_uid="ann")
        database.is_away = True
        for _ in range(SETTINGS.max_deliveries + 1):
            with pytest.raises(DatabaseUnavailable):
                worker.step()

        # When it comes back
        database.is_away = False

        # Then the worker continues by itself, and that did not count as failures
        assert deliveries(chat) == {1}
        assert drain(worker) == 2
        assert [row.content for row in stored(chat.system.database).messages] == ["one"]

    def test_sql_away_halfway_through_a_batch(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given batches of one, and a database that goes away after the first
        monkeypatch.setattr(hand, "MOST_ROWS", 1)
        database = Flaky(chat.system.database)
        worker = new_persist(chat.system.client, database, SETTINGS)
        chat.create_group("g")
        chat.add_members("g", ["ann"])
        assert worker.step() == 1
        database.is_away = True
        with pytest.raises(DatabaseUnavailable):
            worker.step()
        database.is_away = False

        # Then the rest follows
        assert drain(worker) == 1
        assert len(stored(chat.system.database).spans) == 1

    def test_a_worker_that_waits_for_sql_with_nothing_in_hand_keeps_its_lease(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given an idle worker whose lease is over by now
        worker = new_persist(chat.system.client, chat.system.database, replace(SETTINGS, lease_ms=3))
        worker.step()
        raw(chat).delete(lease(KIND, 1))
        wait_until(lambda: time.monotonic() > worker._journal.lease._renew_at)
        worker._journal.lease._lease_ms = 60_000
        # When it reads a database that is away
        worker._watch.doubt()
        with monkeypatch.context() as patch:
            patch.setattr(Database, "connection", Mock(side_effect=DatabaseUnavailable))
            with pytest.raises(DatabaseUnavailable):
                worker.step()
        # Then
        assert raw(chat).exists(lease(KIND, 1))

    @pytest.mark.parametrize("failing", ["XREADGROUP", "XRANGE", "im_done"])
    def test_redis_away_and_back(self, chat: Chat, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
        # Given a Redis that is away in the middle of a step
        worker = new_persist(chat.system.client, chat.system.database, SETTINGS)
        worker.step()
        chat.create_group("g", ["ann"])
        chat.send("g", "one", sender_uid="ann")
        with monkeypatch.context() as patch:
            lose_answers(patch, failing)
            with pytest.raises(RedisUnavailable):
                worker.step()

        # Then the worker finds its entries, and continues
        drain(worker)
        assert [row.content for row in stored(chat.system.database).messages] == ["one"]
        assert list(dead_letters.list_dead(chat.system.client)) == []

    def test_other_workers_get_the_entries_of_an_ended_worker_at_once(self, chat: Chat) -> None:
        # Given a worker that ended while SQL was away
        database = Flaky(chat.system.database)
        chat.create_group("g")
        ending = new_persist(chat.system.client, database, SETTINGS)
        database.is_away = True
        with pytest.raises(DatabaseUnavailable):
            ending.step()
        ending.close()
        assert not raw(chat).exists(lease(KIND, 1))

        # Then another one has what it left
        assert drain(new_persist(chat.system.client, chat.system.database, SETTINGS)) == 1

    def test_a_worker_that_lost_its_lease_does_no_harm(self, chat: Chat) -> None:
        # Given a worker that stalls with entries in hand, until another one has its name and has done its work
        chat.create_group("g", UIDS)
        chat.send("g", "one", sender_uid="ann")
        slow = new_persist(chat.system.client, chat.system.database, replace(SETTINGS, lease_ms=1))
        slow._take()
        raw(chat).delete(lease(KIND, 1))
        other = new_persist(chat.system.client, chat.system.database, SETTINGS)
        drain(other)
        before = stored(chat.system.database)

        # When it continues
        while slow.step():
            pass

        # Then it has another name, and has changed nothing
        assert (other._journal.lease.name, slow._journal.lease.name) == ("persist-1", "persist-2")
        assert stored(chat.system.database) == before

    def test_a_database_that_cannot_be_used_is_no_fault_of_the_entries(self, chat: Chat, tmp_path: Path) -> None:
        # Given a database without tables
        empty = Database.connect(f"sqlite:///{tmp_path / 'empty.db'}")
        worker = new_persist(chat.system.client, empty, SETTINGS)
        chat.create_group("g")

        # Then that is said, however often it is tried, and no entry is put aside for it
        for _ in range(SETTINGS.max_deliveries + 1):
            with pytest.raises(ImError, match="im db upgrade"):
                worker.step()
        assert list(dead_letters.list_dead(chat.system.client)) == []
        worker.close()
        assert drain(new_persist(chat.system.client, chat.system.database, SETTINGS)) == 1


class Flaky(Database):
    """A database that can be away."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._backend)
        self.is_away = False

    def write(self, batch: Batch) -> None:
        if self.is_away:
            raise DatabaseUnavailable
        super().write(batch)


class Refusing(Database):
    """A database that refuses every row."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._backend)

    def write(self, batch: Batch) -> None:
        super().write(Batch(messages=[MessageRow("g", 1, 1, "ann", 0, "\ud800", None, None)]))


class RefusingOdd(Refusing):
    """A database that refuses messages with the content `odd`."""

    def write(self, batch: Batch) -> None:
        if any(row.content == "odd" for row in batch.messages):
            super().write(batch)
        else:
            Database.write(self, batch)


def write(chat: Chat, **fields: str) -> None:
    """Put an entry of kind msg into the journal of group g."""
    journal = chat.system.client.space.group("g").journal
    raw(chat).xadd(journal, {"kind": "msg", **fields})


def deliveries(chat: Chat) -> set[int]:
    return {
        pending["times_delivered"]
        for key in chat.system.client.space.journals()
        for pending in raw(chat).xpending_range(key, KIND, "-", "+", 100)
    }


def lose_answers(patch: pytest.MonkeyPatch, word: str) -> None:
    """Have Redis do every command that holds this word, and lose the answer."""

    def losing(step: Send | Pause | Run) -> object:
        answer = perform_step(step)
        if isinstance(step, Send) and any(word in command for _, commands in step.flights for command in commands):
            raise RedisUnavailable
        return answer

    patch.setattr("imcore.streams.client.perform_step", losing)
