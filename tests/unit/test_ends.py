"""Ends that were set while the server's clock was ahead: the next look cuts them back to their length from now."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from imcore import Chat
from imcore.errors import UnknownGroup
from imcore.model.values import Draft
from imcore.operations import creation
from imcore.repair import watch
from imcore.settings import Settings
from imcore.streams import consumers, keys
from imcore.streams.calls import creation_calls, journal_calls, message_calls, repair_calls, session_calls
from imcore.streams.calls.journal_calls import CoalescingCounts
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.keys import SEPARATOR
from imcore.streams.rounds import Pause, Run, Send
from imcore.streams.transport import perform_step
from imcore.util.backoff import ThrottledLog
from tests.helpers.idempotency import put_back

DAY_MS = 24 * 60 * 60 * 1000
LENGTH_MS = 20_000
SLACK_MS = 5_000
"""A machine that stalls may take so long between two lines of a test."""


@pytest.fixture
def partitions() -> int:
    return 1


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, online_ms=LENGTH_MS)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def raw(chat: Chat) -> Any:
    return chat.system.client.driver


@dataclass(frozen=True)
class End:
    """One kind of end: how it begins, how it is put off by a day, who looks at it, and how to read it."""

    begin: Callable[[Chat], object]
    put_off: Callable[[Chat], object]
    look: Callable[[Chat], object]
    read: Callable[[Chat], float]
    length_ms: int = LENGTH_MS


def _lock(chat: Chat, token: str) -> GroupLock:
    return GroupLock(chat.system.client.space.group("team"), token)


def _put_off_field(key: str, field: str, at: int) -> Callable[[Chat], object]:
    """Add a day to the time at a place of a field's words."""

    def put_off(chat: Chat) -> object:
        words = raw(chat).hget(key, field).decode().split(" ")
        words[at] = str(int(words[at]) + DAY_MS)
        return raw(chat).hset(key, field, " ".join(words))

    return put_off


def _read_field(key: str, field: str, at: int) -> Callable[[Chat], float]:
    return lambda chat: float(raw(chat).hget(key, field).split(b" ")[at])


def end_of(chat: Chat, session: str) -> float:
    """The end of a session of ann, of either class."""
    return float(raw(chat).zscore(SPACE.sessions("ann"), session)) % 2**42


LEASE = keys.lease("persist", 1)
SPACE = keys.Keyspace(1)
TOKEN = "a" * 64

