"""Live sessions as processes of their own, `im listen UID --json`, and what each of them prints."""

import json
import subprocess
from itertools import chain
from typing import Any

from imcore.cli.sandbox import Sandbox, im_command
from imcore.errors import ImError

_ACK_INTERVAL_S = 0.2
_LONGEST_S = 20

Record = dict[str, Any]


class ListenProcesses:
    """The sessions, each named by its user. `processes` belongs into a `with`, which ends them."""

    def __init__(self, sandbox: Sandbox, log: list[str]) -> None:
        """What the sessions print that is no event goes into the log."""
        self.processes = sandbox.processes("the session of", self._note)
        self._log = log
        self._events: dict[str, list[list[Record]]] = {}

    def start(self, uid: str) -> None:
        """Begin a user's session."""
        self._events.setdefault(uid, []).append([])
        self.processes.start(uid, im_command("listen", uid, "--json", "--ack-interval", str(_ACK_INTERVAL_S)))

    def messages(self, uid: str, gid: str) -> list[list[Record]]:
        """Return the messages of a group that each of a user's sessions, one after the other, has printed."""
        return [[event for event in events if event["event"] == "message"] for events in self._of(uid, gid)]

    def receipts(self, uid: str, gid: str) -> list[tuple[str, tuple[int, int]]]:
        """Return the receipts that a user's sessions have printed, in that order: msgid, how many have and have not."""
        events = chain.from_iterable(self._of(uid, gid))
        return [(e["msgid"], (e["read"], e["unread"])) for e in events if e["event"] == "receipt"]

    def run(self, *arguments: str) -> None:
        """Run one short command of `im`. Raise ImError if it fails."""
        done = subprocess.run(
            im_command(*arguments),
            env=self.processes.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
        if done.returncode:
            why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ImError(f"`im {' '.join(arguments)}` failed: {why}")

    def _of(self, uid: str, gid: str) -> list[list[Record]]:
        return [[event for event in events if event["gid"] == gid] for events in self._events[uid]]

    def _note(self, uid: str, line: str) -> None:
        if line.startswith("{"):
            self._events[uid][-1].append(json.loads(line))
        else:
            self._log.append(f"{uid} | {line}")
