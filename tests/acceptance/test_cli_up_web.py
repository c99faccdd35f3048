"""`im up --web`: one command, one link, and two people who see each other's ticks."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import InvalidStatus

from tests.helpers.commands import Im
from tests.helpers.processes import END_S
from tests.helpers.servers import free_ports, require_server
from tests.helpers.web import KEY
from tests.helpers.web_server import WebClient


@contextmanager
def running(im: Im, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    require_server()
    command = [sys.executable, "-m", "imcore.cli.main", "up", "--web", *arguments]
    with subprocess.Popen(
        command, env=im.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def link(process: "subprocess.Popen[str]") -> str:
    """Wait until the link is printed."""
    assert process.stdout
    for line in process.stdout:
        record: dict[str, Any] = json.loads(line)
        if record["event"] == "serving":
            return str(record["url"])
    raise AssertionError("it ended without a link")


def ended(process: "subprocess.Popen[str]") -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(END_S)


def ticks(client: WebClient) -> list[tuple[str, int, int]]:
    """The tallies that a client was told."""
    receipts = [receipt for notice in client.notices("receipts") for receipt in notice["receipts"]]
    return [(receipt["msgid"], receipt["read"], receipt["unread"]) for receipt in receipts]


def test_without_a_key_the_link_is_for_a_demo_of_two_users(tmp_path: Path) -> None:
    async def story(url: str) -> None:
        socket, made = f"ws://{urlsplit(url).netloc}/ws", urlsplit(url).fragment.removeprefix("token=")
        async with WebClient(socket) as ann, WebClient(socket) as bob:
            # Given the two users of the demo: the second one's token comes from the first one's
            connected = await ann.call("connect", token=made)
            [group] = connected["groups"]
            bobs = await ann.call("demo_token", uid="bob")
            await bob.call("connect", token=bobs["token"], start="live")
            # When
            sent = await ann.call("send", gid=group["gid"], content="hello bob")
            await bob.until(lambda: bob.contents(group["gid"]) == ["hello bob"])
            await bob.notify("ack", gid=group["gid"], msgid=sent["msgid"])
            # Then the tick changes
            await ann.until(lambda: (sent["msgid"], 1, 0) in ticks(ann))
            # And nobody else gets a token
            assert (await ann.error("demo_token", uid="eve"))["data"]["error"] == "NotAllowed"
            assert (await ann.error("create_group", gid="x"))["data"]["error"] == "NotAllowed"
        with pytest.raises(InvalidStatus, match="403"):
            await WebClient(socket, headers={"Origin": "http://evil.example"}).__aenter__()

    [port] = free_ports(1)
    with running(Im(data_dir=tmp_path), "--json", "--port", str(port)) as process:
        url = link(process)
        assert url.startswith(f"http://127.0.0.1:{port}/#token=")
        asyncio.run(story(url))
        assert ended(process) == 0


def test_with_a_key_the_link_has_no_token_and_there_is_no_demo(tmp_path: Path) -> None:
    async def story(url: str) -> None:
        async with WebClient(f"ws://{urlsplit(url).netloc}/ws") as ann:
            assert (await ann.connect())["groups"] == []
            assert (await ann.error("demo_token", uid="bob"))["code"] == -32601

    [port] = free_ports(1)
    with running(Im(data_dir=tmp_path, web_key=KEY), "--json", "--port", str(port)) as process:
        url = link(process)
        assert url == f"http://127.0.0.1:{port}/"
        asyncio.run(story(url))
        assert ended(process) == 0


def test_a_port_in_use_ends_all_with_a_clear_line(tmp_path: Path) -> None:
    require_server()
    im = Im(data_dir=tmp_path)
    with running(Im(data_dir=tmp_path / "first"), "--json", "--port", str(port := free_ports(1)[0])) as first:
        link(first)
        second = im.run("up", "--web", "--port", str(port))
        assert second.returncode == 1
        in_use = f"127.0.0.1, port {port}, is in use by another program: give another one with --port"
        assert (second.stdout, second.stderr) == ("", f"im: {in_use}\n")
        assert ended(first) == 0
    assert im.run("up", "--port", "8080").returncode == 2


def test_the_demo_keeps_what_was_said(tmp_path: Path) -> None:
    async def story(url: str) -> int:
        made = urlsplit(url).fragment.removeprefix("token=")
        async with WebClient(f"ws://{urlsplit(url).netloc}/ws") as ann:
            await ann.call("connect", token=made, start="live")
            page = await ann.call("history", gid="demo")
            await ann.call("send", gid="demo", content="again")
            return len(page["messages"])

    counts = []
    for _ in range(2):
        with running(Im(data_dir=tmp_path), "--json", "--port", str(free_ports(1)[0])) as process:
            counts.append(asyncio.run(story(link(process))))
            assert ended(process) == 0
    assert counts[1] == counts[0] + 1
