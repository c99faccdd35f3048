"""A server, its workers and `im serve` as real processes, for tabs of a real browser."""

from contextlib import ExitStack
from pathlib import Path

from imcore import Chat
from imcore.settings import Settings
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import require_server, start_valkey
from tests.helpers.web import token
from tests.helpers.web_server import WebServer


class PageStack:
    """Everything that the page needs. `chat` is a back end's connection."""

    def __init__(self, folder: Path) -> None:
        require_server()
        with ExitStack() as starting:
            server = start_valkey(folder / "server")
            starting.callback(server.stop)
            given = {"redis_url": server.url, "data_dir": str(folder)}
            self.chat = starting.enter_context(Chat.connect(settings=Settings.from_env({}, **given)))
            workers = [
                starting.enter_context(WorkerProcess(folder / "workers", name, **given, **options))
                for name, options in (("persist", {}), ("receipts", {"receipt_window_ms": 50}))
            ]
            self.gateway = WebServer(folder / "web", server.url, data_dir=str(folder))
            starting.callback(self._kill_gateway)
            for worker in workers:
                worker.wait_for("working as")
            self._running = starting.pop_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}/"

    def restart_gateway(self) -> None:
        """Start `im serve` again, on the same port, after it was killed."""
        self.gateway = self.gateway.again()

    def link(self, uid: str, ttl_s: float = 3600, **claims: object) -> str:
        """Return the address of the page with a token of a user in it."""
        return f"{self.url}#token={token(uid, ttl_s, **claims)}"

    def stored(self, gid: str, uid: str) -> list[str]:
        """Return the texts that the server has of a group, in order, as a member may see them."""
        return [message.content for message in self.chat.history(uid, gid, limit=200).messages]

    def offset(self, gid: str, uid: str) -> str | None:
        """Return up to which message a member has read."""
        return self.chat.member(gid, uid).last_ack_msgid

    def _kill_gateway(self) -> None:
        self.gateway.kill()

    def close(self) -> None:
        self._running.close()
