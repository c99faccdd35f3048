"""The socket loop of `im serve`: WebSockets as uvicorn hands them over, and nothing between a frame and its client.

Uvicorn does all else: ports, TLS, signals, HTTP. Its own WebSocket and ASGI cost five times as much for a message that
40 clients read and ack.
"""

import asyncio
import socket as system_sockets
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from imcore.web.client import GOING_AWAY, Client
from imcore.web.flow import Frame
from imcore.web.frames import FrameReader, ping, shake_hands
from imcore.web.settings import origin_is_allowed

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from imcore.web.hub import Hub

PATH = "/ws"
_PONG = 0x8A

GATHER_S = 0.004
"""Frames for a socket go out together, at most so late. The first one after a pause goes out at once."""

HIGH_WATER_BYTES = 65_536
LOW_WATER_BYTES = 16_384
UNSENT_BYTES = 131_072
"""The system holds at most so much of a socket unsent. Megabytes for each client that does not read slow it down."""
_UNSENT = getattr(system_sockets, "TCP_NOTSENT_LOWAT", None)

LINGER_S = 5.0
"""The time in which the other side may read what it has not read yet, and answer the close frame."""

PING_AFTER_S = 20.0
"""A socket that has been silent for so long is sent a ping. After another such time it is lost."""


class SocketServer:
    """Makes the protocols of all sockets of one process: `uvicorn.Config(ws=SocketServer(hub))`."""

    def __init__(self, hub: "Hub", *, ping_after_s: float = PING_AFTER_S) -> None:
        self.hub = hub
        self.outbox = Outbox()
        self.silence = Silence(ping_after_s)

    def __call__(self, *, server_state: "ServerState", **_: object) -> "SocketProtocol":
        """Make the protocol of a socket, as uvicorn does."""
        return SocketProtocol(self, cast("set[asyncio.Protocol]", server_state.connections))

    def refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return with which HTTP status and text a handshake is refused, None if it is not."""
        if path != PATH:
            return 404, f"sockets are at {PATH}"
        if not origin_is_allowed(headers, self.hub.settings):
            return 403, "a page of another host may not connect (IM_WEB_ORIGINS)"
        if self.hub.is_stopping:
            return 503, "the server ends"
        return None


class SocketProtocol(asyncio.Protocol):
    """One socket: what uvicorn's protocols are to it, and a `Socket` to its client."""

    can_ping = True
    _transport: asyncio.Transport

    def __init__(self, server: SocketServer, connections: set[asyncio.Protocol]) -> None:
        self._server = server
        self._connections = connections
        """Those that uvicorn asks to shut down."""
        self._client: Client | None = None
        self._reader: FrameReader | None = None
        self._frames: list[bytes] = []
        """What goes out next."""
        self._frames_bytes = 0
        self._is_closing = False
        self.is_silent = False
        """Whether nothing has come since this was set."""
        self.is_pinged = False
        self._ping = ping(b"")
        """The newest ping. A client may answer only the newest of several, so that one of Silence is the same again."""
        self.remote = "?"

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.remote = f"{address[0]}:{address[1]}"
            _hold_little(transport.get_extra_info("socket"))
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.is_silent = False
        if self._reader:
            self._reader.feed(data)
        else:
            self._shake_hands(data)

    def pause_writing(self) -> None:
        if self._client:
            self._client.writable(False)

    def resume_writing(self) -> None:
        if self._client:
            self._client.writable(True)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._is_closing = True
        self._frames.clear()
        self._connections.discard(self)
        self._server.silence.forget(self)
        client, self._client, self._reader = self._client, None, None
        if client:
            client.lost()

    def shutdown(self) -> None:
        """Close, as the process ends. Uvicorn calls this."""
        if self._client:
            self._client.close(GOING_AWAY, "the server ends")
        self.close(GOING_AWAY, "the server ends")

    # What a client asks of its socket.

    @property
    def buffered(self) -> int:
        return self._frames_bytes + self._transport.get_write_buffer_size()

    def send(self, frame: Frame) -> None:
        if self._is_closing:
            return
        if not self._frames:
            self._server.outbox.add(self)
        data = frame.websocket
        self._frames.append(data)
        self._frames_bytes += len(data)
        if self._frames_bytes > HIGH_WATER_BYTES:
            self.flush()

    def ping(self, payload: bytes) -> None:
        self._ping = ping(payload)
        self.write(self._ping)

    def close(self, code: int, reason: str) -> None:
        if self._is_closing:
            return
        if self._reader:
            self._reader.close(code, reason)
        self._linger()

    # What others of this module ask.

    def flush(self) -> None:
        """Give what was sent to the system."""
        frames, self._frames, self._frames_bytes = self._frames, [], 0
        if frames and not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def ask(self) -> None:
        """Ask whether anybody is there."""
        self.is_pinged = True
        self.write(self._ping)

    def abort(self) -> None:
        """End without a word."""
        self._transport.abort()

    # What the reader tells.

    def text(self, payload: bytes) -> None:
        if self._client:
            self._client.received(payload)

    def refused(self, code: int, reason: str) -> None:
        if self._client:
            self._client.refused_frame(code, reason)

    def write(self, data: bytes) -> None:
        if data[0] == _PONG and self.buffered > HIGH_WATER_BYTES:
            return  # who asks without end and reads nothing gets no answer
        self.flush()
        if not self._transport.is_closing():
            self._transport.write(data)

    def ponged(self, payload: bytes) -> None:
        if self._client:
            self._client.ponged(payload)

    def ended(self) -> None:
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._linger()
        else:
            self._transport.close()

    def _shake_hands(self, head: bytes) -> None:
        handshake = shake_hands(head, self._server.refusal)
        self._transport.write(handshake.answer)
        if not handshake.is_accepted:
            self._transport.close()
            return
        self._reader = FrameReader(self, self._server.hub.settings.max_frame_bytes)
        self._server.silence.watch(self)
        self._client = Client(self._server.hub, self, handshake.headers)

    def _linger(self) -> None:
        """Send nothing more, and end the connection soon whatever the other side does."""
        if not self._is_closing:
            self._is_closing = True
            self._server.silence.forget(self)
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)


