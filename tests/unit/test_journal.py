"""The mechanics of the journals, on fakeredis: names, taking, confirming, failing, taking over."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fakeredis
import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, UnknownDeadLetter
from imcore.settings import Settings
from imcore.streams import dead_letters
from imcore.streams.calls import journal_calls
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, Created, Entry, Event, Joined, Left, Malformed, Move, Sent, read
from imcore.streams.journal import LONGEST_REASON, Journal, Lease, one_line
from imcore.streams.keys import lease
from imcore.system import System

KIND = "persist"
SETTINGS = replace(Settings.from_env({}, data_dir="/nowhere"), block_ms=0, retry_ms=0, max_deliveries=3)


@pytest.fixture
def chat() -> Iterator[Chat]:
    redis_client = RedisClient(fakeredis.FakeRedis(server=fakeredis.FakeServer()), partitions=2)
    with Chat(System(redis_client, None, SETTINGS)) as chat:
        chat.system.client.upgrade()
        yield chat


@pytest.fixture
def redis_client(chat: Chat) -> RedisClient:
    return chat.system.client


def journal(redis_client: RedisClient, **settings: Any) -> Journal:
    return Journal(redis_client, KIND, replace(SETTINGS, **settings))


def taken(worker: Journal) -> list[Event]:
    return [entry.event for entry in worker.take()]


def dies(redis_client: RedisClient, worker: Journal) -> None:
    """What becomes of a killed process: its lease runs out."""
    redis_client.driver.delete(lease(KIND, int(worker.consumer.rpartition("-")[2])))


def write(redis_client: RedisClient, partition: int = 0, **fields: str | bytes) -> str:
    """Put an entry into a journal that no function of ours has written."""
    client: Any = redis_client.driver
    entry_id: bytes = client.xadd(redis_client.space.journal(partition), fields)
    return entry_id.decode()


class TestEntries:
    def test_every_kind_is_read(self, chat: Chat) -> None:
        # Given a bit of everything, all in one partition
        chat.create_group("g", ["ann"])
        chat.add_members("g", ["bob"])
        first = chat.send("g", "hello", sender_uid="ann")
        chat.ack("bob", "g")
        chat.remove_members("g", ["bob"])

        # When it is taken
        entries = journal(chat.system.client).take()

        # Then it says so, with packed msgids
        msgid = msgids.pack(first.msgid)
        assert [entry.event for entry in entries] == [
            Created("g"),
            Joined("g", "bob", 0),
            Sent("g", msgid, msgid, 1),
            Acked("g", (Move(0, 0, msgid, ("bob",)),)),
            Left("g", "bob", 0, msgid),
        ]
        assert all(entry.partition == chat.system.client.space.partition_of("g") for entry in entries)
        assert [entry.version for entry in entries] == sorted({entry.version for entry in entries})

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {b"kind": b"feast"},
            {b"kind": b"join", b"gid": b"g"},
            {b"kind": b"join", b"gid": b"g", b"uid": b"u", b"joined": b"soon"},
            {b"kind": b"join", b"gid": b"\xff", b"uid": b"u", b"joined": b"0"},
            {b"kind": b"msg", b"gid": b"g", b"first": b"5", b"last": b"", b"n": b"1"},
            {b"kind": b"msg", b"gid": b"g", b"first": b"1767225600000-1", b"last": b"1767225600000-0", b"n": b"1"},
            {b"kind": b"msg", b"gid": b"g", b"first": b"1767225600000-1", b"last": b"1767225600000-1", b"n": b"0"},
            {b"kind": b"ack", b"gid": b"g", b"moves": b"only one field"},
            {b"kind": b"group", b"gid": b"g", b"of": b"once upon a time"},
        ],
    )
    def test_what_cannot_be_read_is_malformed(self, fields: dict[bytes, bytes]) -> None:
        assert isinstance(read(0, b"1767225600000-0", fields).event, Malformed)

    def test_a_deleted_entry_is_malformed(self) -> None:
        assert read(0, b"1767225600000-0", None).event == Malformed("it was deleted from the journal")

    def test_the_version_of_a_requeued_entry_is_its_first_one(self) -> None:
        fields = {b"kind": b"group", b"gid": b"g", b"of": b"1767225600000-7"}
        entry = read(0, b"1767225609999-0", fields)
        assert (entry.version, entry.time_ms) == (msgids.pack("1767225600000-7"), 1767225600000)

    def test_reasons_fit_in_one_line_of_a_terminal(self) -> None:
        assert one_line("  broken\x1b[2J: é\t群\n  detail of a row") == "broken\ufffd[2J: é\ufffd群"
        assert len(one_line("x" * 10_000)) == LONGEST_REASON


class TestNames:
    def test_the_lowest_free_name_is_taken(self, redis_client: RedisClient) -> None:
        # Given three processes
        leases = [Lease(redis_client, KIND, 10_000) for _ in range(3)]
        assert [each.hold() for each in leases] == [True, True, True]
        assert [each.name for each in leases] == ["persist-1", "persist-2", "persist-3"]

        # When the second one ends
        leases[1].give_back()

        # Then the next one gets its name
        late = Lease(redis_client, KIND, 10_000)
        late.hold()
        assert late.name == "persist-2"

    def test_a_held_name_is_kept_and_its_lease_renewed(self, redis_client: RedisClient) -> None:
        # Given a lease that is renewed each time, since a third of it is over at once
        held = Lease(redis_client, KIND, 2)
        held.hold()
        redis_client.driver.persist(lease(KIND, 1))

        # When it is held on to
        renewed = [held.hold() for _ in range(50_000)]

        # Then it is the same name, and it will run out again
        assert not any(renewed)
        assert held.name == "persist-1"
        assert redis_client.driver.pttl(lease(KIND, 1)) != -1

    def test_who_was_silent_for_too_long_takes_another_name(self, redis_client: RedisClient) -> None:
        # Given a process whose lease has run out, and whose name another one has
        silent, other = Lease(redis_client, KIND, 1), Lease(redis_client, KIND, 10_000)
        silent.hold()
        redis_client.driver.delete(lease(KIND, 1))
        other.hold()

        # When it comes back, as soon as it renews its lease
        changed = any(silent.hold() for _ in range(100_000))

        # Then the other one keeps the name
        assert changed
        assert (silent.name, other.name) == ("persist-2", "persist-1")

    def test_another_ones_name_is_not_given_back(self, redis_client: RedisClient) -> None:
        silent, other = Lease(redis_client, KIND, 10_000), Lease(redis_client, KIND, 10_000)
        silent.hold()
        redis_client.driver.delete(lease(KIND, 1))
        other.hold()
        silent.give_back()
        assert redis_client.driver.exists(lease(KIND, 1))


class TestTaking:
    def test_entries_come_once_and_to_each_kind(self, chat: Chat) -> None:
        # Given two workers of one kind and one of another
        chat.create_group("g")
        one, two, other = (
            journal(chat.system.client),
            journal(chat.system.client),
            Journal(chat.system.client, "receipts", SETTINGS),
        )

        # Then the entry goes to one of the two, and to the other kind
        assert [taken(one), taken(two), taken(other)] == [[Created("g")], [], [Created("g")]]

    def test_nothing_is_skipped_that_was_there_before_the_first_worker(self, chat: Chat) -> None:
        for gid in ("a", "b", "c", "d"):
            chat.create_group(gid)
        assert {event.gid for event in taken(journal(chat.system.client)) if isinstance(event, Created)} == {
            "a",
            "b",
            "c",
            "d",
        }

    def test_at_most_so_many_of_a_partition_come_at_once(self, chat: Chat) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann", "bob", "cy"])
        worker = journal(chat.system.client, batch_size=3)
        assert [len(worker.take()) for _ in range(3)] == [3, 1, 0]

    def test_open_entries_come_again_after_a_restart_under_the_same_name(self, chat: Chat) -> None:
        # Given a process that took two pages and confirmed one entry
        chat.create_group("g")
        chat.add_members("g", ["ann", "bob", "cy"])
        before = journal(chat.system.client, batch_size=2)
        entries = before.take() + before.take()
        before.done(entries[:1])
        before.close()

        # When one of the same name begins
        after = journal(chat.system.client, batch_size=2)
        again = after.take() + after.take()

        # Then it gets the rest, page by page, and then nothing more
        assert after.consumer == "persist-1"
        assert again == entries[1:]
        assert after.take() == []

    def test_entries_in_hand_do_not_come_again(self, chat: Chat) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann", "bob", "cy"])
        worker = journal(chat.system.client, batch_size=1)
        assert len({entry.id for entry in [*worker.take(), *worker.take(), *worker.take(), *worker.take()]}) == 4

    def test_a_dead_workers_entries_are_taken_over_at_once(self, chat: Chat) -> None:
        # Given a worker with entries in hand, and a second one
        chat.create_group("g", ["ann"])
        dead, living = journal(chat.system.client), journal(chat.system.client)
        entries = dead.take()
        assert living.take() == []

        # When the first one dies
        dies(chat.system.client, dead)

        # Then the second one has them with its next look
        assert living.take() == entries
        living.done(entries)
        assert journal(chat.system.client).take() == []

    def test_a_living_workers_entries_are_left_alone(self, chat: Chat) -> None:
        chat.create_group("g")
        slow, other = journal(chat.system.client), journal(chat.system.client)
        assert taken(slow) == [Created("g")]
        assert [other.take() for _ in range(3)] == [[], [], []]

    def test_what_a_stranger_took_is_taken_over(self, chat: Chat) -> None:
        # Given somebody who has read in the name of the workers
        chat.create_group("g")
        worker = journal(chat.system.client)
        worker.done(worker.take())
        chat.create_group("h")
        for key in chat.system.client.space.journals():
            chat.system.client.driver.xreadgroup(KIND, "bob", {key: ">"})

        # Then a worker has it when there is nothing else to do
        assert worker.take() == []
        assert taken(worker) == [Created("h")]

    def test_done_twice_is_done_once(self, chat: Chat) -> None:
        chat.create_group("g")
        worker = journal(chat.system.client)
        entries = worker.take()
        worker.done(entries)
        worker.done(entries)
        worker.done([])
        assert taken(journal(chat.system.client)) == []

    def test_entries_by_the_thousand_are_confirmed(self, chat: Chat) -> None:
        chat.create_group("g", [f"user{number}" for number in range(journal_calls.MOST_IDS + 1)])
        worker = journal(chat.system.client, batch_size=5000)
        worker.done(worker.take())
        assert journal(chat.system.client).drained()

    def test_after_redis_lost_everything_the_worker_begins_again(self, chat: Chat) -> None:
        # Given a worker that runs, and a Redis that comes back empty
        chat.create_group("g")
        worker = journal(chat.system.client)
        worker.done(worker.take())
        chat.system.client.driver.flushall()
        chat.create_group("h")

        # When it goes on, after one error
        with pytest.raises(ImError):
            worker.take()

        # Then it has what is there now
        assert taken(worker) == [Created("h")]


class TestDrained:
    def test_it_waits_for_what_others_have_in_hand(self, chat: Chat) -> None:
        # Given another process with an entry in hand
        chat.create_group("g")
        other, mine = journal(chat.system.client), journal(chat.system.client)
        entries = other.take()
        assert not mine.drained()
        assert mine.take() == []
        assert not mine.drained()

        # When that is done
        other.done(entries)

        # Then so is everything
        assert mine.drained()

    def test_what_comes_later_does_not_count(self, chat: Chat) -> None:
        chat.create_group("g")
        worker = journal(chat.system.client)
        assert not worker.drained()
        entries = worker.take()
        chat.create_group("h")
        worker.done(entries)
        assert worker.drained()

    def test_without_any_entry_it_is_so_at_once(self, redis_client: RedisClient) -> None:
        assert journal(redis_client).drained()


class TestFailing:
    def test_an_entry_that_keeps_failing_becomes_a_dead_letter(self, chat: Chat) -> None:
        # Given an entry that nobody can read
        write(chat.system.client, 1, kind="feast", gid="g", guest=b"\xff")
        worker = journal(chat.system.client)

        # When it is tried three times, which is all that the settings allow
        [entry] = worker.take()
        outcomes = [worker.fail(entry, "no such kind\nat all")]
        for _ in range(2):
            assert worker.take() == [entry]
            outcomes.append(worker.fail(entry, "no such kind\nat all"))

        # Then it is out of the way, and kept with all that is known
        assert outcomes == [False, False, True]
        assert worker.take() == []
        assert worker.drained()
        [letter] = dead_letters.list_dead(chat.system.client)
        assert letter.id.startswith("1:")
        assert (letter.worker, letter.reason, letter.entry, letter.deliveries) == (KIND, "no such kind", entry.id, 3)
        assert letter.fields == {"kind": "feast", "gid": "g", "guest": "\ufffd"}
        assert dead_letters.show(chat.system.client, letter.id) == letter

    def test_a_failed_entry_blocks_nothing_behind_it(self, chat: Chat) -> None:
        write(chat.system.client, 0, kind="feast")
        chat.create_group("g")
        worker = journal(chat.system.client, batch_size=1)
        entries = worker.take()
        seen = {type(entry.event) for entry in entries}
        for entry in entries:
            worker.fail(entry, "") if isinstance(entry.event, Malformed) else worker.done([entry])
        for _ in range(3):
            seen |= {type(event) for event in taken(worker)}
        assert seen == {Malformed, Created}

    def test_what_failed_and_is_lost_since_is_not_taken_again(self, chat: Chat) -> None:
        # Given two entries that failed, of which a crash of the server takes one back
        for _ in range(2):
            write(chat.system.client, 0, kind="feast")
        worker = journal(chat.system.client)
        kept, lost = worker.take()
        for entry in (kept, lost):
            worker.fail(entry, "")
        chat.system.client.driver.xack(chat.system.client.space.journal(0), KIND, lost.id)
        chat.system.client.driver.xdel(chat.system.client.space.journal(0), lost.id)
        # When the worker has met an error
        worker.look_again()
        # Then
        assert worker.take() == [kept]
        assert worker.take() == []

    def test_it_is_no_failure_if_somebody_else_has_done_it(self, chat: Chat) -> None:
        chat.create_group("g")
        worker = journal(chat.system.client, max_deliveries=1)
        [entry] = worker.take()
        worker.done([entry])
        assert worker.fail(entry, "too late")
        assert list(dead_letters.list_dead(chat.system.client)) == []

    def test_failures_outlive_the_worker_and_deliveries_are_none(self, chat: Chat) -> None:
        # Given an entry that failed with a worker that died, and that has been taken often
        chat.create_group("g")
        first = journal(chat.system.client)
        [entry] = first.take()
        first.fail(entry, "")
        dies(chat.system.client, first)
        second = journal(chat.system.client)
        for _ in range(10):
            assert second.take() == [entry]
            second.look_again()

        # Then that counts as the one failure that it was
        assert not second.fail(entry, "again")
        [entry] = second.take()
        assert second.fail(entry, "and again")
        [letter] = dead_letters.list_dead(chat.system.client)
        assert letter.deliveries == 3

    @pytest.mark.parametrize("ends", ["done", "dead"])
    def test_nothing_is_left_of_failures(self, chat: Chat, ends: str) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann"])
        worker = journal(chat.system.client)
        entries = worker.take()
        for entry in entries:
            worker.fail(entry, "")
        failures = chat.system.client.space.failures(entries[0].partition)
        assert chat.system.client.driver.hlen(failures) == len(entries) == 2
        if ends == "done":
            worker.done(worker.take())
        else:
            for _ in range(2):
                for entry in worker.take():
                    worker.fail(entry, "")
        assert not chat.system.client.driver.exists(failures)

    def test_nor_of_those_of_an_entry_that_somebody_has_put_away_by_hand(self, chat: Chat) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann"])
        worker = journal(chat.system.client)
        put_away, failed = worker.take()
        for entry in (put_away, failed):
            worker.fail(entry, "")
        space, partition = chat.system.client.space, failed.partition
        chat.system.client.driver.xack(space.journal(partition), KIND, put_away.id)
        chat.system.client.call(journal_calls.trim_journal(space, partition, [KIND]))
        assert chat.system.client.driver.hkeys(space.failures(partition)) == [f"{KIND}\x1f{failed.id}".encode()]

    def test_a_failed_entry_waits_longer_each_time_and_what_stands_behind_goes_on(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given an entry that failed
        clock = Clock(monkeypatch)
        chat.create_group("bad")
        worker = journal(chat.system.client, retry_ms=200, lease_ms=10**9)
        [bad] = worker.take()
        worker.fail(bad, "")

        # Then others come meanwhile, and it comes after 0.2 s, and then after 0.4 s
        chat.create_group("good")
        [good] = worker.take()
        assert good.event == Created("good")
        worker.done([good])
        for wait_s in (0.2, 0.4):
            clock.now += wait_s - 0.01
            assert worker.take() == []
            assert not worker.drained()
            worker.look_again()  # as after an error
            assert worker.take() == []
            clock.now += 0.02
            assert worker.take() == [bad]
            outcome = worker.fail(bad, "")
        assert outcome
        assert worker.drained()

    def test_who_has_a_new_name_leaves_what_waits_to_others(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a worker with an entry that waits, whose name has gone to another one
        clock = Clock(monkeypatch)
        chat.create_group("g")
        silent = journal(chat.system.client, retry_ms=200, lease_ms=1000)
        [entry] = silent.take()
        silent.fail(entry, "")
        dies(chat.system.client, silent)
        other = journal(chat.system.client)
        assert other.take() == [entry]

        # When it comes back
        clock.now += 10
        assert silent.take() == []

        # Then the other one alone has the entry
        assert silent.consumer != other.consumer
        other.done([entry])
        assert silent.take() == []


class Clock:
    """The time that journals go by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("imcore.streams.journal.time.monotonic", lambda: self.now)


