"""`im up`, `im worker` and `im demo` as processes: they work, end in order, and leave nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from imcore.settings import socket_path, socket_url
from tests.helpers.commands import Im
from tests.helpers.deadline import wait_until
from tests.helpers.servers import require_server

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


class Stack(Im):
    """`im` on a data directory of its own, with the server that `im up` brings."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        super().__init__(data_dir=data_dir)

    @contextmanager
    def running(self, *args: str) -> Iterator["subprocess.Popen[str]"]:
        """A process of `im`, which is killed at the end if it still runs."""
        with subprocess.Popen(
            [sys.executable, "-m", "imcore.cli.main", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run_once_reached(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """The same, as soon as the server can be reached."""
        return wait_until(lambda: None if "no answer" in (done := self.run(*args)).stderr else done)

    def is_stored(self) -> bool:
        """Whether the worker `persist` has stored everything."""
        stats = self.run("stats", "--json")
        assert (stats.returncode, stats.stderr) == (0, "")
        workers = json.loads(stats.stdout)["workers"]
        return any(worker["worker"] == "persist" and worker["backlog"] == 0 for worker in workers)

    def is_working(self) -> bool:
        """Whether all workers have begun."""
        with redis.Redis.from_url(socket_url(socket_path(self.data_dir))) as client, suppress(redis.ConnectionError):
            return len(client.keys("im:lease:*")) == 3
        return False

    def processes(self) -> dict[int, str]:
        """The processes that belong to this data directory, with their command lines."""
        commands = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.data_dir) in environment + command and command:
                commands[int(folder.name)] = command.replace(b"\0", b" ").decode()
        return commands

    def pid_of(self, worker: str) -> int:
        """The process of a worker, once it is there."""
        return wait_until(
            lambda: [pid for pid, line in self.processes().items() if f"-m imcore.workers {worker}" in line]
        )[0]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    require_server()
    stack = Stack(tmp_path)
    yield stack
    try:
        wait_until(lambda: not stack.processes())
    finally:
        for pid in stack.processes():
            os.kill(pid, signal.SIGKILL)


def read_lines(process: "subprocess.Popen[str]", count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_up_serves_until_a_signal_and_ends_with_0(stack: Stack, number: signal.Signals) -> None:
    with stack.running("up") as up:
        said = read_lines(up, 3)
        assert stack.run("group", "create", "team", "ann", "bob").returncode == 0
        assert stack.run("send", "team", "hi", "--from", "ann").returncode == 0
        wait_until(stack.is_stored, timeout_s=30)
        assert stack.run("check").returncode == 0

        up.send_signal(number)
        _, err = up.communicate(timeout=30)

    assert (up.returncode, err) == (0, "")
    assert f"Redis at unix://{stack.data_dir}/redis.sock (embedded)" in said[0]
    assert f"SQL at sqlite:///{stack.data_dir}/imcore.db" in said[1]
    wait_until(lambda: not stack.processes())


def test_up_as_json_has_nothing_else_on_stdout(stack: Stack) -> None:
    with stack.running("up", "--json") as up:
        started = json.loads(read_lines(up, 1)[0])
        wait_until(stack.is_stored, timeout_s=30)
        up.terminate()
        out, err = up.communicate(timeout=30)

    assert up.returncode == 0
    assert started == {
        "event": "started",
        "redis": f"unix://{stack.data_dir}/redis.sock",
        "database": f"sqlite:///{stack.data_dir}/imcore.db",
        "workers": ["persist", "receipts", "jobs"],
    }
    assert [json.loads(line) for line in out.splitlines()] == [{"event": "stopped"}]
    assert "im: starting the workers persist" in err
    assert re.search(r"^persist  \| .* working as persist-1$", err, re.MULTILINE)


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 5])
def test_a_signal_while_up_is_starting_leaves_nothing_behind(stack: Stack, lines: int) -> None:
    with stack.running("up") as up:
        read_lines(up, lines)
        up.send_signal(signal.SIGINT)
        up.send_signal(signal.SIGTERM)
        _, err = up.communicate(timeout=30)

    assert up.returncode == 0 or lines == 0
    assert "Traceback" not in err or lines == 0
    wait_until(lambda: not stack.processes())


@pytest.mark.parametrize("worker", ["persist", "receipts", "jobs"])
def test_up_ends_with_1_and_says_which_worker_has_ended(stack: Stack, worker: str) -> None:
    with stack.running("up") as up:
        os.kill(stack.pid_of(worker), signal.SIGKILL)
        _, err = up.communicate(timeout=30)

    assert up.returncode == 1
    assert err == f"im: the process {worker} ended by itself (exit code -9): see its last lines above\n"
    wait_until(lambda: not stack.processes())


def test_up_ends_with_1_when_its_server_has_ended(stack: Stack) -> None:
    with stack.running("up") as up:
        read_lines(up, 3)
        [server] = [pid for pid, line in stack.processes().items() if re.match(r"\S+/(valkey|redis)-server ", line)]
        os.kill(server, signal.SIGKILL)
        _, err = up.communicate(timeout=30)

    assert up.returncode == 1
    assert "the embedded server ended by itself" in err
    wait_until(lambda: not stack.processes())


@pytest.mark.parametrize("lost", ["socket", "folder"])
def test_up_can_be_reached_again_when_its_socket_was_removed(tmp_path: Path, lost: str) -> None:
    # Given `im up` with its socket in a folder of /tmp
    require_server()
    stack = Stack(tmp_path / ("long" * 30))
    socket = socket_path(stack.data_dir)
    with stack.running("up") as up:
        assert stack.run_once_reached("group", "create", "team", "ann", "bob").returncode == 0
        wait_until(stack.is_working, timeout_s=30)
        assert stack.run("send", "team", "before", "--from", "ann").returncode == 0
        # When a cleaner removes it
        if lost == "folder":
            shutil.rmtree(socket.parent)
        else:
            socket.unlink()
        # Then a message can be sent in some seconds, the workers store it, and it is said in one line
        assert stack.run_once_reached("send", "team", "after", "--from", "ann").returncode == 0
        wait_until(stack.is_stored, timeout_s=30)
        assert stack.run("check").returncode == 0
        pulled = stack.run("pull", "bob").stdout
        up.terminate()
        out, err = up.communicate(timeout=30)
    assert "before" in pulled
    assert "after" in pulled
    assert (up.returncode, err) == (0, "")
    assert len(re.findall(r"^im: the socket .* of the embedded server was gone: .*made", out, re.MULTILINE)) == 1
    assert not socket.parent.exists()


def test_up_ends_with_1_when_something_else_has_the_place_of_its_socket(stack: Stack) -> None:
    with stack.running("up") as up:
        read_lines(up, 3)
        socket = socket_path(stack.data_dir)
        socket.unlink()
        socket.write_text("mine")
        _, err = up.communicate(timeout=30)

    assert up.returncode == 1
    assert err == f"im: the embedded server cannot be reached any more: {socket} is not a socket: move it away\n"
    assert socket.read_text() == "mine"
    wait_until(lambda: not stack.processes())


def test_nothing_is_left_when_up_is_killed(stack: Stack) -> None:
    with stack.running("up") as up:
        stack.pid_of("persist")
        up.kill()

    wait_until(lambda: not stack.processes(), timeout_s=30)


def test_a_second_up_on_the_same_data_is_refused(stack: Stack) -> None:
    with stack.running("up") as up:
        read_lines(up, 3)
        second = stack.run("up")
        up.terminate()
        up.communicate(timeout=30)

    assert (second.returncode, second.stdout) == (1, "")
    assert re.fullmatch(r"im: the data directory .* is in use .*\n", second.stderr)
    assert up.returncode == 0


def test_a_path_with_a_space_and_more_is_a_path_like_others(tmp_path: Path) -> None:
    # Given a data directory with a space, as macOS has it by default, and worse, and the socket in it
    require_server()
    stack = Stack(tmp_path / "a=b c")
    assert socket_path(stack.data_dir).parent == stack.data_dir

    # When everything runs on it
    with stack.running("up") as up:
        wait_until(stack.is_working, timeout_s=30)
        up.terminate()
        said, err = up.communicate(timeout=30)

    # Then it runs until it is ended
    assert (up.returncode, err) == (0, "")
    assert "Traceback" not in said
    wait_until(lambda: not stack.processes())


def test_up_warns_once_of_settings_of_a_given_server(stack: Stack, valkey: str) -> None:
    # Given a server that keeps nothing on its disk
    with stack.running("up", "--redis-url", valkey) as up:
        assert up.stdout
        said = []
        for line in up.stdout:
            said.append(line)
            if "jobs: started" in line:
                break
        # When it has begun, and ends
        up.send_signal(signal.SIGTERM)
        out, err = up.communicate(timeout=30)
    # Then
    assert up.returncode == 0
    assert err.count("appendonly is no") == len(err.splitlines()) == 1
    assert "appendonly" not in "".join(said) + out


def test_up_on_a_replica_ends_before_a_worker_is_started(stack: Stack, valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        stack.run("group", "create", "team", "--redis-url", valkey)
        client.replicaof("127.0.0.1", 1)
        try:
            result = stack.run("up", "--redis-url", valkey)
        finally:
            client.replicaof("NO", "ONE")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].endswith("takes no writes: connect to the new primary")


def test_up_without_its_redis_says_so_and_starts_nothing(stack: Stack) -> None:
    result = stack.run("up", "--redis-url", "redis://ann:secret@127.0.0.1:1")

    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"im: no answer from Redis at redis://127\.0\.0\.1:1.*\n", result.stderr)


