"""What `im serve` counts of a known history, read as Prometheus reads it."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore import Chat
from tests.helpers.deadline import wait_until
from tests.helpers.scrapes import Samples, samples_of, sum_of
from tests.helpers.servers import RunningServer
from tests.helpers.web import token
from tests.helpers.web_server import WebClient, WebServer


@pytest.fixture
def web(redis: RunningServer, folder: Path, chat: Chat) -> Iterator[WebServer]:
    """A server of this test alone: its numbers begin at 0."""
    with WebServer(folder, redis.url) as server:
        yield server


def test_what_comes_through_a_proxy_or_from_a_page_has_to_say_who_it_is(web: WebServer) -> None:
    server = {"Authorization": f"Bearer {token('back end', role='server')}"}
    for headers in (
        *({name: "8.8.8.8"} for name in ("X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "Forwarded", "Via")),
        {"Host": "chat.example.org"},
        {"Origin": f"http://127.0.0.1:{web.port}"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ):
        assert web.get("/metrics", headers)[0] == 403, headers
        assert web.get("/metrics", {**headers, **server})[0] == 200, headers


def figures(web: WebServer) -> Samples:
    status, headers, body = web.get("/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    return samples_of(body.decode())


def test_each_figure_is_what_happened(web: WebServer, chat: Chat, gid: str) -> None:
    async def until(name: str, value: float, *labels: str) -> None:
        def reached() -> bool:
            return sum_of(figures(web), name, *labels) == value

        await asyncio.to_thread(wait_until, reached)

    async def story() -> None:
        # Given two clients of bob and one of ann
        async with WebClient(web.url, "ann") as ann, WebClient(web.url, "bob") as bob, WebClient(web.url, "bob") as tab:
            for client in (ann, bob, tab):
                await client.connect(start="live")
            await until("imcore_sockets", 3)
            # When ann sends, and bob's clients ack each message
            began = time.monotonic()
            for number in range(5):
                await ann.call("send", gid=gid, content=f"{number}")
            for client in (bob, tab):
                await client.until(lambda client=client: len(client.contents(gid)) == 5)
                for message in client.notices("message"):
                    await client.notify("ack", gid=gid, msgid=message["msgid"])
            # And asks for what is not, or not theirs
            await ann.error("no_such_method")
            await ann.error("no_such_method_either")
            await ann.error("send", gid="a group of others", content="hi")
            await until("imcore_acks_received_total", 10)
            took_s = time.monotonic() - began
        # Then
        await until("imcore_sockets", 0)
        found = figures(web)
        assert found['imcore_calls_total{method="send"}'] == 6
        assert found['imcore_calls_total{method="ack"}'] == 10
        assert found['imcore_calls_total{method="unknown"}'] == 2
        assert found['imcore_call_errors_total{error="-32601",method="unknown"}'] == 2
        assert sum_of(found, "imcore_call_errors_total", 'method="send"') == 1
        pushed = found["imcore_messages_pushed_total"]
        assert pushed == 15, "each of five messages to three sockets"
        assert found["imcore_send_to_push_seconds_count"] == pushed
        assert found["imcore_send_to_push_seconds_sum"] <= 15 * took_s
        assert sum_of(found, "imcore_sockets_closed_total") == 3
        assert not [key for key in found if "no_such_method" in key or gid in key or "bob" in key]
        # And acks were folded before they were sent
        await asyncio.to_thread(wait_until, lambda: sum(tally.read for tally in chat.status(gid, limit=0)) == 5)
        sent = await asyncio.to_thread(wait_until, lambda: figures(web)["imcore_acks_sent_total"])
        assert 1 <= sent <= 10

    asyncio.run(story())