ENDS = {
    "lease, as another worker looks for a name": End(
        lambda chat: chat.system.client.call(journal_calls.lease("persist", 1, "dead", LENGTH_MS)),
        lambda chat: raw(chat).pexpire(LEASE, DAY_MS),
        lambda chat: chat.system.client.call(journal_calls.lease("persist", 1, "other", LENGTH_MS)),
        lambda chat: now_ms() + raw(chat).pttl(LEASE),
    ),
    "lease, as another worker looks for the dead": End(
        lambda chat: chat.system.client.call(journal_calls.lease("persist", 1, "dead", LENGTH_MS)),
        lambda chat: raw(chat).persist(LEASE),
        lambda chat: chat.system.client.call(journal_calls.is_held("persist", 1)),
        lambda chat: now_ms() + raw(chat).pttl(LEASE),
    ),
    "hold, as another one mends": End(
        lambda chat: chat.system.client.call(repair_calls.lock_partition(SPACE, 0, "dead", LENGTH_MS)),
        _put_off_field(SPACE.watermarks(0), SEPARATOR, 1),
        lambda chat: chat.system.client.call(repair_calls.lock_partition(SPACE, 0, "other", LENGTH_MS)),
        _read_field(SPACE.watermarks(0), SEPARATOR, 1),
    ),
    "lock of a group": End(
        lambda chat: chat.system.client.call(repair_calls.lock(_lock(chat, "dead"))),
        _put_off_field(SPACE.group_locks(0), "team", 1),
        lambda chat: chat.system.client.call(repair_calls.lock(_lock(chat, "other"))),
        _read_field(SPACE.group_locks(0), "team", 1),
        5_000,
    ),
    "creation of a group": End(
        lambda chat: chat.system.client.call(creation_calls.begin(SPACE, "new", TOKEN)),
        _put_off_field(SPACE.creating(0), "new", 1),
        lambda chat: chat.system.client.call(creation_calls.abandoned(SPACE, 0)),
        _read_field(SPACE.creating(0), "new", 1),
        10_000,
    ),
    "session, as its user opens another": End(
        lambda chat: chat.system.client.call(session_calls.heartbeat(SPACE, "ann", "dead", LENGTH_MS, opens=True)),
        lambda chat: raw(chat).zincrby(SPACE.sessions("ann"), DAY_MS, "dead"),
        lambda chat: chat.begin_session("ann"),
        lambda chat: end_of(chat, "dead"),
    ),
    "who is online, as anybody's session beats": End(
        lambda chat: chat.begin_session("ann"),
        lambda chat: raw(chat).zadd(SPACE.online(0), {"ann": now_ms() + DAY_MS}),
        lambda chat: chat.begin_session("bob"),
        lambda chat: float(raw(chat).zscore(SPACE.online(0), "ann")),
    ),
    "who is online, as nobody's does": End(
        lambda chat: chat.begin_session("ann"),
        lambda chat: raw(chat).zadd(SPACE.online(0), {"ann": now_ms() + DAY_MS}),
        lambda chat: watch.end_abandoned(chat.system.client, ThrottledLog(time.monotonic)),
        lambda chat: float(raw(chat).zscore(SPACE.online(0), "ann")),
    ),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_an_end_is_cut_back_to_its_length_and_not_dropped(chat: Chat, end: End) -> None:
    # Given an end that was set while the clock was a day ahead
    end.begin(chat)
    end.put_off(chat)
    # When somebody looks at it
    before = now_ms()
    end.look(chat)
    # Then it is as far ahead as it would be if it had been set now
    assert before + end.length_ms - SLACK_MS <= end.read(chat) <= now_ms() + end.length_ms
    # And looking at it once more does not put it off
    cut = end.read(chat)
    end.look(chat)
    assert end.read(chat) <= cut + SLACK_MS / 10


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_an_end_that_is_not_too_far_ahead_stays(chat: Chat, end: End) -> None:
    end.begin(chat)
    if raw(chat).exists(LEASE):
        raw(chat).pexpire(LEASE, end.length_ms)  # in the way of PERSIST in `put_off`
    before = end.read(chat)
    end.look(chat)
    assert abs(end.read(chat) - before) <= SLACK_MS / 10


def test_a_session_that_was_opened_for_longer_is_not_cut_back_by_one_that_was_not(chat: Chat) -> None:
    # Given sessions of two processes with settings of their own
    chat.system.client.call(
        session_calls.heartbeat(chat.system.client.space, "ann", "long", 10 * LENGTH_MS, opens=True)
    )
    long_end = end_of(chat, "long")
    # When the other one beats
    chat.system.client.call(session_calls.heartbeat(chat.system.client.space, "ann", "short", LENGTH_MS, opens=True))
    # Then each lives for as long as it was given
    assert end_of(chat, "long") == long_end
    assert float(raw(chat).zscore(SPACE.online(0), "ann")) == long_end


@pytest.mark.parametrize("days", [-3, -1, 1, 3])
def test_a_client_msgid_lives_for_as_long_as_is_promised_however_the_clock_goes(chat: Chat, days: int) -> None:
    """The clock goes wrong between two sends and right again before the third: it is as if its tables were put off."""
    # Given a message, and another by a clock that is days off
    first = chat.send("team", "one", sender_uid="ann", client_msgid="1")
    for shift in (days, -days):
        put_back(chat, "team", shift * DAY_MS)
        if shift == days:
            second = chat.send("team", "two", sender_uid="ann", client_msgid="2")
    # When both are sent again
    again = [chat.send("team", "again", sender_uid="ann", client_msgid=each) for each in ("1", "2")]
    # Then they are known
    assert again == [first, second]
    # And the newer table does not count from a time that is still to come
    said = raw(chat).hget(chat.system.client.space.group("team").idempotency_newer, SEPARATOR) or b"0"
    assert int(said.split()[0]) <= now_ms()


def test_a_longer_setting_extends_a_table_begun_with_a_shorter_one(chat: Chat) -> None:
    # Given a table that a process with a shorter setting has begun
    space = chat.system.client.space
    short = message_calls.send(space, "team", [Draft("ann", "short", "1")], 1_000)
    chat.system.client.call(short)
    # When one with a longer setting sends
    chat.system.client.call(message_calls.send(space, "team", [Draft("ann", "long", "2")], DAY_MS))
    # Then what is in the table counts for that long
    assert raw(chat).hget(space.group("team").idempotency_newer, SEPARATOR).split()[1] == str(DAY_MS).encode()


def test_acks_a_second_are_counted_again_after_the_clock_was_put_back(chat: Chat) -> None:
    # Given a second that was counted while the clock was ahead, in the place of the present second
    space, now_s = chat.system.client.space, int(time.time())
    for second in range(now_s - 5, now_s + 60):
        raw(chat).hset(space.coalescing(0), str(second % 64), f"{second + 64 * 1350} 7 7")
    # When acks are counted now
    chat.system.client.call(journal_calls.create_group(space, 0, "receipts"))
    [(entry, _), *_] = chat.system.client.call(
        journal_calls.read(space, 0, "receipts", "receipts-1", start=">", count=1)
    )
    [done] = journal_calls.done(space, 0, "receipts", [entry.decode()], CoalescingCounts(3, 3, 1, {now_s - 3: (1, 3)}))
    chat.system.client.call(done)
    # Then they are there
    assert chat.system.client.call(journal_calls.coalescing(space, 0, seconds=10))[3:] == (1, 3)


class TestSilentHolders:
    @pytest.fixture
    def in_hand(self, chat: Chat) -> None:
        """An entry in the hand of a worker that has died."""
        chat.system.client.call(journal_calls.create_group(SPACE, 0, "persist"))
        chat.system.client.call(journal_calls.read(SPACE, 0, "persist", "persist-1", start=">", count=10))

    def find(self, chat: Chat, lease_ms: int) -> list[tuple[str, int]]:
        holders = consumers.silent_holders(chat.system.client, replace(chat.system.settings, lease_ms=lease_ms))
        return [(holder.process, holder.entries) for holder in holders]

    @pytest.mark.usefixtures("in_hand")
    def test_finds_a_process_whose_lease_is_longer_than_any_it_can_have_taken(self, chat: Chat) -> None:
        chat.system.client.call(journal_calls.lease("persist", 1, "dead", LENGTH_MS))
        assert self.find(chat, LENGTH_MS) == []
        raw(chat).pexpire(LEASE, DAY_MS)
        assert self.find(chat, LENGTH_MS) == [("persist-1", 1)]
        assert not consumers.lives(chat.system.client, "persist", [1])

    @pytest.mark.usefixtures("in_hand")
    def test_finds_a_process_that_was_silent_for_two_leases(self, chat: Chat) -> None:
        assert self.find(chat, DAY_MS) == []
        raw(chat).xgroup_createconsumer(SPACE.journal(0), "persist", "persist-2")  # it holds nothing
        assert self.find(chat, 0) in ([("persist-1", 1)], [])  # the server counts whole milliseconds

    @pytest.mark.usefixtures("in_hand")
    def test_leaves_out_a_process_whose_lease_ends_during_the_look(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chat.system.client.call(journal_calls.lease("persist", 1, "dies now", LENGTH_MS))

        def perform(step: Send | Pause | Run) -> Any:
            """Let the lease end before its time is asked for."""
            if not isinstance(step, Send):
                return perform_step(step)
            [(server, commands)] = step.flights
            answers = []
            for command in commands:
                if command[0] == "PTTL":
                    raw(chat).delete(LEASE)
                [answered] = perform_step(Send([(server, [command])]))
                answers += answered
            return [answers]

        monkeypatch.setattr("imcore.streams.client.perform_step", perform)
        assert self.find(chat, LENGTH_MS) == []
        assert not raw(chat).exists(LEASE)


UIDS = [f"u{number}" for number in range(2 * creation.STEP + 7)]


class TestCreations:
    def half(self, chat: Chat, *, token: str | None = None) -> None:
        """Create a half of a group."""
        token = token or creation._token(UIDS)
        chat.system.client.call(creation_calls.begin(SPACE, "crowd", token))
        chat.system.client.call(creation_calls.add(SPACE, "crowd", token, UIDS[: creation.STEP]))

    def let_die(self, chat: Chat) -> None:
        for key in (SPACE.creating(0), SPACE.unnotified(0)):
            if said := raw(chat).hget(key, "crowd"):
                token, _, length = said.decode().split()
                raw(chat).hset(key, "crowd", f"{token} 0 {length}")

    def test_a_group_is_there_whole_or_not_at_all(self, chat: Chat) -> None:
        before = set(raw(chat).keys("*"))
        self.half(chat)
        assert [group.gid for group in chat.groups()] == ["team"]
        assert chat.groups_of("u0") == []
        assert (chat.unread("u0"), chat.pull("u0")) == ([], [])
        for ask in (chat.group, lambda gid: list(chat.members(gid)), chat.status):
            with pytest.raises(UnknownGroup):
                ask("crowd")
        # And nothing is left of one that is given up, but for an empty stream
        self.let_die(chat)
        watch.end_abandoned(chat.system.client, ThrottledLog(time.monotonic))
        assert set(raw(chat).keys("*")) - before == {SPACE.group("crowd").stream.encode()}

    def test_a_repeated_creation_is_completed(self, chat: Chat) -> None:
        self.half(chat)
        group = chat.create_group("crowd", UIDS)
        assert (group.members, chat.group("crowd").members) == (len(UIDS), len(UIDS))
        assert [member.uid for member in chat.members("crowd")] == sorted(UIDS)
        assert chat.groups_of("u0") == ["crowd"]
        assert not raw(chat).exists(SPACE.creating(0), SPACE.unnotified(0))

    @pytest.mark.parametrize("uids", [["zoe"], [f"v{number}" for number in range(creation.STEP + 1)]])
    def test_another_creation_does_not_mix_with_one_that_was_given_up(self, chat: Chat, uids: list[str]) -> None:
        self.half(chat)
        self.let_die(chat)
        assert chat.create_group("crowd", uids).members == len(uids)
        assert [member.uid for member in chat.members("crowd")] == sorted(uids)
        assert chat.groups_of("u0") == []

    def test_members_of_a_creation_that_died_before_notifying_them_are_notified(self, chat: Chat) -> None:
        # Given a creation whose process dies once the group is there
        token = creation._token(UIDS)
        chat.system.client.call(creation_calls.begin(SPACE, "crowd", token))
        for start in range(0, len(UIDS), creation.STEP):
            chat.system.client.call(creation_calls.add(SPACE, "crowd", token, UIDS[start : start + creation.STEP]))
        chat.system.client.call(creation_calls.end(SPACE, "crowd", token, len(UIDS)))
        assert chat.system.client.call(creation_calls.unnotified(SPACE, 0)) == []
        self.let_die(chat)
        # When a worker sees to it, or somebody repeats it
        assert chat.system.client.call(creation_calls.unnotified(SPACE, 0)) == ["crowd"]
        watch.end_abandoned(chat.system.client, ThrottledLog(time.monotonic))
        # Then nobody has to be told any more
        assert not raw(chat).exists(SPACE.unnotified(0))

    def test_a_process_that_stalled_does_not_continue_its_creation(self, chat: Chat) -> None:
        self.half(chat)
        self.let_die(chat)
        watch.end_abandoned(chat.system.client, ThrottledLog(time.monotonic))
        token = creation._token(UIDS)
        assert chat.system.client.call(creation_calls.add(SPACE, "crowd", token, UIDS[-1:])) is creation_calls.LOST
        assert chat.system.client.call(creation_calls.end(SPACE, "crowd", token, 1)) is creation_calls.LOST
