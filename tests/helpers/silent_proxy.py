"""A proxy before a server that can fall silent: connections stay open, and nothing comes or goes any more."""

import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = 65_536


class SilentProxy:
    """Listens on a unix socket of its own."""

    def __init__(self, path: Path, target: str) -> None:
        self.url = f"unix://{path}"
        self._target = target.removeprefix("unix://")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._silenced: list[socket.socket] = []
        self._lock = threading.Lock()
        self._ending = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._thread.join()
        for connection in [*self._peers, *self._silenced, self._listening]:
            connection.close()
        self._selector.close()

    def fall_silent(self) -> int:
        """Forward nothing more on the connections there are; return how many. New ones are forwarded."""
        with self._lock:
            for connection in self._peers:
                self._selector.unregister(connection)
            self._silenced += self._peers
            count = len(self._peers) // 2
            self._peers.clear()
            return count

    def _run(self) -> None:
        while not self._ending:
            for key, _ in self._selector.select(0.02):
                with self._lock:
                    self._take(key.fileobj)

    def _take(self, ready: object) -> None:
        if ready is self._listening:
            client, _ = self._listening.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            for one, other in ((client, server), (server, client)):
                self._peers[one] = other
                self._selector.register(one, selectors.EVENT_READ)
        elif isinstance(ready, socket.socket) and ready in self._peers:
            self._forward(ready)

    def _forward(self, ready: socket.socket) -> None:
        peer = self._peers[ready]
        try:
            data = ready.recv(_PIECE)
            if data:
                peer.sendall(data)
                return
        except OSError:
            pass
        for connection in (ready, peer):
            self._selector.unregister(connection)
            del self._peers[connection]
            connection.close()