def test_worker_drains_what_is_there(stack: Stack, valkey: str) -> None:
    stack.environment["IM_REDIS_URL"] = valkey
    assert stack.run("group", "create", "team", "ann", "bob").returncode == 0
    assert stack.run("send", "team", "hi", "--from", "ann").returncode == 0

    assert stack.run("worker", "persist", "--burst").returncode == 0

    assert stack.is_stored()
    assert stack.run("check").returncode == 0


def test_worker_ends_with_0_on_a_signal(stack: Stack, valkey: str) -> None:
    stack.environment["IM_REDIS_URL"] = valkey
    for number in (signal.SIGINT, signal.SIGTERM):
        with stack.running("worker", "persist") as worker:
            assert worker.stderr is not None
            while "working as" not in worker.stderr.readline():
                assert worker.poll() is None
            worker.send_signal(number)
            worker.communicate(timeout=30)

        assert worker.returncode == 0


def test_the_demo_holds(stack: Stack) -> None:
    folder = stack.data_dir / "a=b c"
    folder.mkdir()
    stack.environment["TMPDIR"] = str(folder)

    result = stack.run("demo")

    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^All \d+ claims held", result.stdout, re.MULTILINE)
    assert "BROKEN" not in result.stdout
    assert not list(folder.iterdir())


def test_the_demo_as_json_has_nothing_else_on_stdout(stack: Stack) -> None:
    result = stack.run("--json", "demo")

    claims = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0
    assert {tuple(claim) for claim in claims} == {("what", "held", "details")}
    assert all(claim["held"] for claim in claims)
    assert f"All {len(claims)} claims held" in result.stderr
