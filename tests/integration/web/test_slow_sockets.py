"""Sockets that read slowly or not at all: they hold a set number of bytes, nobody else notices, and no hole is left."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore import Chat
from imcore.cli.bench.harness.figures import percentile
from tests.helpers.deadline import wait_until
from tests.helpers.processes import PythonProcess
from tests.helpers.servers import RunningServer
from tests.helpers.web_server import WebClient, WebServer

TEXT = "x" * 20_000
STOPPED = int(os.environ.get("IM_STOPPED", "150"))
IS_LONG = STOPPED > 150
MESSAGES = 100 if IS_LONG else 20


@pytest.fixture(scope="module")
def web(redis: RunningServer, folder: Path, chat: Chat) -> Iterator[WebServer]:
    limits = {"web_max_buffered_bytes": 300_000, "web_patience_ms": 3000, "web_user_sockets": 1000}
    with WebServer(folder, redis.url, **limits) as server:
        yield server


def closed_as_slow(web: WebServer) -> int:
    found = re.search(rb'imcore_sockets_closed_total{code="4408"} (\d+)', web.get("/metrics")[2])
    return int(found[1]) if found else 0


def until_closed_as_slow(web: WebServer, count: int) -> None:
    wait_until(lambda: closed_as_slow(web) >= count, timeout_s=60)


def test_a_socket_that_stops_reading_is_closed_and_resumes_without_a_hole(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        before = closed_as_slow(web)
        async with WebClient(web.url, "ann") as ann, WebClient(web.url, "bob") as bob:
            # Given
            await ann.connect(start="live")
            await bob.connect(start="live")
            # When one of them stops, and much is said
            ann.transport.pause_reading()
            said = []
            for number in range(600):
                said.append(f"{number} {TEXT}")
                await asyncio.to_thread(chat.send, gid, said[-1], sender_uid="bob")
                if closed_as_slow(web) > before:
                    break
            # Then the other one has it all
            await bob.until(lambda: bob.contents(gid) == said)
            await asyncio.to_thread(until_closed_as_slow, web, before + 1)
            closed_at = time.monotonic()
            ann.transport.resume_reading()
            code = await ann.until_closed()
            assert code == 4408 or time.monotonic() - closed_at > 4
            got = ann.contents(gid)
            assert got == said[: len(got)]
            assert len(got) < len(said)
            messages = [each for each in ann.notices("message") if each["gid"] == gid]
        # And the rest, once it connects again
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(after={gid: messages[-1]["msgid"] if messages else "0-0"})
            await ann.until(lambda: got + ann.contents(gid) == said)

    asyncio.run(story())


@pytest.mark.parametrize("text", ["\x01", "群", '"'])
def test_who_reads_is_not_closed_however_much_was_missed(web: WebServer, chat: Chat, text: str) -> None:
    """Four times as much in one group, and in many, as a socket may hold; JSON makes up to six bytes of one."""
    uid = f"reader-{ord(text)}"
    gids = [f"missed-{ord(text)}-{number}" for number in range(21)]
    for number, gid in enumerate(gids):
        chat.create_group(gid, [uid, "bob"])
        for _ in range(40 if number == 0 else 2):
            chat.send(gid, text * 5000, sender_uid="bob")

    async def story() -> None:
        async with WebClient(web.url, uid) as reader:
            await reader.connect()
            await reader.until(lambda: len(reader.notices("message")) == 80 or reader.closed)
            assert reader.closed is None
            assert {each["content"] for each in reader.notices("message")} == {text * 5000}

    asyncio.run(story())


def test_a_socket_that_is_slow_for_a_moment_misses_nothing(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(start="live")
            said = [f"{number} {TEXT}" for number in range(120)]
            for at in range(0, len(said), 40):
                ann.transport.pause_reading()
                for text in said[at : at + 40]:
                    await asyncio.to_thread(chat.send, gid, text, sender_uid="bob")
                ann.transport.resume_reading()
                await ann.until(lambda at=at: len(ann.contents(gid)) >= at + 20 or ann.closed)
            await ann.until(lambda: len(ann.contents(gid)) >= len(said) or ann.closed)
            assert ann.closed is None
            assert ann.contents(gid) == said

    asyncio.run(story())


def test_many_that_stop_at_once_disturb_nobody(web: WebServer, chat: Chat, tmp_path: Path) -> None:
    """`IM_STOPPED=1000 pytest -s -k stop_at_once tests/integration/web` prints how long others wait, and bounds it."""
    crowd = [f"u{number}" for number in range(STOPPED)]
    chat.create_group("crowd", ["cy", *crowd])
    chat.create_group("calm", ["ann", "bob"])

    async def story(sockets: PythonProcess) -> tuple[float, float]:
        before = closed_as_slow(web)
        async with WebClient(web.url, "bob") as bob:
            await bob.connect(start="live")

            async def waited() -> float:
                """Say something to many and to one other, and return how long that one waits."""
                await asyncio.to_thread(chat.send, "crowd", TEXT, sender_uid="cy")
                begun = time.monotonic()
                sent = await asyncio.to_thread(chat.send, "calm", "hi", sender_uid="ann")
                await bob.until(
                    lambda: bob.notices("message")[-1:] and bob.notices("message")[-1]["msgid"] == sent.msgid
                )
                return time.monotonic() - begun

            all_read = [await waited() for _ in range(MESSAGES)]
            sockets.send(signal.SIGSTOP)
            all_stopped = []
            while closed_as_slow(web) < before + STOPPED:
                all_stopped.append(await waited())
            assert len(bob.notices("message")) == len(all_read) + len(all_stopped)
        return percentile(all_read, 0.99), percentile(all_stopped, 0.99)

    with PythonProcess(
        tmp_path, "tests.helpers.many_sockets", str(web.port), "0", str(STOPPED), "127.0.0.2"
    ) as sockets:
        sockets.wait_for(f'{{"connected": {STOPPED},')
        read, stopped = asyncio.run(story(sockets))
    print(f"\np99 of another one: {read * 1000:.1f} ms while {STOPPED} read, {stopped * 1000:.1f} ms while they do not")
    assert stopped < 10
    assert not IS_LONG or stopped < 3 * read


def test_calls_whose_answers_nobody_reads_end_their_socket(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        before = closed_as_slow(web)
        for _ in range(20):
            await asyncio.to_thread(chat.send, gid, TEXT, sender_uid="bob")
        async with WebClient(web.url, "ann") as ann, WebClient(web.url, "bob") as bob:
            await ann.connect(start="live")
            await bob.connect(start="live")
            ann.transport.pause_reading()
            for number in range(100):
                await ann.send({"jsonrpc": "2.0", "id": number, "method": "history", "params": {"gid": gid}})
            await asyncio.to_thread(until_closed_as_slow, web, before + 1)
            assert isinstance(await bob.call("unread"), list)
            ann.transport.abort()

    asyncio.run(story())
