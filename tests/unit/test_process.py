"""Programs side by side: every line is passed on, and nothing is left running, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imcore.process import Programs, Stopped, StopSignals
from tests.helpers.deadline import wait_until

WAIT = "while :; do sleep 0.05; done"
READY_THEN_WAIT = f"echo ready; {WAIT}"


@pytest.fixture
def said() -> list[tuple[str, str]]:
    """The lines of the test's programs."""
    return []


@pytest.fixture
def programs(said: list[tuple[str, str]]) -> Iterator[Programs]:
    with Programs(lambda name, line: said.append((name, line))) as programs:
        yield programs


def start(programs: Programs, name: str, script: str) -> None:
    programs.start(name, ["/bin/sh", "-c", script], {"PATH": os.environ["PATH"], "WHO": name})


def relay_until(programs: Programs, condition: Callable[[], object]) -> None:
    wait_until(lambda: programs.relay(0.01) or condition())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True


def test_lines_of_stdout_and_stderr_are_passed_on(programs: Programs, said: list[tuple[str, str]]) -> None:
    start(programs, "one", "echo $WHO; echo err >&2; printf 'no end \\377'")
    start(programs, "two", "sleep 0.05; echo $WHO")

    relay_until(programs, lambda: len(said) == 4)

    assert [line for name, line in said if name == "one"] == ["one", "err", "no end \ufffd"]
    assert ("two", "two") in said


def test_a_line_without_end_is_passed_on_in_pieces(programs: Programs, said: list[tuple[str, str]]) -> None:
    start(programs, "long", "head -c 200000 /dev/zero | tr '\\0' x")

    relay_until(programs, lambda: sum(len(line) for _, line in said) == 200_000)

    assert max(len(line) for _, line in said) < 150_000


def test_a_program_that_ends_by_itself_is_named_with_its_code(programs: Programs) -> None:
    start(programs, "fails", "exit 3")
    start(programs, "killed", "kill -9 $$")
    start(programs, "stays", READY_THEN_WAIT)

    relay_until(programs, lambda: len(programs.ended()) == 2)

    assert programs.ended() == {"fails": 3, "killed": -9}


def test_stop_lets_programs_finish_and_passes_on_their_last_words(
    programs: Programs, said: list[tuple[str, str]]
) -> None:
    start(programs, "polite", "trap 'echo bye; exit 0' TERM; " + READY_THEN_WAIT)
    relay_until(programs, lambda: said)

    programs.stop()

    assert said == [("polite", "ready"), ("polite", "bye")]


def test_stop_kills_a_deaf_program_and_its_children(programs: Programs, said: list[tuple[str, str]]) -> None:
    child = f"sh -c 'echo $$; trap \"\" TERM; {WAIT}'"
    start(programs, "deaf", f"trap '' TERM; echo $$; {child} & echo ready; {WAIT}")
    relay_until(programs, lambda: len(said) == 3)
    pids = [int(line) for _, line in said if line != "ready"]

    programs.stop(timeout_s=0.2)

    assert len(pids) == 2
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_killed_program_can_be_started_again(programs: Programs, said: list[tuple[str, str]]) -> None:
    for name in ("stays", "killed"):
        start(programs, name, f"echo {name}; {WAIT}")
    relay_until(programs, lambda: len(said) == 2)

    assert programs.kill("killed") == -signal.SIGKILL
    assert programs.ended() == {}
    start(programs, "killed", READY_THEN_WAIT)

    relay_until(programs, lambda: ("killed", "ready") in said)
    assert programs.stop() == {"stays": -signal.SIGTERM, "killed": -signal.SIGTERM}


def test_programs_end_when_their_owner_is_killed() -> None:
    script = (
        "import time\n"
        "from imcore.process import Programs\n"
        "programs = Programs(lambda name, line: print(line, flush=True))\n"
        f"programs.start('one', ['/bin/sh', '-c', 'echo $$; {READY_THEN_WAIT}'], {{'PATH': {os.environ['PATH']!r}}})\n"
        "while True: programs.relay()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)

        owner.kill()

    wait_until(lambda: not is_alive(pid))


def test_the_first_signal_stops_at_once_and_later_ones_do_not_cut_the_end_short() -> None:
    before = signal.getsignal(signal.SIGINT)  # Python's own, unless who runs the tests ignores it
    with StopSignals() as signals:
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    assert signals.stopping
    assert signal.getsignal(signal.SIGINT) is before


class _SignalsAtItsEnd:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_within_a_finalizer_stops_too() -> None:
    with StopSignals() as signals:
        end = _SignalsAtItsEnd()
        del end
        assert signals.stopping

        with pytest.raises(Stopped):
            time.sleep(10)


def test_a_deferred_signal_is_only_noted() -> None:
    with StopSignals() as signals:
        signals.defer()
        assert not signals.stopping
        signal.raise_signal(signal.SIGTERM)

        assert signals.stopping


@pytest.mark.parametrize(("number", "heard"), [(signal.SIGHUP, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_only_an_ignored_hangup_stays_ignored(number: signal.Signals, heard: bool) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signals.defer()
            signal.raise_signal(number)

        assert signals.stopping == heard
    finally:
        signal.signal(number, before)


def test_a_held_back_signal_arrives_on_entry_and_a_late_one_is_held_back_again() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), StopSignals():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert signal.sigpending() == {signal.SIGTERM}
        with pytest.raises(Stopped), StopSignals():
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_wait_for_a_reader_ends_some_time_after_a_deferred_signal() -> None:
    reader, writer = os.pipe()
    began = time.monotonic()
    with StopSignals() as signals:
        signals.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stopping
        with pytest.raises(Stopped), signals.waiting():
            os.write(writer, bytes(1_000_000))
        time.sleep(1.2)
    assert time.monotonic() - began < 10
    os.close(reader)
    os.close(writer)
