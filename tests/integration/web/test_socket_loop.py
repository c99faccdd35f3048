"""The socket loop under a real uvicorn, with the `websockets` client and with bare sockets as the other side."""

import asyncio
import fcntl
import socket
import ssl
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from imcore.web import http, sockets
from imcore.web.flow import Frame, Socket
from imcore.web.http import PatientHttp
from imcore.web.settings import WebSettings
from imcore.web.sockets import SocketServer
from tests.helpers.deadline import wait_until

MOST_BYTES = 100_000
TLS = Path(__file__).parents[2] / "helpers" / "tls"
HEAD = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: {version}\r\n\r\n"
)
QUIET_PING_S = 60.0


class EchoClient:
    """Stands for `Client`: answers each text with the same text, and notes what its socket tells."""

    def __init__(self, hub: "EchoHub", connection: Socket, headers: Mapping[str, str]) -> None:
        self.socket = connection
        self.headers = headers
        self.texts: list[bytes] = []
        self.refusals: list[int] = []
        self.rooms: list[bool] = []
        self.pongs: list[bytes] = []
        self.losses = 0
        hub.clients.append(self)

    def received(self, text: bytes) -> None:
        self.texts.append(text)
        self.socket.send(Frame(text))

    def refused_frame(self, code: int, reason: str) -> None:
        self.refusals.append(code)
        self.socket.send(Frame(b"refused"))
        self.socket.close(code, reason)

    def writable(self, has_room: bool) -> None:
        self.rooms.append(has_room)

    def ponged(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def close(self, code: int, reason: str) -> None:
        self.socket.close(code, reason)

    def lost(self) -> None:
        self.losses += 1


class EchoHub:
    """Stands for `Hub`."""

    def __init__(self) -> None:
        self.settings = WebSettings(key="k", max_frame_bytes=MOST_BYTES)
        self.is_stopping = False
        self.clients: list[EchoClient] = []
        self.loop: asyncio.AbstractEventLoop

    def run(self, work: Any) -> Any:
        """Call something in the loop's thread; return its answer."""

        async def called() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(30)


class Running(SimpleNamespace):
    hub: EchoHub
    port: int
    server: uvicorn.Server

    def connect(self, **options: Any) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/ws", compression=None, **options)

    def raw(self, head: bytes = HEAD.format(path="/ws", version=13).encode()) -> socket.socket:
        bare = socket.create_connection(("127.0.0.1", self.port), 30)
        bare.sendall(head)
        return bare

    def client(self) -> EchoClient:
        return wait_until(lambda: self.hub.clients and self.hub.clients[-1])


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def running(loop: str, *, ping_after_s: float = QUIET_PING_S, **options: Any) -> Iterator[Running]:
    hub = EchoHub()
    config = uvicorn.Config(
        answer_ok,
        port=0,
        loop=loop,
        http=PatientHttp,
        ws=SocketServer(hub, ping_after_s=ping_after_s),  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        **options,
    )
    server = uvicorn.Server(config)

    async def main() -> None:
        hub.loop = asyncio.get_running_loop()
        await server.serve()

    def serve() -> None:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Running(hub=hub, port=server.servers[0].sockets[0].getsockname()[1], server=server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "Client", EchoClient)


@pytest.fixture(params=["uvloop", "asyncio"])
def echo(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(request.param) as server:
        yield server


def read_all(bare: socket.socket) -> bytes:
    """Read until the other side ends."""
    parts = []
    with closing(bare):
        while part := bare.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def test_texts_of_every_size_come_back(echo: Running) -> None:
    texts = ["", "x", "é群😀", *("y" * size for size in (125, 126, 65_535, 65_536, MOST_BYTES))]
    with echo.connect(additional_headers={"Authorization": "Bearer t"}) as client:
        for text in texts:
            client.send(text)
        client.send(["in ", "three ", "parts"])
        assert [client.recv(30) for _ in texts] == texts
        assert client.recv(30) == "in three parts"
        assert client.ping().wait(30)
        assert echo.client().headers["authorization"] == "Bearer t"
        assert echo.client().socket.remote.startswith("127.0.0.1:")
    wait_until(lambda: echo.client().losses == 1)
    assert client.close_code == 1000


def test_frames_that_are_sent_at_once_arrive_in_order(echo: Running) -> None:
    with echo.connect() as client:
        connection = echo.client().socket
        echo.hub.run(lambda: [connection.send(Frame(f"{number}".encode())) for number in range(5000)])
        assert [client.recv(30) for _ in range(5000)] == [f"{number}" for number in range(5000)]
        wait_until(lambda: echo.hub.run(lambda: connection.buffered) == 0)


def test_a_close_comes_after_what_was_sent(echo: Running) -> None:
    with echo.connect() as client:
        connection = echo.client().socket
        echo.hub.run(lambda: (connection.send(Frame(b"last")), connection.close(4408, "too slow")))
        assert client.recv(30) == "last"
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(30)
    assert closed.value.rcvd
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4408, "too slow")
    wait_until(lambda: echo.client().losses == 1)


@pytest.mark.parametrize(("sent", "code"), [(b"binary", 1003), ("x" * (MOST_BYTES + 1), 1009)])
def test_a_message_that_is_not_taken_is_refused_with_a_word(echo: Running, sent: bytes | str, code: int) -> None:
    with echo.connect() as client:
        client.send(sent)
        assert client.recv(30) == "refused"
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(30)
    assert closed.value.rcvd
    assert closed.value.rcvd.code == code
    assert echo.client().refusals == [code]


def test_a_fault_of_the_protocol_ends_the_socket(echo: Running) -> None:
    # Given a client whose frames are not masked
    bare = echo.raw()
    assert echo.client()
    bare.sendall(b"\x81\x02hi")
    # Then it gets a close frame with 1002, and the end
    assert (1002).to_bytes(2) + b"a client's frames are masked" in read_all(bare)
    wait_until(lambda: echo.client().losses == 1)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD.format(path="/other", version=13), 404),
        (HEAD.format(path="/ws", version=8), 426),
        (HEAD.format(path="/ws", version=13).replace("\r\n\r\n", "\r\nOrigin: https://evil.example\r\n\r\n"), 403),
        (HEAD.format(path="/ws", version=13).replace("dGhl", "x"), 400),
    ],
)
def test_a_wrong_handshake_is_refused(echo: Running, head: str, status: int) -> None:
    assert read_all(echo.raw(head.encode())).startswith(f"HTTP/1.1 {status} ".encode())
    assert not echo.hub.clients