def _hold_little(system_socket: system_sockets.socket) -> None:
    if _UNSENT is not None:
        with suppress(OSError):  # it is gone already, or the system does not know this
            system_socket.setsockopt(system_sockets.IPPROTO_TCP, _UNSENT, UNSENT_BYTES)


class Outbox:
    """Sockets that have something to send. All are flushed together, so that frames for one socket are one write."""

    def __init__(self) -> None:
        self._sockets: list[SocketProtocol] = []
        self._flushed_at = 0.0

    def add(self, socket: SocketProtocol) -> None:
        if not self._sockets:
            loop = asyncio.get_running_loop()
            wait_s = self._flushed_at + GATHER_S - loop.time()
            if wait_s > 0:
                loop.call_later(wait_s, self._flush)
            else:
                loop.call_soon(self._flush)
        self._sockets.append(socket)

    def _flush(self) -> None:
        self._flushed_at = asyncio.get_running_loop().time()
        sockets, self._sockets = self._sockets, []
        for socket in sockets:
            socket.flush()


class Silence:
    """Finds sockets that are silent, with one timer for all: they are sent a ping, and then given up.

    It looks at them some at a time: a timer for each moment would let the loop spin.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._tick_s = after_s / 20
        self._due: OrderedDict[SocketProtocol, float] = OrderedDict()
        """When to look at each, in order."""
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, socket: SocketProtocol) -> None:
        loop = asyncio.get_running_loop()
        socket.is_silent = True
        self._due[socket] = loop.time() + self._after_s
        self._due.move_to_end(socket)
        if self._timer is None:
            self._timer = loop.call_later(self._tick_s, self._look)

    def forget(self, socket: SocketProtocol) -> None:
        self._due.pop(socket, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._tick_s, self._look) if self._due else None
        now = loop.time()
        while self._due:
            socket, due = next(iter(self._due.items()))
            if due > now:
                return
            if not socket.is_silent:
                socket.is_pinged = False
            elif socket.is_pinged:
                del self._due[socket]
                socket.abort()
                continue
            else:
                socket.ask()
            self.watch(socket)
