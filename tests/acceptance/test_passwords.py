"""Passwords are in no output, log, error, traceback or process title, whether the servers take them or not."""

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis
from click.testing import CliRunner

from imcore.cli.app import app
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import PostgresServer, require_postgres, running_postgres
from tests.helpers.processes import PythonProcess, WorkerProcess

SECRET = "hunter2"
PASSWORD = f"{SECRET}%40horse"
"""As it stands in a URL: with an @ in it."""
MSGID = "1767225600000-0"

COMMANDS = [
    *("group create team ann bob", "group add team cy", "group list", "group show team", "group remove team cy --yes"),
    *("send team hi --from ann", "send team hi --from ann --queue", "dm bob hi --from ann", "pull bob", "ack bob team"),
    *("unread bob", "status team", f"status team {MSGID}", f"recall team {MSGID} --by ann --yes", "receipts ann --ack"),
    *("log ann", "import events.jsonl", "stats", "check", "check --repair", "trim", "rebuild --yes", "acl"),
    *("db upgrade", "dead list", "dead show 0:1-1", "dead requeue 0:1-1", "dead drop 0:1-1 --yes"),
]


class StrictPostgres:
    """Asks each client for a password, and refuses it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with closing(connection), suppress(OSError):  # who connects may be ended meanwhile
                self._refuse(connection)

    def _refuse(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        if len(connection.recv(1024)) == 8:  # may it be encrypted, or with Kerberos?
            connection.sendall(b"N")
            connection.recv(1024)
        connection.sendall(b"R" + struct.pack("!ii", 8, 3))
        self.heard.append(connection.recv(1024))
        fields = b"SFATAL\0C28P01\0Mpassword authentication failed for user\0\0"
        connection.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)


@pytest.fixture(scope="module")
def refusing() -> Iterator[StrictPostgres]:
    with StrictPostgres() as server:
        yield server


@pytest.fixture(scope="module")
def accepting() -> Iterator[PostgresServer]:
    require_postgres()
    with running_postgres() as server:
        yield server


@pytest.fixture
def redis_urls(valkey: str) -> Iterator[dict[str, str]]:
    """A URL with a password that is right, one with a wrong one, and one where nobody answers."""
    with redis.Redis.from_url(valkey) as admin:
        admin.execute_command("ACL", "SETUSER", "ann", "reset", "on", f">{SECRET}@horse", "~*", "&*", "+@all")
        yield {
            "right": valkey.replace("://", f"://ann:{PASSWORD}@"),
            "wrong": valkey.replace("://", f"://ann:{PASSWORD}!@"),
            "nobody": f"redis://ann:{PASSWORD}@127.0.0.1:1/0",
            "no_url": f"redis://ann:{SECRET}/horse@127.0.0.1:1/0",
        }
        admin.acl_deluser("ann")


@pytest.fixture
def sql_urls(accepting: PostgresServer, refusing: StrictPostgres) -> Iterator[dict[str, str]]:
    url = accepting.new_database()
    yield {
        "right": url.replace("postgres@", f"postgres:{PASSWORD}@"),
        "wrong": f"postgresql://ann:{PASSWORD}@127.0.0.1:{refusing.port}/chat",
        "nobody": f"postgresql://127.0.0.1:1/chat?user=ann&password={PASSWORD}",
        "no_url": f"postgresql://ann:{SECRET}@horse@127.0.0.1:port/chat",
    }
    accepting.drop_database(url)


PAIRS = [
    *(("right", "right"), ("wrong", "right"), ("nobody", "right"), ("no_url", "right")),
    *(("right", "wrong"), ("right", "nobody"), ("right", "no_url")),
]


@pytest.mark.parametrize(("to_redis", "to_sql"), PAIRS)
def test_commands(
    redis_urls: dict[str, str],
    sql_urls: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    to_redis: str,
    to_sql: str,
) -> None:
    (tmp_path / "events.jsonl").write_text('{"type": "join", "gid": "other", "uid": "ann"}\n')
    options = ["--redis-url", redis_urls[to_redis], "--database-url", sql_urls[to_sql], "--data-dir", str(tmp_path)]
    caplog.set_level(logging.DEBUG)

    for command in COMMANDS:
        words = [str(tmp_path / word) if word.endswith(".jsonl") else word for word in command.split()]
        result = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)

        assert result.exit_code in {0, 1}, (command, result.output)
        assert SECRET not in result.output, command
        if result.exit_code:
            assert result.stderr.splitlines()[-1].startswith("im: "), command
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("to_redis", "to_sql"), PAIRS)
def test_a_live_session(
    redis_urls: dict[str, str], sql_urls: dict[str, str], tmp_path: Path, to_redis: str, to_sql: str
) -> None:
    urls = {"redis_url": redis_urls[to_redis], "database_url": sql_urls[to_sql]}
    with PythonProcess(
        tmp_path, "imcore.cli.main", "listen", "nobody", **urls
    ) as session:  # waits for a server that is away
        wait_until(lambda: session.log or not session.runs, timeout_s=30)
        if session.runs:
            session.end()
    assert session.log.startswith("im: ")
    assert SECRET not in session.log


def test_the_refusing_server_was_really_told_the_password(sql_urls: dict[str, str], refusing: StrictPostgres) -> None:
    result = CliRunner().invoke(app, ["db", "upgrade", "--database-url", sql_urls["wrong"]])

    assert result.exit_code == 1
    assert "password authentication failed" in result.stderr
    assert f"{SECRET}@horse".encode() in refusing.heard[-1]


@pytest.mark.parametrize(("to_redis", "to_sql"), [("right", "right"), ("wrong", "right"), ("right", "wrong")])
@pytest.mark.parametrize("name", ["persist", "receipts", "jobs"])
def test_workers(
    redis_urls: dict[str, str], sql_urls: dict[str, str], tmp_path: Path, name: str, to_redis: str, to_sql: str
) -> None:
    urls = {"redis_url": redis_urls[to_redis], "database_url": sql_urls[to_sql]}
    with WorkerProcess(tmp_path, name, **urls) as worker:
        wait_until(lambda: worker.log or not worker.runs, timeout_s=30)
        # What it says may come from deep below: a job that fails logs its traceback.
        wait_until(lambda: said_enough(worker), timeout_s=30)
        assert SECRET not in command_line(worker._process.pid)
        if worker.runs:
            worker.end()
    assert SECRET not in worker.log


def said_enough(worker: WorkerProcess) -> bool:
    return not worker.runs or any(word in worker.log for word in ("working as", "waiting:", "trimmed", "Traceback"))


def command_line(pid: int) -> str:
    """The command line in the list of processes; empty once it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def family(pid: int) -> Iterator[int]:
    """A process, and all that it has started."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end meanwhile
            for child in children.read_text().split():
                yield from family(int(child))


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("given_as", ["environment", "options"])
def test_a_running_stack(redis_urls: dict[str, str], sql_urls: dict[str, str], tmp_path: Path, given_as: str) -> None:
    urls = {"redis-url": redis_urls["right"], "database-url": sql_urls["right"]}
    environment = {**os.environ, "IM_DATA_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    if given_as == "environment":
        environment |= {f"IM_{name.upper().replace('-', '_')}": url for name, url in urls.items()}
    options = [f"--{name}={url}" for name, url in urls.items()] if given_as == "options" else []
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "imcore.cli.main", "up", *options], env=environment, stdout=file, stderr=file
        ) as up,
    ):
        try:
            # Given the server and all workers at work
            wait_until(lambda: log.read_text().count("started:") == 3, timeout_s=60)

            # Then the list of processes does not show it
            titles = [command_line(pid) for pid in family(up.pid)]
            assert len(titles) >= 4
            assert SECRET not in str(titles)
        finally:
            up.terminate()
            up.wait(30)
    assert up.returncode == 0
    assert SECRET not in log.read_text()
