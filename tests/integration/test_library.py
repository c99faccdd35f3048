"""Which commands load the functions, and which never do."""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from imcore.chat import Chat
from imcore.errors import ConfigurationError, RedisUnavailable
from imcore.repair.rebuild import rebuild
from imcore.sql.database import Database
from imcore.streams import library
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient, open_client
from imcore.system import System
from tests.helpers.cli import im as run_im
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import RunningCluster

VERSION_CALL = Call("im_version", (), (), int)

READS = [
    *("group list", "group show team", "unread bob", "pull bob --no-local", "status team", "receipts bob --no-local"),
    *(
        "status team 1767225600000-0",
        "stats",
        "stats --online",
        "dead list",
        "dead show 0:1767225600000-0",
        "check",
        "trim",
    ),
]


@pytest.fixture
def server(valkey: str) -> Iterator[Any]:
    with redis.Redis.from_url(valkey) as client:
        yield client


@pytest.fixture
def connect(valkey: str) -> Iterator[Callable[[], RedisClient]]:
    """Makes clients, one for each process of the test."""
    clients: list[RedisClient] = []

    def connect() -> RedisClient:
        clients.append(RedisClient(open_client(valkey), url=valkey))
        return clients[-1]

    yield connect
    for redis_client in clients:
        redis_client.close()


@pytest.fixture
def im(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("IM_REDIS_URL", valkey)
    monkeypatch.setenv("IM_DATA_DIR", str(tmp_path))
    with Database.connect(f"sqlite:///{tmp_path / 'imcore.db'}") as database:
        database.upgrade()
    return run_im


def load(server: Any, version: int) -> None:
    """Put functions of another version."""
    code = "#!lua name=imcore\nredis.register_function{function_name='im_version', " + (
        f"callback=function() return {version} end, flags={{'no-writes'}}}}"
    )
    server.function_load(code, replace=True)


def loaded(server: Any) -> int:
    try:
        return int(server.execute_command("FCALL_RO", "im_version", 0))
    except redis.ResponseError:
        return 0


@pytest.mark.parametrize("line", READS)
@pytest.mark.parametrize("loaded_version", [0, library.VERSION - 1], ids=["none", "older"])
def test_a_command_that_only_reads_loads_nothing_and_says_what_to_do(
    server: Any, im: Callable[..., Result], line: str, loaded_version: int
) -> None:
    # Given a server without our functions, or with older ones
    if loaded_version:
        load(server, loaded_version)

    # When
    result = im(*shlex.split(line))

    # Then
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"im: unix:.* has .*: start a worker of this imcore, or run `im db upgrade`\n", result.stderr)
    assert ("older" if loaded_version else "no functions") in result.stderr
    assert (loaded(server), server.dbsize()) == (loaded_version, 0)


def test_a_first_write_loads_missing_functions(server: Any, connect: Callable[[], RedisClient]) -> None:
    chat = Chat(System(connect(), None))
    chat.create_group("team", ["ann"])
    assert loaded(server) == library.VERSION

    # And again where they were lost, but not for who reads
    server.function_flush("SYNC")
    with pytest.raises(RedisUnavailable, match="no functions"):
        chat.group("team")
    chat.add_members("team", ["bob"])
    assert chat.group("team").members == 2


def test_a_write_does_not_replace_older_functions(server: Any, connect: Callable[[], RedisClient]) -> None:
    load(server, library.VERSION - 1)
    for redis_client in (connect(), connect()):
        with pytest.raises(RedisUnavailable, match=r"older imcore \(version"):
            Chat(System(redis_client, None)).create_group("team", ["ann"])
    assert (loaded(server), server.dbsize()) == (library.VERSION - 1, 0)


def test_an_upgrade_replaces_older_functions_and_loads_lost_ones(
    server: Any, connect: Callable[[], RedisClient]
) -> None:
    load(server, library.VERSION - 1)
    redis_client = connect()
    redis_client.upgrade()
    assert loaded(server) == library.VERSION

    for _ in range(2):
        server.function_flush("SYNC")
        assert redis_client.call(VERSION_CALL) == library.VERSION
        server.function_flush("SYNC")
        assert redis_client.call_each([VERSION_CALL]) == [library.VERSION]


def test_newer_functions_are_left_alone(server: Any, connect: Callable[[], RedisClient]) -> None:
    load(server, library.VERSION + 1)
    for act in (lambda: Chat(System(connect(), None)).create_group("team"), lambda: connect().upgrade()):
        with pytest.raises(ConfigurationError, match=r"a newer imcore .*: upgrade imcore"):
            act()
    assert loaded(server) == library.VERSION + 1


def test_two_may_load_them_at_once(connect: Callable[[], RedisClient], monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two processes that have found no functions
    one, two = connect(), connect()
    version = library.Library._version
    answers = iter([0])
    one.require_functions(writes=True)
    monkeypatch.setattr(library.Library, "_version", lambda *args: next(answers, None) or version(*args))

    # Then the second one finds those of the first
    two.require_functions(writes=True)
    assert two.call(VERSION_CALL) == library.VERSION


def test_functions_of_somebody_elses_by_our_name_are_an_error(server: Any, connect: Callable[[], RedisClient]) -> None:
    server.function_load("#!lua name=imcore\nredis.register_function('other', function() return 1 end)")
    with pytest.raises(Exception, match="already exists"):
        connect().require_functions(writes=True)


@pytest.mark.parametrize("name", ["persist", "receipts", "jobs"])
def test_every_worker_brings_them_up_to_date(server: Any, valkey: str, tmp_path: Path, name: str) -> None:
    load(server, library.VERSION - 1)
    with WorkerProcess(tmp_path, name, *["--burst"] * (name != "jobs"), redis_url=valkey) as worker:
        if name == "jobs":
            worker.wait_for("trimmed")
            assert worker.end() == 0
        else:
            assert worker.wait() == 0, worker.log
    assert loaded(server) == library.VERSION


def test_an_operator_brings_them_up_to_date(
    server: Any, im: Callable[..., Result], connect: Callable[[], RedisClient]
) -> None:
    load(server, library.VERSION - 1)
    result = im("db", "upgrade", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f'"redis": "{connect().address}"' in result.stdout
    assert loaded(server) == library.VERSION

    load(server, library.VERSION - 1)
    assert im("rebuild", "--yes").exit_code == 0
    assert loaded(server) == library.VERSION


def test_a_library_user_rebuilds_on_an_empty_server(valkey: str, tmp_path: Path) -> None:
    with Chat.connect(valkey, f"sqlite:///{tmp_path / 'imcore.db'}") as chat:
        chat.system.database.upgrade()
        assert rebuild(chat.system).groups == 0


def test_a_node_of_a_cluster_that_has_lost_them_gets_them_again(cluster: str, cluster_servers: RunningCluster) -> None:
    # Given a node without functions
    with closing(RedisClient(open_client(cluster), url=cluster)) as redis_client:
        redis_client.upgrade()
        chat = Chat(System(redis_client, None))
        for number in range(20):
            chat.create_group(f"g{number}", ["ann"])
    with redis.Redis.from_url(cluster_servers.nodes[1].url) as node:
        node.function_flush("SYNC")

    # Then a reader gets an error, and a writer loads them there
    for writes in (False, True):
        with Chat.connect(cluster) as chat:
            if not writes:
                with pytest.raises(RedisUnavailable, match="no functions"):
                    list(chat.groups())
            else:
                chat.add_members("g1", ["bob"])
                assert len(list(chat.groups())) == 20
