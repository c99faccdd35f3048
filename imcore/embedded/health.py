"""The health of a running embedded server: whether clients can reach it, and whether it still has its files.

That its process lives proves neither: a cleaner of /tmp removes the socket, or files that are old, and the server works
on without a word. The check keeps a connection of its own, so it can ask a server that has no socket any more.

    step --every `every_s`--> INFO --answered--> files gone: BGREWRITEAOF.  Socket gone: made anew.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from imcore.embedded.server import EmbeddedServer
from imcore.errors import EmbeddedServerError

LOOK_EVERY_S = 2.0

SILENT_S = 10.0
"""A server that gives no answer for so long is spoken of. It is left alone: it may load, run a script, or be halted."""

_CONNECT_S = 1.0
_ASK = b"INFO persistence\r\n"
_REWRITE = b"BGREWRITEAOF\r\n"
_SAFE_TO_RESTART = {"loading": "0", "aof_enabled": "1", "aof_last_write_status": "ok"}
_CHUNK_BYTES = 65_536


class HealthCheck:
    """Looks after a server that was started; `step` is called again and again."""

    def __init__(self, server: EmbeddedServer, *, every_s: float = LOOK_EVERY_S, silent_s: float = SILENT_S) -> None:
        """Connect to the server."""
        self._server = server
        self._every_s, self._silent_s = every_s, silent_s
        self._look_at = time.monotonic() + every_s
        self._connection: socket.socket | None = None
        self._answer = b""
        self._asked_at: float | None = None
        """Since when an answer is awaited."""
        self._said: set[str] = set()
        """What lasts, and was said once."""
        self._connect()

    @property
    def server(self) -> EmbeddedServer:
        """The server."""
        return self._server

    def close(self) -> None:
        """Leave the server alone."""
        if self._connection:
            self._connection.close()
        self._connection, self._answer = None, b""

    def step(self, wait: Callable[[], None]) -> list[str]:
        """Look whether it is time to, and mend what can be mended. Return a line for each thing that is worth one.

        It takes no time but for a restart of the server, which calls `wait` again and again.
        Raise EmbeddedServerError when the server cannot be reached any more and that cannot be mended.
        """
        if not self._server.running:
            return []
        lines = self._hear(wait)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._every_s
            lines += self._look(wait)
        return lines

    def _look(self, wait: Callable[[], None]) -> list[str]:
        if not self._server.has_data_dir:
            raise EmbeddedServerError(
                f"the data directory {self._server.data_dir} was moved or removed while the embedded server ran on it"
            )
        if self._connection is None:
            if not self._server.has_socket:
                return self._mend(None, wait)
            self._connect()
            self._send(_ASK)
        elif self._asked_at is None:
            self._send(_ASK)
        return self._notice_silence()

    def _notice_silence(self) -> list[str]:
        if self._asked_at is None or time.monotonic() - self._asked_at < self._silent_s:
            return []
        pid, silent_s = self._server.pid, self._silent_s
        return self._say_once(
            "silent", f"the embedded server (process {pid}) gives no answer for {silent_s:g} s: it is busy or halted"
        )

    def _connect(self) -> None:
        self.close()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_CONNECT_S)
            connection.connect(str(self._server.socket))
            connection.setblocking(False)
        except OSError:
            connection.close()
        else:
            self._connection = connection

    def _send(self, command: bytes) -> None:
        self._asked_at = self._asked_at or time.monotonic()
        try:
            if self._connection:
                self._connection.sendall(command)
        except OSError:
            self.close()

    def _hear(self, wait: Callable[[], None]) -> list[str]:
        if self._connection is None or self._asked_at is None:
            return []
        try:
            data = self._connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self._answer += data
        if not data:
            self.close()
        if not _is_whole(self._answer):
            return []
        answer, self._answer, self._asked_at = self._answer, b"", None
        lines = []
        if "silent" in self._said:
            self._said.remove("silent")
            lines.append("the embedded server answers again")
        if not answer.startswith(b"$"):  # to BGREWRITEAOF, or that a script runs
            return lines
        return lines + self._mend(_facts(answer), wait)

    def _mend(self, facts: Mapping[str, str] | None, wait: Callable[[], None]) -> list[str]:
        """Mend what is gone. The facts are what the server says of its files; None if it can no longer be asked."""
        if facts and "1" in (facts.get("aof_rewrite_in_progress"), facts.get("aof_rewrite_scheduled")):
            return []
        if (facts is None or facts.get("aof_enabled") == "1") and (lost := _lost_file(self._server.data_dir)):
            if facts is None:
                raise EmbeddedServerError(f"the file {lost} of the embedded server is gone, and so is its socket")
            self._send(_REWRITE)
            return self._say_once("files", f"the file {lost} of the embedded server was gone: all are written anew")
        self._said.discard("files")
        if self._server.has_socket:
            self._said.discard("unsafe")
            folder = self._server.mend_folder()
            return [f"the folder {folder} of the socket was open to others: closed again"] if folder else []
        return self._mend_socket(facts, wait)

    def _mend_socket(self, facts: Mapping[str, str] | None, wait: Callable[[], None]) -> list[str]:
        path = self._server.socket
        if not self._server.can_relink_socket and facts is not None:
            unsafe = [name for name, safe in _SAFE_TO_RESTART.items() if facts.get(name) != safe]
            if unsafe:
                return self._say_once(
                    "unsafe",
                    f"the socket {path} of the embedded server is gone, and a restart to make it anew "
                    f"would lose messages ({unsafe[0]} is {facts.get(unsafe[0], 'not known')})",
                )
        try:
            done = self._server.mend_socket(wait)
        except EmbeddedServerError as error:
            raise EmbeddedServerError(f"the embedded server cannot be reached any more: {error}") from error
        self._asked_at = None
        self._connect()
        self._said.clear()
        return [f"the socket {path} of the embedded server was gone: {done}"]

    def _say_once(self, what: str, line: str) -> list[str]:
        if what in self._said:
            return []
        self._said.add(what)
        return [line]


def _is_whole(answer: bytes) -> bool:
    head, end, rest = answer.partition(b"\r\n")
    if not end or not head.startswith(b"$"):
        return bool(end)
    return len(rest) >= int(head[1:]) + len(b"\r\n")


def _facts(answer: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _lost_file(data_dir: Path) -> Path | None:
    """Return a file that the server would need if it were started again, and that is gone."""
    folder = data_dir / "appendonlydir"
    manifest = folder / "appendonly.aof.manifest"
    with suppress(OSError):
        text = manifest.read_text(errors="replace")
        named = [folder / words[1] for words in map(str.split, text.splitlines()) if words[:1] == ["file"]]
        lost = next((path for path in named if not path.exists()), None)
        # A rewrite gives the files new names, and removes the old ones.
        return lost if manifest.read_text(errors="replace") == text else None
    return manifest
