"""Acks that come as notifications. There are very many, and all who read a message send the same text.

Client --add--> AckInbox --once in a turn of the loop--> Hub --received--> AsyncGateway
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imcore.gateway.fanout import Session

_MOST_KNOWN, _MOST_KNOWN_BYTES = 1024, 256


class KnownAck:
    """What a text acks. `sessions` have sent it since the loop's last turn."""

    __slots__ = ("gid", "msgid", "sessions")

    def __init__(self, gid: str, msgid: str) -> None:
        self.gid = gid
        self.msgid = msgid
        self.sessions: list[Session] = []


class AckInbox:
    """Calls `take(sessions, gid, msgid)` with those who have sent the same ack in one turn of the loop."""

    def __init__(self, take: "Callable[[Sequence[Session], str, str], None]") -> None:
        self._take = take
        self._waiting: list[KnownAck] = []
        self.known: dict[bytes, KnownAck] = {}
        """By text."""

    def learn(self, text: bytes, gid: str, msgid: str) -> KnownAck:
        """Return what a text acks, and remember it if it is short."""
        ack = KnownAck(gid, msgid)
        if len(text) <= _MOST_KNOWN_BYTES:
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[text] = ack
        return ack

    def add(self, ack: KnownAck, session: "Session") -> None:
        """Note that the client of a session has sent this ack."""
        if not ack.sessions:
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self.flush)
            self._waiting.append(ack)
        ack.sessions.append(session)

    def flush(self) -> None:
        """Take all that has come, now."""
        waiting, self._waiting = self._waiting, []
        for ack in waiting:
            sessions, ack.sessions = ack.sessions, []
            self._take(sessions, ack.gid, ack.msgid)
