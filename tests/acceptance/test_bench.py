"""`im bench` as a process: the shape of its figures, and what it leaves behind. Never how fast it is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from imcore.cli.bench.baseline.naive_design import NaiveStore
from imcore.cli.bench.harness.databases import PostgresSchemas
from imcore.cli.bench.harness.sessions import IN_FLIGHT
from imcore.sql.database import Database
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import require_postgres, running_postgres

LONGEST_S = 300
ROUNDS = 2
"""Fewer than usual: the figures themselves are not looked at."""


class Bench:
    """Runs `im bench` on an empty server that it names, with SQLite files in a folder."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.redis_url = redis_url
        self.folder = folder
        self.environment = {
            **os.environ,
            "IM_REDIS_URL": redis_url,
            "IM_DATABASE_URL": f"sqlite:///{folder}/theirs.db",
            "IM_DATA_DIR": str(folder / "data"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "imcore.cli.main", "bench", *args]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), capture_output=True, env=self.environment, check=False, timeout=LONGEST_S, text=True
        )

    def left_behind(self) -> tuple[dict[str, object], list[str], list[str]]:
        """What is in the server's databases, its functions, and the files."""
        with redis.Redis.from_url(self.redis_url) as client:
            functions = [library[1].decode() for library in client.function_list()]
            return client.info("keyspace"), functions, sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def bench(valkey: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(valkey, tmp_path)
    yield bench
    assert bench.left_behind()[1:] == ([], [])


@pytest.fixture
def client(bench: Bench) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(bench.redis_url) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "storm",
            {
                "one gateway, acks per message, receipts folded: cycles",
                "one gateway, acks of 10, receipts folded: acks",
                "one gateway, acks per message, receipts folded: CPU: all processes",
                "one gateway, acks per message, receipts folded: CPU: persist",
                "one gateway, clients say delivered before each ack: CPU: all processes",
                "40 connections, one message at a time: SQL rows: offset moves",
            },
        ),
        (
            "storm --web",
            {
                "im serve, acks per message: CPU: all processes",
                "im serve, acks of 10: CPU: im serve",
                "im serve, delivered before each ack: CPU: all processes",
                "the ASGI application, acks of 10: CPU: Redis",
                "the ASGI application, delivered before each ack: CPU: all processes",
                "websockets' broadcast, acks per message: cycles",
            },
        ),
        (
            "storm --latency",
            {"one gateway: from send to the last of 40, p50", "40 connections: from send to the last of 40, p99"},
        ),
        ("send", {"send, pipelined, 100,000 members", "raw XADD, pipelined, 200 members"}),
        ("ack", {"ack, pipelined, 10,000 members"}),
        ("tally", {"tally, pipelined, 100,000 members beside 200"}),
        ("persist", {"journal entries into SQLite", "rows into SQLite"}),
        ("memory", {"Redis, per member, 200 members", "Redis, per idle group of two"}),
        ("blocking", {"10,000 members: create", "20,000 members: trim"}),
        ("inbox", {"the first page: calls of a page", "the page after it: longest call"}),
        (
            "growth --case check --case show --case unread --case create",
            {
                "check, 1,000 groups of 3 members and 5 messages: a group",
                "show, 10,000 members: all of it",
                "unread, 200 groups of 20 messages: a call",
                "create, 10,000 members: longest call",
            },
        ),
    ],
)
def test_bench_gives_figures_of_its_rounds_and_leaves_nothing(bench: Bench, name: str, expected: set[str]) -> None:
    result = bench.run(*name.split(), "--quick", f"--rounds={ROUNDS}", "--json")

    assert (result.returncode, result.stderr) == (0, "")
    figures = {figure["figure"]: figure for figure in map(json.loads, result.stdout.splitlines())}
    assert expected <= set(figures)
    for figure in figures.values():
        assert figure["bench"] == name.split(maxsplit=1)[0]
        assert figure["low"] <= figure["median"] <= figure["high"]
        assert len(figure["rounds"]) == ROUNDS
        if figure["yardstick"]:
            assert len(figure["yardstick"]["rounds"]) == ROUNDS
    assert any(figure["ratio"] or figure["aim"] for figure in figures.values())
    assert bench.left_behind()[0] == {}
    if name == "storm":
        _check_counts({key: figure["median"] for key, figure in figures.items()})
    delivered = {key: figure for key, figure in figures.items() if "delivered before each ack: CPU: all" in key}
    assert len(delivered) == {"storm": 1, "storm --web": 2}.get(name, 0)
    for key, figure in delivered.items():
        assert figure["yardstick"]["name"] == _ACKED_ALONE[key.split(",")[0]]
        assert figure["aim"]["text"] == "<= 1.6 x"


_ACKED_ALONE = {
    "one gateway": "one gateway, clients ack each message",
    "im serve": "im serve, acks per message",
    "the ASGI application": "the ASGI application, acks per message",
}
"""What those are compared with who say `delivered` before each ack."""


