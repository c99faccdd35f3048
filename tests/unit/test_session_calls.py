"""Live sessions in Redis: the cost and the answers of heartbeats and ends, however many sessions a user has."""

import time
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat
from imcore.errors import SessionExpired
from imcore.settings import Settings
from imcore.streams.calls import session_calls
from imcore.streams.keys import Keyspace

SPACE = Keyspace(1)
KEY = SPACE.sessions("ann")
LENGTH_MS = 20_000
DAY_MS = 24 * 60 * 60 * 1000
AT_ONCE = 1000
"""So many ends one call looks at (`lua/base.lua`)."""


@pytest.fixture
def partitions() -> int:
    return 1


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, online_ms=LENGTH_MS)


def raw(chat: Chat) -> Any:
    return chat.system.client.driver


def beat(chat: Chat, session: str, length_ms: int = LENGTH_MS, *, opens: bool = True) -> int:
    return chat.system.client.call(session_calls.heartbeat(SPACE, "ann", session, length_ms, opens=opens))


def bye(chat: Chat, session: str) -> int:
    return chat.system.client.call(session_calls.end_session(SPACE, "ann", session))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def online_end(chat: Chat) -> float:
    return float(raw(chat).zscore(SPACE.online(0), "ann") or 0)


class TestSessionsOfSeveralLengths:
    LENGTHS = (LENGTH_MS, 3 * LENGTH_MS, 2 * LENGTH_MS, LENGTH_MS)

    def test_the_user_is_online_until_the_last_of_them_ends(self, chat: Chat) -> None:
        ends = {str(number): beat(chat, str(number), length) for number, length in enumerate(self.LENGTHS)}
        for session in ("1", "0", "2", "3"):
            assert online_end(chat) == max(ends.values())
            del ends[session]
            assert bye(chat, session) == len(ends)
        assert chat.online(["ann"]) == set()
        assert raw(chat).keys("*sessions*") == []

    def test_each_session_is_cut_back_to_its_own_length(self, chat: Chat) -> None:
        # Given sessions whose ends were set while the clock was a day ahead
        before = now_ms()
        for number, length in enumerate(self.LENGTHS):
            beat(chat, str(number), length)
            raw(chat).zincrby(KEY, DAY_MS, str(number))
        # When another one begins
        beat(chat, "new")
        # Then
        for number, length in enumerate(self.LENGTHS):
            end = float(raw(chat).zscore(KEY, str(number))) % 2**42
            assert before + length <= end <= now_ms() + length
        assert before + max(self.LENGTHS) <= online_end(chat) <= now_ms() + max(self.LENGTHS)

    def test_an_ended_session_stays_ended_whatever_the_others_last(self, chat: Chat) -> None:
        beat(chat, "long", 3 * LENGTH_MS)
        beat(chat, "short")
        raw(chat).zincrby(KEY, -2 * LENGTH_MS, "short")
        with pytest.raises(SessionExpired):
            beat(chat, "short", opens=False)
        assert bye(chat, "long") == 0
        assert raw(chat).keys("*sessions*") == []

    def test_a_session_whose_length_changes_has_the_new_length(self, chat: Chat) -> None:
        beat(chat, "one", 3 * LENGTH_MS)
        end = beat(chat, "one", opens=False)
        assert (online_end(chat), float(raw(chat).zscore(KEY, "one")) % 2**42) == (end, end)
        assert bye(chat, "one") == 0


def test_more_ended_sessions_than_one_call_removes_are_removed_in_turn(chat: Chat) -> None:
    # Given more sessions than one call looks at, that have ended, and more whose ends a clock has put off
    beat(chat, "first")
    many = 2 * AT_ONCE + 500
    raw(chat).zadd(KEY, {f"ended{number}": now_ms() - 1 for number in range(many)})
    raw(chat).zadd(KEY, {f"ahead{number}": now_ms() + DAY_MS for number in range(many)})
    # When another one begins, the answers are right at once
    beat(chat, "second")
    assert online_end(chat) <= now_ms() + LENGTH_MS
    assert bye(chat, "second") == many + 1
    # Then the rest follows with the next calls
    for _ in range(3):
        beat(chat, "first", opens=False)
    assert raw(chat).zcard(KEY) == many + 2  # and their length
    assert raw(chat).zcount(KEY, now_ms() + LENGTH_MS + 1000, "+inf") == 0


def test_users_without_sessions_are_removed_some_at_a_time(chat: Chat) -> None:
    online, many = SPACE.online(0), 2 * AT_ONCE + 500
    raw(chat).zadd(online, {f"u{number}": now_ms() - 1 for number in range(many)})
    left = []
    for call in (
        session_calls.expire_online(SPACE, 0),
        session_calls.heartbeat(SPACE, "ann", "1", LENGTH_MS, opens=True),
    ):
        chat.system.client.call(call)
        left.append(raw(chat).zcard(online))
    assert left == [many - AT_ONCE, many - 2 * AT_ONCE + 1]
    # And nobody is shown for longer
    assert (
        chat.system.client.call(session_calls.expire_online(SPACE, 0))
        == chat.system.client.call(session_calls.count_online(SPACE, 0))
        == 1
    )
    assert chat.system.client.call(session_calls.online_uids(SPACE, 0, offset=0, count=10)) == ["ann"]
    assert raw(chat).zcard(online) == 1