def test_no_socket_is_opened_while_the_server_ends(echo: Running) -> None:
    echo.hub.is_stopping = True
    with pytest.raises(InvalidStatus) as refused, echo.connect():
        pass
    assert refused.value.response.status_code == 503


def test_a_client_that_reads_nothing_is_held_up_alone(echo: Running) -> None:
    # Given a client that does not read
    bare = echo.raw()
    client = echo.client()
    frame = Frame(b"z" * 50_000)

    def send_until_full() -> None:
        while not client.rooms:
            client.socket.send(frame)

    # When its socket has no room any more, it says so, and holds little
    echo.hub.run(send_until_full)
    assert client.rooms == [False]
    assert echo.hub.run(lambda: client.socket.buffered) < 4 * sockets.HIGH_WATER_BYTES
    # Then others go on, and it says when there is room again
    with echo.connect() as other:
        other.send("hello")
        assert other.recv(30) == "hello"
    echo.hub.run(lambda: client.socket.close(4408, "too slow"))
    with closing(bare):
        end = b""
        while not end.endswith(b"too slow"):
            end = (end + bare.recv(65_536))[-8:]
    wait_until(lambda: client.losses == 1)
    assert client.rooms[:2] in ([False, True], [False])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what it holds")
def test_the_system_holds_little_for_a_client_that_reads_nothing(echo: Running) -> None:
    with closing(echo.raw()):
        served: Any = echo.client().socket
        for _ in range(100):
            echo.hub.run(partial(served.send, Frame(b"x" * MOST_BYTES)))
        sender = served._transport.get_extra_info("socket")
        held = int.from_bytes(fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        assert held <= 2 * sockets.UNSENT_BYTES
        assert echo.hub.run(lambda: served.buffered) > 10 * held  # it was sent all that and more


def test_a_client_that_reads_nothing_cannot_keep_its_socket(echo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LINGER_S", 0.1)
    with closing(echo.raw()):
        client = echo.client()
        echo.hub.run(lambda: client.socket.send(Frame(b"z" * 20_000_000)))
        echo.hub.run(lambda: client.socket.close(4408, "too slow"))
        wait_until(lambda: client.losses == 1)


def test_a_socket_that_answers_no_ping_is_given_up() -> None:
    # Given one client that answers pings, and one that does not
    with running("uvloop", ping_after_s=0.3) as server, server.connect() as good, closing(server.raw()) as silent:
        wait_until(lambda: len(server.hub.clients) == 2)
        lost = wait_until(lambda: [client for client in server.hub.clients if client.losses])
        # Then only that one is lost
        assert [client.socket.remote for client in lost] == ["{}:{}".format(*silent.getsockname())]
        good.send("still here")
        assert good.recv(30) == "still here"


def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientHttp, "patience_s", 1.0)
    with running("uvloop") as server:
        for part in (b"", HEAD.format(path="/ws", version=13)[:60].encode()):
            assert b" 408 " in read_all(server.raw(part))
        # And a request that comes in time is answered, twice on one connection, and a socket may stay silent
        with closing(server.raw(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2)) as bare:
            answers = b""
            while answers.count(b"ok") < 2:
                answers += bare.recv(65_536)
        with server.connect() as client, closing(server.raw(b"GET / HTTP/1.1\r\n")) as late:
            assert b" 408 " in late.recv(65_536)
            client.send("hello")
            assert client.recv(30) == "hello"


def test_a_head_without_end_is_refused(echo: Running) -> None:
    bare = echo.raw(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):  # noqa: PT012 (it may come at any write)
        while True:
            bare.sendall(b"X: " + b"x" * http.MAX_HEAD_BYTES + b"\r\n")
    bare.close()


def test_sockets_are_closed_with_1001_when_the_process_ends() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running("uvloop"))
        clients = [stack.enter_context(server.connect()) for _ in range(3)]
        server.server.should_exit = True
        for client in clients:
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(30)
            assert closed.value.rcvd
            assert closed.value.rcvd.code == 1001
        wait_until(lambda: all(client.losses for client in server.hub.clients))
    assert [client.losses for client in server.hub.clients] == [1, 1, 1]


