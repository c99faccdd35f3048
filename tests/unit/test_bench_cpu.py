"""The CPU time of processes."""

import os
import subprocess
import sys
import time
from itertools import count

import pytest

from imcore.cli.bench.harness import cpu

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])"


def test_a_process_counts_with_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        # Given a process whose only work was that of its child
        process.stdout.readline()
        # Then
        assert cpu.tree_seconds(process.pid) >= 0.29
        process.stdin.write(b"\n")


def test_this_process_uses_what_the_clock_says() -> None:
    before, began = cpu.tree_seconds(os.getpid()), time.process_time()
    while time.process_time() < began + 0.3:
        pass
    assert cpu.tree_seconds(os.getpid()) - before >= 0.28


def test_a_turn_waits_until_all_other_processes_are_idle() -> None:
    # Given a server that still has work for three looks
    looks = count()
    busy = {"server": lambda: min(next(looks), 3) * 1.0, cpu.HERE: time.perf_counter}
    # When, then
    assert cpu.wait_until_idle(busy, interval_s=0.001)
    assert next(looks) == 5
    assert not cpu.wait_until_idle({"server": lambda: float(next(looks))}, interval_s=0.001, longest_s=0.01)


def test_the_whole_is_the_sum_of_the_processes() -> None:
    spent = cpu.spent({"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 2.25}, 1000)
    assert spent == {cpu.ALL: 750.0, "a": 500.0, "b": 250.0}


@pytest.mark.parametrize(
    ("clock", "seconds"), [("0:00.05", 0.05), ("1:02.50", 62.5), ("02:03:04", 7384), ("1-00:00:01", 86_401)]
)
def test_times_are_read_as_ps_writes_them(clock: str, seconds: float) -> None:
    assert cpu._seconds(clock) == pytest.approx(seconds)
