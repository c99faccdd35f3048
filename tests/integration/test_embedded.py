"""The embedded server: private, one per data directory, ends with its owner, with clear errors."""

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from itertools import count
from pathlib import Path
from threading import Thread, Timer
from types import SimpleNamespace

import pytest
import redis

from imcore.embedded import server as embedded
from imcore.embedded.server import EmbeddedServer, find_server
from imcore.errors import ConfigurationError, EmbeddedServerError
from imcore.settings import Settings, socket_path
from tests.helpers.deadline import wait_until
from tests.helpers.servers import require_server

OWNER = """
import sys
from pathlib import Path
from imcore.embedded.server import EmbeddedServer
with EmbeddedServer(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _server_program() -> None:
    require_server()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "data") as running:
        yield running


def ask(server: EmbeddedServer, *command: str) -> object:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


class TestPrivacy:
    def test_the_server_listens_on_its_socket_only(self, server: EmbeddedServer) -> None:
        assert ask(server, "PING") is True
        assert ask(server, "CONFIG", "GET", "port") == {"port": "0"}
        assert server.socket == server.data_dir / "redis.sock"

    def test_only_its_user_can_read_its_files(self, tmp_path: Path) -> None:
        data_dir = tmp_path / "data"
        before = os.umask(0)
        try:
            with EmbeddedServer(data_dir):
                paths = [data_dir, *data_dir.rglob("*")]
                assert {path.name for path in paths} >= {
                    "data",
                    "redis.log",
                    "redis.sock",
                    "redis.lock",
                    "appendonlydir",
                }
                assert [path for path in paths if mode(path) & 0o077] == []
        finally:
            os.umask(before)

    def test_a_link_in_place_of_the_short_folder_is_refused(self, tmp_path: Path) -> None:
        data_dir = tmp_path / ("long" * 30)
        folder = socket_path(data_dir).parent
        (tmp_path / "trap").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "trap")
        try:
            with pytest.raises(EmbeddedServerError, match="is not a folder of this user alone"):
                EmbeddedServer(data_dir).start()
        finally:
            folder.unlink()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_a_short_folder_of_another_user_is_refused(self, tmp_path: Path) -> None:
        data_dir = tmp_path / ("long" * 30)
        folder = socket_path(data_dir).parent
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
        with pytest.raises(EmbeddedServerError, match="is not a folder of this user alone"):
            EmbeddedServer(data_dir).start()

    def test_a_short_folder_open_to_others_is_refused(self, tmp_path: Path) -> None:
        data_dir = tmp_path / ("long" * 30)
        folder = socket_path(data_dir).parent
        folder.mkdir()
        folder.chmod(0o755)
        with pytest.raises(EmbeddedServerError, match="is not a folder of this user alone"):
            EmbeddedServer(data_dir).start()
        assert not folder.exists(), "it was empty, so it is cleared away"


class TestAddresses:
    @pytest.mark.parametrize("name", ["plain", "a b'c\"群", "#x&{y}[z]", "long" * 30])
    def test_the_default_settings_name_the_embedded_server(self, tmp_path: Path, name: str) -> None:
        settings = Settings.from_env({"IM_DATA_DIR": str(tmp_path / name)})
        with EmbeddedServer(settings.data_dir) as server:
            assert server.url == settings.redis_url
            assert ask(server, "PING") is True

    def test_a_long_data_directory_gets_a_short_private_folder_until_stop(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path / ("long" * 30))
        with server:
            assert mode(server.socket.parent) == 0o700
        assert not server.socket.parent.exists()

    def test_a_socket_can_be_elsewhere(self, tmp_path: Path) -> None:
        with EmbeddedServer(tmp_path / "data", socket=tmp_path / "here.sock") as server:
            assert server.url == f"unix://{tmp_path}/here.sock"
            assert ask(server, "PING") is True


class TestData:
    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_the_data_survives_a_restart(self, server: EmbeddedServer, end: str) -> None:
        ask(server, "SET", "key", "value")
        if end == "kill":
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: not server.running)
        else:
            server.stop()
        server.start()
        assert ask(server, "GET", "key") == "value"

    def test_without_an_append_only_file_nothing_is_stored(self, tmp_path: Path) -> None:
        with EmbeddedServer(tmp_path, options=["--appendonly", "no"]) as server:
            ask(server, "SET", "key", "value")
        with EmbeddedServer(tmp_path, options=["--appendonly", "no"]) as server:
            assert ask(server, "GET", "key") is None

    def test_fsync_and_further_options_reach_it(self, tmp_path: Path) -> None:
        with EmbeddedServer(tmp_path, options=["--appendfsync", "always", "--maxmemory", "50mb"]) as server:
            assert ask(server, "CONFIG", "GET", "appendfsync") == {"appendfsync": "always"}
            assert ask(server, "CONFIG", "GET", "maxmemory") == {"maxmemory": str(50 * 1024 * 1024)}


class TestLife:
    def test_start_and_stop_can_be_repeated(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path)
        server.stop()
        server.start()
        pid = server.pid
        server.start()
        assert server.pid == pid
        server.stop()
        server.stop()
        assert (server.running, server.pid) == (False, None)

    def test_ctrl_c_of_the_owner_does_not_end_the_server(self, server: EmbeddedServer) -> None:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid

    def test_the_server_outlives_the_thread_that_started_it(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path)
        starter = Thread(target=server.start)
        starter.start()
        starter.join()
        try:
            assert ask(server, "PING") is True
        finally:
            server.stop()

    def test_the_server_ends_after_its_owner_is_killed_and_keeps_the_lock_until_then(self, tmp_path: Path) -> None:
        # Given an owner with a server that cannot end yet, because it is halted
        owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert owner.stdin is not None
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        ask(EmbeddedServer(tmp_path), "SET", "key", "value")
        os.kill(pid, signal.SIGSTOP)
        try:
            # When the owner is killed
            owner.kill()
            owner.communicate()
            # Then the data directory stays locked until the server has ended, and the data is stored
            assert is_locked(tmp_path)
            assert not is_locked(tmp_path / "redis.lock"), "whoever waits knows that the owner is gone"
        finally:
            os.kill(pid, signal.SIGCONT)
        with EmbeddedServer(tmp_path) as server:
            assert ask(server, "GET", "key") == "value"

    def test_a_server_that_does_not_end_is_killed(self, server: EmbeddedServer) -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        server.stop(timeout_s=0.1)
        assert not server.running
        assert not server.socket.exists()

    def test_stop_frees_the_data_directory_even_if_a_copy_of_the_lock_lives_on(self, server: EmbeddedServer) -> None:
        assert server._lock is not None
        copies = [os.dup(server._lock._owner), os.dup(server._lock.for_server)]
        server.stop()
        assert not is_locked(server.data_dir)
        assert not is_locked(server.data_dir / "redis.lock")
        for copy in copies:
            os.close(copy)

    def test_start_waits_for_a_loading_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        really_ask = embedded._ask
        answers = iter([*[b"-LOADING Valkey is loading\r\n"] * 100, b"+PONG\r\n"])

        def answer(path: Path, command: bytes) -> bytes:
            return next(answers, b"") if wait_until(lambda: really_ask(path, command)) else b""

        seconds = count(step=20)
        clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
        monkeypatch.setattr(embedded, "_ask", answer)
        monkeypatch.setattr(embedded, "time", clock)
        with EmbeddedServer(tmp_path) as server:
            assert server.running

    def test_an_unknown_locale_does_not_matter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
        with EmbeddedServer(tmp_path) as server:
            assert ask(server, "PING") is True
        assert "LOCALE" not in (tmp_path / "redis.log").read_text()


class TestOnePerDataDirectory:
    def test_a_second_owner_is_refused_with_the_process_id(self, server: EmbeddedServer) -> None:
        with pytest.raises(EmbeddedServerError, match=rf"in use by process {os.getpid()}: end it first"):
            EmbeddedServer(server.data_dir).start()
        assert ask(server, "PING") is True

    @pytest.mark.parametrize("remade", [False, True])
    def test_a_second_owner_is_refused_without_lock_file_and_socket(
        self, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, remade: bool
    ) -> None:
        for name in ("redis.lock", "redis.sock", "redis.own"):
            (server.data_dir / name).unlink()
        if remade:
            (server.data_dir / "redis.lock").write_text("1\n")
        monkeypatch.setattr(embedded, "STOP_S", 0.1)
        with pytest.raises(EmbeddedServerError, match="in use by another process: end it first"):
            EmbeddedServer(server.data_dir).start()
        assert server.running

    @pytest.mark.parametrize("text", [b"", b"\xff\0 -1", b"9" * 40])
    def test_a_second_owner_is_refused_at_once_with_any_lock_file(self, server: EmbeddedServer, text: bytes) -> None:
        (server.data_dir / "redis.lock").write_bytes(text)
        with pytest.raises(EmbeddedServerError, match="in use by "):
            EmbeddedServer(server.data_dir).start()

    def test_start_waits_for_a_server_without_an_owner_despite_a_reused_process_id(self, tmp_path: Path) -> None:
        # Given a server that is halted, whose owner was killed, and whose process id is ours now
        owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        owner.kill()
        owner.communicate()
        (tmp_path / "redis.lock").write_text(f"{os.getpid()}\n")
        # When another starts, and the first continues and ends meanwhile
        Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        # Then
        with EmbeddedServer(tmp_path) as server:
            assert ask(server, "PING") is True

    def test_the_file_is_locked_if_directories_cannot_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        really_lock = fcntl.flock

        def lock_files_only(descriptor: int, operation: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EBADF, "as on NFS")
            really_lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", lock_files_only)
        with EmbeddedServer(tmp_path):
            assert is_locked(tmp_path / "redis.lock")
            with pytest.raises(EmbeddedServerError, match=rf"in use by process {os.getpid()}"):
                EmbeddedServer(tmp_path).start()
        assert not is_locked(tmp_path / "redis.lock")

    def test_remains_of_a_crash_are_cleared(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "redis.sock"))
        (tmp_path / "redis.lock").write_text("1\n")
        with EmbeddedServer(tmp_path) as server:
            assert ask(server, "PING") is True

    def test_a_socket_of_a_running_server_is_left_alone(self, server: EmbeddedServer, tmp_path: Path) -> None:
        with pytest.raises(EmbeddedServerError, match="another server answers on"):
            EmbeddedServer(tmp_path / "other", socket=server.socket).start()
        assert ask(server, "PING") is True

    @pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP])
    def test_a_file_system_without_links_is_enough(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(refusal, "no links here")

        monkeypatch.setattr(os, "link", refuse)
        with EmbeddedServer(tmp_path) as server:
            assert ask(server, "PING") is True
        assert not list(tmp_path.glob("redis.[so]*"))

    def test_a_file_in_place_of_the_socket_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "redis.sock").write_text("mine")
        with pytest.raises(EmbeddedServerError, match="is not a socket"):
            EmbeddedServer(tmp_path).start()
        assert (tmp_path / "redis.sock").read_text() == "mine"


class TestClearErrors:
    def test_a_server_that_ends_at_start_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(EmbeddedServerError, match=r"Bad directive or wrong number of arguments$"):
            EmbeddedServer(tmp_path, options=["--bogus", "1"]).start()

    def test_the_line_comes_without_process_id_and_time(self, tmp_path: Path) -> None:
        with pytest.raises(EmbeddedServerError, match="while it started: Failed opening Unix socket"):
            EmbeddedServer(tmp_path, socket=tmp_path / "none" / "redis.sock").start()

    def test_the_error_of_a_silent_server_names_its_log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = fake_program(tmp_path / "valkey-server", "exit 1")
        monkeypatch.setattr(embedded, "find_server", lambda: program)
        with pytest.raises(EmbeddedServerError, match=r"redis.log"):
            EmbeddedServer(tmp_path).start()

    def test_a_silent_server_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = fake_program(tmp_path / "valkey-server", "exec sleep 600")
        monkeypatch.setattr(embedded, "find_server", lambda: program)
        server = EmbeddedServer(tmp_path)
        with pytest.raises(EmbeddedServerError, match=r"gave no answer for 0.1 s: see .*redis.log"):
            server.start(timeout_s=0.1)
        assert not server.running
        assert not is_locked(tmp_path)

    def test_a_log_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "redis.log").mkdir()
        with pytest.raises(EmbeddedServerError, match=r"cannot be started: .*redis.log"):
            EmbeddedServer(tmp_path).start()
        assert not is_locked(tmp_path)

    def test_a_file_in_place_of_the_data_directory(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")
        for data_dir in (tmp_path / "data", tmp_path / "data" / "below"):
            with pytest.raises(ConfigurationError, match=r"the data directory .* cannot be used: [A-Z][a-z ]+$"):
                EmbeddedServer(data_dir).start()

    def test_a_loop_of_links_in_place_of_the_data_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(ConfigurationError):  # by the settings, or from Python 3.13 on by the server
            EmbeddedServer(Settings.from_env({"IM_DATA_DIR": str(tmp_path / "a" / "x")}).data_dir).start()

    def test_a_data_directory_that_is_not_writable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "find_server", lambda: Path("never started"))
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o555)
            with _not_root(), pytest.raises(ConfigurationError, match=r"cannot be used: it is not writable$"):
                EmbeddedServer(Path(folder)).start()
            with _not_root(), pytest.raises(ConfigurationError, match=r"cannot be used: Permission denied$"):
                EmbeddedServer(Path(folder, "below")).start()


class TestFindServer:
    @pytest.fixture(autouse=True)
    def _no_wheel(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def not_installed(name: str) -> None:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(embedded, "files", not_installed)
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_no_program_at_all(self) -> None:
        with pytest.raises(EmbeddedServerError, match=r"no valkey-server .* was found: install .*or set IM_REDIS_URL"):
            find_server()

    @pytest.mark.parametrize(
        ("name", "version"),
        [
            ("valkey-server", "Valkey server v=7.2.0 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1"),
            ("valkey-server", "Valkey server v=10.0.1 sha=00000000:0"),
            ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=2"),
            ("redis-server", "Valkey server v=8.1.1 sha=00000000:0"),
        ],
    )
    def test_a_program_on_path(self, tmp_path: Path, name: str, version: str) -> None:
        fake_program(tmp_path / name, f"echo '{version}'")
        assert find_server() == tmp_path / name

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("echo 'Redis server v=6.2.14 sha=0'", "is Redis 6.2, older than 7.0: install"),
            ("echo 'Valkey server v=7.1.9 sha=0'", "is Valkey 7.1, older than 7.2: install"),
            ("echo 'something else'", "is neither Valkey nor Redis: install"),
        ],
    )
    def test_an_unfit_program_is_named(self, tmp_path: Path, body: str, reason: str) -> None:
        fake_program(tmp_path / "redis-server", body)
        with pytest.raises(EmbeddedServerError, match=f"^{tmp_path}/redis-server {reason}"):
            find_server()

    def test_a_program_that_does_not_run_is_named_and_skipped(self, tmp_path: Path) -> None:
        fake_program(tmp_path / "valkey-server", "").write_bytes(b"\x7fELF of another machine")
        with pytest.raises(EmbeddedServerError, match=r"valkey-server does not run \(.*\): install"):
            find_server()
        fake_program(tmp_path / "redis-server", "echo 'Redis server v=7.4.0'")
        assert find_server() == tmp_path / "redis-server"


def fake_program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def is_locked(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def _not_root() -> Iterator[None]:
    """Run as a user to whom permissions apply."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
