"""How long calls hold the server, by its SLOWLOG: the work of one step is bounded, however large the data.

The limits are generous, and the least of some tries counts, as the machine may be busy. Without a bound each of these
would take several times as long.
"""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from imcore import msgid as msgids
from imcore.admin import retention
from imcore.chat import Chat
from imcore.model.values import Draft, Message
from imcore.repair import check, window
from imcore.settings import Settings
from imcore.streams.calls import journal_calls, message_calls, receipt_calls
from imcore.streams.keys import SEPARATOR
from tests.helpers.servers import require_server, start_valkey
from tests.helpers.workers import run_bursts

MOST_MS = 10
MANY = 100_000


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    require_server()
    server = start_valkey(tmp_path / "server", appendonly=False)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path), partitions="1")
    try:
        with Chat.connect(settings=settings) as chat:
            chat.system.database.upgrade()
            chat.create_group("team", ["ann", "bob"])
            yield chat
    finally:
        server.stop()


@pytest.fixture
def server(chat: Chat) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(chat.system.settings.redis_url) as client:
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 10_000)
        yield client


def longest_ms(server: "redis.Redis", function: str, call: Callable[[], object]) -> float:
    """Return the longest of the calls of this function that `call` makes."""
    server.slowlog_reset()
    call()
    durations = [each["duration"] / 1000 for each in server.slowlog_get(10_000) if function.encode() in each["command"]]
    return max(durations)


def least_ms(server: "redis.Redis", function: str, call: Callable[[], object]) -> float:
    """Return the least of some tries."""
    return min(longest_ms(server, function, call) for _ in range(5))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_calls_for_one_of_many_sessions_of_a_user(chat: Chat, server: "redis.Redis") -> None:
    space = chat.system.client.space
    one, other = chat.begin_session("guest"), chat.begin_session("guest")
    server.zadd(space.sessions("guest"), {f"{number:032x}": now_ms() + 60_000 for number in range(MANY)})
    assert least_ms(server, "im_heartbeat", lambda: chat.heartbeat("guest", one)) < MOST_MS
    assert least_ms(server, "im_end_session", lambda: chat.end_session("guest", other)) < MOST_MS


def commands_of(server: "redis.Redis", call: Callable[[], object]) -> int:
    """Return how many commands the server runs meanwhile, those within functions included."""
    server.config_resetstat()
    call()
    return sum(each["calls"] for each in server.info("commandstats").values())


def unread(chat: Chat) -> list[int]:
    return [each.unread for each in chat.unread("ann")]


def test_an_ack_past_many_own_messages_makes_the_next_send_no_longer(chat: Chat, server: "redis.Redis") -> None:
    # Given somebody who has sent many messages without an ack, and then acks all but the last
    chat.send("team", "for ann", sender_uid="bob")
    sent = [each for each in chat.send_many("team", [Draft("ann", "x")] * 5000) if isinstance(each, Message)]
    chat.ack("ann", "team", sent[-2].msgid)
    before = unread(chat)
    # When they send the next one
    took = commands_of(server, lambda: chat.send("team", "one more", sender_uid="ann"))
    # Then it is one of few steps, and nothing counts but those past the offset
    assert took < 50
    assert unread(chat) == before
    assert server.llen(chat.system.client.space.group("team").own_unacked("ann")) == 2


def test_more_own_messages_than_go_at_once(chat: Chat, server: "redis.Redis") -> None:
    # Given a list of own messages: the offset has passed more of them than one call removes
    chat.send("team", "for ann", sender_uid="bob")
    last = chat.send("team", "x", sender_uid="ann")
    chat.send("team", "for ann", sender_uid="bob")
    chat.send("team", "x", sender_uid="ann")
    chat.ack("ann", "team", last.msgid)
    own = chat.system.client.space.group("team").own_unacked("ann")
    for _ in range(5):
        server.lpush(own, *([1] * 50_000))
    # When they send, then the rest goes with the message after that, and counts are right all the time
    for left in (50_003, 3):
        assert unread(chat) == [1]
        chat.send("team", "y", sender_uid="ann")
        assert server.llen(own) == left
    assert unread(chat) == [1]


LARGE = 60_000


