"""`trim`: dropped and kept entries, on fakeredis and SQLite."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin import retention
from imcore.admin.retention import TrimSummary, trim
from imcore.errors import UnknownGroup
from imcore.model.rows import Batch
from imcore.model.values import Draft, Message, Reader, Tally
from imcore.repair import window
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.calls.message_calls import send
from imcore.streams.journal import Journal
from imcore.workers.persist import KIND, Persist
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.rows import count_moves
from tests.helpers.workers import store
from tests.model.compare import compare_sql
from tests.model.reference import Model

SETTINGS = replace(Settings.from_env({}, data_dir="/nowhere"), block_ms=0, retry_ms=0, max_deliveries=2)
DAY_MS = 24 * 60 * 60 * 1000
UIDS = ["ann", "bob", "cy"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, max_deliveries=2)


@pytest.fixture
def persist(chat: Chat) -> Callable[[], None]:
    """Stores all there is, as far as that is possible."""
    return lambda: store(chat)


def raw(chat: Chat) -> Any:
    """The driver's client, without its imprecise types."""
    return chat.system.client.driver


def talk(chat: Chat, gid: str = "g", count: int = 10) -> list[Message]:
    return [chat.send(gid, f"message {number}", sender_uid=UIDS[number % 3]) for number in range(count)]


def said(chat: Chat, gid: str = "g") -> list[Message]:
    return [tally.message for tally in chat.status(gid, limit=0)]


def in_redis(chat: Chat, gid: str = "g") -> int:
    length: int = raw(chat).xlen(chat.system.client.space.group(gid).stream)
    return length


def journal_length(chat: Chat) -> int:
    return sum(raw(chat).xlen(key) for key in chat.system.client.space.journals())


