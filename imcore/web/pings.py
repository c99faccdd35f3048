"""Pings that show what has arrived at clients that do not say so: a pong comes after all that was sent before its ping.

The server of `im serve` sends them. An ASGI application cannot: there only acks and `delivered` say what has arrived.
"""

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imcore.gateway.async_gateway import AsyncGateway
    from imcore.gateway.fanout import Session
    from imcore.web.client import Client

DELAY_S = 0.5
"""A client has so much time to confirm a message by itself before it is sent a ping."""
EVERY_S = 1.0
"""A socket is sent no more than one ping in this time."""

MessageKey = tuple[str, str, int]
"""The gid of a message, its msgid, and the packed msgid."""


class Handed:
    """The newest message of each group that was sent to a client, and that the client has not confirmed."""

    __slots__ = ("_awaits_pong", "_client", "_number", "_pinged", "_pinged_at", "_pings", "is_watched", "messages")

    def __init__(self, client: "Client", pings: "Pings") -> None:
        self._client = client
        self._pings = pings
        self.messages: dict[str, MessageKey] = {}
        """By gid, since the last ping. Whoever adds one calls `watch` unless it is watched."""
        self._pinged: dict[str, MessageKey] = {}
        """By gid, those before a ping whose pong has not come."""
        self._number = 0
        self._pinged_at = -math.inf
        self._awaits_pong = False
        self.is_watched = False
        """Whether it is looked at later, or a pong has to come before."""

    def watch(self) -> None:
        self.is_watched = True
        self._pings.watch(self)

    def begin(self, session: "Session") -> None:
        """Let a pong also confirm what the user has read in private, where the session begins after that.

        It was not sent again, but it would be if it had not been read: without this, what is delivered would show that.
        """
        for gid, start in session.starts.items():
            if start.begin > start.offset and start.after and not session.whole_after.get(gid):
                self.messages.setdefault(gid, (gid, start.after, start.begin))
        if self.messages and not self.is_watched:
            self.watch()

    def confirmed(self, gid: str, msgid: str) -> None:
        """Note that the client has a message, and all before it in its group."""
        for messages in (self.messages, self._pinged):
            if gid in messages and messages[gid][1] == msgid:
                del messages[gid]

    def look(self, now: float) -> None:
        """Send a ping if something is not confirmed, or look again later."""
        self.is_watched = False
        session = self._client.session
        if session is None:
            return
        news = self.messages.items()
        self.messages = {gid: message for gid, message in news if not _has_acked(session, gid, message[2])}
        if not self.messages:
            return
        if now < self._pinged_at + EVERY_S or not self._client.is_sent:
            self.watch()
            return
        self._number += 1
        self._pinged, self.messages, self._pinged_at = self.messages, {}, now
        self.is_watched = self._awaits_pong = True
        self._client.socket.ping(_payload(self._number))

    def ponged(self, payload: bytes, gateway: "AsyncGateway") -> None:
        """Take the payload of a pong: what was sent before the newest ping has arrived."""
        session = self._client.session
        if session is None or not self._awaits_pong or payload != _payload(self._number):
            return
        self._awaits_pong, pinged, self._pinged = False, self._pinged, {}
        for gid, msgid, _ in pinged.values():
            gateway.delivered(session, gid, msgid)
        if self.messages:
            self.watch()
        else:
            self.is_watched = False


class Pings:
    """Looks at sockets some time after messages were sent to them, with one timer for all."""

    def __init__(self, delay_s: float = DELAY_S) -> None:
        self._delay_s = delay_s
        self._tick_s = delay_s / 5
        self._due: deque[tuple[float, Handed]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, handed: Handed) -> None:
        loop = asyncio.get_running_loop()
        self._due.append((loop.time() + self._delay_s, handed))
        if self._timer is None:
            self._timer = loop.call_later(self._delay_s, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._due and self._due[0][0] <= now:
            _, handed = self._due.popleft()
            handed.look(now)
        self._timer = loop.call_later(self._tick_s, self._look) if self._due else None


def _payload(number: int) -> bytes:
    return b"%d" % number


def _has_acked(session: "Session", gid: str, msgid: int) -> bool:
    """Return whether the user has read so far. Who reads in private has not, for all others to see."""
    return not session.acks_privately and session.known_offsets.get(gid, 0) >= msgid
