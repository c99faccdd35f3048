"""Live sessions as processes of their own, `im listen UID --json`, and what each of them prints."""

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import chain
from types import TracebackType
from typing import Any, Self

from imcore.errors import ImError
from imcore.process import Programs

_ACK_INTERVAL_S = 0.2
_LONGEST_S = 20


class Sessions:
    """The sessions, each named by its user; none of them outlives the `with`."""

    def __init__(self, environment: Mapping[str, str], log: list[str]) -> None:
        """Take the environment that gives them their settings; what they complain of goes into the log."""
        self._environment = environment
        self._log = log
        self._programs = Programs(self._heard)
        self._events: dict[str, list[list[dict[str, Any]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._programs.__exit__(kind, error, at)

    def start(self, uid: str) -> None:
        """Begin a user's session."""
        self._events.setdefault(uid, []).append([])
        arguments = ("listen", uid, "--json", "--ack-interval", str(_ACK_INTERVAL_S))
        self._programs.start(uid, _im(*arguments), self._environment)

    def kill(self, uid: str) -> int:
        """End a user's session by SIGKILL; return its exit code."""
        return self._programs.kill(uid)

    def stop(self) -> dict[str, int]:
        """Ask all to end; return their exit codes."""
        return self._programs.stop()

    def hear(self, timeout_s: float) -> None:
        """Take in what they print, waiting at most so long for it. Raise ImError if one has ended by itself."""
        self._programs.relay(timeout_s)
        for uid, code in self._programs.ended().items():
            raise ImError(f"the session of {uid} ended by itself (exit code {code})")

    def messages(self, uid: str, gid: str) -> list[list[dict[str, Any]]]:
        """Return the messages of a group that each of a user's sessions, one after the other, has printed."""
        return [[event for event in events if event["event"] == "message"] for events in self._of(uid, gid)]

    def receipts(self, uid: str, gid: str) -> list[tuple[str, tuple[int, int]]]:
        """Return the receipts that a user's sessions have printed, in that order: msgid, how many have and have not."""
        events = chain.from_iterable(self._of(uid, gid))
        return [(e["msgid"], (e["read"], e["unread"])) for e in events if e["event"] == "receipt"]

    def run(self, *arguments: str) -> None:
        """Run one short command of `im`. Raise ImError if it fails."""
        done = subprocess.run(
            _im(*arguments),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
        if done.returncode:
            why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ImError(f"`im {' '.join(arguments)}` failed: {why}")

    def _of(self, uid: str, gid: str) -> list[list[dict[str, Any]]]:
        return [[event for event in events if event["gid"] == gid] for events in self._events[uid]]

    def _heard(self, uid: str, line: str) -> None:
        if line.startswith("{"):
            self._events[uid][-1].append(json.loads(line))
        else:
            self._log.append(f"{uid} | {line}")


def _im(*arguments: str) -> list[str]:
    """Return the command line of `im`. `-P`: a folder named `cli` where we happen to stand is not ours."""
    return [sys.executable, "-P", "-m", "imcore.cli.main", *arguments]
