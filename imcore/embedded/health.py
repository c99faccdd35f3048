"""Health of a running embedded server: whether clients can reach it, and whether its files still exist.

A living process proves neither: a cleaner of /tmp removes the socket or old files, and the server does not notice. The
check keeps a connection open, so it can ask a server whose socket is gone.

    step --every `every_s`--> INFO --answered--> files gone: BGREWRITEAOF.  Socket gone: made anew.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import hiredis

from imcore.embedded.server import EmbeddedServer
from imcore.errors import EmbeddedServerError

LOOK_EVERY_S = 2.0

SILENT_S = 10.0
"""A longer silence is reported. Nothing else is done: the server may be loading, running a script, or halted."""

_CONNECT_S = 1.0
_ASK = b"INFO persistence\r\n"
_REWRITE = b"BGREWRITEAOF\r\n"
_SAFE_TO_RESTART = {"loading": "0", "aof_enabled": "1", "aof_last_write_status": "ok"}
_CHUNK_BYTES = 65_536


class HealthCheck:
    """Looks after a started server. Call `step` again and again, and `close` at the end."""

    def __init__(self, server: EmbeddedServer, *, every_s: float = LOOK_EVERY_S, silent_s: float = SILENT_S) -> None:
        self.server = server
        self._every_s, self._silent_s = every_s, silent_s
        self._look_at = time.monotonic() + every_s
        self._connection: socket.socket | None = None
        self._reader = hiredis.Reader()
        self._asked_at: float | None = None
        self._reported: set[str] = set()
        """Problems that last, each of which is reported once."""
        self._connect()

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection, self._reader = None, hiredis.Reader()

    def step(self, wait: Callable[[], None]) -> list[str]:
        """Check the server, if a check is due, and mend the damage. Return a line for each problem and each repair.

        Only a restart of the server takes time: it calls `wait` again and again. Raise EmbeddedServerError if clients
        cannot reach the server and it cannot be mended.
        """
        if not self.server.running:
            return []
        lines = self._read_answer(wait)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._every_s
            lines += self._check(wait)
        return lines

    def _check(self, wait: Callable[[], None]) -> list[str]:
        if not self.server.has_data_dir:
            raise EmbeddedServerError(
                f"the data directory {self.server.data_dir} was moved or removed while the embedded server ran on it"
            )
        if self._connection is None:
            if not self.server.has_socket:
                return self._mend(None, wait)
            self._connect()
            self._send(_ASK)
        elif self._asked_at is None:
            self._send(_ASK)
        return self._report_silence()

    def _report_silence(self) -> list[str]:
        if self._asked_at is None or time.monotonic() - self._asked_at < self._silent_s:
            return []
        pid, silent_s = self.server.pid, self._silent_s
        return self._report_once(
            "silent", f"the embedded server (process {pid}) gives no answer for {silent_s:g} s: it is busy or halted"
        )

    def _connect(self) -> None:
        self.close()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_CONNECT_S)
            connection.connect(str(self.server.socket))
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

    def _read_answer(self, wait: Callable[[], None]) -> list[str]:
        if self._connection is None or self._asked_at is None:
            return []
        try:
            data = self._connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
        self._reader.feed(data)
        answer = self._reader.gets()
        if answer is False:
            return []
        self._asked_at = None
        lines = []
        if "silent" in self._reported:
            self._reported.remove("silent")
            lines.append("the embedded server answers again")
        if not isinstance(answer, bytes) or b":" not in answer:  # the answer to BGREWRITEAOF, or an error of a script
            return lines
        return lines + self._mend(_info_of(answer), wait)

    def _mend(self, info: Mapping[str, str] | None, wait: Callable[[], None]) -> list[str]:
        """Replace lost files and a lost socket. `info` is the answer of INFO; None if the server cannot be asked."""
        if info and "1" in (info.get("aof_rewrite_in_progress"), info.get("aof_rewrite_scheduled")):
            return []
        if (info is None or info.get("aof_enabled") == "1") and (lost := _lost_file(self.server.data_dir)):
            if info is None:
                raise EmbeddedServerError(f"the file {lost} of the embedded server is gone, and so is its socket")
            self._send(_REWRITE)
            return self._report_once("files", f"the file {lost} of the embedded server was gone: all are written anew")
        self._reported.discard("files")
        if self.server.has_socket:
            self._reported.discard("unsafe")
            folder = self.server.mend_folder()
            return [f"the folder {folder} of the socket was open to others: closed again"] if folder else []
        return self._mend_socket(info, wait)

    def _mend_socket(self, info: Mapping[str, str] | None, wait: Callable[[], None]) -> list[str]:
        path = self.server.socket
        if not self.server.can_relink_socket and info is not None:
            unsafe = [name for name, safe in _SAFE_TO_RESTART.items() if info.get(name) != safe]
            if unsafe:
                return self._report_once(
                    "unsafe",
                    f"the socket {path} of the embedded server is gone, and a restart to make it anew "
                    f"would lose messages ({unsafe[0]} is {info.get(unsafe[0], 'not known')})",
                )
        try:
            repair = self.server.mend_socket(wait)
        except EmbeddedServerError as error:
            raise EmbeddedServerError(f"the embedded server cannot be reached any more: {error}") from error
        self._asked_at = None
        self._connect()
        self._reported.clear()
        return [f"the socket {path} of the embedded server was gone: {repair}"]

    def _report_once(self, problem: str, line: str) -> list[str]:
        if problem in self._reported:
            return []
        self._reported.add(problem)
        return [line]


def _info_of(answer: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _lost_file(data_dir: Path) -> Path | None:
    """Return a missing file that the server needs to start again; None if all are there."""
    folder = data_dir / "appendonlydir"
    manifest = folder / "appendonly.aof.manifest"
    with suppress(OSError):
        text = manifest.read_text(errors="replace")
        named = [folder / words[1] for words in map(str.split, text.splitlines()) if words[:1] == ["file"]]
        lost = next((path for path in named if not path.exists()), None)
        # A rewrite between the two reads gives the files new names, and removes the old ones.
        return lost if manifest.read_text(errors="replace") == text else None
    return manifest
