"""Very many sockets at one process: what each costs, whether all stay online, and that a lost Redis is overcome.

A short form runs with the other tests. The long form, which needs `ulimit -n` above the number:

    IM_SOCKETS=10000 pytest -s tests/acceptance/web/test_many_sockets.py
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from imcore import Chat
from imcore.settings import Settings
from tests.helpers.deadline import wait_until
from tests.helpers.processes import PythonProcess
from tests.helpers.servers import RunningServer, require_server, start_valkey
from tests.helpers.web_server import WebServer

SOCKETS = int(os.environ.get("IM_SOCKETS", "400"))
IS_LONG = SOCKETS > 400
PER_PROCESS, PER_GROUP, WARMING_UP = 2500, 100, 100
MOST_BYTES = 60 * 1024
"""Of memory for each socket."""
BACK_S = 30.0 if IS_LONG else 60.0
"""Until a message reaches all after Redis was restarted. The short form runs beside other tests."""
LONG_S = 600.0
HEARTBEAT_MS, ONLINE_MS = (20_000, 60_000) if IS_LONG else (5_000, 15_000)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Clients:
    """Processes full of sockets."""

    def __init__(self, things: ExitStack, folder: Path, port: int) -> None:
        self._things, self._folder, self._port = things, folder, port
        self._processes: list[PythonProcess] = []
        self.number = 0

    def open(self, number: int) -> None:
        """Open so many more, and wait until they are connected."""
        while number > 0:
            part = min(number, PER_PROCESS)
            source = f"127.0.0.{2 + len(self._processes)}"
            arguments = (str(self.number), str(part), source)
            process = PythonProcess(self._folder, "tests.helpers.many_sockets", str(self._port), *arguments)
            self._processes.append(self._things.enter_context(process))
            self.number, number = self.number + part, number - part
        wait_until(lambda: self.counts("connected") >= self.number, timeout_s=LONG_S)

    def counts(self, what: str) -> int:
        return sum(self._last(process)[what] for process in self._processes)

    @staticmethod
    def _last(process: PythonProcess) -> dict[str, int]:
        assert process.runs, process.log
        lines = [line for line in process.log.splitlines(keepends=True) if line.startswith('{"connected"')]
        whole = [line for line in lines if line.endswith("\n")]
        last: dict[str, int] = json.loads(whole[-1]) if whole else dict.fromkeys(("connected", "closed", "messages"), 0)
        return last


def memory_of(pid: int) -> int:
    """The bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RunningServer]:
    require_server()
    server = start_valkey(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def settings(redis: RunningServer, tmp_path: Path) -> Settings:
    return Settings.from_env({}, redis_url=redis.url, data_dir=str(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_very_many_sockets_are_light_stay_online_and_outlive_redis(
    redis: RunningServer, settings: Settings, tmp_path: Path, valkey_again: "list[RunningServer]"
) -> None:
    uids = [f"u{number}" for number in range(SOCKETS)]
    limits = {"web_max_sockets": SOCKETS + 10, "heartbeat_ms": HEARTBEAT_MS, "online_ms": ONLINE_MS}
    with ExitStack() as things:
        # Given groups in which each user is once
        chat = things.enter_context(Chat.connect(settings=settings))
        chat.system.client.upgrade()
        gids = [f"team{number}" for number in range(0, SOCKETS, PER_GROUP)]
        for number, gid in enumerate(gids):
            chat.create_group(gid, uids[number * PER_GROUP : (number + 1) * PER_GROUP])
        web = things.enter_context(WebServer(tmp_path / "web", redis.url, **limits))
        clients = Clients(things, tmp_path / "clients", web.port)
        # When they all connect, those that warm the server up first
        clients.open(WARMING_UP)
        before = memory_of(web.pid)
        began = time.monotonic()
        clients.open(SOCKETS - WARMING_UP)
        opened_s = time.monotonic() - began
        each = (memory_of(web.pid) - before) / (SOCKETS - WARMING_UP)
        print(f"\n{SOCKETS} sockets: {each / 1024:.1f} KiB each, {SOCKETS / opened_s:.0f} opened a second")
        # Then each costs little
        assert each <= MOST_BYTES
        # And all stay online for longer than a session that sends no heartbeat
        stay_online(chat, uids)
        # And a message to each group reaches each socket
        expected = count(SOCKETS, SOCKETS)
        send_to_all(chat, gids, clients, next(expected))
        # When Redis is restarted
        redis.stop()
        valkey_again.append(start_valkey(tmp_path / "redis"))
        began = time.monotonic()
        # Then a message to each group soon reaches all again, on the sockets that they had
        send_to_all(chat, gids, clients, next(expected), timeout_s=BACK_S)
        print(f"a message reached all {time.monotonic() - began:.1f} s after the restart of Redis")
        stay_online(chat, uids)
        assert clients.counts("closed") == 0


def stay_online(chat: Chat, uids: list[str]) -> None:
    """Check for longer than a session lives without a heartbeat that all are online."""
    until = time.monotonic() + 1.5 * ONLINE_MS / 1000
    while time.monotonic() < until:
        assert len(chat.online(uids)) == len(uids)
        time.sleep(0.5)


def send_to_all(chat: Chat, gids: list[str], clients: Clients, expected: int, timeout_s: float = LONG_S) -> None:
    """Send a message to each group, and wait until all sockets together were told so many."""
    for number, gid in enumerate(gids):
        chat.send(gid, "hello", sender_uid=f"u{number * PER_GROUP}")
    wait_until(lambda: clients.counts("messages") == expected, timeout_s=timeout_s)


@pytest.fixture
def valkey_again() -> Iterator[list[RunningServer]]:
    """Servers that a test started, which end with it."""
    servers: list[RunningServer] = []
    yield servers
    for server in servers:
        server.stop()
