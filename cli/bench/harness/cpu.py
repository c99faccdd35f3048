"""The CPU time that processes have used, with their children. Noise of a shared machine hardly touches it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from imcore.chat import Chat
from imcore.cli.bench.harness.nodes import total

HERE = "this process"
REDIS = "Redis"
SQL_SERVER = "SQL server"
ALL = "all processes"

_IDLE_SHARE = 0.1
"""Of one processor: workers that wait beat now and then, and clocks of processes count in hundredths of a second."""

Clocks = Mapping[str, Callable[[], float]]
"""By the name of a process: returns the CPU seconds that it has used."""


class _Process(NamedTuple):
    pid: int
    parent: int
    seconds: float


def clocks(chat: Chat, pids: Mapping[str, int]) -> Clocks:
    """Return a clock for this process, for the servers of this chat, and for each of these processes."""
    mine: dict[str, Callable[[], float]] = {HERE: time.process_time, REDIS: lambda: _redis_seconds(chat)}
    return mine | {name: _clock_of(pid) for name, pid in pids.items()}


def read(of: Clocks) -> dict[str, float]:
    """Return the time on each clock."""
    return {name: clock() for name, clock in of.items()}


def spent(before: Mapping[str, float], after: Mapping[str, float], messages: int) -> dict[str, float]:
    """Return the microseconds that each process has used for a message, and all of them together."""
    each = {name: (after[name] - before[name]) / messages * 1e6 for name in before}
    return {ALL: sum(each.values()), **each}


def wait_until_idle(of: Clocks, *, interval_s: float = 0.25, longest_s: float = 30.0) -> bool:
    """Wait until these processes but this one have used next to nothing for a moment; return False if they never do."""
    end = time.monotonic() + longest_s
    others = {name: clock for name, clock in of.items() if name != HERE}
    before = sum(read(others).values())
    while time.monotonic() < end:
        time.sleep(interval_s)
        now = sum(read(others).values())
        if now - before <= _IDLE_SHARE * interval_s:
            return True
        before = now
    return False


def tree_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and all below it; on Linux, those that have ended, too."""
    processes = list(_linux() if sys.platform == "linux" else _others())
    family = {pid}
    while more := {each.pid for each in processes if each.parent in family} - family:
        family |= more
    return sum(each.seconds for each in processes if each.pid in family)


def _clock_of(pid: int) -> Callable[[], float]:
    return lambda: tree_seconds(pid)


def _redis_seconds(chat: Chat) -> float:
    return total(chat, "cpu", "used_cpu_user", "used_cpu_sys")


def _linux() -> Iterator[_Process]:
    ticks = os.sysconf("SC_CLK_TCK")
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        # See proc(5): utime, stime, and those of children that were waited for.
        yield _Process(int(file.parent.name), int(fields[1]), sum(map(int, fields[11:15])) / ticks)


def _others() -> Iterator[_Process]:
    listed = subprocess.run(["/bin/ps", "-Ao", "pid=,ppid=,time="], capture_output=True, check=True, text=True)
    for line in listed.stdout.splitlines():
        pid, parent, clock = line.split()
        yield _Process(int(pid), int(parent), _seconds(clock))


def _seconds(clock: str) -> float:
    """Return the seconds of a time as `ps` writes it: [[days-]hours:]minutes:seconds."""
    days, _, rest = clock.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + int(days or 0) * 86_400
