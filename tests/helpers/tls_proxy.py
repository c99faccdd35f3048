"""TLS in front of a server that has none, as the wheel's Valkey: what comes in encrypted goes on to its unix socket.

The certificates in `tests/helpers/tls` are for these tests alone, and their keys are no secret. `ca.pem` has signed
`server.pem` (for 127.0.0.1 and localhost) and `client.pem`; `other-ca.pem` has signed nothing.
"""

import asyncio
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CERTIFICATES = Path(__file__).with_name("tls")
_CHUNK_BYTES = 65_536


class TlsProxy:
    """Listens on a port of loopback while it is entered."""

    def __init__(self, socket_path: str, *, clients_show_certificates: bool = False) -> None:
        self._socket_path = socket_path
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATES / "server.pem")
        if clients_show_certificates:
            self._context.load_verify_locations(CERTIFICATES / "ca.pem")
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._at_work: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        for task in self._at_work:
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._at_work.add(task)
        server_in, server_out = await asyncio.open_unix_connection(self._socket_path)
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(_pass_on(client_in, server_out)),
                    asyncio.create_task(_pass_on(server_in, client_out)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for writer in (server_out, client_out):
                writer.transport.abort()
            self._at_work.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
