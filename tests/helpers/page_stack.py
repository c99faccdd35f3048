"""A server, its workers and `im serve` as real processes, for tabs of a real browser."""

import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import jwt

from imcore import Chat
from imcore.settings import Settings
from tests.helpers.deadline import wait_until
from tests.helpers.processes import PythonProcess, WorkerProcess
from tests.helpers.servers import free_ports, require_server, start_valkey

KEY = "a key that only these tests know, of 32 bytes or more"


class PageStack:
    """Everything that the page needs. `chat` is a back end's connection."""

    def __init__(self, folder: Path) -> None:
        require_server()
        self.folder = folder
        [self._port] = free_ports(1)
        with ExitStack() as starting:
            self._running = starting
            server = start_valkey(folder / "server")
            starting.callback(server.stop)
            self._settings = {"redis_url": server.url, "data_dir": str(folder)}
            settings = Settings.from_env({}, **self._settings)
            self.chat = starting.enter_context(Chat.connect(settings=settings))
            for name, options in (("persist", {}), ("receipts", {"receipt_window_ms": 50})):
                worker = WorkerProcess(folder / "workers", name, **self._settings, **options)
                starting.enter_context(worker).wait_for("working as")
            self.start_gateway()
            self._running = starting.pop_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def start_gateway(self) -> None:
        """Start `im serve`, on the same port each time."""
        gateway = PythonProcess(
            self.folder / "web", "imcore.web", f"--port={self._port}", web_key=KEY, **self._settings
        )
        self.gateway = self._running.enter_context(gateway)
        wait_until(lambda: self._is_ready() or not gateway.runs)
        assert gateway.runs, gateway.log

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def link(self, uid: str, ttl_s: float = 3600, **claims: object) -> str:
        """Return the address of the page with a token of a user in it."""
        return f"{self.url}#token={self.token(uid, ttl_s, **claims)}"

    def token(self, uid: str, ttl_s: float = 3600, **claims: object) -> str:
        return jwt.encode({"sub": uid, "exp": time.time() + ttl_s, **claims}, KEY, "HS256")

    def stored(self, gid: str, uid: str) -> list[str]:
        """Return the texts that the server has of a group, in order, as a member may see them."""
        return [message.content for message in self.chat.history(uid, gid, limit=200).messages]

    def offset(self, gid: str, uid: str) -> str | None:
        """Return up to which message a member has read."""
        return self.chat.member(gid, uid).last_ack_msgid

    def close(self) -> None:
        self._running.close()
