"""Whatever comes over the network has its error, and nobody else notices: a second client goes on through all of it."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from imcore import Chat
from tests.helpers.servers import RunningServer
from tests.helpers.web import token
from tests.helpers.web_server import WebClient, WebServer

MANY = 10_000


@pytest.fixture(scope="module")
def impatient(redis: RunningServer, folder: Path, chat: Chat) -> Iterator[WebServer]:
    """A server that waits for a client for 2 s."""
    with WebServer(folder / "impatient", redis.url, data_dir=str(folder), web_handshake_ms=2000) as server:
        yield server


@contextmanager
def raw(web: WebServer) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", web.port), timeout=30)) as connection:
        yield connection


async def goes_on(web: WebServer, chat: Chat, gid: str) -> None:
    """Another client connects, and gets what is said."""
    async with WebClient(web.url, "ann") as other:
        await other.connect(start="live")
        chat.send(gid, "still here?", sender_uid="bob")
        await other.until(lambda: other.contents(gid) == ["still here?"])


@pytest.mark.parametrize(
    "made",
    [
        *("", "rubbish", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4iLCJleHAiOjQwMDAwMDAwMDB9."),
        *("expired", "future", "another key"),
    ],
    ids=["empty", "rubbish", "alg none", "expired", "future", "another key"],
)
def test_a_bad_token_is_an_error_and_the_end(web: WebServer, chat: Chat, gid: str, made: str) -> None:
    made = {
        "expired": token(ttl_s=-5),
        "future": token(nbf=time.time() + 3600),
        "another key": token(key="x" * 40),
    }.get(made, made)

    async def story() -> None:
        async with WebClient(web.url) as client, WebClient(web.url, "ann") as other:
            await other.connect(start="live")
            assert (await client.error("connect", token=made))["data"] == {"error": "NotAuthenticated", "retry": False}
            assert await client.until_closed() == 4401
            assert await other.call("unread")
            assert other.closed is None
        status, headers, body = web.ask("POST", "/rpc", b"{}", {"Authorization": f"Bearer {made}"})
        assert status == 401
        assert headers["www-authenticate"].startswith('Bearer realm="imcore"')
        assert json.loads(body)["error"]["data"]["error"] == "NotAuthenticated"
        assert len(made) < 20 or made not in web.log

    asyncio.run(story())


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        *(("hello", -32700), ("", -32700), ('{"a":1,"a":2}', -32700), ("[" * 50_000, -32700)),
        *(("[]", -32600), ('[{"jsonrpc":"2.0","id":1,"method":"unread"}]', -32600), ("1", -32600), ("{}", -32600)),
        ('{"jsonrpc":"2.0","id":true,"method":"unread"}', -32600),
    ],
    ids=["a word", "nothing", "a key twice", "deep", "empty batch", "batch", "a number", "an object", "an id"],
)
def test_a_frame_that_is_no_request_has_its_error_and_the_socket_goes_on(web: WebServer, frame: str, code: int) -> None:
    async def story() -> None:
        async with WebClient(web.url) as client:
            await client.connect(start="live")
            await client.send(frame)
            await client.until(lambda: client.others)
            assert client.others[0]["error"]["code"] == code
            assert isinstance(await client.call("unread"), list)

    asyncio.run(story())


def test_a_frame_before_connect_has_its_error_too(web: WebServer) -> None:
    async def story() -> None:
        async with WebClient(web.url) as client:
            await client.send("hello")
            await client.until(lambda: client.others)
            assert (await client.error("unread"))["data"]["error"] == "NotAuthenticated"
            assert await client.until_closed() == 4401

    asyncio.run(story())


def test_a_binary_frame_is_an_error_and_the_end(web: WebServer) -> None:
    async def story() -> None:
        async with WebClient(web.url) as client:
            await client.connect()
            await client.send(b"\x00\x01")
            assert await client.until_closed() == 1003
            assert client.others[0]["error"]["code"] == -32600

    asyncio.run(story())


def test_a_frame_that_is_too_large_is_an_error_and_the_end(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        async with WebClient(web.url) as client:
            await client.connect(start="live")
            await client.send("x" * 262_145)
            assert await client.until_closed() == 1009
            assert "IM_WEB_MAX_FRAME_BYTES" in client.others[0]["error"]["message"]
        async with WebClient(web.url) as client:
            await client.connect(start="live")
            await client.send("x" * 1_000_000)
            assert await client.until_closed() == 1009
        await goes_on(web, chat, gid)

    asyncio.run(story())


def test_a_frame_that_is_no_utf8_ends_its_socket(web: WebServer) -> None:
    async def story() -> None:
        async with WebClient(web.url) as client:
            await client.connect()
            await client._socket.send(b"\xff\xfe", text=True)
            assert await client.until_closed() == 1007

    asyncio.run(story())


def test_ten_thousand_calls_at_once_disturb_nobody(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as loud, WebClient(web.url, "bob") as other:
            await loud.connect(start="live")
            await other.connect(start="live")
            text = json.dumps({"jsonrpc": "2.0", "id": "n", "method": "groups", "params": {}})

            async def flood() -> None:
                for _ in range(MANY):
                    await loud.send(text)

            flooding = asyncio.create_task(flood())
            slowest = 0.0
            while not loud.closed:
                begun = time.monotonic()
                assert isinstance(await other.call("unread"), list)
                slowest = max(slowest, time.monotonic() - begun)
            await asyncio.gather(flooding, return_exceptions=True)
            assert loud.closed == (4429, "too many calls a second, and refusals did not help")
            assert slowest < 10
        await goes_on(web, chat, gid)

    asyncio.run(story())


def test_a_client_that_says_nothing_is_closed_in_time(impatient: WebServer) -> None:
    async def story() -> None:
        async with WebClient(impatient.url) as silent:
            assert await silent.until_closed() == 4401

    asyncio.run(story())


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"POST /rpc HT"])
def test_a_handshake_that_never_ends_is_ended(impatient: WebServer, chat: Chat, gid: str, sent: bytes) -> None:
    with raw(impatient) as slow:
        slow.sendall(sent)
        asyncio.run(goes_on(impatient, chat, gid))
        begun = time.monotonic()
        answer = slow.recv(100)
        assert answer.startswith(b"HTTP/1.1 408") or answer == b""
        assert time.monotonic() - begun < 25


def test_a_body_that_never_ends_is_ended(impatient: WebServer) -> None:
    with raw(impatient) as slow:
        slow.sendall(
            f"POST /rpc HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\nContent-Length: 10\r\n\r\n{{".encode()
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("length", ["10000000", None])
def test_a_body_that_is_too_large_is_refused_while_it_comes(web: WebServer, length: str | None) -> None:
    head = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
    with raw(web) as client:
        client.sendall(f"POST /rpc HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n{head}\r\n\r\n".encode())
        if not length:
            client.sendall(b"50000\r\n" + b" " * 0x50000 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "x"])
def test_a_foreign_page_may_not_connect(web: WebServer, origin: str) -> None:
    async def story() -> None:
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(web.url, additional_headers={"Origin": origin}):
                pass
        assert refusal.value.response.status_code == 403

    asyncio.run(story())
    headers = {"Authorization": f"Bearer {token()}", "Origin": origin}
    assert web.ask("POST", "/rpc", b"{}", headers)[0] == 403


def test_a_page_of_this_host_may_connect(web: WebServer) -> None:
    async def story() -> None:
        async with WebClient(web.url, headers={"Origin": f"http://127.0.0.1:{web.port}"}) as client:
            await client.connect()

    asyncio.run(story())


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(100),
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
        b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
    ids=["TLS", "version", "zeros", "no key"],
)
def test_what_is_no_http_is_refused(web: WebServer, chat: Chat, gid: str, rubbish: bytes) -> None:
    said_before = len(web.log)
    with raw(web) as client:
        client.sendall(rubbish)
        answer = client.recv(100)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 426")) or answer == b""
    asyncio.run(goes_on(web, chat, gid))
    assert "Traceback" not in web.log[said_before:]
