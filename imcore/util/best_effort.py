"""Text that nobody has to read: log lines, remarks, complaints, questions, progress bars.

    print, logging, rich, click --> BestEffort --> a bounded queue --> a thread of its own --> write(2)

Writing such text raises no error and waits a moment at most, whatever becomes of it. Only the thread waits for a
reader, and nobody waits for the thread. The descriptor keeps its flags: O_NONBLOCK would act on every process that
shares it.
"""

import atexit
import io
import os
import select
import signal
import sys
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, RLock, Thread
from typing import TYPE_CHECKING, NamedTuple, TextIO
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST_WAITING_BYTES = 65_536
"""How much text waits for a stalled descriptor. Text beyond that is dropped, and its lines are counted."""

LONGEST_WAIT_S = 0.2
"""How long a write waits until its text is out. So stdout and stderr of one terminal keep their order."""

LAST_WAIT_S = 1.0
"""How long the end of a process waits until all is out."""

_STDERR = 2
_NEVER_BLOCKS_BYTES = 512
"""POSIX lets a write of this length to a pipe that has room end at once."""


def install() -> None:
    """Make sys.stderr best-effort, for all that writes to it: logging, warnings, tracebacks, rich, click, rq.

    The numbers of closed standard descriptors are occupied: no file or socket that is opened later gets text for
    people. Text for a closed stderr does not go to stdout either, where Python's `print` would put it.
    """
    _occupy_closed_descriptors()
    given = sys.stderr
    encoding, errors = ("utf-8", None) if given is None else (given.encoding, given.errors)
    # The interpreter goes back to __stderr__ when it ends.
    sys.stderr = sys.__stderr__ = _stream(_STDERR, encoding, errors or "backslashreplace")  # type: ignore[misc]


def over(stream: TextIO | None) -> TextIO | None:
    """Return a best-effort stream with the same descriptor. A stream in memory cannot stall: it is returned itself."""
    if stream is None:
        return None
    if stream not in _made:
        try:
            _made[stream] = _stream(stream.fileno(), stream.encoding, stream.errors or "strict")
        except OSError:
            return stream
    return _made[stream]


class BestEffort(io.RawIOBase):
    """An inherited descriptor, for text that may get lost.

    A write returns once its text is out, or after `LONGEST_WAIT_S`. Then the descriptor has stalled, and no write
    waits until the queue is empty again. Lines get lost if the queue is full or the descriptor fails: its reader has
    gone, the disk is full. One line tells how many, as soon as the descriptor takes text again.
    """

    def __init__(self, descriptor: int) -> None:
        self.name = self._descriptor = descriptor
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # a child has no thread, and what is queued is not its own
        atexit.register(self._end)

    def _begin(self) -> None:
        self._lock = RLock()  # not a Lock: a signal's handler may write while its own thread is in here
        self._pump: _Pump | None = None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Whether text is accepted: always."""
        return True

    def close(self) -> None:
        """Accept no text any more. The descriptor stays open, for others."""
        atexit.unregister(self._end)
        self._pump = None
        super().close()

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write it, or not; return its length."""
        text = bytes(data)
        if sys.is_finalizing():  # no thread runs any more
            self._write_at_the_end(text)
        elif pump := self._running_pump():
            pump.put(text)
        return len(text)

    def _end(self) -> None:
        if self._pump:
            self._pump.drain()

    def _running_pump(self) -> "_Pump | None":
        with self._lock:
            if self._pump is None:
                with suppress(RuntimeError):  # no thread can be started now: there are too many
                    self._pump = _Pump(self._descriptor)
            return self._pump

    def _write_at_the_end(self, text: bytes) -> None:
        """Write the start of a complaint of the ending interpreter, if that cannot block."""
        with suppress(OSError):
            if select.select((), (self._descriptor,), (), 0)[1]:
                os.write(self._descriptor, text[:_NEVER_BLOCKS_BYTES])


class _Text(NamedTuple):
    """An item of the queue: text, how many lines were dropped before it, and a lock to release once it is out."""

    data: bytes
    dropped_before: int
    is_out: Lock


class _Pump:
    """The thread that writes to a descriptor, and its queue."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._queue: SimpleQueue[_Text] = SimpleQueue()
        self._lock = RLock()  # as in BestEffort; nobody waits for anything while holding it
        self._waiting_bytes = 0
        self._dropped = 0
        self._is_stalled = False
        # The thread's own.
        self._lost = 0
        self._is_mid_line = False
        Thread(target=self._run, name=f"best effort to {descriptor}", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queue text, or drop it. Wait a moment until it is out, unless the descriptor has stalled."""
        is_out = self._queued(data)
        if is_out and not self._is_stalled and not is_out.acquire(timeout=LONGEST_WAIT_S):
            with self._lock:
                self._is_stalled = self._waiting_bytes > 0

    def drain(self) -> None:
        """Wait a moment until all is out, even if the descriptor has stalled: the machine may be slow, and no more."""
        if is_out := self._queued(b""):
            is_out.acquire(timeout=LAST_WAIT_S)

    def _queued(self, data: bytes) -> "Lock | None":
        """Queue text, and return the lock that is released once it is out; None if there is no room for it."""
        is_out = Lock()
        is_out.acquire()
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + len(data) > MOST_WAITING_BYTES:
                self._dropped += data.count(b"\n")
                return None
            self._waiting_bytes += len(data)
            self._queue.put(_Text(data, self._dropped, is_out))
            self._dropped = 0
        return is_out

    def _run(self) -> None:
        # Signals are for the main thread. A write by a background job to a terminal does not stop the job either:
        # whoever has SIGTTOU blocked may write.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            text = self._queue.get()
            self._lost += text.dropped_before
            self._write(text.data)
            text.is_out.release()
            if dropped := self._dropped_at_the_end(len(text.data)):
                self._lost += dropped
                self._write(b"")

    def _dropped_at_the_end(self, handled_bytes: int) -> int:
        """Note that text is handled; if no other text waits, return how many lines were dropped after it."""
        with self._lock:
            self._waiting_bytes -= handled_bytes
            if not self._queue.empty():
                return 0
            self._waiting_bytes, self._is_stalled = 0, False
            dropped, self._dropped = self._dropped, 0
            return dropped

    def _write(self, data: bytes) -> None:
        """Write how many lines were lost before, if any, and then the text, or count its lines as lost, too."""
        if self._lost:
            line = f"im: lines missing here: {self._lost} (nobody read them, or there was no room for them)\n"
            if not self._write_out(b"\n" * self._is_mid_line + line.encode()):
                self._lost = 0
        rest = data if self._lost else self._write_out(data)
        self._lost += rest.count(b"\n")

    def _write_out(self, data: bytes) -> bytes:
        """Write, for as long as it takes; return what could not be written."""
        while data:
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:  # another process has made it so
                with suppress(OSError):
                    select.select((), (self._descriptor,), ())
            except OSError:
                break
            else:
                self._is_mid_line = data[written - 1 : written] != b"\n"
                data = data[written:]
        return data


_made: WeakKeyDictionary[TextIO, TextIO] = WeakKeyDictionary()
"""The best-effort stream for each that was asked for."""


def _stream(descriptor: int, encoding: str, errors: str) -> "io.TextIOWrapper[BestEffort]":
    # A line at a time: the pieces of one print are one write.
    return io.TextIOWrapper(BestEffort(descriptor), encoding=encoding, errors=errors, newline="\n", line_buffering=True)


def _occupy_closed_descriptors() -> None:
    """Occupy each standard descriptor that is closed. A write to it still fails, and a program that is executed finds
    it closed.
    """
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= _STDERR:
            pass
        os.close(descriptor)
