"""`im serve` as a process, and clients that speak to it over real sockets."""

import asyncio
import http.client
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.helpers.deadline import wait_until
from tests.helpers.processes import PythonProcess
from tests.helpers.servers import free_ports
from tests.helpers.web import KEY, token

MOST_S = 30.0


class WebServer(PythonProcess):
    """One `python -m imcore.web` on a port of its own. It may be killed and started again by `again`."""

    def __init__(self, folder: Path, redis_url: str, *arguments: str, port: int | None = None, **settings: Any) -> None:
        self._given = (folder, redis_url, arguments, settings)
        self.port = port or free_ports(1)[0]
        given = {"redis_url": redis_url, "web_key": KEY, **settings}
        super().__init__(folder, "imcore.web", f"--port={self.port}", *arguments, **given)
        wait_until(lambda: not self.runs or self.answers(), timeout_s=MOST_S)
        assert self.runs, self.log

    def again(self) -> "WebServer":
        """Start it again, on the same port."""
        folder, redis_url, arguments, settings = self._given
        return WebServer(folder, redis_url, *arguments, port=self.port, **settings)

    def answers(self) -> bool:
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers (names in lower case) and the body."""
        return self.ask("GET", path, headers=headers)

    def ask(
        self, verb: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=MOST_S)
        try:
            connection.request(verb, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def rpc(self, method: str, *, bearer: str | None = None, **params: object) -> Any:
        """Call a method by HTTP; return the answer: it has a `result` or an `error`."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        return json.loads(self.ask("POST", "/rpc", body, {"Authorization": f"Bearer {bearer or token()}"})[2])

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"


class WebClient:
    """A client of the protocol, as one writes it in any language. What it is told is in `told`."""

    def __init__(self, url: str, uid: str = "ann", headers: Mapping[str, str] | None = None) -> None:
        self.uid = uid
        self.told: list[dict[str, Any]] = []
        self.answers: dict[object, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []
        """Answers without an id."""
        self.closed: tuple[int, str] | None = None
        self._url, self._headers = url, headers
        self._ids = 0
        self._came = asyncio.Event()
        self._socket: ClientConnection
        self._reading: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._socket = await connect(self._url, additional_headers=self._headers, compression=None, max_size=None)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await self._socket.close()

    async def connect(self, **params: object) -> dict[str, Any]:
        """Say who it is; return the result."""
        result: dict[str, Any] = await self.call("connect", **{"token": token(self.uid), **params})
        return result

    async def call(self, method: str, **params: object) -> Any:
        """Call a method; return its result. An error fails the test."""
        answer = await self.ask(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    async def error(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method; return the error that it has to answer."""
        error: dict[str, Any] = (await self.ask(method, **params))["error"]
        return error

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        self._ids += 1
        id_ = self._ids
        await self.send({"jsonrpc": "2.0", "id": id_, "method": method, "params": params})
        await self.until(lambda: id_ in self.answers or self.closed)
        assert id_ in self.answers, self.closed
        return self.answers.pop(id_)

    async def notify(self, method: str, **params: object) -> None:
        await self.send({"jsonrpc": "2.0", "method": method, "params": params})

    async def send(self, what: object) -> None:
        """Send a text or bytes as they are, anything else as JSON. What a closed socket does not take is lost."""
        with suppress(ConnectionClosed):
            await self._socket.send(what if isinstance(what, str | bytes) else json.dumps(what))

    async def until(self, condition: Callable[[], object], timeout_s: float = MOST_S) -> None:
        """Read until the condition holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._came.clear()
                await self._came.wait()

    async def until_closed(self) -> int:
        """Read until the server closes; return the code."""
        await self.until(lambda: self.closed)
        assert self.closed
        return self.closed[0]

    def contents(self, gid: str = "team") -> list[str]:
        """The texts of a group's messages that it was told, in order."""
        return [each["content"] for each in self.notices("message") if each["gid"] == gid]

    def notices(self, method: str) -> list[dict[str, Any]]:
        return [each["params"] for each in self.told if each["method"] == method]

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below, to stop reading by."""
        return self._socket.transport  # type: ignore[return-value]

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                self._take(json.loads(text))
                self._came.set()
        except ConnectionClosed:
            pass
        self.closed = self._socket.close_code or 1006, self._socket.close_reason or ""
        self._came.set()

    def _take(self, frame: dict[str, Any]) -> None:
        if "method" in frame:
            self.told.append(frame)
        elif frame["id"] is None:
            self.others.append(frame)
        else:
            self.answers[frame["id"]] = frame
