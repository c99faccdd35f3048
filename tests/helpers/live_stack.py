"""A server, a worker and live sessions as real processes, any of which may be killed."""

import random
from contextlib import ExitStack, closing
from pathlib import Path

import redis

from imcore import Chat
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import LocalDatabaseError
from imcore.settings import Settings
from tests.helpers.commands import Im, Listening
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import RunningServer, require_server, start_valkey


class Stack:
    """A server, the worker `receipts` and live sessions, any of which may be killed."""

    def __init__(self, folder: Path, **settings: object) -> None:
        require_server()
        self.folder = folder
        self.server: RunningServer = start_valkey(folder / "server")
        self._settings = {"redis_url": self.server.url, "data_dir": folder, **settings}
        self.im = Im(**self._settings)
        self.chat = Chat.connect(settings=Settings.from_env({}, redis_url=self.server.url, data_dir=str(folder)))
        self._running = ExitStack()

    def listen(self, uid: str, *args: str) -> Listening:
        """Start a live session, which is ended with the stack."""
        return self._running.enter_context(Listening(self.im, self.folder / "sessions" / uid, uid, *args))

    def work(self) -> WorkerProcess:
        """Start the worker `receipts`, which is ended with the stack."""
        settings = {**self._settings, "lease_ms": 500, "receipt_window_ms": 50}
        return self._running.enter_context(WorkerProcess(self.folder / "workers", "receipts", **settings))  # type: ignore[arg-type]

    def restart_server(self) -> None:
        """Kill the server, and start it again on what it had written."""
        self.server.kill()
        self.server = start_valkey(self.folder / "server")

    def kill_connections(self, chance: random.Random) -> None:
        """Close some connections of the sessions and of the worker from the server's side."""
        with closing(redis.Redis.from_url(self.server.url)) as client:
            me = client.client_id()
            for connection in client.client_list():
                if int(connection["id"]) != me and chance.random() < 0.4:
                    client.client_kill_filter(_id=int(connection["id"]))

    def log(self, uid: str) -> list[tuple[str, str | None, str, str | None]]:
        """A user's local database, as it is now, if it is there already."""
        try:
            with LocalDatabase(path_of(self.folder, uid), uid, read_only=True) as local:
                return [(line.gid, line.msgid, line.content, line.state) for line in local.log()]
        except LocalDatabaseError:
            return []

    def close(self) -> None:
        self._running.close()
        self.chat.close()
        self.server.stop()
