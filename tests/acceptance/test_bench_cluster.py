"""`im bench` on a cluster that is given: what it prints, what it leaves behind, and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.acceptance.test_bench import Bench
from tests.helpers.servers import RunningCluster


@pytest.fixture
def bench(cluster: str, tmp_path: Path) -> Bench:
    return Bench(cluster, tmp_path)


@pytest.fixture
def nodes(cluster_servers: RunningCluster) -> Iterator[list[redis.Redis]]:
    nodes = [redis.Redis.from_url(node.url) for node in cluster_servers.nodes]
    yield nodes
    for node in nodes:
        node.close()


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        (["storm"], "one gateway, acks per message, receipts folded: cycles"),
        (["storm", "--latency"], "one gateway: from send to the last of 40, p50"),
        (["send"], "send_many, 100 in a call, 100,000 members beside redis-py"),
        (["persist"], "journal entries into SQLite"),
        (["memory"], "Redis, per member, 200 members"),
        (["blocking"], "10,000 members: trim"),
        (["inbox"], "the first page: longest call"),
        (["growth", "--case", "check", "--case", "rebuild"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_scenarios_run_and_leave_nothing(
    bench: Bench, nodes: list[redis.Redis], arguments: list[str], figure: str | None
) -> None:
    settings = [node.config_get("slowlog*") for node in nodes]
    # When
    done = bench.run(*arguments, "--quick", "--rounds", "1", "--json")
    # Then
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line)["figure"] for line in done.stdout.splitlines()]
    assert figure is None or figure in figures
    assert [node.info("keyspace") for node in nodes] == [{}] * len(nodes)
    assert [node.function_list() for node in nodes] == [[]] * len(nodes)
    assert [node.config_get("slowlog*") for node in nodes] == settings


def test_one_key_on_any_node_is_enough_to_be_refused(bench: Bench, nodes: list[redis.Redis]) -> None:
    client = redis.RedisCluster.from_url(bench.redis_url.replace("redis+cluster", "redis"))
    client.set("theirs", 1)
    done = bench.run("send", "--quick")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds data" in done.stderr
    assert client.get("theirs") == b"1"
    assert [node.function_list() for node in nodes] == [[]] * len(nodes)
    client.close()
