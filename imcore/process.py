"""The signals that ask a process to stop, and child processes that end with it.

    im up --starts--> /bin/sh --exec, the same process id--> python -m imcore.workers persist
      |  ^              +--forks--> the watch: a pipe that the parent holds open; its end means that the parent is gone
      |  +--- one pipe for stdout and stderr
      +--- SIGTERM, and after `STOP_S` SIGKILL to its session

Honcho, which would do as much in fewer lines, leaves its programs behind when a signal comes while they start, and
when it is killed itself; and the processes it forks keep the embedded server from noticing that.
"""

import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import IO, Any, Self, cast

log = logging.getLogger(__name__)

STOP_S = 10
"""A program may take this long to finish what it has in hand; then it is killed."""

WORKER_PATIENCE_S = 7.0
"""A worker may take this long to finish what it has in hand: less than STOP_S, after which it is killed."""

_READER_S = 1.0
_CLOSING_S = 1.0
_TICK_S = 0.1
_CHUNK_BYTES = 65_536

# The shell leaves the watch behind and becomes the program. A line on the pipe calls the watch off. If the pipe ends
# without a line, the parent is gone, even by SIGKILL, and the watch ends the program. PR_SET_PDEATHSIG would work on
# Linux only, need code between fork and exec, and end the program with the *thread* that started it.
_BECOME = """
exec 3<&0 </dev/null
{ read -r line || kill -TERM $$; } <&3 >/dev/null 2>&1 &
exec "$@" 3<&-
"""


class Stopped(BaseException):
    """The process was asked to stop."""


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP, while this is entered; `stopping` is set from the first one on.

    The first one raises Stopped, as Ctrl-C does everywhere; after `defer()` it only sets `stopping`, for code that must
    not be cut in two. A signal that was held back (`imcore.cli.main`) arrives when this is entered. One that comes
    after the end is held back again.

    Python only reports an exception within a finalizer: there Stopped is raised once more, after it.
    """

    _numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    _again_s = (0.01, 0.0)

    def __init__(self) -> None:
        self.stopping = False
        self._deferred = self._waits = False
        self._former: dict[signal.Signals, Any] = {}
        self._held: set[signal.Signals | int] = set()
        self._report = sys.unraisablehook

    def __enter__(self) -> Self:
        self._former = {number: signal.getsignal(number) for number in (*self._numbers, signal.SIGALRM)}
        self._report, sys.unraisablehook = sys.unraisablehook, self._raise_again
        self._held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.handle()
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        except Stopped:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._report
        for number, former in self._former.items():
            signal.signal(number, former)

    def handle(self) -> None:
        """Install the handlers; again, after other code has installed its own."""
        for number in self._numbers:
            # nohup ignores SIGHUP on purpose. In a script's `im up &` SIGINT is ignored without anybody's wish.
            if number != signal.SIGHUP or self._former[number] is not signal.SIG_IGN:
                signal.signal(number, self.stop)

    def defer(self) -> None:
        """From here on, only note a signal in `stopping`."""
        self._deferred = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait in the `with` for a reader that may never come: some time after a signal, Stopped is raised there."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        """Only the first signal counts: a terminal and a parent process may each send one."""
        first, self.stopping = not self.stopping, True
        if first and self._deferred:
            self._set_alarm(_READER_S, _READER_S)
        elif first:
            self._alarm(number, frame)

    def _set_alarm(self, after_s: float, every_s: float) -> None:
        signal.signal(signal.SIGALRM, self._alarm)  # not before: rq uses the alarm for each job
        signal.setitimer(signal.ITIMER_REAL, after_s, every_s)

    def _alarm(self, _number: int, _frame: FrameType | None) -> None:
        if self._waits or not self._deferred:
            raise Stopped

    def _raise_again(self, lost: "sys.UnraisableHookArgs") -> None:
        if lost.exc_type is Stopped:
            self._set_alarm(*self._again_s)
        else:
            self._report(lost)


class WorkerSignals(StopSignals):
    """SIGTERM and SIGINT of a worker, which looks at `stopping` between two steps.

    A step that hangs does not look: WORKER_PATIENCE_S after the signal Stopped is raised in it. If closing hangs, too,
    the process exits at once. The entries that a worker has in hand stay open for the next one.
    """

    _numbers = (signal.SIGTERM, signal.SIGINT)
    _again_s = (_CLOSING_S, _CLOSING_S)

    def __init__(self) -> None:
        super().__init__()
        self._gives_up = False
        self._reader: socket.socket
        self._writer: socket.socket

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The handler alone does not end a wait: Python goes on waiting after it.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float) -> None:
        if not self.stopping and select.select([self._reader], [], [], seconds)[0]:
            self._reader.recv(1024)

    def stop(self, number: int, _frame: FrameType | None = None) -> None:
        if not self.stopping:
            log.info("%s: ending after what is in hand", signal.Signals(number).name)
            self._set_alarm(WORKER_PATIENCE_S, _CLOSING_S)
        self.stopping = True

    def _alarm(self, _number: int, _frame: FrameType | None) -> None:
        if self._gives_up:
            log.warning("closing hangs, too: leaving without it")
            os._exit(0)
        self._gives_up = True
        log.warning("not done %g s after the signal: what is in hand stays open for the next worker", WORKER_PATIENCE_S)
        raise Stopped


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let threads that are started in the `with` receive no signals: the main thread waits for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_child(name: str, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process, with options of Popen.

    It has a session of its own, so the terminal's Ctrl-C does not reach it. Once it has ended, call `call_off_watch`.
    """
    shell = ["/bin/sh", "-c", _BECOME, name, *command]
    return subprocess.Popen(shell, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, **options)


