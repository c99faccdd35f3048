"""Running programs side by side in the foreground, as `im up` does: their lines are passed on, and none outlives it.

    im up --starts--> /bin/sh --exec, the same process id--> python -m imcore.workers persist
      |  ^              +--forks--> the watch: a pipe that we hold open; its end means that we are gone
      |  +--- one pipe for stdout and stderr
      +--- SIGTERM, and after `STOP_S` SIGKILL to its session

Honcho, which would do as much in fewer lines, leaves its programs behind when a signal comes while they start, and
when it is killed itself; and the processes it forks keep the embedded server from noticing that.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import IO, Self, cast

STOP_S = 10
"""How long a program may take to finish what it has in hand; then it is killed."""

_TICK_S = 0.1
_AGAIN_S = 0.01
_PATIENCE_S = 1.0
_CHUNK_BYTES = 65_536
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The shell leaves the watch behind and becomes the program. A line on the pipe calls the watch off.
_BECOME = """
exec 3<&0 </dev/null
{ read -r line || kill -TERM $$; } <&3 >/dev/null 2>&1 &
exec "$@" 3<&-
"""


class Stopped(BaseException):
    """The process was asked to stop."""


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP, while this is entered.

    The first one raises Stopped, as Ctrl-C does everywhere; after `defer()` it only sets `asked`, for code that must
    not be cut in two. Further ones do nothing, so that the orderly end is not cut short. What was held back before
    (`imcore.cli.main`) comes now, and what comes after the end is held back again.

    Python only reports what is raised within a finalizer, and goes on: a Stopped that is lost so is raised again.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = self._waits = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._report = sys.unraisablehook
        self._held: set[signal.Signals | int] = set()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            # nohup means it; but a script's `im up &` ignores SIGINT without anybody having wished it.
            if number != signal.SIGHUP or before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._raise)
        self._report, sys.unraisablehook = sys.unraisablehook, self._raise_again
        self._held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        except Stopped:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._report
        for number, before in self._before.items():
            signal.signal(number, before)

    def defer(self) -> None:
        """From here on, only note a signal in `asked`."""
        self._deferred = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for something in the `with` that may never come, such as a reader: raise Stopped there all the same,
        some time after a signal.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._deferred:
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S, _PATIENCE_S)
        elif first:
            self._raise(number, frame)

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        if self._waits or not self._deferred:
            raise Stopped

    def _raise_again(self, lost: "sys.UnraisableHookArgs") -> None:
        if lost.exc_type is Stopped:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            self._report(lost)


@dataclass(eq=False)
class _Program:
    name: str
    process: subprocess.Popen[bytes]
    rest: bytes = b""
    """The beginning of a line whose end has not come yet."""

    @property
    def stdin(self) -> IO[bytes]:
        return cast(IO[bytes], self.process.stdin)

    @property
    def stdout(self) -> IO[bytes]:
        return cast(IO[bytes], self.process.stdout)


class Programs:
    """Programs that run from `start` to the end of the `with`."""

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

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a program in a session of its own, so that the terminal's Ctrl-C does not reach it."""
        process = subprocess.Popen(
            ["/bin/sh", "-c", _BECOME, name, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        program = _Program(name, process)
        self._running.append(program)
        self._selector.register(program.stdout, selectors.EVENT_READ, program)

    def relay(self, timeout_s: float = _TICK_S) -> None:
        """Pass on what the programs write, waiting at most so long for it."""
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
        """End one as a crash would, by SIGKILL; return its exit code. What it has written is passed on first."""
        program = next(program for program in self._running if program.name == name)
        program.process.kill()
        program.process.wait()
        self.relay(0)
        self._running.remove(program)
        return self._close(program)

    def stop(self, timeout_s: float = STOP_S) -> dict[str, int]:
        """End all, pass on what they say meanwhile, and return their exit codes."""
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
        with suppress(BrokenPipeError):  # the watch was killed too
            program.stdin.write(b"\n")  # calls off the watch
        program.stdin.close()
        if program.stdout in self._selector.get_map():
            self._selector.unregister(program.stdout)
        program.stdout.close()
        return code
