"""`im` as processes: commands that answer, and live sessions that are started, killed and ended by process id."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.deadline import wait_until
from tests.helpers.processes import END_S, Process

Line = dict[str, Any]


def events_in(path: Path) -> list[Line]:
    """Return the events that a session has printed; a line that is not whole is left out."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Im:
    """Runs `im` with settings of its own: `redis_url` is IM_REDIS_URL."""

    def __init__(self, **settings: object) -> None:
        given = {f"IM_{name.upper()}": str(value) for name, value in settings.items()}
        self.environment = {**os.environ, **given, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "imcore.cli.main", *args],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
            timeout=2 * END_S,
        )

    def start(self, *args: str) -> "subprocess.Popen[str]":
        """Start a command; what it writes can be read."""
        return subprocess.Popen(
            [sys.executable, "-m", "imcore.cli.main", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def json(self, *args: str) -> list[Line]:
        """Run a command that has to succeed; return what it prints."""
        result = self.run("--json", *args)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def refusal(self, *args: str) -> str:
        """Run a command that has to fail with one line; return that line."""
        result = self.run(*args)
        assert (result.returncode, result.stdout) == (1, ""), result
        [line] = result.stderr.splitlines()
        assert line.startswith("im: ")
        return line


class Listening(Process):
    """One `im listen UID --json`. What it writes is in files, so that a kill loses none of it."""

    def __init__(self, im: Im, folder: Path, uid: str, *args: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self.uid = uid
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            super().__init__(
                subprocess.Popen(
                    [sys.executable, "-m", "imcore.cli.main", "listen", uid, "--json", *args],
                    env=im.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
            )

    @property
    def errors(self) -> str:
        return self._err.read_text()

    @property
    def events(self) -> list[Line]:
        """What it has printed so far, in order."""
        return events_in(self._out)

    @property
    def messages(self) -> list[Line]:
        return [event for event in self.events if event["event"] == "message"]

    @property
    def receipts(self) -> list[Line]:
        return [event for event in self.events if event["event"] == "receipt"]

    def wait_for(self, count: int) -> None:
        """Wait until it has printed `count` messages."""
        wait_until(lambda: len(self.messages) >= count or not self.runs, timeout_s=END_S)
        assert self.runs, self.errors