def call_off_watch(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):  # the watch was killed
            process.stdin.write(b"\n")
        process.stdin.close()


@dataclass(eq=False)
class _Program:
    name: str
    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    rest: bytes = b""
    """The beginning of a line whose end has not come yet."""


class Programs:
    """Child processes, from `start` to the end of the `with`. None of them outlives this process."""

    def __init__(self, on_line: Callable[[str, str], None]) -> None:
        """Call `on_line(name, line)` for each line that a program writes, from within `relay` and `stop`."""
        self._on_line = on_line
        self._running: list[_Program] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._selector.close()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], **options: Any) -> None:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = start_child(name, command, env=environment, **output, **options)
        program = _Program(name, process, cast(IO[bytes], process.stdout))
        self._running.append(program)
        self._selector.register(program.stdout, selectors.EVENT_READ, program)

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each program, by name."""
        return {program.name: program.process.pid for program in self._running}

    def relay(self, timeout_s: float = _TICK_S) -> None:
        """Pass on what the programs write; wait for it at most `timeout_s`."""
        if not self._selector.get_map():
            time.sleep(timeout_s)
        for key, _ in self._selector.select(timeout_s):
            data = os.read(key.fd, _CHUNK_BYTES)
            if not data:
                self._selector.unregister(key.fileobj)
            self._pass_on(key.data, data)

    def ended(self) -> dict[str, int]:
        """Return the programs that have ended by themselves, with their exit codes (below 0: by that signal)."""
        codes = {program.name: program.process.poll() for program in self._running}
        return {name: code for name, code in codes.items() if code is not None}

    def kill(self, name: str) -> int:
        """Kill a program by SIGKILL, as a crash would end it; return its exit code. Its output is passed on first."""
        program = next(program for program in self._running if program.name == name)
        program.process.kill()
        program.process.wait()
        self.relay(0)
        self._running.remove(program)
        return self._close(program)

    def stop(self, timeout_s: float = STOP_S) -> dict[str, int]:
        """End all programs, pass on their output meanwhile, and return their exit codes."""
        give_up = time.monotonic() + timeout_s
        try:
            for program in self._running:
                program.process.terminate()
            while len(self.ended()) < len(self._running) and time.monotonic() < give_up:
                self.relay()
            self.relay(0)
        finally:
            codes = {program.name: self._close(program) for program in self._running}
            self._running.clear()
        return codes

    def _pass_on(self, program: _Program, data: bytes) -> None:
        *lines, rest = (program.rest + data).split(b"\n")
        if rest and (not data or len(rest) >= _CHUNK_BYTES):
            lines, rest = [*lines, rest], b""
        program.rest = rest
        for line in lines:
            self._on_line(program.name, line.decode(errors="replace"))

    def _close(self, program: _Program) -> int:
        if program.process.poll() is None:
            os.killpg(program.process.pid, signal.SIGKILL)
        code = program.process.wait()
        call_off_watch(program.process)
        if program.stdout in self._selector.get_map():
            self._selector.unregister(program.stdout)
        program.stdout.close()
        return code