class TestDeadLetters:
    @pytest.fixture
    def dead_id(self, chat: Chat) -> str:
        chat.create_group("g")
        worker = journal(chat.system.client, max_deliveries=1)
        [entry] = worker.take()
        assert worker.fail(entry, "no room")
        return next(dead_letters.list_dead(chat.system.client)).id

    def test_requeued_it_comes_again_as_what_it_was(self, chat: Chat, dead_id: str) -> None:
        # When it is requeued
        letter = dead_letters.show(chat.system.client, dead_id)
        dead_letters.requeue(chat.system.client, dead_id)

        # Then it is a new entry, that happened when it happened
        worker = journal(chat.system.client, max_deliveries=1)
        [entry] = worker.take()
        assert entry == Entry(entry.partition, entry.id, Created("g"), of=letter.entry, kind=KIND)
        assert entry.id != letter.entry
        assert list(dead_letters.list_dead(chat.system.client)) == []

        # And so it is when it has failed again
        worker.fail(entry, "still no room")
        dead_letters.requeue(chat.system.client, next(dead_letters.list_dead(chat.system.client)).id)
        [third] = worker.take()
        assert third.of == letter.entry

    @pytest.mark.parametrize("kind", ["feast", "group"])
    def test_requeued_it_is_for_the_kind_that_failed(self, chat: Chat, kind: str) -> None:
        # Given an entry that no kind of worker can handle
        write(chat.system.client, 0, kind=kind)
        kinds = ["persist", "receipts"]
        workers = {kind: Journal(chat.system.client, kind, replace(SETTINGS, max_deliveries=1)) for kind in kinds}
        for worker in workers.values():
            for entry in worker.take():
                worker.fail(entry, "bad")
        letters = {letter.worker: letter.id for letter in dead_letters.list_dead(chat.system.client)}
        assert list(letters) == kinds

        # When one letter is requeued, again and again
        for _ in range(3):
            dead_letters.requeue(chat.system.client, letters["receipts"])
            assert workers["persist"].take() == []
            assert workers["persist"].drained()
            [entry] = workers["receipts"].take()
            assert workers["receipts"].fail(entry, "still bad")
            letters = {letter.worker: letter.id for letter in dead_letters.list_dead(chat.system.client)}

        # Then there are as many letters as before, and they say the same
        assert list(letters) == kinds
        assert dead_letters.show(chat.system.client, letters["receipts"]).fields["kind"] == kind
        assert len(list(dead_letters.list_dead(chat.system.client))) == 2

    def test_dropped_it_is_gone(self, chat: Chat, dead_id: str) -> None:
        dead_letters.drop(chat.system.client, dead_id)
        assert list(dead_letters.list_dead(chat.system.client)) == []
        assert journal(chat.system.client).take() == []

    @pytest.mark.parametrize("act", [dead_letters.show, dead_letters.requeue, dead_letters.drop])
    @pytest.mark.parametrize("unknown", ["0:1767225600000-0", "99:1767225600000-0"])
    def test_an_unknown_id_is_refused(self, chat: Chat, act: object, unknown: str) -> None:
        assert callable(act)
        with pytest.raises(UnknownDeadLetter, match=unknown):
            act(chat.system.client, unknown)

    @pytest.mark.parametrize("wrong", ["", "x", "1767225600000-0", "0:", "-1:1-1", "0:1-0\n", "\u0660:1-1", "0:-"])
    def test_what_is_no_id_is_refused(self, chat: Chat, wrong: str) -> None:
        with pytest.raises(InvalidInput):
            dead_letters.show(chat.system.client, wrong)

    def test_a_letter_without_an_entry_can_only_be_dropped(self, chat: Chat) -> None:
        # Given an entry that was deleted while a worker had it in hand
        entry_id = write(chat.system.client, 0, kind="group", gid="g")
        worker = journal(chat.system.client, max_deliveries=1)
        worker.take()
        chat.system.client.driver.xdel(chat.system.client.space.journal(0), entry_id)
        worker.look_again()
        [entry] = worker.take()
        assert worker.fail(entry, "gone")
        [letter] = dead_letters.list_dead(chat.system.client)
        assert (letter.entry, letter.fields) == (entry_id, {})

        # Then it cannot go back, and is not lost over it
        with pytest.raises(InvalidInput, match="nothing is left"):
            dead_letters.requeue(chat.system.client, letter.id)
        dead_letters.drop(chat.system.client, letter.id)
        assert list(dead_letters.list_dead(chat.system.client)) == []

    def test_many_are_listed_page_by_page(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dead_letters, "PAGE", 2)
        worker = journal(chat.system.client, max_deliveries=1)
        written = [(p, write(chat.system.client, p, kind="feast")) for p in (0, 1) for _ in range(5)]
        for entry in worker.take():
            worker.fail(entry, "")
        assert [(int(each.id[0]), each.entry) for each in dead_letters.list_dead(chat.system.client)] == written


def test_what_was_done_and_is_open_again_under_our_name_is_taken_again(chat: Chat, redis_client: RedisClient) -> None:
    # Given a worker that has done an entry
    chat.create_group("g", ["ann"])
    worker = journal(redis_client)
    entries = worker.take()
    worker.done(entries)
    assert worker.take() == []
    # When Redis loses that, and the worker does not notice: its connection was only made anew
    client: Any = redis_client.driver
    for entry in entries:
        journal_key = redis_client.space.journal(entry.partition)
        client.xclaim(journal_key, KIND, worker.consumer, 0, [entry.id], force=True)
    # Then
    assert worker.take() == entries
    worker.done(entries)
    assert worker.take() == []
