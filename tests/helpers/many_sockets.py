"""`python -m tests.helpers.many_sockets PORT FIRST COUNT SOURCE`: opens so many sockets, one a user, and counts.

Users are `u{number}`, from FIRST on. Whenever a count has changed it writes a line: {"connected", "closed",
"messages"}, of all sockets together.
"""

import asyncio
import json
import socket
import sys
from typing import Any

import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from tests.helpers.web import token

AT_ONCE = 50
RECEIVED_BYTES = 262_144
"""So many at most wait for a client in its system."""
_TTL_S = 86_400.0


class _Counts:
    def __init__(self) -> None:
        self.connected = self.closed = self.messages = 0


class _Client(asyncio.Protocol):
    def __init__(self, url: str, uid: str, counts: _Counts) -> None:
        self._protocol = ClientProtocol(parse_uri(url), max_size=None)
        self._uid = uid
        self._counts = counts
        self.is_connected = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        # What a client holds is its own machine's memory: here the server's system would run out of it.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES)
        self._protocol.send_request(self._protocol.connect())
        self._write()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                params = {"token": token(self._uid, ttl_s=_TTL_S), "start": "live"}
                call = {"jsonrpc": "2.0", "id": 1, "method": "connect", "params": params}
                self._protocol.send_text(json.dumps(call).encode())
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._take(json.loads(bytes(event.data)))
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._counts.closed += 1

    def _take(self, frame: dict[str, Any]) -> None:
        if "result" in frame:
            self._counts.connected += 1
            self.is_connected.set_result(None)
        elif frame.get("method") == "message":
            self._counts.messages += 1
        elif "error" in frame:
            print(json.dumps(frame), flush=True)

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)


async def _open(port: int, uid: str, source: str, counts: _Counts, turn: asyncio.Semaphore) -> None:
    async with turn:
        loop, url = asyncio.get_running_loop(), f"ws://127.0.0.1:{port}/ws"
        _, client = await loop.create_connection(
            lambda: _Client(url, uid, counts), "127.0.0.1", port, local_addr=(source, 0)
        )
        await client.is_connected


async def _run(port: int, first: int, count: int, source: str) -> None:
    counts, turn = _Counts(), asyncio.Semaphore(AT_ONCE)
    opening = [asyncio.create_task(_open(port, f"u{first + n}", source, counts, turn)) for n in range(count)]
    told: dict[str, int] = {}
    while True:
        if told != vars(counts):
            told = dict(vars(counts))
            print(json.dumps(told), flush=True)
        for task in opening:
            if task.done() and task.exception():
                raise RuntimeError("a socket could not be opened") from task.exception()
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    port, first, count, source = sys.argv[1:]
    uvloop.run(_run(int(port), int(first), int(count), source))
