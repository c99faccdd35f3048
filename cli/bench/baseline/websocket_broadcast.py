"""The least that a server of sockets does, as a yardstick: the library `websockets` passes each message on to all.

`python -m imcore.cli.bench.baseline.websocket_broadcast PORT`. It parses what it is sent, counts acks, and does nothing
else: nothing is stored, and nobody is told who has read.
"""

import asyncio
import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

_numbers = count(1)
_sockets: dict[str, set[ServerConnection]] = {}
"""By token. Clients of one group have the same."""
_acks: dict[str, int] = {}


async def _serve(socket: ServerConnection) -> None:
    with suppress(ConnectionClosed):
        await _read(socket)
    for sockets in _sockets.values():
        sockets.discard(socket)


async def _read(socket: ServerConnection) -> None:
    sockets: set[ServerConnection] = set()
    async for text in socket:
        call = json.loads(text)
        if call["method"] == "ack":
            msgid = call["params"]["msgid"]
            _acks[msgid] = _acks.get(msgid, 0) + 1
            continue
        result: dict[str, Any] = {"groups": []}
        if call["method"] == "connect":
            sockets = _sockets.setdefault(call["params"]["token"], set())
            sockets.add(socket)
        else:
            result = _message(call["params"])
            broadcast(sockets, _text({"jsonrpc": "2.0", "method": "message", "params": result}))
        await socket.send(_text({"jsonrpc": "2.0", "result": result, "id": call["id"]}))


def _message(params: dict[str, str]) -> dict[str, Any]:
    seq, now = next(_numbers), datetime.now(UTC)
    return {
        "gid": params["gid"],
        "msgid": f"{int(now.timestamp() * 1000)}-{seq}",
        "seq": seq,
        "sender_uid": "sender",
        "time": now.isoformat(timespec="milliseconds"),
        "content": params["content"],
        "client_msgid": None,
    }


def _text(frame: object) -> str:
    return json.dumps(frame, separators=(",", ":"))


async def _run(port: int) -> None:
    async with serve(_serve, "127.0.0.1", port, compression=None):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1])))
