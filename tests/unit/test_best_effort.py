"""Best-effort text: writing it never raises and never waits, and the part that arrives is in order."""

import fcntl
import io
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import TextIO

import pytest

from imcore.util import best_effort
from imcore.util.best_effort import MOST_WAITING_BYTES, BestEffort, over
from tests.helpers.deadline import wait_until
from tests.helpers.outputs import FAILING, PIPE_BYTES, STANDING, Output, disk_full, nobody_reads, stuck_pipe

MANY = 3000
"""So many lines of 48 bytes are more than wait."""


@pytest.fixture
def to() -> Iterator[Callable[[int], BestEffort]]:
    """Makes writers to descriptors, and closes them after the test."""
    made: list[BestEffort] = []

    def make(descriptor: int) -> BestEffort:
        made.append(BestEffort(descriptor))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def ends(action: Callable[[], object]) -> None:
    """Do it, and fail where it waits for ever."""
    thread = Thread(target=action, daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive())


def numbered(count: int) -> list[bytes]:
    return [b"%047d\n" % number for number in range(count)]


def write_all(writer: BestEffort, lines: list[bytes]) -> Callable[[], None]:
    def write() -> None:
        for line in lines:
            assert writer.write(line) == len(line)

    return write


def has_tried_all(writer: BestEffort) -> bool:
    """Answer whether the writer has written, or lost, all that it was given."""
    return writer._pump is not None and writer._pump._waiting_bytes == 0


def read_until(reader: int, end: bytes) -> bytes:
    """Return what comes, up to an end that must come."""
    os.set_blocking(reader, False)
    received = bytearray()

    def has_ended() -> bool:
        with suppress(BlockingIOError):
            received.extend(os.read(reader, 65_536))
        return received.endswith(end)

    wait_until(has_ended)
    return bytes(received).lstrip(b"x")


@pytest.mark.parametrize("output", [*STANDING, *FAILING], ids=lambda output: output.__name__)
def test_a_write_raises_nothing_and_does_not_wait(output: Output, to: Callable[[int], BestEffort]) -> None:
    with output() as descriptor:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        writer = to(descriptor)

        ends(write_all(writer, numbered(MANY)))

        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) == flags


def test_queued_text_comes_first_then_the_number_of_lost_lines_then_new_text(
    to: Callable[[int], BestEffort],
) -> None:
    # Given
    with stuck_pipe() as (descriptor, reader):
        writer = to(descriptor)
        ends(write_all(writer, numbered(MANY)))
        # When somebody reads again
        waited = read_until(reader, b"room for them)\n").splitlines(keepends=True)
        ends(write_all(writer, [b"new\n"]))
        # Then
        kept = MOST_WAITING_BYTES // 48
        assert waited[:-1] == numbered(kept)
        assert re.match(rb"im: lines missing here: %d \(" % (MANY - kept), waited[-1])
        assert read_until(reader, b"new\n") == b"new\n"


def accounted_for(text: bytes) -> int:
    """Return the number of lines that arrived or were reported missing; check that they are in order."""
    at = 0
    for line in text.lstrip(b"x").splitlines():
        if missing := re.match(rb"im: lines missing here: (\d+) ", line):
            at += int(missing[1])
        else:
            assert int(line) == at
            at += 1
    return at


def test_each_gap_is_reported_in_place_with_its_length(to: Callable[[int], BestEffort]) -> None:
    # Given a reader that reads a little at times, and much more to write
    lines = numbered(5 * MANY)
    with stuck_pipe() as (descriptor, reader):
        writer = to(descriptor)
        text = b""
        for start in range(0, len(lines), MANY):
            ends(write_all(writer, lines[start : start + MANY]))
            text += b"".join(os.read(reader, PIPE_BYTES) for _ in range(5))
        # When it reads all
        while not text.endswith(b"\n") or accounted_for(text) < len(lines):
            text += os.read(reader, PIPE_BYTES)
    # Then each line has arrived, or is counted as missing
    assert accounted_for(text) == len(lines)
    assert text.count(b"missing here") > 1


def test_after_a_full_disk_the_lost_lines_are_reported(
    to: Callable[[int], BestEffort],
) -> None:
    with disk_full() as descriptor:
        writer = to(descriptor)
        ends(write_all(writer, numbered(3)))
        wait_until(lambda: has_tried_all(writer))
        reader, room = os.pipe()
        os.dup2(room, descriptor)

        ends(write_all(writer, [b"new\n"]))

        assert os.read(reader, 4096) == (
            b"im: lines missing here: 3 (nobody read them, or there was no room for them)\nnew\n"
        )
        os.close(reader)
        os.close(room)


def test_a_non_blocking_descriptor_loses_nothing(to: Callable[[int], BestEffort]) -> None:
    with stuck_pipe() as (descriptor, reader):
        os.set_blocking(descriptor, False)
        writer = to(descriptor)

        ends(write_all(writer, numbered(100)))

        assert read_until(reader, numbered(100)[-1]) == b"".join(numbered(100))
        assert not os.get_blocking(descriptor)


def test_a_signal_handler_may_write_during_a_write(to: Callable[[int], BestEffort]) -> None:
    with stuck_pipe() as (descriptor, reader):
        writer = to(descriptor)
        before = signal.signal(signal.SIGALRM, lambda *_: writer.write(b"two\n"))
        signal.setitimer(signal.ITIMER_REAL, best_effort.LONGEST_WAIT_S / 4)

        writer.write(b"one\n")

        signal.signal(signal.SIGALRM, before)
        assert read_until(reader, b"two\n") == b"one\ntwo\n"


