"""Descriptors that refuse or block writes, as a program may find them as its stdout or stderr."""

import fcntl
import os
import pty
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

PIPE_BYTES = 4096


@contextmanager
def stuck_pipe(room: int = 0) -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, full but for some bytes: where to write, and where it could be read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.write(writer, b"x" * (PIPE_BYTES - room))
    try:
        yield writer, reader
    finally:
        os.close(reader)
        os.close(writer)


def bytes_in(reader: int) -> int:
    """Return how much there is in a pipe to read."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


@contextmanager
def nobody_reads() -> Iterator[int]:
    """A full pipe whose reader lives, and does not read."""
    with stuck_pipe() as (writer, _):
        yield writer


@contextmanager
def reader_gone() -> Iterator[int]:
    """A pipe whose reader has ended: EPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def disk_full() -> Iterator[int]:
    """A file that takes nothing: ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    yield full
    os.close(full)


@contextmanager
def terminal_stopped() -> Iterator[int]:
    """A terminal on which somebody has pressed Ctrl-S."""
    terminal, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    yield theirs
    os.close(theirs)
    os.close(terminal)


Output = Callable[[], AbstractContextManager[int]]

STANDING: tuple[Output, ...] = (nobody_reads, terminal_stopped)
FAILING: tuple[Output, ...] = (reader_gone, disk_full)
