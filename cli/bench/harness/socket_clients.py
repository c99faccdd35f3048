"""Clients on real sockets, in a process of their own: 40 that read and ack, and one that sends.

`python -m imcore.cli.bench.harness.socket_clients PLAN`, a JSON object with the fields of `StormPlan`. It connects,
writes READY, and for each byte on `go_fd` lives through a storm and writes a JSON object with what it has measured. It
needs nothing of imcore but its protocol.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from imcore.cli.bench.harness.figures import percentile

READY = "ready"
_DEADLINE_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class StormPlan:
    """The first token is the sender's. `is_bare`: the server only passes on what it gets, and knows no receipts.

    `delivers`: each reader says of each message that it has arrived, before any ack.
    """

    url: str
    gid: str
    tokens: Sequence[str]
    messages: int
    ack_every: int
    in_flight: int
    text: str
    go_fd: int
    is_bare: bool = False
    delivers: bool = False


@dataclass(slots=True)
class Seen:
    """Times by msgid (perf_counter): sent, arrived at all readers, and known to the sender as read by all."""

    sent: dict[str, float] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)
    digests: int = 0


class SocketClient(asyncio.Protocol):
    """One socket. Call `on_told(client, method, params)` for a notification, `on_result(result)` for an answer."""

    def __init__(self, url: str, on_told: Callable[["SocketClient", str, Any], None], on_result: Callable[[Any], None]):
        self._protocol = ClientProtocol(parse_uri(url), max_size=None)
        self._on_told, self._on_result = on_told, on_result
        self._ids = 0
        self.is_open = asyncio.get_running_loop().create_future()
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._protocol.send_request(self._protocol.connect())
        self._write()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self.is_open.set_result(None)
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._take(bytes(event.data))
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._protocol.close_sent is None:
            _fail(f"a socket was closed: {self._protocol.close_rcvd or exc or 'the server is gone'}")

    def call(self, method: str, **params: object) -> None:
        self._ids += 1
        self._send({"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params})

    def notify(self, text: str) -> None:
        self._protocol.send_text(text.encode())
        self._write()

    def _take(self, text: bytes) -> None:
        frame = _parsed(text)
        if "method" in frame:
            self._on_told(self, frame["method"], frame["params"])
        elif "error" in frame:
            _fail(f"a call has failed: {frame['error']}")
        else:
            self._on_result(frame["result"])

    def _send(self, frame: object) -> None:
        self.notify(json.dumps(frame))

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)


# All readers are told the same: a message is parsed once, and so is its ack made.
_parsed = lru_cache(maxsize=64)(json.loads)


@lru_cache(maxsize=128)
def _confirmation(method: str, gid: str, msgid: str) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": {"gid": gid, "msgid": msgid}})


def _fail(why: str) -> NoReturn:
    print(why, flush=True)
    os._exit(1)


class Storm:
    """Sends while fewer messages are in flight than allowed. A reader acks every `ack_every`-th message."""

    def __init__(self, plan: StormPlan) -> None:
        self.plan = plan
        self._readers = len(plan.tokens) - 1
        self._connected = 0
        self._sender: SocketClient
        self._start_over()

    def _start_over(self) -> None:
        self.seen = Seen()
        self._missing: dict[str, int] = {}
        self._called_at: list[float] = []
        self._done = asyncio.get_running_loop().create_future()

    async def connect(self) -> None:
        loop, place = asyncio.get_running_loop(), urlsplit(self.plan.url)
        host, port = place.hostname or "", place.port or 0
        clients: list[SocketClient] = []
        for token in self.plan.tokens:
            _, client = await loop.create_connection(
                lambda: SocketClient(self.plan.url, self._told, self._answered), host, port
            )
            await client.is_open
            client.call("connect", token=token, start="live")
            clients.append(client)
        self._sender = clients[0]
        while self._connected < len(clients):
            await asyncio.sleep(0.01)

    async def run(self) -> float:
        """Return the seconds until the sender knew that all have read the last message."""
        self._start_over()
        began = time.perf_counter()
        self._send()
        async with asyncio.timeout(_DEADLINE_S):
            await self._done
        return time.perf_counter() - began

    def _send(self) -> None:
        while len(self._called_at) < self.plan.messages and self._in_flight < self.plan.in_flight:
            self._called_at.append(time.perf_counter())
            self._sender.call("send", gid=self.plan.gid, content=self.plan.text)

    @property
    def _in_flight(self) -> int:
        return len(self._called_at) - len(self.seen.arrived)

    def _answered(self, result: Any) -> None:
        if "groups" in result:
            self._connected += 1
        else:
            self.seen.sent[result["msgid"]] = self._called_at[len(self.seen.sent)]

    def _told(self, client: SocketClient, method: str, params: Any) -> None:
        if method == "receipts":
            self._receipts(params["receipts"])
        elif method == "message" and client is not self._sender:
            self._message(client, params)

    def _message(self, client: SocketClient, message: Any) -> None:
        gid, msgid, seen = message["gid"], message["msgid"], self.seen
        client.received += 1
        if self.plan.delivers:
            client.notify(_confirmation("delivered", gid, msgid))
        if client.received % self.plan.ack_every == 0:
            client.notify(_confirmation("ack", gid, msgid))
        missing = self._missing.get(msgid, self._readers) - 1
        self._missing[msgid] = missing
        if not missing:
            seen.arrived[msgid] = time.perf_counter()
            self._send()
            if self.plan.is_bare and len(seen.arrived) == self.plan.messages:
                self._done.set_result(None)

    def _receipts(self, receipts: Sequence[Any]) -> None:
        self.seen.digests += 1
        now = time.perf_counter()
        for receipt in receipts:
            if receipt["read"] == self._readers and receipt["msgid"] in self.seen.arrived:
                self.seen.known.setdefault(receipt["msgid"], now)
        if len(self.seen.known) == self.plan.messages and not self._done.done():
            self._done.set_result(None)


async def _run(plan: StormPlan) -> None:
    loop, storm = asyncio.get_running_loop(), Storm(plan)
    await storm.connect()
    print(READY, flush=True)
    while await loop.run_in_executor(None, os.read, plan.go_fd, 1):
        print(json.dumps(await _measured(storm)), flush=True)


async def _measured(storm: Storm) -> dict[str, float]:
    seconds = await storm.run()
    seen, messages = storm.seen, storm.plan.messages
    samples = {
        "delivery": [(seen.arrived[msgid] - at) * 1000 for msgid, at in seen.sent.items()],
        "receipt": [(at - seen.arrived[msgid]) * 1000 for msgid, at in seen.known.items()],
    }
    measured = {"cycles": messages / seconds, "digests": seen.digests / messages}
    for name, ms in samples.items():
        if ms:
            measured |= {f"{name} p50": percentile(ms, 0.5), f"{name} p99": percentile(ms, 0.99)}
    return measured


def main(arguments: Sequence[str]) -> None:
    plan = StormPlan(**json.loads(arguments[0]))
    try:
        import uvloop  # noqa: PLC0415 (it may be missing)
    except ImportError:
        asyncio.run(_run(plan))
    else:
        uvloop.run(_run(plan))


if __name__ == "__main__":
    main(sys.argv[1:])
