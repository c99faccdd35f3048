"""The signals of a worker process. Imports nothing that takes time: they are wanted first of all."""

import logging
import os
import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


PATIENCE_S = 7.0
"""For how long what is in hand may go on after a signal. `im up` kills a worker after 10 s, as others do."""

_CLOSING_S = 1.0
_ASKING = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal has come."""


class Signals:
    """SIGTERM and SIGINT of this process, as a wish to stop that is looked at between two steps.

    A step that hangs does not look: PATIENCE_S after the signal Stopped is raised in it. If that does not end the
    process, since closing hangs, too, it ends there and then: what a worker has in hand stays open for the next one.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._gives_up = False
        self._reader, self._writer = socket.socketpair()
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The handler alone does not end a wait: Python goes on waiting after it.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.getsignal(number) for number in (*_ASKING, signal.SIGALRM)}
        self.handle()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)  # `im worker` holds them back until somebody listens
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, former in self._former.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def handle(self) -> None:
        """Be the handler of both, after somebody else was."""
        for number in _ASKING:
            signal.signal(number, self.ask)

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Wish to stop. Again: nothing, as Ctrl-C reaches a worker twice, from the terminal and from who started it."""
        if not self.stopping:
            log.info("%s: ending after what is in hand", signal.Signals(number).name)
            signal.signal(signal.SIGALRM, self._give_up)  # not before: rq takes the alarm for each job
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, _CLOSING_S)
        self.stopping = True

    def wait(self, seconds: float) -> None:
        """Return after so long, or when a signal comes."""
        if not self.stopping and select.select([self._reader], [], [], seconds)[0]:
            self._reader.recv(1024)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        if self._gives_up:
            log.warning("closing hangs, too: leaving without it")
            os._exit(0)
        self._gives_up = True
        log.warning("not done %g s after the signal: what is in hand stays open for the next worker", PATIENCE_S)
        raise Stopped
