"""A socket of any ASGI server, as a `Client` needs it."""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket

from imcore.web.client import BINARY, TOO_LARGE, Client
from imcore.web.flow import Frame

if TYPE_CHECKING:
    from imcore.web.hub import Hub

HIGH_WATER_BYTES = 65_536
LOW_WATER_BYTES = 16_384
LINGER_S = 5.0
"""The time in which the other side may read what it has not read yet, and answer the close frame."""


class AsgiSocket:
    """Frames wait here while the server has no room for them.

    An ASGI application cannot send pings: what has arrived at a client is what it says, by acks and `delivered`.
    """

    can_ping = False

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._client: Client | None = None
        self._frames: deque[Frame] = deque()
        self._came = asyncio.Event()
        self._buffered = 0
        self._is_full = False
        self._end: tuple[int, str] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def remote(self) -> str:
        address = self._websocket.client
        return f"{address.host}:{address.port}" if address else "?"

    @property
    def buffered(self) -> int:
        return self._buffered

    def send(self, frame: Frame) -> None:
        if self._end is not None:
            return
        self._frames.append(frame)
        self._buffered += len(frame.text)
        self._came.set()
        if self._buffered > HIGH_WATER_BYTES and not self._is_full:
            self._is_full = True
            if self._client:
                self._client.writable(False)

    def ping(self, payload: bytes) -> None:
        """Do nothing."""

    def close(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = code, reason
            self._came.set()
            if self._reading:
                asyncio.get_running_loop().call_later(LINGER_S, self._reading.cancel)

    async def serve(self, hub: "Hub", headers: Mapping[str, str]) -> None:
        """Accept the socket, and serve it to its end."""
        await self._websocket.accept()
        self._reading = asyncio.create_task(self._read(hub, headers))
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait([self._reading])
        finally:
            self._reading.cancel()
            writing.cancel()
            await asyncio.gather(self._reading, writing, return_exceptions=True)
            if self._client:
                self._client.lost()

    async def _read(self, hub: "Hub", headers: Mapping[str, str]) -> None:
        client = self._client = Client(hub, self, headers)
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            self._received(client, message, hub.settings.max_frame_bytes)

    def _received(self, client: Client, message: Mapping[str, Any], most_bytes: int) -> None:
        text = message.get("text")
        if text is None:
            client.refused_frame(BINARY, "binary frames are not taken: send JSON as text")
        elif len(data := text.encode(errors="surrogatepass")) > most_bytes:
            client.refused_frame(TOO_LARGE, f"a frame has at most {most_bytes} bytes (IM_WEB_MAX_FRAME_BYTES)")
        else:
            client.received(data)

    async def _write(self) -> None:
        with suppress(Exception):  # the socket is gone: reading ends, too
            while self._frames or self._end is None:
                await self._came.wait()
                self._came.clear()
                while self._frames:
                    frame = self._frames.popleft()
                    await self._websocket.send({"type": "websocket.send", "text": frame.string})
                    self._buffered -= len(frame.text)
                    self._drained()
            await self._websocket.close(*self._end)

    def _drained(self) -> None:
        if self._is_full and self._buffered <= LOW_WATER_BYTES:
            self._is_full = False
            if self._client:
                self._client.writable(True)
