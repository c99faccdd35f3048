"""`im serve` as a process: what it answers to operators, how it begins, and how it ends."""

import asyncio
import json
import re
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from imcore import Chat
from tests.helpers.commands import Im
from tests.helpers.deadline import wait_until
from tests.helpers.processes import END_S
from tests.helpers.servers import RunningServer, free_ports, start_valkey
from tests.helpers.tls_proxy import CERTIFICATES
from tests.helpers.web import KEY, token
from tests.helpers.web_server import WebClient, WebServer

_PART = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\n?", re.DOTALL)


@pytest.fixture(scope="module")
def tls_files(folder: Path) -> Path:
    """A folder with a certificate and its key in files of their own, and the authority behind them."""
    for part in _PART.finditer((CERTIFICATES / "server.pem").read_text()):
        (folder / ("server.key" if "KEY" in part[1] else "server.crt")).write_text(part[0])
    (folder / "ca.crt").write_text((CERTIFICATES / "ca.pem").read_text())
    return folder


class TestOperators:
    def test_alive_ready_and_the_protocol_for_machines(self, web: WebServer) -> None:
        assert web.get("/healthz")[0] == 200
        ready = lambda: json.loads(web.get("/readyz")[2])  # noqa: E731
        wait_until(lambda: "has not answered" not in ready()["sql"], timeout_s=END_S)
        assert web.get("/readyz")[0] == 200
        assert {**ready(), "sql": ""} == {"ok": True, "redis": "ok", "sql": "", "stopping": False}
        document = json.loads(web.get("/openrpc.json")[2])
        assert {"connect", "send", "ack", "history"} <= {method["name"] for method in document["methods"]}
        assert "demo_token" not in {method["name"] for method in document["methods"]}

    def test_not_ready_without_redis_and_ready_without_sql(self, folder: Path, tmp_path: Path) -> None:
        redis = start_valkey(tmp_path / "redis", appendonly=False)
        with Chat.connect(redis.url, f"sqlite:///{tmp_path / 'x.db'}") as chat:
            chat.system.client.upgrade()
        database = f"postgresql://nobody@127.0.0.1:{free_ports(1)[0]}/none"
        try:
            with WebServer(tmp_path, redis.url, database_url=database) as web:
                answers = lambda: json.loads(web.get("/readyz")[2])  # noqa: E731
                wait_until(lambda: answers()["sql"] != "ok", timeout_s=END_S)
                assert (web.get("/readyz")[0], answers()["redis"]) == (200, "ok")
                redis.stop()
                wait_until(lambda: web.get("/readyz")[0] == 503, timeout_s=END_S)
                assert answers()["redis"] != "ok"
                assert web.get("/healthz")[0] == 200
        finally:
            redis.stop()

    def test_metrics_are_for_this_machine_or_a_server(self, web: WebServer) -> None:
        status, headers, body = web.get("/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert b"imcore_sockets " in body
        proxied = {"X-Forwarded-For": "203.0.113.9"}
        assert web.get("/metrics", proxied)[0] == 403
        assert web.get("/metrics", {**proxied, "Authorization": f"Bearer {token()}"})[0] == 403
        assert web.get("/metrics", {**proxied, "Authorization": f"Bearer {token(role='server')}"})[0] == 200
        assert web.get("/metrics", {**proxied, "Authorization": "Bearer x"})[0] == 401

    def test_the_page_and_its_module_are_served_with_a_strict_policy(self, web: WebServer) -> None:
        for path, kind in (("/", "text/html"), ("/imcore.js", "text/javascript")):
            status, headers, body = web.get(path)
            assert (status, headers["content-type"].split(";")[0]) == (200, kind)
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert body
            assert web.get(path, {"If-None-Match": headers["etag"]})[0] == 304
        for path in ("/../settings.py", "/page/index.html", "/nothing", "/%2e%2e/auth.py"):
            assert web.get(path)[0] == 404

    def test_a_notification_by_http_has_no_content(self, web: WebServer, chat: Chat, gid: str) -> None:
        msgid = chat.send(gid, "hi", sender_uid="bob").msgid
        body = {"jsonrpc": "2.0", "method": "ack", "params": {"gid": gid, "msgid": msgid}}
        headers = {"Authorization": f"Bearer {token()}"}
        status, _, answer = web.ask("POST", "/rpc", json.dumps(body).encode(), headers)
        assert (status, answer) == (204, b"")
        assert chat.tally(gid, msgid).read == 1
        assert web.ask("GET", "/rpc")[0] == 405
        batch = json.loads(web.ask("POST", "/rpc", b"[]", headers)[2])
        assert batch["error"]["code"] == -32600
        error = web.rpc("connect")["error"]
        assert error["data"]["error"] == "InvalidInput"

    def test_calls_by_http_are_limited_for_users(self, folder: Path, redis: RunningServer) -> None:
        with WebServer(folder, redis.url, web_calls_per_s=1, web_calls_burst=5) as web:
            body = b'{"jsonrpc":"2.0","id":1,"method":"unread"}'
            ask = lambda made: web.ask("POST", "/rpc", body, {"Authorization": f"Bearer {made}"})  # noqa: E731
            answers = [ask(token()) for _ in range(10)]
            refused = [each for each in answers if each[0] == 429]
            assert refused
            assert json.loads(refused[0][2])["error"]["data"] == {"error": "TooManyCalls", "retry": True}
            assert {ask(token("bob"))[0], *(ask(token("b", role="server"))[0] for _ in range(10))} == {200}


class TestTheBeginning:
    @pytest.fixture
    def im(self, folder: Path, redis: RunningServer) -> Im:
        return Im(redis_url=redis.url, data_dir=folder, web_key=KEY)

    def refusal(self, im: Im, *arguments: str) -> str:
        result = im.run("serve", *arguments)
        assert (result.returncode, result.stdout) == (1, ""), result
        [line] = result.stderr.splitlines()
        return line.removeprefix("im: ")

    def test_a_port_in_use_is_one_clear_line(self, im: Im) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            port = taken.getsockname()[1]
            line = self.refusal(im, "--port", str(port))
        assert line == f"127.0.0.1, port {port}, is in use by another program: give another one with --port"

    def test_an_address_that_is_not_ours_is_one_clear_line(self, im: Im) -> None:
        assert self.refusal(im, "--host", "192.0.2.1").startswith("cannot listen on 192.0.2.1, port 8080: ")
        assert self.refusal(im, "--host", "no such host").startswith("cannot listen on no such host, port 8080: ")

    @pytest.mark.parametrize(
        ("certfile", "keyfile", "words"),
        [
            ("server.crt", None, "if its key is in another file, give that with --keyfile"),
            ("server.crt", "ca.crt", "cannot be used"),
            ("nothing.crt", None, "cannot be read: No such file"),
            ("server.crt", "nothing.key", "cannot be read: No such file"),
            (None, "server.key", "--certfile"),
        ],
    )
    def test_a_certificate_without_its_key_is_one_clear_line(
        self, im: Im, tls_files: Path, certfile: str | None, keyfile: str | None, words: str
    ) -> None:
        arguments = ["--port", "0"]
        for option, name in (("--certfile", certfile), ("--keyfile", keyfile)):
            arguments += [option, str(tls_files / name)] if name else []
        assert words in self.refusal(im, *arguments)

    def test_without_a_key_for_tokens_it_does_not_begin(self, folder: Path, redis: RunningServer) -> None:
        line = self.refusal(Im(redis_url=redis.url, data_dir=folder), "--host", "0.0.0.0", "--port", "0")
        assert line.startswith("no key for tokens is set: set IM_WEB_KEY")
        short = self.refusal(Im(redis_url=redis.url, data_dir=folder, web_key="short"), "--port", "0")
        assert short.startswith("IM_WEB_KEY has 5 bytes")

    def test_wrong_usage_exits_with_2(self, im: Im) -> None:
        for arguments in (["--port", "70000"], ["--processes", "0"], ["more"]):
            assert im.run("serve", *arguments).returncode == 2

    def test_im_token_makes_tokens_that_are_taken(self, im: Im, web: WebServer, chat: Chat) -> None:
        plain = im.run("token", "ann", "--ttl", "60").stdout.strip()
        [line] = im.json("token", "backend", "--server")
        assert line.keys() == {"token"}
        assert "result" in web.rpc("unread", bearer=plain)
        assert "result" in web.rpc("create_group", bearer=line["token"], gid="by im token")
        without = Im(data_dir=im.environment["IM_DATA_DIR"])
        assert "IM_WEB_KEY" in without.refusal("token", "ann")
        assert im.run("token", "ann", "--ttl", "0").returncode == 2
        assert "uid" in im.refusal("token", "")

    def test_https_and_several_processes(self, folder: Path, redis: RunningServer, chat: Chat, tls_files: Path) -> None:
        port = free_ports(1)[0]
        im = Im(redis_url=redis.url, data_dir=folder, web_key=KEY)
        arguments = ["--port", str(port), "--processes", "2"]
        arguments += ["--certfile", str(tls_files / "server.crt"), "--keyfile", str(tls_files / "server.key")]
        process = im.start("serve", *arguments)
        try:
            context = ssl.create_default_context(cafile=tls_files / "ca.crt")
            context.check_hostname = False

            async def one() -> bool:
                try:
                    async with connect(f"wss://127.0.0.1:{port}/ws", ssl=context) as client:
                        call = {"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {"token": token()}}
                        await client.send(json.dumps(call))
                        return "result" in json.loads(await client.recv())
                except OSError:
                    return False

            wait_until(lambda: asyncio.run(one()), timeout_s=END_S)
            assert all(asyncio.run(one()) for _ in range(6))
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_S) == 0
        finally:
            process.kill()
            process.communicate()


class TestTheEnd:
    @pytest.fixture
    def own(self, folder: Path, redis: RunningServer, chat: Chat) -> Iterator[WebServer]:
        with WebServer(folder, redis.url) as server:
            yield server

    def test_after_sigterm_what_is_in_hand_goes_out(self, own: WebServer, chat: Chat, gid: str) -> None:
        async def story() -> None:
            msgids = [chat.send(gid, str(number), sender_uid="bob").msgid for number in range(20)]
            async with WebClient(own.url, "ann") as ann:
                # Given
                await ann.connect(start="live")
                # When
                for msgid in msgids:
                    await ann.notify("ack", gid=gid, msgid=msgid)
                calls = [asyncio.create_task(ann.ask("send", gid=gid, content=f"last {n}")) for n in range(5)]
                await ann.call("unread")
                begun = time.monotonic()
                own.send(signal.SIGTERM)
                # Then
                answers = await asyncio.gather(*calls)
                assert all("result" in each for each in answers)
                assert await ann.until_closed() == 1001
            assert await asyncio.to_thread(own.wait) == 0
            assert time.monotonic() - begun < 10
            assert chat.tally(gid, msgids[-1]).read == 1

        asyncio.run(story())

    def test_it_ends_in_time_though_redis_is_away(self, tmp_path: Path) -> None:
        async def story() -> None:
            redis = start_valkey(tmp_path / "redis", appendonly=False)
            with Chat.connect(redis.url, f"sqlite:///{tmp_path / 'x.db'}") as chat:
                chat.system.client.upgrade()
                chat.create_group("team", ["ann"])
            with WebServer(tmp_path / "web", redis.url) as own:
                async with WebClient(own.url, "ann") as ann:
                    await ann.connect()
                    redis.kill()
                    begun = time.monotonic()
                    own.send(signal.SIGTERM)
                    assert await ann.until_closed() == 1001
                    assert await asyncio.to_thread(own.wait) == 0
                    assert time.monotonic() - begun < 10

        asyncio.run(story())

    def test_a_new_socket_is_refused_while_it_ends(self, own: WebServer) -> None:
        own.send(signal.SIGTERM)
        assert own.wait() == 0
        with pytest.raises(OSError, match="refused"):
            own.get("/healthz")
        assert "Traceback" not in own.log


def test_no_token_is_in_the_log(web: WebServer) -> None:
    made = token("someone")
    headers = {"Authorization": f"Bearer {made}"}
    web.ask("POST", "/rpc", b"{}", headers)
    web.get(f"/healthz?token={made}")
    asyncio.run(_connect_with_query(web, made))
    assert made.split(".")[2] not in web.log


async def _connect_with_query(web: WebServer, made: str) -> None:
    async with WebClient(f"{web.url}?token={made}") as client:
        assert (await client.error("unread"))["data"]["error"] == "NotAuthenticated"
