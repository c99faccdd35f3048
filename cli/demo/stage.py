"""The group of the demo: online members on one gateway, and sessions that are processes."""

import json
import subprocess
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from imcore.chat import Chat
from imcore.cli.sandbox import READY_S, Processes, Sandbox, im_command
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import ImError
from imcore.gateway.fanout import NewMessage
from imcore.gateway.gateway import Gateway
from imcore.util.deadlines import attempts

GID = "demo"
PROCESSES = ("ann", "bob", "cy")
ABSENT = "dora"
MEMBERS = (*PROCESSES, ABSENT, *(f"user-{number:03}" for number in range(1, 197)))
ONLINE = MEMBERS[4:44]
_ACK_INTERVAL_S = 0.2

Record = dict[str, Any]


class ListenProcesses(Processes):
    """Live sessions as processes of their own, `im listen UID --json`, each named by its user."""

    def __init__(self, sandbox: Sandbox, log: list[str]) -> None:
        """Keep the events that the sessions print. All other lines go into the log."""
        super().__init__(sandbox.environment(), "the session of", self._note)
        self._log = log
        self._events: dict[str, list[list[Record]]] = {}

    def listen(self, uid: str) -> None:
        self._events.setdefault(uid, []).append([])
        command = im_command("listen", uid, "--json", "--ack-interval", str(_ACK_INTERVAL_S))
        self.start(uid, command, self.environment)

    def printed(self, kind: str, uid: str, gid: str) -> list[list[Record]]:
        """Return the printed messages or receipts of a group: a list for each session of the user, in their order."""
        return [[e for e in events if (e["event"], e["gid"]) == (kind, gid)] for events in self._events[uid]]

    def receipts(self, uid: str, gid: str) -> list[tuple[str, tuple[int, int]]]:
        """Return the printed receipts of a user, in their order: the msgid, and how many read it and did not."""
        events = chain.from_iterable(self.printed("receipt", uid, gid))
        return [(event["msgid"], (event["read"], event["unread"])) for event in events]

    def run(self, *arguments: str) -> None:
        """Run one short command of `im`. Raise ImError if it fails."""
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 20}
        done = subprocess.run(im_command(*arguments), env=self.environment, check=False, **options)
        if done.returncode:
            raise ImError(f"`im {' '.join(arguments)}` failed ({done.returncode}): {done.stderr.strip()}")

    def _note(self, uid: str, line: str) -> None:
        if line.startswith("{"):
            self._events[uid][-1].append(json.loads(line))
        else:
            self._log.append(f"{uid} | {line}")


class Stage:
    """The group, what was sent to it, and the messages that its sessions received.

    The first message must be sent by somebody offline, and all members must receive it: a session does not receive its
    user's own messages from before its subscription, and they count as read.
    """

    def __init__(self, chat: Chat, gateway: Gateway, sessions: ListenProcesses) -> None:
        """Make the group, with sessions on the gateway for all of ONLINE, and a process for each of PROCESSES."""
        self.chat = chat
        self.sessions = sessions
        self.msgids: list[str] = []
        self.received: dict[str, list[str]] = {uid: [] for uid in ONLINE}
        self._gateway = gateway
        chat.create_group(GID, MEMBERS)
        for uid in PROCESSES:
            sessions.listen(uid)
        self._sessions = {uid: gateway.open(uid) for uid in ONLINE}

    def send(self, content: str, sender: str) -> None:
        """Send, and wait until the gateway's sessions have the message. Raise ImError if one does not receive it."""
        self.msgids.append(self.chat.send(GID, content, sender_uid=sender).msgid)
        newest = self.msgids[-1:]
        if not self.wait(lambda: all(self.received[uid][-1:] == newest for uid in self._sessions)):
            raise ImError(f"{content} has not reached all online members within {READY_S} s")

    def leave(self, uid: str) -> None:
        """End a member's session, and then the membership."""
        self._gateway.end(self._sessions.pop(uid))
        self.chat.remove_members(GID, [uid])

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Poll until the condition holds; return whether it did within READY_S."""
        for _ in attempts(READY_S, longest_pause_s=0):
            if condition():
                return True
            self.poll(0.01)
        return False

    def poll(self, timeout_s: float) -> None:
        """Read the lines of the processes, ask the gateway for events, and note the received messages."""
        self.sessions.watch()
        for event in self._gateway.poll(timeout_s):
            if isinstance(event, NewMessage) and event.message.gid == GID:
                for session in event.sessions:
                    self.received[session.uid].append(event.message.msgid)

    def printed(self, uid: str) -> list[list[str]]:
        """Return the msgids that a user's processes have printed: a list for each process, in their order."""
        return [[message["msgid"] for message in messages] for messages in self.sessions.printed("message", uid, GID)]

    def logged(self, uid: str) -> Mapping[str | None, str | None]:
        """Return the state of each message in a user's local database (`im log`); None for others' messages."""
        path = path_of(self.chat.system.settings.data_dir, uid)
        if not path.exists():
            return {}
        with LocalDatabase(path, uid, read_only=True) as local:
            return {line.msgid: line.state for line in local.log(GID)}

    def tallies(self, uid: str) -> dict[str, tuple[int, int]]:
        """Return the live tallies of a user's messages: `im status`."""
        tallies = self.chat.status(GID, limit=0)
        return {t.message.msgid: (t.read, t.unread) for t in tallies if t.message.sender_uid == uid}

    def log_holds(self, uid: str) -> bool:
        """Wait until a local database has the tallies of `im status` for all own messages, and no others."""
        states = {
            msgid: "read by all" if not unread else f"read {read}/{read + unread}"
            for msgid, (read, unread) in self.tallies(uid).items()
        }
        return self.wait(lambda: {msgid: state for msgid, state in self.logged(uid).items() if state} == states)
