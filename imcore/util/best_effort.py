"""Output that may be lost: log lines, remarks, complaints, questions, progress bars.

    print, logging, rich, click --> BestEffort --> a bounded queue --> a thread of its own --> write(2)

A write raises no error and waits a moment at most. Only the thread waits for a reader, and nobody waits for the
thread. The descriptor keeps its flags: O_NONBLOCK would act on every process that shares it.
"""

import atexit
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, RLock, Thread
from typing import TYPE_CHECKING, TextIO
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST_WAITING_BYTES = 65_536
"""The text that is queued for a stalled descriptor at most. Further text is dropped, and its lines are counted."""

LONGEST_WAIT_S = 0.2
"""The longest wait of a write for its text to be out. It keeps stdout and stderr of one terminal in order."""

LAST_WAIT_S = 1.0
"""The longest wait of an ending process for the queue."""

_STDERR = 2
_NEVER_BLOCKS_BYTES = 512
"""POSIX: a write of this length to a pipe with room does not block."""


def install() -> None:
    """Make sys.stderr best-effort for every writer: logging, warnings, tracebacks, rich, click, rq.

    Occupy the numbers of closed standard descriptors: no file that is opened later receives text for people, and text
    for a closed stderr does not go to stdout, where Python's `print` would put it.
    """
    _occupy_closed_descriptors()
    given = sys.stderr
    encoding, errors = ("utf-8", None) if given is None else (given.encoding, given.errors)
    # The ending interpreter returns to __stderr__.
    sys.stderr = sys.__stderr__ = _stream(_STDERR, encoding, errors or "backslashreplace")  # type: ignore[misc]


def say_lost_lines(line: Callable[[int], str]) -> None:
    """Let `line` word the notice of lost lines, which has their number: a log may have a form that its readers need."""
    global _lost_lines  # noqa: PLW0603 (one for the process, as its stderr is)
    _lost_lines = line


def over(stream: TextIO | None) -> TextIO | None:
    """Return a best-effort stream for the same descriptor; a stream in memory, which cannot stall, as it is."""
    if stream is None:
        return None
    if stream not in _made:
        try:
            _made[stream] = _stream(stream.fileno(), stream.encoding, stream.errors or "strict")
        except OSError:
            return stream
    return _made[stream]


class BestEffort(io.RawIOBase):
    """An inherited descriptor, for text that may be lost.

    A write returns once its text is out, or after `LONGEST_WAIT_S`. Then the descriptor has stalled, and no write
    waits until the queue is empty again. Lines are lost if the queue is full or the descriptor fails: its reader has
    gone, the disk is full. As soon as the descriptor accepts text again, one line says how many were lost.
    """

    def __init__(self, descriptor: int) -> None:
        self.name = self._descriptor = descriptor
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # a child has no thread, and its parent writes the queue
        atexit.register(self._end)

    def _begin(self) -> None:
        self._lock = RLock()  # not a Lock: a signal's handler may write while its own thread is in here
        self._pump: _Pump | None = None

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Accept no more text. The descriptor stays open for others."""
        atexit.unregister(self._end)
        self._pump = None
        super().close()

    def write(self, data: "ReadableBuffer", /) -> int:
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
        """Write the start of a message of the ending interpreter, if that cannot block."""
        with suppress(OSError):
            if select.select((), (self._descriptor,), (), 0)[1]:
                os.write(self._descriptor, text[:_NEVER_BLOCKS_BYTES])


class _Pump:
    """The thread that writes to a descriptor, and its queue."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._queue: SimpleQueue[tuple[bytes, int, Lock]] = SimpleQueue()
        """Texts, each with the number of lines dropped before, and a lock that is released once it is written."""
        self._lock = RLock()  # as in BestEffort; its holder never waits
        self._waiting_bytes = 0
        self._dropped = 0
        self._is_stalled = False
        # Only the thread uses these.
        self._lost = 0
        self._is_mid_line = False
        Thread(target=self._run, name=f"best effort to {descriptor}", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queue text, or drop it. Unless the descriptor has stalled, wait a moment until it is out."""
        is_out = self._queued(data)
        if is_out and not self._is_stalled and not is_out.acquire(timeout=LONGEST_WAIT_S):
            with self._lock:
                self._is_stalled = self._waiting_bytes > 0

    def drain(self) -> None:
        """Wait a moment until the queue is empty, even if the descriptor has stalled: the machine may just be slow."""
        if is_out := self._queued(b""):
            is_out.acquire(timeout=LAST_WAIT_S)

    def _queued(self, data: bytes) -> "Lock | None":
        """Queue text; return the lock that is released once it is out, None if the queue is full."""
        is_out = Lock()
        is_out.acquire()
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + len(data) > MOST_WAITING_BYTES:
                self._dropped += data.count(b"\n")
                return None
            self._waiting_bytes += len(data)
            self._queue.put((data, self._dropped, is_out))
            self._dropped = 0
        return is_out

    def _run(self) -> None:
        # The main thread handles signals. With SIGTTOU blocked, a background job may write to its terminal.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            data, dropped_before, is_out = self._queue.get()
            self._lost += dropped_before
            self._write(data)
            is_out.release()
            if dropped := self._dropped_at_the_end(len(data)):
                self._lost += dropped
                self._write(b"")

    def _dropped_at_the_end(self, handled_bytes: int) -> int:
        """Note that text was handled; if the queue is empty, return the number of lines dropped after it."""
        with self._lock:
            self._waiting_bytes -= handled_bytes
            if not self._queue.empty():
                return 0
            self._waiting_bytes, self._is_stalled = 0, False
            dropped, self._dropped = self._dropped, 0
            return dropped

    def _write(self, data: bytes) -> None:
        """Write the number of lines lost before, if any, then the text. If that fails, count its lines as lost, too."""
        if self._lost and not self._write_out(b"\n" * self._is_mid_line + f"{_lost_lines(self._lost)}\n".encode()):
            self._lost = 0
        rest = data if self._lost else self._write_out(data)
        self._lost += rest.count(b"\n")

    def _write_out(self, data: bytes) -> bytes:
        """Write, however long it takes; return the rest after an error."""
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


def _in_words(count: int) -> str:
    return f"im: lines missing here: {count} (nobody read them, or there was no room for them)"


_lost_lines = _in_words
_made: WeakKeyDictionary[TextIO, TextIO] = WeakKeyDictionary()


def _stream(descriptor: int, encoding: str, errors: str) -> "io.TextIOWrapper[BestEffort]":
    # Line buffering makes one write of the pieces of one print.
    return io.TextIOWrapper(BestEffort(descriptor), encoding=encoding, errors=errors, newline="\n", line_buffering=True)


def _occupy_closed_descriptors() -> None:
    """Occupy each closed standard descriptor. Writes to it still fail; an executed program finds it closed."""
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= _STDERR:
            pass
        os.close(descriptor)
