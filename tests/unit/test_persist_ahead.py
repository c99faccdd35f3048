"""The worker `persist` takes entries while SQL stores others: in order, once, none lost. On fakeredis and SQLite."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Event, Semaphore, get_ident
from unittest.mock import Mock

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import DatabaseRejected, DatabaseUnavailable, GroupDeleted, RedisUnavailable
from imcore.model.rows import Batch
from imcore.process import Stopped
from imcore.sql import erasures as sql_erasures
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.journal import Journal
from imcore.streams.keys import lease
from imcore.workers import hand
from imcore.workers.beside import beside
from imcore.workers.persist import KIND, Persist
from tests.helpers.persist_runs import SETTINGS, new_persist, raw
from tests.helpers.rows import stored
from tests.helpers.workers import drain, persist

FEW = replace(SETTINGS, batch_size=3)
"""A full batch is three entries, and `one_read` makes a transaction of each."""

PATIENCE_S = 20
ALIAS = "erased-0123456789abcdef"


@pytest.fixture(autouse=True)
def one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "READS", 1)


@pytest.fixture
def partitions() -> int:
    return 1


class Meanwhile(Database):
    """A database that calls `meanwhile` with the number of the write before it writes."""

    def __init__(self, database: Database, *, takes: int) -> None:
        """The first `takes` writes wait until the worker has taken more."""
        super().__init__(database._backend)
        self.meanwhile: Callable[[int], None] = lambda _: None
        self.refused = ""
        self.texts: list[list[str]] = []
        """Of the messages of each transaction that is stored."""
        self.threads: set[int] = set()
        self._takes = takes
        self._begun = 0
        self._taken = Semaphore(0)

    def watch(self, worker: Persist) -> Persist:
        """Notice what this worker takes."""
        take = worker._hand.take

        def taking(*, block_ms: int | None = None) -> None:
            take(block_ms=block_ms)
            if block_ms == 0:
                self._taken.release()

        worker._hand.take = taking  # type: ignore[method-assign]
        return worker

    def write(self, batch: Batch) -> None:
        number, self._begun = self._begun, self._begun + 1
        self.threads.add(get_ident())
        if number < self._takes:
            assert self._taken.acquire(timeout=PATIENCE_S), "nothing is taken while SQL stores"
        self.meanwhile(number)
        if any(row.content == self.refused for row in batch.messages):
            raise DatabaseRejected("refused")
        super().write(batch)
        self.texts.append([row.content for row in batch.messages])


def talk(chat: Chat, count: int = 9) -> list[str]:
    """Create a group, and say so much in it that the entries make this many and one."""
    chat.create_group("g", ["ann", "bob"])
    persist(chat)
    texts = [f"{number}" for number in range(count)]
    for text in texts:
        chat.send("g", text, sender_uid="ann")
    return texts


def undone(chat: Chat) -> int:
    """How many entries are not confirmed, read or not."""
    journal = chat.system.client.space.journal(0)
    group = next(group for group in raw(chat).xinfo_groups(journal) if group["name"] == KIND.encode())
    unread = raw(chat).xrange(journal, b"(" + group["last-delivered-id"])
    return group["pending"] + len(unread)


def texts_of(chat: Chat) -> list[str]:
    return [row.content for row in stored(chat.system.database).messages]


class TestOrder:
    def test_the_next_entries_are_taken_while_sql_stores_and_confirmed_after_their_own_commit(self, chat: Chat) -> None:
        # Given three batches
        texts = talk(chat)
        database = Meanwhile(chat.system.database, takes=2)
        worker = database.watch(new_persist(chat.system.client, database, FEW))
        during: list[int] = []
        database.meanwhile = lambda _: during.append(undone(chat))

        # When they are stored
        assert [worker.step() for _ in range(3)] == [3, 3, 3]

        # Then they are in order, each has waited for the next one, and none was confirmed before it was stored
        assert database.texts == [texts[:3], texts[3:6], texts[6:]]
        assert during == [9, 6, 3]
        assert (undone(chat), drain(worker)) == (0, 0)

    def test_few_entries_are_stored_without_a_thread(self, chat: Chat) -> None:
        talk(chat, 2)
        database = Meanwhile(chat.system.database, takes=0)
        assert new_persist(chat.system.client, database, FEW).step() == 2
        assert database.threads == {get_ident()}

    def test_a_transaction_has_several_full_batches(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hand, "READS", 2)
        talk(chat)
        worker = new_persist(chat.system.client, chat.system.database, FEW)
        assert [worker.step(), worker.step()] == [6, 3]

    def test_long_texts_make_short_transactions(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hand, "READS", 100)
        monkeypatch.setattr(hand, "MOST_TEXT", 1000)
        chat.create_group("g", ["ann"])
        persist(chat)
        for _ in range(9):
            chat.send("g", "x" * 200, sender_uid="ann")
        worker = new_persist(chat.system.client, chat.system.database, FEW)
        assert [worker.step(), worker.step()] == [6, 3]


class TestFailures:
    @pytest.mark.parametrize("failing", [0, 1, 2])
    def test_sql_fails_once_the_next_entries_are_taken(self, chat: Chat, failing: int) -> None:
        # Given a database that goes away in one of three writes, for a while
        texts = talk(chat)
        database = Meanwhile(chat.system.database, takes=failing + 1)
        worker = database.watch(new_persist(chat.system.client, database, FEW))

        def fail(number: int) -> None:
            if number in {failing, failing + 1}:
                raise DatabaseUnavailable

        database.meanwhile = fail
        handled = failures = 0

        # When the worker goes on as it does
        for _ in range(10):
            try:
                handled += worker.step()
            except DatabaseUnavailable:
                failures += 1
                assert undone(chat) == 9 - 3 * failing

        # Then nothing was confirmed meanwhile, and all is stored in order, by one read
        assert (handled, failures) == (9, 2)
        assert database.texts == [texts[:3], texts[3:6], texts[6:]]
        assert (undone(chat), drain(worker)) == (0, 0)
        assert list(dead_letters.list_dead(chat.system.client)) == []

    def test_sql_refuses_a_row_once_the_next_entries_are_taken(self, chat: Chat) -> None:
        # Given a database that refuses one message
        texts = talk(chat)
        database = Meanwhile(chat.system.database, takes=1)
        worker = database.watch(new_persist(chat.system.client, database, FEW))
        database.refused = "1"

        # When all is handled
        drain(worker)

        # Then all others are stored, and it is put aside
        assert texts_of(chat) == [text for text in texts if text != "1"]
        assert len(list(dead_letters.list_dead(chat.system.client))) == 1
        assert undone(chat) == 0

    def test_redis_fails_while_sql_stores(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a Redis that goes away while SQL stores what it has answered
        texts = talk(chat)
        worker = new_persist(chat.system.client, chat.system.database, FEW)
        read, reads = Journal._read_new, []

        def fail_once(self: Journal, block_ms: int) -> object:
            reads.append(block_ms)
            if len(reads) == 2:
                raise RedisUnavailable("gone")
            return read(self, block_ms)

        monkeypatch.setattr(Journal, "_read_new", fail_once)

        # When, then it is told once SQL has answered: nothing is confirmed, and nothing is written beside it
        with pytest.raises(RedisUnavailable, match="gone"):
            worker.step()
        assert texts_of(chat) == texts[:3]
        assert undone(chat) == 9

        # And all is stored, once
        assert drain(worker) == 9
        assert texts_of(chat) == texts
        assert undone(chat) == 0

    @pytest.mark.parametrize("dies", ["while SQL stores", "before SQL stores", "before it confirms"])
    def test_a_worker_dies_with_entries_that_it_has_taken(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch, dies: str
    ) -> None:
        # Given a worker that dies in its first step
        texts = talk(chat)
        dying = new_persist(chat.system.client, chat.system.database, FEW)
        with monkeypatch.context() as patch:
            if dies == "while SQL stores":
                patch.setattr(dying, "_store", Mock(side_effect=partial(_take_and_die, dying, chat)))
            elif dies == "before SQL stores":
                patch.setattr(Database, "write", Mock(side_effect=Stopped))
            else:
                patch.setattr(Journal, "done", Mock(side_effect=Stopped))
            with pytest.raises(Stopped):
                dying.step()

        # Then nothing is confirmed
        assert undone(chat) == 9

        # And the next worker has all of it, once
        raw(chat).delete(lease(KIND, 1))
        assert drain(new_persist(chat.system.client, chat.system.database, FEW)) == 9
        assert texts_of(chat) == texts
        assert undone(chat) == 0

    def test_entries_of_a_dead_worker_that_are_claimed_meanwhile_are_stored_once(self, chat: Chat) -> None:
        # Given a worker that dies with two entries, and one that claims them while it has others in hand
        texts = talk(chat)
        dead = Journal(chat.system.client, KIND, replace(SETTINGS, batch_size=2))
        assert len(dead.read()) == 2
        database = Meanwhile(chat.system.database, takes=1)
        worker = database.watch(new_persist(chat.system.client, database, FEW))

        def die(number: int) -> None:
            if number == 0:
                raw(chat).delete(lease(KIND, 1))
                worker._journal._claim_at = 0.0

        database.meanwhile = die

        # When it goes on
        assert drain(worker) == 9

        # Then nothing is stored twice, and nothing is left
        assert sorted(text for texts in database.texts for text in texts) == texts
        assert texts_of(chat) == texts
        assert undone(chat) == 0


class TestChangesMeanwhile:
    """What is taken may be others' by the time it is stored."""

    def test_a_message_is_recalled_after_it_was_taken(self, chat: Chat) -> None:
        # Given a message that is recalled, and whose recall another worker stores, while it waits behind others
        talk(chat, 3)
        secret = chat.send("g", "secret", sender_uid="ann")
        for text in ("4", "5", "6"):
            chat.send("g", text, sender_uid="ann")
        database = Meanwhile(chat.system.database, takes=1)
        worker = database.watch(new_persist(chat.system.client, database, FEW))
        other = new_persist(chat.system.client, chat.system.database, SETTINGS)

        def recall(number: int) -> None:
            if number == 0:
                chat.recall("g", secret.msgid, by="ann")
                assert other.step()

        database.meanwhile = recall

        # When it is stored
        drain(worker)

        # Then its text is not
        rows = {row.msgid: row.content for row in stored(chat.system.database).messages}
        assert rows[msgids.pack(secret.msgid)] == ""
        assert "secret" not in rows.values()
        assert (len(rows), undone(chat)) == (8, 0)

    def test_the_group_is_deleted_after_entries_were_taken(self, chat: Chat) -> None:
        # Given a group that is deleted while its first messages are stored, and others wait
        talk(chat)
        database = Meanwhile(chat.system.database, takes=1)
        worker = database.watch(new_persist(chat.system.client, database, FEW))
        database.meanwhile = lambda number: None if number else chat.delete_group("g")

        # When all is handled
        steps = 0
        while not (steps and worker.drained()):
            steps += 1
            with contextlib.suppress(GroupDeleted):
                worker.step()
            assert steps < 100

        # Then nothing of it is there
        assert stored(chat.system.database).messages == []
        assert stored(chat.system.database).spans == []
        assert undone(chat) == 0

    def test_a_user_is_erased_after_entries_were_taken(self, chat: Chat) -> None:
        # Given a user whose erasure begins while their first messages are stored, and others wait
        talk(chat)
        database = Meanwhile(chat.system.database, takes=1)
        worker = database.watch(new_persist(chat.system.client, database, FEW))
        database.meanwhile = lambda number: None if number else sql_erasures.begin(chat.system.database, "ann", ALIAS)

        # When all is handled
        drain(worker)

        # Then SQL does not have their name
        rows = stored(chat.system.database)
        assert {row.sender_uid for row in rows.messages} == {ALIAS}
        assert [(span.uid, span.acked_msgid) for span in rows.spans if span.uid == "ann"] == [("ann", 0)]
        assert (len(rows.messages), undone(chat)) == (9, 0)


class TestBeside:
    def test_the_errors_of_both(self) -> None:
        ended = Event()

        def work() -> None:
            ended.set()
            raise DatabaseUnavailable("work")

        with pytest.raises(DatabaseUnavailable, match="work"), beside(work):
            ended.wait(PATIENCE_S)
        with pytest.raises(RedisUnavailable, match="here"), beside(work):
            raise RedisUnavailable("here")

    def test_an_error_here_waits_for_the_end_of_the_work(self) -> None:
        goes_on, ended = Event(), Event()

        def work() -> None:
            assert goes_on.wait(PATIENCE_S)
            ended.set()

        with pytest.raises(RedisUnavailable), beside(work):
            raise RedisUnavailable(goes_on.set())
        assert ended.is_set()

    def test_whoever_is_stopped_waits_for_nothing(self) -> None:
        goes_on = Event()
        with pytest.raises(Stopped), beside(lambda: goes_on.wait(PATIENCE_S) and None):
            raise Stopped
        assert not goes_on.is_set()
        goes_on.set()


def _take_and_die(worker: Persist, chat: Chat, batch: Batch) -> None:
    with beside(lambda: chat.system.database.write(batch)):
        worker._take(block_ms=0)
        raise Stopped