def test_a_page_of_large_texts_is_a_small_one(chat: Chat) -> None:
    # Given messages so large that a page limited by their number alone would have many megabytes
    sent = chat.send_many("team", [Draft("ann", "x" * LARGE)] * 50)
    # When a page is asked for, and those after it
    page_sizes, first = [], "-"
    while True:
        page, more = chat.system.client.call(message_calls.entries(chat.system.client.space, "team", first, "+", 500))
        page_sizes.append(len(page))
        first = f"({page[-1][0].decode()}"
        if not more:
            break
    # Then no page has much more than a megabyte, and together they have all
    assert max(page_sizes) <= (1 << 20) / LARGE + 1
    assert sum(page_sizes) == len(sent)
    # And so it is with a journal
    space = chat.system.client.space
    for _ in range(50):
        chat.system.client.execute_once("XADD", space.journal(0), "*", "kind", "x" * LARGE)
    page, more = chat.system.client.call(journal_calls.entries(space, 0, "-", 500))
    assert (len(page) < 30, more) == (True, True)
    assert len(list(window.entries(chat.system.client, 0, "-"))) == chat.system.client.query("XLEN", space.journal(0))


def test_tallies_that_changed_are_looked_for_in_small_pages(chat: Chat) -> None:
    sent = chat.send_many("team", [Draft("ann", "x" * LARGE)] * 50)
    ids = [msgids.pack(each.msgid) for each in sent if isinstance(each, Message)]
    segment, changed, pages = receipt_calls.Segment(0, ids[-1], "bob"), list[int](), 0
    while True:
        page = chat.system.client.call(receipt_calls.changes(chat.system.client.space, "team", [segment], 1000))
        changed += [change.msgid for change in page.found]
        pages += 1
        if page.next_after is None:
            break
        segment = segment._replace(after=page.next_after)
    assert changed == ids
    assert pages >= 3


@pytest.mark.parametrize(("size", "most"), [(10, 2000), (LARGE, 20)])
def test_a_trim_goes_in_steps(chat: Chat, monkeypatch: pytest.MonkeyPatch, size: int, most: int) -> None:
    # Given messages that SQL has
    chat.send_many("team", [Draft("ann", "x" * size)] * (2 * most + 1))
    run_bursts(chat.system.settings, "persist", "receipts")
    # When they are trimmed
    steps, trim_up_to = [], retention._trim_up_to
    monkeypatch.setattr(retention, "_trim_up_to", lambda *args: steps.append(trim_up_to(*args)) or steps[-1])
    assert retention.trim(chat.system, keep_messages=0).entries == 2 * most + 1
    # Then
    assert max(steps) <= most
    assert list(check.check(chat.system)) == []


def test_leftover_failures_are_removed_some_at_a_time(chat: Chat, server: "redis.Redis") -> None:
    # Given failures of entries that are done, and of some that are not
    space = chat.system.client.space
    for kind in retention.READS:
        chat.system.client.call(journal_calls.create_group(space, 0, kind))
        server.xgroup_setid(space.journal(0), kind, "$")
    gone = {f"persist{SEPARATOR}{number}-0": 1 for number in range(1, 2501)}
    kept = {f"persist{SEPARATOR}{now_ms() + 1_000_000 + number}-0": 1 for number in range(10)}
    server.hset(space.failures(0), mapping=gone | kept)
    # When the journal is trimmed again and again
    left = [len(gone)]
    while left[-1]:
        chat.system.client.call(journal_calls.trim_journal(space, 0, retention.READS))
        left.append(server.hlen(space.failures(0)) - len(kept))
    # Then
    assert max(before - after for before, after in pairwise(left)) <= 1000
    assert set(server.hkeys(space.failures(0))) == {name.encode() for name in kept}


def test_online_asks_for_many_users_in_parts(chat: Chat, server: "redis.Redis") -> None:
    uids = [f"u{number}" for number in range(1201)]
    server.zadd(chat.system.client.space.online(0), dict.fromkeys(uids[::2], now_ms() + 60_000))
    chat.online(uids[:1])
    server.config_resetstat()
    assert chat.online(uids) == set(uids[::2])
    assert server.info("commandstats")["cmdstat_fcall_ro"]["calls"] == 3