def _check_counts(medians: dict[str, float]) -> None:
    """These are counted. A gateway folds the acks of what one poll returns: at most of all that is under way."""
    per_message, tenth = "one gateway, acks per message, receipts folded", "one gateway, acks of 10, receipts folded"
    assert medians[f"{per_message}: received"] == medians[f"{tenth}: received"] == 40
    assert 40 / IN_FLIGHT <= medians[f"{per_message}: acks"] <= 40
    assert 40 / IN_FLIGHT <= medians[f"{tenth}: acks"] <= 4
    assert medians[f"{per_message}: SQL rows: message"] == medians[f"{tenth}: SQL rows: message"] == 1
    assert medians[f"{per_message}: SQL rows: receipts"] == 0
    assert medians["40 connections, one message at a time: acks"] == 40
    assert medians["40 connections, one message at a time: SQL rows: offset moves"] <= 2
    assert medians[f"{per_message}: receipt frames in 200 ms"] <= 1.5
    literal = "the literal design, 8 connections (beside a window of 200 ms)"
    assert medians[f"{literal}: SQL rows: receipts"] == 199
    assert medians[f"{literal}: receipt frames"] == 40


def test_bench_refuses_a_server_that_holds_data(bench: Bench, client: redis.Redis) -> None:
    client.set("theirs", "precious")
    with redis.Redis.from_url(bench.redis_url, db=1) as other:
        for theirs, empty in ((client, other), (other, client)):
            empty.flushdb()
            theirs.set("im:config", "precious")

            result = bench.run("tally", "--quick")

            assert (result.returncode, result.stdout) == (1, "")
            [line] = result.stderr.splitlines()
            assert "holds data" in line
            assert "name an empty one with --redis-url, or none for a throw-away one" in line
            assert theirs.get("im:config") == b"precious"
            assert bench.left_behind()[1] == []


def test_bench_refuses_a_sqlite_file_that_holds_data(bench: Bench) -> None:
    file = bench.folder / "theirs.db"
    file.write_text("precious")

    result = bench.run("tally", "--quick")

    assert (result.returncode, result.stdout) == (1, "")
    assert "name an empty one with --database-url" in result.stderr
    assert file.read_text() == "precious"
    file.unlink()


@pytest.mark.parametrize("part", ["--latency", "--web"])
def test_bench_has_parts_of_the_storm_only(bench: Bench, part: str) -> None:
    result = bench.run("tally", part)

    assert result.returncode == 2
    assert f"{part} is for storm only" in result.stderr


def test_bench_has_cases_of_growth_only(bench: Bench) -> None:
    result = bench.run("tally", "--case", "check")

    assert result.returncode == 2
    assert "--case is for growth only" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_bench_cleans_up_after_an_interrupt(bench: Bench, client: redis.Redis, number: signal.Signals) -> None:
    process = subprocess.Popen(
        bench.command("storm", "--quick"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=bench.environment
    )
    with process:
        wait_until(lambda: client.keys("im:*:stream:*"), timeout_s=60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err.strip()) == (130, b"", b"im: interrupted")
    assert bench.left_behind()[0] == {}


def test_bench_saves_compares_and_draws_a_run(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("saved")

    first = bench.run(
        "persist", "--quick", "--rounds=2", "--out", str(folder / "one.json"), "--svg", str(folder / "one.svg")
    )
    second = bench.run("persist", "--quick", "--rounds=2", "--compare", str(folder / "one.json"))

    assert (first.returncode, second.returncode) == (0, 0)
    run = json.loads((folder / "one.json").read_text())
    assert run["quick"]
    assert {"date", "cpu", "cores", "python", "packages", "redis", "databases"} <= set(run["machine"])
    assert (folder / "one.svg").read_text().startswith("<svg ")
    assert "█" in first.stdout
    assert "before\tnow" in second.stdout


def test_bench_refuses_a_file_that_is_no_run_before_it_begins(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("saved") / "none.json"
    file.write_text("{}")

    result = bench.run("tally", "--compare", str(file))

    assert result.returncode == 1
    assert "none.json" in result.stderr


def test_postgres_schemas_are_removed_and_leave_what_others_have() -> None:
    require_postgres()
    with running_postgres() as server:
        url = server.new_database()
        schemas = PostgresSchemas(url, "bench-1")
        assert schemas.is_empty()
        with psycopg.connect(url) as theirs:
            theirs.execute("CREATE TABLE group_msgs AS SELECT 'precious' AS content")
        assert not schemas.is_empty()

        own_url = schemas.new()
        with Database.connect(own_url) as database:
            database.upgrade()
            database.set_meta("name", "value")
        assert schemas.bytes_of(own_url) > 0
        schemas.drop_all()

        with psycopg.connect(url) as theirs:
            assert theirs.execute("SELECT content FROM group_msgs").fetchall() == [("precious",)]
            assert theirs.execute("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'bench%'").fetchall() == []


def test_naive_store_on_postgres_keeps_and_flips_receipts() -> None:
    require_postgres()
    with running_postgres() as server:
        url = server.new_database()
        with NaiveStore(url, "g") as store:
            store.create(["ann", "bob", "eve"])
            first, second = (store.send("ann", "hi") for _ in range(2))
            store.ack("bob", second)
            store.ack("bob", first)
            assert store.count_rows() == (2, 4)

        with psycopg.connect(url) as connection:
            read = connection.execute("SELECT recv_uid, msgid FROM msg_acks WHERE if_ack ORDER BY 2").fetchall()
            offsets = connection.execute("SELECT uid, last_ack_msgid FROM group_users ORDER BY 1").fetchall()
        assert read == [("bob", first), ("bob", second)]
        assert offsets == [("ann", 0), ("bob", second), ("eve", 0)]
