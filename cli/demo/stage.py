"""A group of the demo: online members on one gateway, sessions that are processes, and the oracle."""

import time
from collections.abc import Callable, Sequence

from imcore.chat import Chat
from imcore.cli.demo.oracle import Oracle
from imcore.cli.demo.sessions import ListenProcesses
from imcore.errors import ImError
from imcore.gateway.fanout import NewMessage
from imcore.gateway.gateway import Gateway

MEMBERS = tuple(f"user-{number:03}" for number in range(1, 201))
ONLINE = MEMBERS[:40]
PATIENCE_S = 10


class Stage:
    """What happens in one group.

    Somebody who is offline must send the first message, and all receive it: own messages that are sent before a session
    has subscribed count as read, and do not come to it.
    """

    def __init__(
        self, chat: Chat, gateway: Gateway, sessions: ListenProcesses, gid: str, members: Sequence[str]
    ) -> None:
        """Make the group, with sessions on the gateway for all of ONLINE."""
        self.chat = chat
        self.sessions = sessions
        self.gid = gid
        self.oracle = Oracle(members)
        self.received: dict[str, list[str]] = {uid: [] for uid in ONLINE}
        self.arrival_ms: list[float] = []
        self._gateway = gateway
        self._sent_at = 0.0
        chat.create_group(gid, members)
        self._sessions = {uid: gateway.open(uid) for uid in ONLINE}

    def send(self, content: str, sender: str, client_msgid: str | None = None) -> None:
        self._sent_at = time.perf_counter()
        self.oracle.sent(self.chat.send(self.gid, content, sender_uid=sender, client_msgid=client_msgid))

    def send_and_wait(self, content: str, sender: str, client_msgid: str) -> None:
        """Send, and wait until all who are online have the message. Raise ImError if they do not get it."""
        self.send(content, sender, client_msgid)
        if not self.wait(lambda: not self._missing()):
            raise ImError(f"{content} has not reached {len(self._missing())} online members within {PATIENCE_S} s")

    def _missing(self) -> list[str]:
        newest = self.oracle.messages[-1].msgid
        return [uid for uid in self._sessions if self.received[uid][-1:] != [newest]]

    def leave(self, uid: str) -> None:
        """End a member's session, if there is one, and then the membership."""
        if uid in self._sessions:
            self._gateway.end(self._sessions.pop(uid))
        self.chat.remove_members(self.gid, [uid])
        self.oracle.left(uid)

    def join(self, uid: str) -> None:
        self.chat.add_members(self.gid, [uid])
        self.oracle.joined(uid)

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Poll until the condition holds; return whether it did within a few seconds."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > give_up:
                return False
            self.poll(0.01)
        return True

    def poll(self, timeout_s: float) -> None:
        """Read what the processes print, ask the gateway for events, and note which messages came to whom."""
        self.sessions.processes.relay()
        for event in self._gateway.poll(timeout_s):
            if isinstance(event, NewMessage) and event.message.gid == self.gid:
                self.arrival_ms.append((time.perf_counter() - self._sent_at) * 1000)
                for session in event.sessions:
                    self.received[session.uid].append(event.message.msgid)