def test_sockets_send_without_delay(echo: Running) -> None:
    with echo.connect():
        transport = echo.client().socket._transport  # type: ignore[attr-defined]
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_socket_over_tls(loop: str) -> None:
    trusting = ssl.create_default_context(cafile=str(TLS / "ca.pem"))
    trusting.check_hostname = False

    async def talk(server: Running) -> ConnectionClosed:
        url = f"wss://127.0.0.1:{server.port}/ws"
        # Not the client of two threads: OpenSSL does not let them share a connection (an answer in 300 was lost).
        async with connect_async(url, ssl=trusting, compression=None) as client:
            await client.send("x" * MOST_BYTES)
            assert await client.recv() == "x" * MOST_BYTES
            await asyncio.to_thread(server.hub.run, lambda: server.client().socket.close(4401, "expired"))
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
        return closed.value

    with running(loop, ssl_certfile=str(TLS / "server.pem")) as server:
        closed = asyncio.run(asyncio.wait_for(talk(server), 30))
    assert closed.rcvd
    assert closed.rcvd.code == 4401


def test_who_asks_without_end_and_reads_nothing_is_not_answered_without_end(echo: Running) -> None:
    pings = (b"\x89\xfd" + b"mask" + b"x" * 125) * 1000
    with closing(echo.raw()) as bare:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        served: Any = echo.client().socket
        narrow = partial(
            served._transport.get_extra_info("socket").setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
        )
        echo.hub.run(narrow)
        for _ in range(80):
            bare.sendall(pings)
            assert echo.hub.run(lambda: served.buffered) <= 2 * sockets.HIGH_WATER_BYTES
