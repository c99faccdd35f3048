"""What clients confirm by notifications: acks and deliveries. There are very many, and many clients send the same text.

Client --add--> AckInbox --once in a turn of the loop--> AsyncGateway
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imcore.errors import ImError
from imcore.metrics import WebMetrics
from imcore.web.jsonrpc import Request

if TYPE_CHECKING:
    from imcore.gateway.acks import AckKind
    from imcore.gateway.async_gateway import AsyncGateway
    from imcore.gateway.fanout import Session
    from imcore.web.client import Client

log = logging.getLogger(__name__)

_MOST_KNOWN, _MOST_KNOWN_BYTES = 1024, 256
_KEYS = {"gid", "msgid"}


class KnownAck:
    """What a text confirms. `sessions` have sent it since the loop's last turn."""

    __slots__ = ("gid", "kind", "msgid", "sessions")

    def __init__(self, kind: "AckKind", gid: str, msgid: str) -> None:
        self.kind = kind
        self.gid = gid
        self.msgid = msgid
        self.sessions: list[Session] = []


class AckInbox:
    """Tells the gateway who has confirmed the same in one turn of the loop."""

    def __init__(self, gateway: "Callable[[], AsyncGateway]", metrics: WebMetrics) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._waiting: list[KnownAck] = []
        self.known: dict[bytes, KnownAck] = {}
        """By text."""

    def folds(self, request: Request, text: bytes, client: "Client") -> bool:
        """Take a notification of a client at once, if nothing has to be asked before. Its text is remembered."""
        kind = _kind_of(request)
        if kind is None or client.session is None or client.identity is None:
            return False
        self.add(self._learn(text, kind, request.params["gid"], request.params["msgid"]), client.session)
        return True

    def _learn(self, text: bytes, kind: "AckKind", gid: str, msgid: str) -> KnownAck:
        """Return what a text confirms, and remember it if it is short."""
        ack = KnownAck(kind, gid, msgid)
        if len(text) <= _MOST_KNOWN_BYTES:
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[text] = ack
        return ack

    def add(self, ack: KnownAck, session: "Session") -> None:
        """Note that the client of a session has sent this."""
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
            self._metrics.calls.add(len(sessions), "delivered" if ack.kind == "delivered" else "ack")
            self.take(ack.kind, sessions, ack.gid, ack.msgid)

    def take(self, kind: "AckKind", sessions: "Sequence[Session]", gid: str, msgid: str) -> None:
        """Take what has no answer from each of these sessions, a wrong one too."""
        gateway = self._gateway()
        try:
            if kind == "delivered":
                for session in sessions:
                    gateway.delivered(session, gid, msgid)
                    session.tag.confirmed(gid, msgid)
                return
            self._metrics.acks_received.add(len(sessions))
            received, is_private = gateway.received, kind == "private"
            for session in sessions:
                received(session, gid, msgid, is_private)
        except ImError as error:  # one that is wrong is so for all
            log.debug("an ack was not taken: %s", error)


def _kind_of(request: Request) -> "AckKind | None":
    """Return what a notification confirms; None if it is another method, or not quite right."""
    params, is_private = request.params, request.params.get("private")
    keys = params.keys() - {"private"} if request.method == "ack" and isinstance(is_private, bool) else params.keys()
    if keys != _KEYS or not isinstance(params["gid"], str) or not isinstance(params["msgid"], str):
        return None
    if request.method == "delivered":
        return "delivered"
    if request.method != "ack":
        return None
    return "private" if is_private else "read"
