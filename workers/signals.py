"""The signals of a worker process. Imports nothing that takes time: they are wanted first of all."""

import logging
import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal has come."""


class Signals:
    """SIGTERM and SIGINT of this process, as a wish to stop that is looked at between two steps."""

    def __init__(self) -> None:
        self.stopping = False
        self._reader, self._writer = socket.socketpair()
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The handler alone does not end a wait: Python goes on waiting after it.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.handle()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._former)  # `im worker` holds them back until somebody listens
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def handle(self) -> None:
        """Be the handler of both, after somebody else was."""
        for number in self._former:
            signal.signal(number, self.ask)

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Wish to stop. Again: nothing, as Ctrl-C reaches a worker twice, from the terminal and from who started it."""
        if not self.stopping:
            log.info("%s: ending after what is in hand", signal.Signals(number).name)
        self.stopping = True

    def wait(self, seconds: float) -> None:
        """Return after so long, or when a signal comes."""
        if not self.stopping and select.select([self._reader], [], [], seconds)[0]:
            self._reader.recv(1024)
