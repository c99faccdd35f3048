"""The journals and their leases, on fakeredis: read, confirm, fail, claim, bury."""

from typing import Any

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.streams import dead_letters
from imcore.streams.calls import journal_calls
from imcore.streams.client import RedisClient
from imcore.streams.events import Acked, Created, Event, Malformed, Move, Sent, SpanBegun, SpanEnded, read
from imcore.streams.journal import LONGEST_REASON, Journal, one_line
from imcore.streams.keys import lease
from imcore.streams.leases import Lease
from imcore.workers.persist import KIND
from tests.helpers.journals import journal, write
from tests.helpers.persist_runs import SETTINGS


@pytest.fixture
def redis_client(chat: Chat) -> RedisClient:
    return chat.system.client


def events_of(worker: Journal) -> list[Event]:
    return [entry.event for entry in worker.read()]


def expire_lease(redis_client: RedisClient, worker: Journal) -> None:
    """What becomes of a killed process: its lease runs out."""
    redis_client.driver.delete(lease(KIND, int(worker.lease.name.rpartition("-")[2])))


class TestEntries:
    def test_each_kind_of_entry_is_read(self, chat: Chat) -> None:
        # Given a bit of everything, all in one partition
        chat.create_group("g", ["ann"])
        chat.add_members("g", ["bob"])
        first = chat.send("g", "hello", sender_uid="ann")
        chat.ack("bob", "g")
        chat.remove_members("g", ["bob"])

        # When it is taken
        entries = journal(chat.system.client).read()

        # Then it says so, with packed msgids
        msgid = msgids.pack(first.msgid)
        assert [entry.event for entry in entries] == [
            Created("g"),
            SpanBegun("g", "bob", 0),
            Sent("g", msgid, msgid, 1),
            Acked("g", (Move(0, 0, msgid, ("bob",)),)),
            SpanEnded("g", "bob", 0, msgid),
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
    def test_unreadable_entry_is_malformed(self, fields: dict[bytes, bytes]) -> None:
        assert isinstance(read(0, b"1767225600000-0", fields).event, Malformed)

    def test_deleted_entry_is_malformed(self) -> None:
        assert read(0, b"1767225600000-0", None).event == Malformed("it was deleted from the journal")

    def test_requeued_entry_keeps_its_first_version(self) -> None:
        fields = {b"kind": b"group", b"gid": b"g", b"of": b"1767225600000-7"}
        entry = read(0, b"1767225609999-0", fields)
        assert (entry.version, entry.time_ms) == (msgids.pack("1767225600000-7"), 1767225600000)

    def test_reason_fits_one_terminal_line(self) -> None:
        assert one_line("  broken\x1b[2J: é\t群\n  detail of a row") == "broken\ufffd[2J: é\ufffd群"
        assert len(one_line("x" * 10_000)) == LONGEST_REASON


class TestLease:
    def test_lease_takes_the_lowest_free_name(self, redis_client: RedisClient) -> None:
        # Given three processes
        leases = [Lease(redis_client, KIND, 10_000) for _ in range(3)]
        assert [each.renew() for each in leases] == [True, True, True]
        assert [each.name for each in leases] == ["persist-1", "persist-2", "persist-3"]

        # When the second one ends
        leases[1].release()

        # Then the next one gets its name
        late = Lease(redis_client, KIND, 10_000)
        late.renew()
        assert late.name == "persist-2"

    def test_lease_is_renewed_under_the_same_name(self, redis_client: RedisClient) -> None:
        # Given a lease that is renewed each time, since a third of it is over at once
        held = Lease(redis_client, KIND, 2)
        held.renew()
        redis_client.driver.persist(lease(KIND, 1))

        # When it is held on to
        renewed = [held.renew() for _ in range(50_000)]

        # Then it is the same name, and it will run out again
        assert not any(renewed)
        assert held.name == "persist-1"
        assert redis_client.driver.pttl(lease(KIND, 1)) != -1

    def test_process_with_an_expired_lease_takes_another_name(self, redis_client: RedisClient) -> None:
        # Given a process whose lease has run out, and whose name another one has
        silent, other = Lease(redis_client, KIND, 1), Lease(redis_client, KIND, 10_000)
        silent.renew()
        redis_client.driver.delete(lease(KIND, 1))
        other.renew()

        # When it comes back, as soon as it renews its lease
        changed = any(silent.renew() for _ in range(100_000))

        # Then the other one keeps the name
        assert changed
        assert (silent.name, other.name) == ("persist-2", "persist-1")

    def test_name_of_another_process_is_not_released(self, redis_client: RedisClient) -> None:
        silent, other = Lease(redis_client, KIND, 10_000), Lease(redis_client, KIND, 10_000)
        silent.renew()
        redis_client.driver.delete(lease(KIND, 1))
        other.renew()
        silent.release()
        assert redis_client.driver.exists(lease(KIND, 1))


class TestRead:
    def test_entries_are_read_once_by_each_kind(self, chat: Chat) -> None:
        # Given two workers of one kind and one of another
        chat.create_group("g")
        one, two, other = (
            journal(chat.system.client),
            journal(chat.system.client),
            Journal(chat.system.client, "receipts", SETTINGS),
        )

        # Then the entry goes to one of the two, and to the other kind
        assert [events_of(one), events_of(two), events_of(other)] == [[Created("g")], [], [Created("g")]]

    def test_entries_before_the_first_worker_are_read(self, chat: Chat) -> None:
        for gid in ("a", "b", "c", "d"):
            chat.create_group(gid)
        assert {event.gid for event in events_of(journal(chat.system.client)) if isinstance(event, Created)} == {
            "a",
            "b",
            "c",
            "d",
        }

    def test_read_is_limited_per_partition(self, chat: Chat) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann", "bob", "cy"])
        worker = journal(chat.system.client, batch_size=3)
        assert [len(worker.read()) for _ in range(3)] == [3, 1, 0]

    def test_open_entries_are_read_again_after_a_restart(self, chat: Chat) -> None:
        # Given a process that took two pages and confirmed one entry
        chat.create_group("g")
        chat.add_members("g", ["ann", "bob", "cy"])
        before = journal(chat.system.client, batch_size=2)
        entries = before.read() + before.read()
        before.done(entries[:1])
        before.close()

        # When one of the same name begins
        after = journal(chat.system.client, batch_size=2)
        again = after.read() + after.read()

        # Then it gets the rest, page by page, and then nothing more
        assert after.lease.name == "persist-1"
        assert again == entries[1:]
        assert after.read() == []

    def test_entries_in_hand_are_not_read_again(self, chat: Chat) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann", "bob", "cy"])
        worker = journal(chat.system.client, batch_size=1)
        assert len({entry.id for entry in [*worker.read(), *worker.read(), *worker.read(), *worker.read()]}) == 4

    def test_entries_of_a_dead_worker_are_claimed_at_once(self, chat: Chat) -> None:
        # Given a worker with entries in hand, and a second one
        chat.create_group("g", ["ann"])
        dead, living = journal(chat.system.client), journal(chat.system.client)
        entries = dead.read()
        assert living.read() == []

        # When the first one dies
        expire_lease(chat.system.client, dead)

        # Then the second one has them with its next look
        assert living.read() == entries
        living.done(entries)
        assert journal(chat.system.client).read() == []

    def test_entries_of_a_living_worker_are_not_claimed(self, chat: Chat) -> None:
        chat.create_group("g")
        slow, other = journal(chat.system.client), journal(chat.system.client)
        assert events_of(slow) == [Created("g")]
        assert [other.read() for _ in range(3)] == [[], [], []]

    def test_entries_of_an_unknown_consumer_are_claimed(self, chat: Chat) -> None:
        # Given somebody who has read in the name of the workers
        chat.create_group("g")
        worker = journal(chat.system.client)
        worker.done(worker.read())
        chat.create_group("h")
        for key in chat.system.client.space.journals():
            chat.system.client.driver.xreadgroup(KIND, "bob", {key: ">"})

        # Then a worker has it when there is nothing else to do
        assert worker.read() == []
        assert events_of(worker) == [Created("h")]

    def test_done_twice_counts_once(self, chat: Chat) -> None:
        chat.create_group("g")
        worker = journal(chat.system.client)
        entries = worker.read()
        worker.done(entries)
        worker.done(entries)
        worker.done([])
        assert events_of(journal(chat.system.client)) == []

    def test_thousands_of_entries_are_confirmed(self, chat: Chat) -> None:
        chat.create_group("g", [f"user{number}" for number in range(journal_calls.MOST_IDS + 1)])
        worker = journal(chat.system.client, batch_size=5000)
        worker.done(worker.read())
        assert journal(chat.system.client).drained()

    def test_worker_begins_again_after_a_loss_of_redis(self, chat: Chat) -> None:
        # Given a worker that runs, and a Redis that comes back empty
        chat.create_group("g")
        worker = journal(chat.system.client)
        worker.done(worker.read())
        chat.system.client.driver.flushall()
        chat.create_group("h")

        # When it continues, after one error
        with pytest.raises(ImError):
            worker.read()

        # Then it has what is there now
        assert events_of(worker) == [Created("h")]


class TestDrained:
    def test_drained_waits_for_entries_of_other_processes(self, chat: Chat) -> None:
        # Given another process with an entry in hand
        chat.create_group("g")
        other, own = journal(chat.system.client), journal(chat.system.client)
        entries = other.read()
        assert not own.drained()
        assert own.read() == []
        assert not own.drained()

        # When that is done
        other.done(entries)

        # Then so is everything
        assert own.drained()

    def test_drained_ignores_later_entries(self, chat: Chat) -> None:
        chat.create_group("g")
        worker = journal(chat.system.client)
        assert not worker.drained()
        entries = worker.read()
        chat.create_group("h")
        worker.done(entries)
        assert worker.drained()

    def test_empty_journal_is_drained_at_once(self, redis_client: RedisClient) -> None:
        assert journal(redis_client).drained()


class TestFail:
    def test_entry_that_keeps_failing_becomes_a_dead_letter(self, chat: Chat) -> None:
        # Given an entry that nobody can read
        write(chat.system.client, 1, kind="feast", gid="g", guest=b"\xff")
        worker = journal(chat.system.client)

        # When it is tried three times, which is all that the settings allow
        [entry] = worker.read()
        outcomes = [worker.fail(entry, "no such kind\nat all")]
        for _ in range(2):
            assert worker.read() == [entry]
            outcomes.append(worker.fail(entry, "no such kind\nat all"))

        # Then it is out of the way, and kept with all that is known
        assert outcomes == [False, False, True]
        assert worker.read() == []
        assert worker.drained()
        [letter] = dead_letters.list_dead(chat.system.client)
        assert letter.id.startswith("1:")
        assert (letter.worker, letter.reason, letter.entry, letter.deliveries) == (KIND, "no such kind", entry.id, 3)
        assert letter.fields == {"kind": "feast", "gid": "g", "guest": "\ufffd"}
        assert dead_letters.show(chat.system.client, letter.id) == letter

    def test_failed_entry_blocks_no_later_entry(self, chat: Chat) -> None:
        write(chat.system.client, 0, kind="feast")
        chat.create_group("g")
        worker = journal(chat.system.client, batch_size=1)
        entries = worker.read()
        seen = {type(entry.event) for entry in entries}
        for entry in entries:
            worker.fail(entry, "") if isinstance(entry.event, Malformed) else worker.done([entry])
        for _ in range(3):
            seen |= {type(event) for event in events_of(worker)}
        assert seen == {Malformed, Created}

    def test_failed_entry_that_redis_lost_is_not_read_again(self, chat: Chat) -> None:
        # Given two entries that failed, and a crash of the server that takes one of them back
        for _ in range(2):
            write(chat.system.client, 0, kind="feast")
        worker = journal(chat.system.client)
        kept, lost = worker.read()
        for entry in (kept, lost):
            worker.fail(entry, "")
        chat.system.client.driver.xack(chat.system.client.space.journal(0), KIND, lost.id)
        chat.system.client.driver.xdel(chat.system.client.space.journal(0), lost.id)
        # When the worker has met an error
        worker.reread_open()
        # Then
        assert worker.read() == [kept]
        assert worker.read() == []

    def test_entry_done_by_another_process_has_not_failed(self, chat: Chat) -> None:
        chat.create_group("g")
        worker = journal(chat.system.client, max_deliveries=1)
        [entry] = worker.read()
        worker.done([entry])
        assert worker.fail(entry, "too late")
        assert list(dead_letters.list_dead(chat.system.client)) == []

    def test_failures_outlive_the_worker_and_deliveries_do_not_count(self, chat: Chat) -> None:
        # Given an entry that failed with a worker that died, and that has been taken often
        chat.create_group("g")
        first = journal(chat.system.client)
        [entry] = first.read()
        first.fail(entry, "")
        expire_lease(chat.system.client, first)
        second = journal(chat.system.client)
        for _ in range(10):
            assert second.read() == [entry]
            second.reread_open()

        # Then that counts as the one failure that it was
        assert not second.fail(entry, "again")
        [entry] = second.read()
        assert second.fail(entry, "and again")
        [letter] = dead_letters.list_dead(chat.system.client)
        assert letter.deliveries == 3

    @pytest.mark.parametrize("ends", ["done", "dead"])
    def test_no_failures_are_left_of_done_entries(self, chat: Chat, ends: str) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann"])
        worker = journal(chat.system.client)
        entries = worker.read()
        for entry in entries:
            worker.fail(entry, "")
        failures = chat.system.client.space.failures(entries[0].partition)
        assert chat.system.client.driver.hlen(failures) == len(entries) == 2
        if ends == "done":
            worker.done(worker.read())
        else:
            for _ in range(2):
                for entry in worker.read():
                    worker.fail(entry, "")
        assert not chat.system.client.driver.exists(failures)

    def test_no_failures_are_left_of_entries_acked_by_hand(self, chat: Chat) -> None:
        chat.create_group("g")
        chat.add_members("g", ["ann"])
        worker = journal(chat.system.client)
        put_away, failed = worker.read()
        for entry in (put_away, failed):
            worker.fail(entry, "")
        space, partition = chat.system.client.space, failed.partition
        chat.system.client.driver.xack(space.journal(partition), KIND, put_away.id)
        chat.system.client.call(journal_calls.trim_journal(space, partition, [KIND]))
        assert chat.system.client.driver.hkeys(space.failures(partition)) == [f"{KIND}\x1f{failed.id}".encode()]

    def test_failed_entry_waits_longer_each_time_and_later_entries_do_not(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given an entry that failed
        clock = Clock(monkeypatch)
        chat.create_group("bad")
        worker = journal(chat.system.client, retry_ms=200, lease_ms=10**9)
        [bad] = worker.read()
        worker.fail(bad, "")

        # Then others come meanwhile, and it comes after 0.2 s, and then after 0.4 s
        chat.create_group("good")
        [good] = worker.read()
        assert good.event == Created("good")
        worker.done([good])
        for wait_s in (0.2, 0.4):
            clock.now += wait_s - 0.01
            assert worker.read() == []
            assert not worker.drained()
            worker.reread_open()  # as after an error
            assert worker.read() == []
            clock.now += 0.02
            assert worker.read() == [bad]
            outcome = worker.fail(bad, "")
        assert outcome
        assert worker.drained()

    def test_process_with_a_new_name_leaves_its_failed_entries_to_others(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a worker with an entry that waits, whose name has gone to another one
        clock = Clock(monkeypatch)
        chat.create_group("g")
        silent = journal(chat.system.client, retry_ms=200, lease_ms=1000)
        [entry] = silent.read()
        silent.fail(entry, "")
        expire_lease(chat.system.client, silent)
        other = journal(chat.system.client)
        assert other.read() == [entry]

        # When it comes back
        clock.now += 10
        assert silent.read() == []

        # Then the other one alone has the entry
        assert silent.lease.name != other.lease.name
        other.done([entry])
        assert silent.read() == []


class Clock:
    """The time that journals go by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("imcore.streams.journal.time.monotonic", lambda: self.now)


def test_done_entry_that_is_open_again_is_read_again(chat: Chat, redis_client: RedisClient) -> None:
    # Given a worker that has done an entry
    chat.create_group("g", ["ann"])
    worker = journal(redis_client)
    entries = worker.read()
    worker.done(entries)
    assert worker.read() == []
    # When Redis loses that, and the worker does not notice: its connection was only made anew
    client: Any = redis_client.driver
    for entry in entries:
        journal_key = redis_client.space.journal(entry.partition)
        client.xclaim(journal_key, KIND, worker.lease.name, 0, [entry.id], force=True)
    # Then
    assert worker.read() == entries
    worker.done(entries)
    assert worker.read() == []
