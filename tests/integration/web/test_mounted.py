"""The application in a program of somebody else: below a path, with their own login and rules, on uvicorn's sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect

from imcore import AsyncChat, Chat
from imcore.web import Identity, app
from tests.helpers.documents import Document
from tests.helpers.servers import RunningServer, free_ports
from tests.helpers.web import token, web_settings
from tests.helpers.web_server import WebClient

EXAMPLE = "".join(block.text for block in Document("imcore/web/README.md").blocks_in("python"))


@asynccontextmanager
async def running(program: Any, hub: Any) -> AsyncIterator[int]:
    """Run a program on uvicorn; end it as it says itself."""
    [port] = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(program, port=port, ws="websockets-sansio", log_config=None))
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        await hub.close()
        server.should_exit = True
        await serving


def _no_signals() -> Any:
    from contextlib import nullcontext  # noqa: PLC0415

    return nullcontext()


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, redis: RunningServer, chat: Chat) -> None:
    monkeypatch.setenv("IM_REDIS_URL", redis.url)
    monkeypatch.setenv("IM_DATABASE_URL", chat.system.settings.database_url)


@pytest.mark.usefixtures("environ")
def test_the_example_of_the_readme_runs(chat: Chat, gid: str) -> None:
    async def find_user(cookie: str | None) -> str | None:
        return {"id=1": "ann"}.get(cookie or "")

    names: dict[str, Any] = {"find_user": find_user}
    exec(compile(EXAMPLE, "README.md", "exec"), names)

    async def story() -> None:
        async with running(names["main"], names["chat"].state.hub) as port:
            url = f"ws://127.0.0.1:{port}/chat/ws"
            async with WebClient(url, headers={"Cookie": "id=1"}) as ann, WebClient(url) as stranger:
                assert (await ann.call("connect"))["uid"] == "ann"
                sent = await asyncio.to_thread(chat.send, gid, "hello", sender_uid="bob")
                await ann.until(lambda: ann.contents(gid) == ["hello"])
                await ann.notify("ack", gid=gid, msgid=sent.msgid)
                assert (await stranger.error("connect"))["data"]["error"] == "NotAuthenticated"
                assert await stranger.until_closed() == 4401
                await ann.call("unread")
        # What was acked went out with the end.
        assert chat.tally(gid, sent.msgid).read == 1

    asyncio.run(story())


May = Callable[[Identity, str, Mapping[str, Any]], "bool | Awaitable[bool]"]


def plain_may(identity: Identity, method: str, params: Mapping[str, Any]) -> bool:
    """A rule of a product: anybody creates groups, nobody recalls."""
    return method != "recall"


async def async_may(identity: Identity, method: str, params: Mapping[str, Any]) -> bool:
    await asyncio.sleep(0)
    return plain_may(identity, method, params)


@pytest.mark.parametrize("may", [plain_may, async_may])
def test_rules_and_a_chat_of_the_program_are_used(redis: RunningServer, chat: Chat, gid: str, may: May) -> None:
    def authenticate(made: str | None, headers: Mapping[str, str]) -> Identity | None:
        return Identity(made) if made else None

    async def story() -> None:
        own = AsyncChat.connect(redis.url, chat.system.settings.database_url)
        application = app(own, authenticate=authenticate, may=may)
        main = Starlette(routes=[Mount("/a/b", application)])
        async with running(main, application.state.hub) as port, WebClient(f"ws://127.0.0.1:{port}/a/b/ws") as ann:
            await ann.call("connect", token="ann")
            assert (await ann.call("create_group", gid=f"{gid} by ann", uids=["ann"]))["members"] == 1
            sent = await ann.call("send", gid=gid, content="x")
            error = await ann.error("recall", gid=gid, msgid=sent["msgid"])
            assert error["data"]["error"] == "NotAllowed"
            await ann.notify("ack", gid=gid, msgid=sent["msgid"])
            # What the program allows is not more than a member may.
            assert (await ann.error("history", gid="others"))["data"]["error"] in {"NotMember", "UnknownGroup"}
        assert isinstance(await own.unread("ann"), list)  # it is still the program's
        await own.close()

    asyncio.run(story())


@pytest.mark.usefixtures("environ")
def test_bad_frames_have_their_errors_on_uvicorns_own_sockets_too(chat: Chat, gid: str) -> None:
    async def story() -> None:
        application = app(settings=web_settings(max_frame_bytes=1000, patience_ms=1000, max_buffered_bytes=300_000))
        async with running(application, application.state.hub) as port:
            url = f"ws://127.0.0.1:{port}/ws"
            for frame, code in ((b"\x00", 1003), ("x" * 1001, 1009)):
                async with WebClient(url) as client:
                    await client.connect(start="live")
                    await client.send(frame)
                    assert await client.until_closed() == code
                    assert client.others[0]["error"]["code"] == -32600
            async with WebClient(url, "ann") as slow, WebClient(url, "bob") as bob:
                await slow.connect(start="live")
                await bob.connect(start="live")
                slow.transport.pause_reading()
                said = []
                while chat.online(["ann"]):  # until the slow one is closed
                    said.append(f"{len(said)} {'x' * 20_000}")
                    await asyncio.to_thread(chat.send, gid, said[-1], sender_uid="bob")
                    await bob.until(lambda: len(bob.contents(gid)) == len(said))
                assert bob.contents(gid) == said
                slow.transport.abort()
            async with connect(url) as client:
                await client.send("{}")
                assert "-32600" in str(await client.recv())
                await application.state.hub.close()
                await client.wait_closed()
                assert client.close_code == 1001

    asyncio.run(story())


def test_a_token_in_the_handshake_of_a_socket_is_enough(chat: Chat, gid: str, redis: RunningServer) -> None:
    async def story() -> None:
        application = app(AsyncChat.connect(redis.url), settings=web_settings())
        async with running(application, application.state.hub) as port:
            headers = {"Authorization": f"Bearer {token('ann')}"}
            async with WebClient(f"ws://127.0.0.1:{port}/ws", headers=headers) as ann:
                assert (await ann.call("send", gid=gid, content="without a session"))["sender_uid"] == "ann"
                assert (await ann.call("connect"))["uid"] == "ann"
        await application.state.hub.chat.close()

    asyncio.run(story())
