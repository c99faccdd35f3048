"""A server whose clock is a day ahead for a while, and then put right: what began meanwhile ends as if it began now.

The clock is libfaketime's, which a file tells what to show. See `tests.helpers.apt`.
"""

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore import Chat
from imcore.admin.stats import stats
from imcore.embedded.server import find_server
from imcore.errors import TryAgain
from imcore.model.values import Message
from imcore.repair import check, locks, watch
from imcore.settings import Settings
from imcore.streams.calls import creation_calls, journal_calls
from imcore.streams.journal import Journal
from imcore.util.backoff import ThrottledLog
from tests.helpers.apt import FAKETIME
from tests.helpers.deadline import wait_until
from tests.helpers.workers import start_worker

SHORT_MS = 1500
"""As long as leases and sessions are where a test may choose it."""


class Clock:
    """What the server's clock shows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._server: redis.Redis | None = None
        self.put_ahead(0)

    def put_ahead(self, days: int, *, hours: int = 0) -> None:
        """Let it show a time this many days and hours ahead, from now on."""
        ahead_s = days * 86_400 + hours * 3600
        self._file.write_text(f"{ahead_s:+d}")
        if server := self._server:  # which may look at the file a call later
            wait_until(lambda: abs(server.time()[0] - time.time() - ahead_s) < 600)

    def is_of(self, server: "redis.Redis") -> None:
        """Wait, from now on, until this server shows it."""
        self._server = server


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def redis_url(tmp_path: Path, clock: Clock) -> Iterator[str]:
    """The URL of a server with that clock, from its beginning."""
    socket = tmp_path / "redis.sock"
    faked = {
        "LD_PRELOAD": str(FAKETIME.needed),
        "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    options = ("--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--save", "", "--appendonly", "no")
    server = subprocess.Popen(
        [find_server(), *options], stdout=subprocess.DEVNULL, env={**os.environ, **faked, "LC_ALL": "C"}
    )
    try:
        with closing(redis.Redis(unix_socket_path=str(socket))) as client:
            wait_until(lambda: _answers(client))
            clock.is_of(client)
            yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait(30)


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, lease_ms=SHORT_MS, online_ms=SHORT_MS, heartbeat_ms=SHORT_MS // 3)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


@contextmanager
def nobody_else_writes(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_entries_of_a_worker_that_died_with_a_clock_ahead_are_stored(
    chat: Chat, settings: Settings, clock: Clock, tmp_path: Path
) -> None:
    # Given a worker that is killed with entries in hand, while the clock is a day ahead
    clock.put_ahead(1)
    chat.create_group("team", ["ann", "bob"])
    with start_worker(settings) as first:
        first.wait_for("working as persist-1")
        wait_until(lambda: [worker.backlog for worker in stats(chat.system).workers] == [0])
        with nobody_else_writes(tmp_path / "imcore.db"):
            chat.send("team", "one", sender_uid="ann")
            wait_until(lambda: sum(worker.pending for worker in stats(chat.system).workers))
            first.kill()
    # When the clock is put right
    clock.put_ahead(0)
    # Then it is reported
    [holder] = stats(chat.system).silent
    assert (holder.process, holder.entries, holder.silent_ms) == ("persist-1", 1, None)
    assert "persist-1 is silent" in " ".join(each.what for each in check.check(chat.system))
    # And the next worker takes over
    with start_worker(settings) as second:
        chat.send("team", "two", sender_uid="ann")
        wait_until(lambda: {row.content for row in chat.system.database.messages_after("team", 0)} == {"one", "two"})
        wait_until(lambda: list(check.check(chat.system)) == [])
        assert second.end() == 0


def test_locks_and_sessions_begun_with_a_clock_ahead_end_as_if_begun_now(chat: Chat, clock: Clock) -> None:
    # Given what processes have begun, and died over, while the clock was a day ahead
    redis_client, space = chat.system.client, chat.system.client.space
    clock.put_ahead(1)
    chat.create_group("team", ["ann", "bob"])
    chat.begin_session("ann")
    assert redis_client.call(journal_calls.lease("persist", 1, "dead", SHORT_MS))
    locks.take(chat.system, ["team"])
    locks.PartitionLock(chat.system, 0).__enter__()
    partition = space.partition_of("new")
    assert redis_client.call(creation_calls.begin(space, "new", "dead")) is None

    def is_free() -> dict[str, bool]:
        return {
            "lease": not redis_client.call(journal_calls.is_held("persist", 1)),
            "group lock": _can(lambda: locks.take(chat.system, ["team"])),
            "partition lock": _can(lambda: locks.PartitionLock(chat.system, 0).__enter__()),
            "creation": redis_client.call(creation_calls.abandoned(space, partition)) == ["new"],
            "session": chat.online(["ann"]) == set(),
        }

    # When the clock is put right, and workers look at it
    clock.put_ahead(0)
    watch.end_abandoned(redis_client, ThrottledLog(time.monotonic))
    # Then nothing of it has ended at once
    assert not redis_client.call(journal_calls.lease("persist", 1, "other", SHORT_MS))
    assert chat.online(["ann"]) == {"ann"}
    assert redis_client.call(creation_calls.abandoned(space, partition)) == []
    # And all of it ends soon
    ended: set[str] = set()

    def all_ended() -> bool:
        free = is_free()
        ended.update(name for name, is_over in free.items() if is_over)
        return ended == free.keys()

    wait_until(all_ended, timeout_s=60)


def _can(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except TryAgain:
        return False
    return True


@pytest.mark.parametrize("days", [1, 30])
def test_client_msgids_are_known_before_during_and_after_a_wrong_clock(chat: Chat, clock: Clock, days: int) -> None:
    # Given messages that are sent before the clock goes wrong, meanwhile and after
    chat.create_group("team", ["ann", "bob"])
    sent = []
    for number, ahead in enumerate((0, days, 0)):
        clock.put_ahead(ahead)
        sent.append(chat.send("team", f"message {number}", sender_uid="ann", client_msgid=str(number)))
    # When all are sent again
    again = [chat.send("team", "again", sender_uid="ann", client_msgid=str(number)) for number in range(3)]
    # Then each is known
    assert again == sent


@pytest.mark.parametrize("wrong_at", [3, 25, 30])
def test_client_msgids_are_known_whenever_the_clock_goes_wrong(chat: Chat, clock: Clock, wrong_at: int) -> None:
    # Given one message an hour, and a clock that is once a day ahead for a moment
    chat.create_group("team", ["ann", "bob"])
    sent: list[Message] = []
    for hour in range(36):
        clock.put_ahead(0, hours=hour)
        sent.append(chat.send("team", "on time", sender_uid="ann", client_msgid=f"{hour}"))
        if hour == wrong_at:
            clock.put_ahead(1, hours=hour)
            chat.send("team", "ahead", sender_uid="ann", client_msgid="ahead")
            clock.put_ahead(0, hours=hour)
        # When all messages of the last day are sent again
        again = [
            chat.send("team", "again", sender_uid="ann", client_msgid=message.client_msgid) for message in sent[-24:]
        ]
        # Then each is known
        assert again == sent[-24:]


def test_live_sessions_outlive_a_clock_that_is_put_back(chat: Chat, clock: Clock) -> None:
    # Given a gateway with a session
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        session = gateway.open("bob")
        wait_until(lambda: gateway.poll(0.05) == [] and session.is_synced)
        for days in (1, 0):
            # When the clock jumps, forward and back
            clock.put_ahead(days)
            sent = chat.send("team", f"{days} days ahead", sender_uid="ann")
            # Then it gets the message, and is online after its next heartbeat
            events = wait_until(lambda: gateway.poll(0.05))
            assert [event.message.msgid for event in events] == [sent.msgid]
            wait_until(lambda: gateway.poll(0.05) == [] and chat.online(["bob"]))


def test_a_worker_whose_name_is_leased_for_days_uses_another(chat: Chat, settings: Settings, clock: Clock) -> None:
    clock.put_ahead(1)
    chat.create_group("team")
    assert chat.system.client.call(journal_calls.lease("persist", 1, "dead", SHORT_MS))
    clock.put_ahead(0)
    journal = Journal(chat.system.client, "persist", replace(settings, block_ms=0))
    assert len(journal.read()) == 1
    assert journal.lease.name == "persist-2"
    wait_until(lambda: not chat.system.client.call(journal_calls.is_held("persist", 1)), timeout_s=60)