def test_an_exception_of_a_signal_handler_ends_the_wait(to: Callable[[int], BestEffort]) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        raise InterruptedError(number)

    with stuck_pipe() as (descriptor, reader):
        writer = to(descriptor)
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, best_effort.LONGEST_WAIT_S / 4)

        with pytest.raises(InterruptedError):
            writer.write(b"one\n")

        signal.signal(signal.SIGALRM, before)
        assert read_until(reader, b"one\n") == b"one\n"


def test_text_is_dropped_while_no_thread_can_start(
    to: Callable[[int], BestEffort], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    reader, descriptor = os.pipe()
    writer = to(descriptor)
    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refuse)
        assert writer.write(b"lost\n") == 5

    writer.write(b"kept\n")

    assert os.read(reader, 4096) == b"kept\n"
    os.close(reader)
    os.close(descriptor)


def test_a_terminal_stays_a_terminal() -> None:
    terminal, theirs = pty.openpty()
    with open(theirs, "w", encoding="latin-1") as stream:
        made = over(stream)
        assert made is not None
        assert (made.isatty(), made.fileno(), made.encoding, made.writable()) == (True, theirs, "latin-1", True)
        made.close()
        os.fstat(theirs)  # it is open for others
    os.close(terminal)


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "in memory"])
def test_a_stream_without_a_descriptor_stays_as_it_is(stream: TextIO | None) -> None:
    assert over(stream) is stream


# Tests that need a process of their own.

INSTALLED = "import os, sys\nfrom imcore.util import best_effort\nbest_effort.install()\n"


def run(script: str, *, shell: str = "", **outputs: int) -> "subprocess.CompletedProcess[str]":
    """Run Python code with a best-effort stderr; the shell may close descriptors or set limits before."""
    return subprocess.run(
        ["/bin/sh", "-c", f'{shell or ":"}; exec "$@"', "sh", sys.executable, "-c", INSTALLED + script],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **outputs},  # type: ignore[call-overload]
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("output", [nobody_reads, disk_full], ids=lambda output: output.__name__)
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("print('x' * 100_000, file=sys.stderr); sys.exit(3)", 3),
        ("sys.stderr.write('no end of a line')", 0),
        ("import logging; logging.warning('x')", 0),
        ("import warnings; warnings.warn('x')", 0),
        ("sys.exit('x')", 1),
        ("1 / 0", 1),
        ("import rich.console; rich.console.Console(stderr=True).print('x')", 0),
        ("import click; click.echo('x', err=True)", 0),
        ("class Bad:\n  def __del__(self): 1 / 0\nbad = Bad()", 0),
        ("import threading; threading.Thread(target=lambda: 1 / 0).start()", 0),
        ("import atexit; atexit.register(print, 'x', file=sys.stderr)", 0),
    ],
)
def test_no_way_to_write_to_stderr_stops_a_process_or_changes_its_exit_code(
    output: Output, script: str, code: int
) -> None:
    with output() as descriptor:
        done = run(script, stderr=descriptor)

    assert (done.returncode, done.stdout) == (code, "")


def test_messages_of_the_ending_interpreter_are_written() -> None:
    done = run("class Bad:\n  def __del__(self): 1 / 0\nbad = Bad()")

    assert "ZeroDivisionError" in done.stderr


def test_stdout_and_stderr_keep_their_order() -> None:
    script = "for number in range(200): print(number, file=(sys.stdout, sys.stderr)[number % 2], flush=True)"

    done = run(script, stderr=subprocess.STDOUT)

    assert done.stdout.split() == [str(number) for number in range(200)]


def test_text_for_a_closed_stderr_goes_nowhere_else() -> None:
    script = (
        "print('x', file=sys.stderr); import click; click.echo(file=sys.stderr)\n"
        "with open(os.devnull) as file: print(file.fileno() > 2)"
    )

    done = run(script, shell="exec 2>&- <&-")

    assert (done.returncode, done.stdout) == (0, "True\n")


def test_a_closed_stdout_stays_closed_for_an_executed_program() -> None:
    script = "os.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.exit(7 if sys.stdout is None else 8)'])"

    assert run(script, shell="exec >&-").returncode == 7


def test_a_line_cut_by_a_full_disk_stays_one_line() -> None:
    script = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (14, resource.RLIM_INFINITY))\n"
        "for line in ('first', 'cut in two', 'lost'): print(line, file=sys.stderr)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print('last', file=sys.stderr)\n"
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        run(script, stderr=file.fileno())
        file.seek(0)
        said = file.read()

    assert said == (
        "first\ncut in t\nim: lines missing here: 2 (nobody read them, or there was no room for them)\nlast\n"
    )


def test_a_forked_child_writes_only_its_own_text() -> None:
    # Given text that waits in the parent
    script = (
        "print('waits', file=sys.stderr)\n"
        "child = os.fork()\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "os.dup2(1, 2)\n"
        "print('of the child', file=sys.stderr)"
    )
    # When the child writes to where there is room
    with nobody_reads() as descriptor:
        done = run(script, stderr=descriptor)
    # Then
    assert (done.returncode, done.stdout) == (0, "of the child\n")


def test_a_write_to_the_terminal_does_not_stop_a_background_job() -> None:
    script = (
        "import pty, signal, subprocess, termios\n"
        "pid, terminal = pty.fork()\n"
        "if not pid:\n"
        "    mode = termios.tcgetattr(0); mode[3] |= termios.TOSTOP; termios.tcsetattr(0, termios.TCSANOW, mode)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.setpgid(0, 0)\n"
        "        os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])\n"
        "    os._exit(not os.WIFEXITED(os.waitpid(child, os.WUNTRACED)[1]))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import os, sys\n" + script, INSTALLED + "print('x', file=sys.stderr)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=60,
    )

    assert done.returncode == 0