class TestStreams:
    @pytest.fixture(autouse=True)
    def group(self, chat: Chat) -> None:
        chat.create_group("g", UIDS)

    def test_the_newest_messages_are_kept_and_pulls_miss_nothing(self, chat: Chat, persist: Callable[[], None]) -> None:
        # Given ten messages, stored
        messages = talk(chat)
        before = chat.status("g", limit=0), [chat.pull(uid, "g") for uid in UIDS], chat.unread("ann")
        persist()

        # When all but the newest three go
        summary = trim(chat.system, keep_messages=3)

        # Then they do, and everything answers as before
        assert (summary.groups, summary.entries) == (1, 7)
        assert in_redis(chat) == 3
        assert (chat.status("g", limit=0), [chat.pull(uid, "g") for uid in UIDS], chat.unread("ann")) == before
        assert said(chat) == messages

    @pytest.mark.parametrize(("keep_ms", "left"), [(0, 0), (DAY_MS, 10)])
    def test_young_messages_are_kept(self, chat: Chat, persist: Callable[[], None], keep_ms: int, left: int) -> None:
        talk(chat)
        persist()
        trim(chat.system, keep_ms=keep_ms)
        assert in_redis(chat) == left

    def test_limits_come_from_the_settings(self, chat: Chat, persist: Callable[[], None]) -> None:
        talk(chat)
        persist()
        chat.system.settings = replace(SETTINGS, keep_messages=4)
        assert trim(chat.system).entries == 6

    def test_messages_that_sql_lacks_stay(self, chat: Chat, persist: Callable[[], None]) -> None:
        # Given five messages that are stored and five that are not
        talk(chat, count=5)
        persist()
        talk(chat, count=5)

        # Then only the stored ones go
        assert trim(chat.system, keep_messages=0).entries == 5
        assert in_redis(chat) == 5

    def test_nothing_is_trimmed_before_any_worker_has_run(self, chat: Chat) -> None:
        talk(chat)
        assert trim(chat.system, keep_messages=0, keep_ms=0) == TrimSummary()
        assert in_redis(chat) == 10

    def test_nothing_is_trimmed_after_a_message_that_sql_lacks(self, chat: Chat, persist: Callable[[], None]) -> None:
        # Given a message in the middle that is not in SQL, though no worker has it before it
        messages = talk(chat)
        persist()
        with chat.system.database.connection() as connection:
            connection.execute(
                text("DELETE FROM group_msgs WHERE msgid = :msgid"), {"msgid": msgids.pack(messages[6].msgid)}
            )

        # Then that one and what follows it stays
        assert trim(chat.system, keep_messages=0).entries == 6
        assert trim(chat.system, keep_messages=0).entries == 0
        assert said(chat) == messages

    def test_messages_of_undone_entries_stay(self, chat: Chat, persist: Callable[[], None]) -> None:
        # Given messages that are stored, and another kind of worker that has the third to fifth of them in hand
        other = Journal(chat.system.client, "other", SETTINGS)
        talk(chat, count=2)
        other.done(other.read())
        talk(chat, count=3)
        entries = other.read()
        talk(chat, count=5)
        persist()

        # Then those stay, and all after them
        assert trim(chat.system, keep_messages=0).entries == 2

        # Until they are done
        other.done(entries)
        assert trim(chat.system, keep_messages=0).entries == 3

    def test_trim_of_one_group_leaves_the_others(self, chat: Chat, persist: Callable[[], None]) -> None:
        chat.create_group("h", UIDS)
        talk(chat, "g")
        talk(chat, "h")
        persist()
        before = journal_length(chat)
        assert trim(chat.system, keep_messages=0, gid="h") == TrimSummary(groups=1, entries=10)
        assert (in_redis(chat, "g"), in_redis(chat, "h"), journal_length(chat)) == (10, 0, before)

    def test_an_unknown_group_is_refused(self, chat: Chat) -> None:
        with pytest.raises(UnknownGroup):
            trim(chat.system, gid="nobody's")

    def test_trim_reads_page_by_page(
        self, chat: Chat, persist: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "PAGE", 3)
        messages = talk(chat)
        persist()
        assert trim(chat.system, keep_messages=2).entries == 8
        assert said(chat) == messages

    def test_unreadable_messages_stay(self, chat: Chat, persist: Callable[[], None]) -> None:
        talk(chat, count=2)
        persist()
        raw(chat).xadd(chat.system.client.space.group("g").stream, {"seq": "x"})
        assert trim(chat.system, keep_ms=0).entries == 2
        assert in_redis(chat) == 1
        assert trim(chat.system, keep_ms=0).entries == 0

    def test_trimmed_messages_can_be_acked(self, chat: Chat, persist: Callable[[], None]) -> None:
        messages = talk(chat)
        persist()
        trim(chat.system, keep_messages=0)
        assert chat.ack("bob", "g", messages[4].msgid).advanced
        persist()
        with chat.system.database.connection() as connection:
            offset = connection.execute(text("SELECT last_ack_msgid FROM group_users WHERE uid = 'bob'")).scalar_one()
        assert offset == msgids.pack(messages[4].msgid)


def read_receipts(chat: Chat) -> None:
    """Let the worker `receipts` have seen everything."""
    journal = Journal(chat.system.client, "receipts", SETTINGS)
    while entries := journal.read():
        journal.done(entries)
    journal.close()


