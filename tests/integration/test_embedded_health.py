"""A running embedded server loses its socket or its files: it can be reached again, or the check says why not."""

import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
import redis

from imcore.embedded import server as embedded
from imcore.embedded.health import HealthCheck
from imcore.embedded.server import EmbeddedServer
from imcore.errors import EmbeddedServerError
from tests.helpers.deadline import wait_until
from tests.helpers.servers import require_server

GONE = "the socket {} of the embedded server was gone: "
RESTARTED = GONE + "the server was restarted and made it anew"


@pytest.fixture(autouse=True)
def _server_program() -> None:
    require_server()


@pytest.fixture(params=["short", "long" * 30])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with a key, the socket in its data directory or in a short folder of /tmp."""
    with EmbeddedServer(tmp_path / request.param) as running:
        ask(running, "SET", "key", "value")
        yield running
    clear_short_folder(running)


@pytest.fixture
def health(server: EmbeddedServer) -> Iterator[HealthCheck]:
    """Patient: a server that a busy machine holds up for a moment is not silent."""
    with closing(HealthCheck(server, every_s=0, silent_s=5)) as health:
        yield health


def clear_short_folder(server: EmbeddedServer) -> None:
    """Remove what a test has put there, and left."""
    if server.socket.parent != server.data_dir:
        shutil.rmtree(server.socket.parent, ignore_errors=True)


def ask(server: EmbeddedServer, *command: str) -> object:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


def is_busy(server: EmbeddedServer) -> bool:
    try:
        return not ask(server, "PING")
    except redis.exceptions.ResponseError as error:
        return "BUSY" in str(error)


def pause() -> None:
    time.sleep(0.01)


def until_it_says(health: HealthCheck) -> list[str]:
    return wait_until(lambda: health.step(pause), timeout_s=10)


def says_nothing_more(health: HealthCheck, rounds: int = 20) -> None:
    for _ in range(rounds):
        assert health.step(pause) == []
        pause()


def remove_socket(server: EmbeddedServer) -> None:
    server.socket.unlink()


def remove_all_sockets(server: EmbeddedServer) -> None:
    for path in server.socket.parent.iterdir():
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def leave_a_socket_where_nobody_listens(server: EmbeddedServer) -> None:
    remove_all_sockets(server)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(server.socket))


def remove_folder(server: EmbeddedServer) -> None:
    """Remove the short folder; the data directory loses its sockets only."""
    if server.socket.parent == server.data_dir:
        remove_all_sockets(server)
    else:
        shutil.rmtree(server.socket.parent)


class TestSocket:
    def test_a_healthy_server_is_left_alone(self, server: EmbeddedServer, health: HealthCheck) -> None:
        pid = server.pid
        says_nothing_more(health)
        assert server.pid == pid

    def test_checks_keep_their_interval(self, server: EmbeddedServer) -> None:
        with closing(HealthCheck(server, every_s=60)) as health:
            remove_socket(server)
            says_nothing_more(health)

    def test_an_unlinked_socket_is_linked_again_without_a_restart(
        self, server: EmbeddedServer, health: HealthCheck
    ) -> None:
        pid = server.pid
        remove_socket(server)
        assert until_it_says(health) == [GONE.format(server.socket) + "made anew"]
        assert (ask(server, "GET", "key"), server.pid) == ("value", pid)

    @pytest.mark.parametrize("lose", [remove_all_sockets, leave_a_socket_where_nobody_listens, remove_folder])
    def test_a_lost_socket_is_replaced_without_loss_of_data(
        self, server: EmbeddedServer, health: HealthCheck, lose: Callable[[EmbeddedServer], None]
    ) -> None:
        for round_ in range(2):
            ask(server, "SET", "round", str(round_))
            lose(server)
            assert until_it_says(health) == [RESTARTED.format(server.socket)]
            assert (ask(server, "GET", "key"), ask(server, "GET", "round")) == ("value", str(round_))
            assert stat.S_IMODE(server.socket.lstat().st_mode) == 0o700
            says_nothing_more(health)

    def test_a_lost_socket_is_replaced_without_a_connection(self, server: EmbeddedServer, health: HealthCheck) -> None:
        ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        remove_all_sockets(server)
        assert until_it_says(health) == [RESTARTED.format(server.socket)]
        assert ask(server, "GET", "key") == "value"

    def test_a_lost_connection_of_the_check_is_made_again(self, server: EmbeddedServer, health: HealthCheck) -> None:
        ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        says_nothing_more(health)
        remove_socket(server)
        assert until_it_says(health) == [GONE.format(server.socket) + "made anew"]

    def test_a_server_with_no_room_for_clients_is_reachable(self, server: EmbeddedServer, health: HealthCheck) -> None:
        ask(server, "CONFIG", "SET", "maxclients", "1")
        says_nothing_more(health)

    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_a_file_in_place_of_the_socket_is_left_alone(
        self, server: EmbeddedServer, health: HealthCheck, kind: str
    ) -> None:
        remove_socket(server)
        if kind == "file":
            server.socket.write_text("mine")
        else:
            server.socket.mkdir()
        with pytest.raises(EmbeddedServerError, match=r"cannot be reached any more: .* is not a socket: move it away"):
            until_it_says(health)
        assert server.running, "it may end in order"
        server.stop()
        assert server.socket.is_dir() or server.socket.read_text() == "mine"

    def test_another_server_at_the_socket_is_left_alone(
        self, server: EmbeddedServer, health: HealthCheck, tmp_path: Path
    ) -> None:
        with EmbeddedServer(tmp_path / "other") as other:
            remove_socket(server)
            os.link(other.socket, server.socket)
            with pytest.raises(EmbeddedServerError, match=r"cannot be reached any more: another server answers on"):
                until_it_says(health)
            server.stop()
            assert ask(EmbeddedServer(tmp_path / "x", socket=server.socket), "GET", "key") is None
            server.socket.unlink()

    def test_a_restart_that_fails_is_an_error(
        self, server: EmbeddedServer, health: HealthCheck, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_server() -> Path:
            raise EmbeddedServerError("no valkey-server was found")

        monkeypatch.setattr(embedded, "find_server", no_server)
        remove_all_sockets(server)
        with pytest.raises(EmbeddedServerError, match="cannot be reached any more: no valkey-server was found"):
            until_it_says(health)

    def test_a_restart_can_be_interrupted(self, server: EmbeddedServer, health: HealthCheck) -> None:
        def stop() -> None:
            raise KeyboardInterrupt

        remove_all_sockets(server)
        with pytest.raises(KeyboardInterrupt):
            wait_until(lambda: health.step(stop))
        assert not server.running
        with EmbeddedServer(server.data_dir):
            assert ask(server, "GET", "key") == "value"


class TestFolder:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[EmbeddedServer]:
        with EmbeddedServer(tmp_path / ("long" * 30)) as running:
            yield running
        clear_short_folder(running)

    def test_a_folder_open_to_others_is_closed(self, server: EmbeddedServer, health: HealthCheck) -> None:
        folder = server.socket.parent
        folder.chmod(0o755)
        assert until_it_says(health) == [f"the folder {folder} of the socket was open to others: closed again"]
        assert stat.S_IMODE(folder.lstat().st_mode) == 0o700

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_a_folder_of_another_user_is_refused(self, server: EmbeddedServer, health: HealthCheck) -> None:
        folder = server.socket.parent
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
        with pytest.raises(
            EmbeddedServerError, match=r"cannot be reached any more: .* not a folder of this user alone"
        ):
            until_it_says(health)
        assert server.running


class TestSilence:
    @pytest.fixture
    def impatient(self, server: EmbeddedServer) -> Iterator[HealthCheck]:
        with closing(HealthCheck(server, every_s=0, silent_s=0.2)) as health:
            yield health

    def test_a_halted_server_is_reported_once_and_left_alone(
        self, server: EmbeddedServer, impatient: HealthCheck
    ) -> None:
        # Given a server that is halted, and whose socket is gone
        pid = server.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            says_nothing_more(impatient, rounds=2)  # it may have answered before
            remove_socket(server)
            # Then it is spoken of, and nothing is done
            assert until_it_says(impatient) == [
                f"the embedded server (process {pid}) gives no answer for 0.2 s: it is busy or halted"
            ]
            says_nothing_more(impatient)
        finally:
            os.kill(pid, signal.SIGCONT)
        # When it continues
        assert until_it_says(impatient) == [
            "the embedded server answers again",
            GONE.format(server.socket) + "made anew",
        ]
        assert server.pid == pid

    def test_a_slow_script_counts_as_an_answer(self, server: EmbeddedServer, health: HealthCheck) -> None:
        # Given a server that refuses all else while a script runs
        ask(server, "CONFIG", "SET", "busy-reply-threshold", "20")
        until = "repeat local t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > tonumber(ARGV[1])"
        end_ms = int(time.time() * 1000) + 700
        busy = Thread(target=ask, args=(server, "EVAL", until, "0", str(end_ms)))
        busy.start()
        wait_until(lambda: is_busy(server))
        says_nothing_more(health, rounds=2)  # it may have answered before
        # When the socket is gone meanwhile
        remove_all_sockets(server)
        said = until_it_says(health)
        busy.join()
        # Then the restart waits for the script
        assert said == [RESTARTED.format(server.socket)]
        assert time.time() * 1000 > end_ms
        assert ask(server, "GET", "key") == "value"


class TestFiles:
    @pytest.mark.parametrize("name", ["", "appendonly.aof.manifest", "appendonly.aof.1.base.rdb"])
    def test_lost_files_are_rewritten(self, server: EmbeddedServer, health: HealthCheck, name: str) -> None:
        folder = server.data_dir / "appendonlydir"
        if name:
            (folder / name).unlink()
        else:
            shutil.rmtree(folder)
        [line] = until_it_says(health)
        assert "of the embedded server was gone: all are written anew" in line
        says_nothing_more(health)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.running)
        server.start()
        assert ask(server, "GET", "key") == "value"

    def test_a_restart_waits_for_the_files(self, server: EmbeddedServer, health: HealthCheck) -> None:
        shutil.rmtree(server.data_dir / "appendonlydir")
        remove_all_sockets(server)
        assert "all are written anew" in until_it_says(health)[0]
        assert until_it_says(health) == [RESTARTED.format(server.socket)]
        assert ask(server, "GET", "key") == "value"

    def test_a_server_without_stored_data_is_not_restarted(self, server: EmbeddedServer, health: HealthCheck) -> None:
        ask(server, "CONFIG", "SET", "appendonly", "no")
        remove_all_sockets(server)
        [line] = until_it_says(health)
        assert line == (
            f"the socket {server.socket} of the embedded server is gone, and a restart to make it anew "
            "would lose messages (aof_enabled is 0)"
        )
        says_nothing_more(health)
        assert server.running

    @pytest.mark.parametrize("remade", [False, True])
    def test_a_moved_data_directory_is_an_error(
        self, server: EmbeddedServer, health: HealthCheck, remade: bool
    ) -> None:
        moved = server.data_dir.with_name("moved")
        server.data_dir.rename(moved)
        if remade:
            server.data_dir.mkdir()
        with pytest.raises(EmbeddedServerError, match=r"data directory .* was moved or removed while the embedded"):
            until_it_says(health)
        server.stop()
        assert not remade or list(server.data_dir.iterdir()) == []
        with EmbeddedServer(moved) as again:
            assert ask(again, "GET", "key") == "value"
