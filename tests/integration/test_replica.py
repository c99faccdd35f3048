"""On a replica: commands that write fail, also with nothing to write; commands that only read work."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from click.testing import Result

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import RedisRefuses
from imcore.settings import Settings
from tests.helpers.cli import im as run_im
from tests.helpers.deadline import wait_until
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import RunningCluster, RunningServer, require_server, start_valkey

Im = Callable[..., Result]

WRITES = [
    *("group create team ann bob", "group add team ann", "group remove team nobody --yes"),
    *("send team two --from ann --client-msgid c2 --no-local", "dm bob hi --from ann --no-local"),
    *("ack bob team", "ack bob team {first}", "pull bob --ack --no-local", "pull nobody --ack --no-local"),
    *("receipts ann --ack --no-local", "receipts bob --ack", "recall team {recalled} --by ann --yes --no-local"),
    *("import {imported}", "import {empty}", "trim", "dead drop 0:1-0 --yes", "dead requeue 0:1-0"),
    *("check --repair", "rebuild --yes", "db upgrade", "up"),
]
"""Commands that are to write, and have nothing to: all that they ask for is so already."""

SHOWS = [
    *("status team", "status team {first}", "unread bob", "group list", "group show team", "pull bob --no-local"),
    *("receipts ann", "stats", "stats --online", "check", "dead list"),
]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[RunningServer, RunningServer]]:
    """A primary, and a replica that does not follow it yet."""
    require_server()
    primary = start_valkey(tmp_path / "primary", "--appendfsync", "everysec")
    replica = start_valkey(tmp_path / "replica", "--appendfsync", "everysec")
    yield primary, replica
    for server in (primary, replica):
        server.stop()


@pytest.fixture
def words(servers: tuple[RunningServer, RunningServer], tmp_path: Path) -> dict[str, str]:
    """Data that needs nothing done to it, on a server that is a replica by now; and what the commands name of it."""
    line = json.dumps({"type": "message", "gid": "team", "uid": "ann", "content": "two", "client_msgid": "c2"})
    imported, empty = tmp_path / "chat.jsonl", tmp_path / "empty.jsonl"
    imported.write_text(line + "\n")
    empty.touch()
    settings = Settings.from_env({}, redis_url=servers[1].url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat:
        chat.create_group("team", ["ann", "bob"])
        sent = [chat.send("team", text, sender_uid="ann", client_msgid=f"c{n}") for n, text in ((1, "one"), (2, "two"))]
        chat.recall("team", sent[0].msgid, by="ann")
        chat.ack("bob", "team")
        for name in ("persist", "receipts"):
            with WorkerProcess(
                tmp_path / "w", name, "--burst", redis_url=settings.redis_url, database_url=settings.database_url
            ) as worker:
                assert worker.wait() == 0, worker.log
        chat.confirm_receipts("ann", chat.receipts("ann"))
        with WorkerProcess(
            tmp_path / "w", "persist", "--burst", redis_url=settings.redis_url, database_url=settings.database_url
        ) as worker:
            assert worker.wait() == 0, worker.log
    with redis.Redis.from_url(servers[1].url) as client:
        client.replicaof("127.0.0.1", 1)
    return {"recalled": sent[0].msgid, "first": sent[1].msgid, "imported": str(imported), "empty": str(empty)}


@pytest.fixture
def im(servers: tuple[RunningServer, RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Im:
    monkeypatch.setenv("IM_REDIS_URL", servers[1].url)
    monkeypatch.setenv("IM_DATA_DIR", str(tmp_path))
    return run_im


def dump(server: RunningServer) -> dict[bytes, bytes]:
    with redis.Redis.from_url(server.url) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


def test_commands_that_write_fail_in_one_line(
    servers: tuple[RunningServer, RunningServer], words: dict[str, str], im: Im
) -> None:
    before = dump(servers[1])
    for line in WRITES:
        result = im(*line.format_map(words).split())
        assert (line, result.exit_code, result.stdout) == (line, 1, "")
        *others, said = result.stderr.splitlines()
        assert said.endswith("is a replica by now and takes no writes: connect to the new primary"), line
        assert others == [] or line == "up"  # which says first what of the settings breaks a promise
    assert dump(servers[1]) == before


@pytest.mark.parametrize("name", ["persist", "receipts", "jobs"])
def test_a_burst_fails_where_nothing_is_to_be_done(
    servers: tuple[RunningServer, RunningServer], words: dict[str, str], tmp_path: Path, name: str
) -> None:
    with WorkerProcess(tmp_path / "w", name, "--burst", redis_url=servers[1].url, data_dir=tmp_path) as worker:
        assert worker.wait() == 1
    assert worker.log.splitlines()[-1].endswith("takes no writes: connect to the new primary")
    assert words


def test_commands_that_only_read_work(words: dict[str, str], im: Im) -> None:
    for line in SHOWS:
        result = im(*line.format_map(words).split())
        assert (line, result.exit_code) == (line, 0)
        assert result.stdout


def test_require_writes_raises_the_reason_why_a_server_takes_none(
    servers: tuple[RunningServer, RunningServer],
) -> None:
    with Chat.connect(servers[0].url) as chat, redis.Redis.from_url(servers[0].url) as client:
        chat.system.client.require_writes()  # also where there is nothing at all yet
        assert client.keys() == []
        chat.create_group("team", ["ann"])
        before = dump(servers[0])
        chat.system.client.require_writes()
        assert dump(servers[0]) == before
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(RedisRefuses, match="min-replicas-to-write"):
            chat.system.client.require_writes()
        client.config_set("min-replicas-to-write", 0)
        # Memory that is full keeps nobody from acking
        client.config_set("maxmemory", 1)
        chat.system.client.require_writes()


def test_every_primary_of_a_cluster_is_asked(cluster: str, cluster_servers: RunningCluster) -> None:
    with Chat.connect(cluster) as chat:
        chat.create_group("team", ["ann"])
        before = [dump(node) for node in cluster_servers.nodes]
        chat.system.client.require_writes()
        assert [dump(node) for node in cluster_servers.nodes] == before
        for node in cluster_servers.nodes:
            with redis.Redis.from_url(node.url) as client:
                client.config_set("min-replicas-to-write", 1)
                try:
                    with pytest.raises(RedisRefuses, match="min-replicas-to-write"):
                        chat.system.client.require_writes()
                finally:
                    client.config_set("min-replicas-to-write", 0)


def test_a_worker_waits_until_a_replica_takes_over(
    servers: tuple[RunningServer, RunningServer], words: dict[str, str], tmp_path: Path
) -> None:
    urls = {"redis_url": servers[1].url, "database_url": f"sqlite:///{tmp_path / 'imcore.db'}"}
    with WorkerProcess(tmp_path / "w", "persist", **urls) as worker:
        worker.wait_for("waiting: ")
        with redis.Redis.from_url(servers[1].url) as client:
            client.replicaof("NO", "ONE")
        worker.wait_for("working as")
        with Chat.connect(servers[1].url, urls["database_url"]) as chat:
            sent = chat.send("team", "three", sender_uid="ann")
            wait_until(lambda: chat.system.database.messages("team", [msgids.pack(sent.msgid)]), timeout_s=30)
        assert worker.end() == 0
    assert words