def test_only_old_read_times_are_deleted(chat: Chat, persist: Callable[[], None]) -> None:
    # Given a message that bob has read, stored
    chat.create_group("g", UIDS)
    sent = chat.send("g", "hello", sender_uid="ann")
    chat.ack("bob", "g")
    persist()
    before = chat.message_status("g", sent.msgid)
    assert before.read_by[0].read_at

    # When it is kept for a day, for ever, and for no time at all
    for keep_ms, forgotten in ((DAY_MS, 0), (0, 0), (1, 1)):
        wait_until(lambda: msgids.first_at(time.time_ns() // 1_000_000 - 1) > msgids.pack(sent.msgid))
        chat.system.settings = replace(SETTINGS, keep_read_times_ms=keep_ms)
        assert trim(chat.system).read_times == forgotten

    # Then the readers are known, and the times are not
    after = chat.message_status("g", sent.msgid)
    assert after == replace(before, read_by=(Reader("bob", None),))
    assert chat.tally("g", sent.msgid) == Tally("g", sent.msgid, 1, 1, 1)


def test_a_fast_clock_deletes_no_read_times(
    chat: Chat, persist: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine whose clock is a month ahead of the server's
    chat.create_group("g", UIDS)
    sent = chat.send("g", "hi", sender_uid="ann")
    chat.ack("bob", "g")
    persist()
    ahead = time.time_ns() + 30 * DAY_MS * 1_000_000
    monkeypatch.setattr(window, "time", Mock(time_ns=lambda: ahead))
    chat.system.settings = replace(SETTINGS, keep_read_times_ms=DAY_MS)
    # When it trims
    assert trim(chat.system).read_times == 0
    # Then
    assert chat.message_status("g", sent.msgid).read_by[0].read_at


class TestJournals:
    def test_entries_that_all_have_done_are_trimmed(self, chat: Chat, persist: Callable[[], None]) -> None:
        chat.create_group("g")
        chat.add_members("g", UIDS)
        persist()
        read_receipts(chat)
        assert trim(chat.system).journal_entries == 4
        assert journal_length(chat) == 0

    def test_entries_for_a_worker_that_has_not_begun_stay(self, chat: Chat, persist: Callable[[], None]) -> None:
        chat.create_group("g")
        chat.add_members("g", UIDS)
        persist()
        assert trim(chat.system).journal_entries == 0

    def test_entries_that_one_kind_has_not_done_stay(self, chat: Chat, persist: Callable[[], None]) -> None:
        # Given another kind of worker that has one entry done, one in hand and two before it
        other = Journal(chat.system.client, "other", replace(SETTINGS, batch_size=1))
        chat.create_group("g")
        chat.add_members("g", UIDS)
        other.done(other.read())
        other.read()
        persist()
        read_receipts(chat)

        # Then the entries that it has done are trimmed, and no others
        assert trim(chat.system).journal_entries == 1
        assert journal_length(chat) == 3

    def test_no_entry_is_trimmed_before_persist_has_begun(self, chat: Chat) -> None:
        other = Journal(chat.system.client, "other", SETTINGS)
        chat.create_group("g")
        chat.add_members("g", UIDS)
        other.done(other.read())
        read_receipts(chat)
        assert trim(chat.system).journal_entries == 0
        assert journal_length(chat) == 4

    def test_the_reason_for_kept_entries_is_reported(self, chat: Chat, persist: Callable[[], None]) -> None:
        assert retention.held_up(chat.system) is None
        chat.create_group("g")
        chat.add_members("g", UIDS)
        assert retention.held_up(chat.system) == (
            "the journals keep 4 entries: the worker persist has never run, the worker receipts has never run"
        )
        persist()
        assert retention.held_up(chat.system) == "the journals keep 4 entries: the worker receipts has never run"
        read_receipts(chat)
        assert retention.held_up(chat.system) is None
        trim(chat.system)
        chat.create_group("h", ["ann"])
        read_receipts(chat)
        assert retention.held_up(chat.system) == "the journals keep 1 entry: the worker persist is 1 entry behind"

    def test_dead_letters_can_be_requeued_after_a_trim(self, chat: Chat, persist: Callable[[], None]) -> None:
        # Given a dead letter whose entry is trimmed away
        chat.create_group("g")
        worker = Journal(chat.system.client, KIND, replace(SETTINGS, max_deliveries=1))
        [entry] = worker.read()
        worker.fail(entry, "")
        worker.close()
        read_receipts(chat)
        assert trim(chat.system).journal_entries == 1

        # Then it can be requeued all the same
        dead_letters.requeue(chat.system.client, next(dead_letters.list_dead(chat.system.client)).id)
        persist()
        with chat.system.database.connection() as connection:
            assert connection.execute(text("SELECT gid FROM chat_groups")).scalars().all() == ["g"]


@pytest.mark.parametrize("seed", range(5))
def test_random_trims_lose_no_message(
    chat: Chat, persist: Callable[[], None], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In random histories each message stays readable, and SQL gets everything."""
    monkeypatch.setattr(retention, "PAGE", 4)
    history = _History(chat, random.Random(seed))
    for _ in range(150):
        history.step()
        assert said(chat) == history.messages
    history.end()
    for letter in list(dead_letters.list_dead(chat.system.client)):
        dead_letters.requeue(chat.system.client, letter.id)
    persist()
    history.end()
    trim(chat.system, keep_messages=0)
    assert said(chat) == history.messages
    assert in_redis(chat) == 0
    history.compare_sql()


class _History:
    """Random steps of members, of workers that fail now and then, and of `trim`."""

    def __init__(self, chat: Chat, dice: random.Random) -> None:
        self.chat = chat
        self.dice = dice
        self.messages: list[Message] = []
        self.model = Model()
        self.workers = [self.new_worker() for _ in range(2)]
        self.other = Journal(chat.system.client, "other", replace(SETTINGS, batch_size=3))
        for system in (chat, self.model):
            system.create_group("g")
            system.add_members("g", UIDS)

    def new_worker(self) -> Persist:
        database = _Whimsical(self.chat.system.database, self.dice)
        return new_persist(self.chat.system.client, database, replace(SETTINGS, batch_size=self.dice.randint(1, 4)))

    def step(self) -> None:
        kind = self.dice.choice(
            [self.talk, self.talk, self.ack, self.ack, self.come_and_go, self.work, self.work, self.trim]
        )
        kind()

    def talk(self) -> None:
        uids = self.model.group("g").members()
        drafts = (
            [Draft(self.dice.choice(uids), f"said {number}") for number in range(self.dice.randint(1, 3))]
            if uids
            else []
        )
        if drafts:
            self.chat.system.client.call(send(self.chat.system.client.space, "g", drafts, 1000))
            sent = said(self.chat)[len(self.messages) :]
            self.messages += sent
            for message in sent:
                self.model.send("g", message.sender_uid, message.content, None, message.msgid)

    def ack(self) -> None:
        members = self.model.group("g").members()
        if members and self.messages:
            uid, msgid = self.dice.choice(members), self.dice.choice(self.messages).msgid
            ack = self.chat.ack(uid, "g", msgid)
            assert (ack.last_ack_msgid, ack.advanced) == self.model.ack("g", uid, msgid)

    def come_and_go(self) -> None:
        uid = self.dice.choice(UIDS)
        change = self.dice.choice(["add_members", "remove_members"])
        for system in (self.chat, self.model):
            getattr(system, change)("g", [uid])

    def work(self) -> None:
        what = self.dice.randrange(4)
        if what == 0:
            entries = self.other.read()
            self.other.done([entry for entry in entries if self.dice.random() < 0.7])
            self.other.reread_open()
        elif what == 1:
            place = self.dice.randrange(2)
            self.workers[place].close()
            self.workers[place] = self.new_worker()
        else:
            self.dice.choice(self.workers).step()

    def trim(self) -> None:
        trim(self.chat.system, keep_messages=self.dice.randint(0, 5), keep_ms=self.dice.choice([0, DAY_MS]))

    def end(self) -> None:
        """The workers finish what they have in hand, and are gone."""
        while entries := self.other.read():
            self.other.done(entries)
        for worker in self.workers:
            worker.close()

    def compare_sql(self) -> None:
        compare_sql(self.chat.system.database, self.model)
        with self.chat.system.database.connection() as connection:
            seqs = connection.execute(text("SELECT seq FROM group_msgs ORDER BY msgid")).scalars().all()
        assert seqs == [message.seq for message in self.messages]
        assert count_moves(self.chat.system.database) == self.model.acks


class _Whimsical(Database):
    """A database that refuses a batch now and then, for no reason."""

    def __init__(self, database: Database, dice: random.Random) -> None:
        super().__init__(database._backend)
        self._dice = dice

    def write(self, batch: Batch) -> None:
        if self._dice.random() < 0.2:
            batch = replace(batch, messages=[row._replace(content="\ud800") for row in batch.messages])
        super().write(batch)
