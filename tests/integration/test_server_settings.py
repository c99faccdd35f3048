"""Settings of a server that break a promise: the warnings, and the refusal to start."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from imcore.admin.acl import READER, WORKER
from imcore.admin.server_settings import all_servers, chat_servers, jobs_servers, refuse_eviction, warning_of
from imcore.chat import Chat
from imcore.errors import ConfigurationError
from imcore.settings import Settings
from imcore.streams.client import RedisClient
from tests.helpers.cli import im as run_im
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import RunningCluster, RunningServer, require_server, start_valkey

PROMISES: dict[str, tuple[dict[str, Any], str]] = {
    "volatile-lru": ({"maxmemory-policy": "volatile-lru", "maxmemory": "100mb"}, "leases and sessions are dropped"),
    "volatile-ttl": ({"maxmemory-policy": "volatile-ttl", "maxmemory": "100mb"}, "set noeviction"),
    "allkeys-lru": (
        {"maxmemory-policy": "allkeys-lru", "maxmemory": "100mb"},
        "groups, messages and offsets are dropped",
    ),
    "appendonly": ({"appendonly": "no"}, "it loses all that no worker had stored; set appendonly yes"),
    "snapshots": ({"appendonly": "no", "save": "900 1"}, "it loses what came since its last snapshot"),
    "appendfsync": ({"appendfsync": "no"}, "often that of 30 s; set everysec or always"),
    "rewrites": ({"no-appendfsync-on-rewrite": "yes"}, "no-appendfsync-on-rewrite is yes"),
    "pushes": ({"min-string-size-avoid-copy-reply": 16384}, "a session that stops reading is never cut off"),
}
SOUND = {"maxmemory-policy": "allkeys-lru", "maxmemory": 0, "appendonly": "yes", "appendfsync": "everysec"}
"""A policy drops nothing where there is no limit to the memory."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of the test's own, without a setting to warn of."""
    require_server()
    server = start_valkey(tmp_path / "server", "--appendfsync", "everysec")
    configure(server, SOUND)
    yield server
    server.stop()


@pytest.fixture
def redis_url(server: RunningServer) -> str:
    return server.url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a system that has one group."""
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        chat.create_group("team", ["ann"])
    return settings


@pytest.fixture
def im(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> "Any":
    def run(*args: str, **more: str) -> Result:
        environ = {"IM_REDIS_URL": settings.redis_url, "IM_DATA_DIR": str(settings.data_dir), **more}
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            return run_im(*args)

    return run


def configure(server: RunningServer, values: dict[str, Any]) -> None:
    with redis.Redis.from_url(server.url) as client:
        for name, value in values.items():
            client.config_set(name, value)


def warnings_of(settings: Settings) -> list[str]:
    with closing(RedisClient.connect(settings)) as redis_client:
        return [text for each in chat_servers(redis_client) for text in each.warnings]


def test_a_sound_server_has_no_warnings(settings: Settings, im: "Any") -> None:
    with closing(RedisClient.connect(settings)) as redis_client:
        [node] = servers = all_servers(redis_client, settings, pytest.fail)
    assert (node.warnings, warning_of(servers)) == ((), None)
    assert (node.holds, node.role, node.maxmemory) == ("chat", "primary", 0)
    assert (node.maxmemory_policy, node.appendonly, node.appendfsync) == ("allkeys-lru", True, "everysec")
    refuse_eviction(servers, settings)
    assert im("stats", "--json").stderr == ""
    assert im("check", "--json").stderr == "im: differences between Redis and SQL: 1\n"  # no worker has run


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", PROMISES)
def test_each_bad_setting_has_a_warning_with_its_effect(
    server: RunningServer, settings: Settings, kind: str, protocol: int
) -> None:
    values, said = PROMISES[kind]
    configure(server, values)
    [warning] = warnings_of(replace(settings, redis_url=f"{settings.redis_url}?protocol={protocol}"))
    assert said in warning
    assert warning.startswith(next(iter(values)))


def test_a_replica_has_a_warning(server: RunningServer, settings: Settings) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", 1)
        [warning] = warnings_of(settings)
        assert warning.startswith("it is a replica: it takes no writes")
        client.config_set("replica-read-only", "no")
        [warning] = warnings_of(settings)
        assert warning.startswith("replica-read-only is no: ")


def test_all_warnings_are_one_line(server: RunningServer, settings: Settings, im: "Any") -> None:
    # Given several settings that break promises
    configure(server, PROMISES["volatile-lru"][0] | PROMISES["snapshots"][0])
    # When a worker begins
    with WorkerProcess(settings.data_dir / "w", "receipts", "--burst", redis_url=settings.redis_url) as worker:
        assert worker.wait() == 0, worker.log
    # Then
    [warning] = worker.warnings
    assert "volatile-lru" in warning
    assert "appendonly is no" in warning
    # And `check` complains as much, and finds no difference
    checked = im("check")
    assert checked.exit_code == 1  # the worker persist has never run
    [complaint, *_] = checked.stderr.splitlines()
    assert complaint == f"im: {warning.partition('receipts: ')[2]}"


def test_stats_show_settings_and_unknown_settings(server: RunningServer, settings: Settings, im: "Any") -> None:
    configure(server, PROMISES["appendfsync"][0])
    [line] = im("stats", "--json").stdout.splitlines()
    assert '"maxmemory_policy": "allkeys-lru"' in line
    assert '"appendfsync": "no"' in line
    assert '"warnings": ["appendfsync is no: ' in line
    shown = im("stats").stdout
    assert "holds\tserver\tversion\trole\tmaxmemory\tmaxmemory_policy\tappendonly\tappendfsync\n" in shown
    assert "server\twarning\n" in shown
    # And a reader may not ask for that
    with redis.Redis.from_url(server.url) as client:
        client.execute_command(*READER.set_user().replace("#SHA256_OF_THE_PASSWORD", ">pw").split())
        client.acl_log_reset()
        url = settings.redis_url.replace("unix://", f"unix://{READER.user}:pw@")
        result = im("stats", IM_REDIS_URL=url)
        assert (result.exit_code, result.stderr) == (0, MISSING)
        assert "allkeys-lru\tyes\tnot known\n" in result.stdout
        assert client.acl_log() == []


def test_a_role_without_rights_gets_no_warning(server: RunningServer, settings: Settings) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL SETUSER bob reset on nopass ~* &* +@all -info -config")
    with closing(
        RedisClient.connect(replace(settings, redis_url=settings.redis_url.replace("://", "://bob:x@")))
    ) as redis_client:
        [node] = chat_servers(redis_client)
    assert (node.version, node.role, node.maxmemory_policy, node.appendfsync) == (None, None, None, None)
    assert node.warnings == ()


ALLKEYS = PROMISES["allkeys-lru"][0]


@pytest.mark.parametrize("name", ["persist", "receipts", "jobs", "up"])
def test_an_evicting_server_is_refused_before_the_start(
    server: RunningServer, settings: Settings, im: "Any", name: str, tmp_path: Path
) -> None:
    # Given a server without functions, and a database without tables
    configure(server, ALLKEYS)
    server.flush()
    database = tmp_path / "new" / "imcore.db"
    if name == "up":
        result = im("up", IM_DATABASE_URL=f"sqlite:///{database}")
        code, said = result.exit_code, result.stderr
        assert result.stdout == ""
    else:
        with WorkerProcess(
            tmp_path / "w", name, redis_url=settings.redis_url, database_url=f"sqlite:///{database}"
        ) as worker:
            code, said = worker.wait(), worker.log
    # Then it says so in one line, and nothing is there
    assert code == 1
    assert len(said.splitlines()) == 1
    assert "drops groups, messages and offsets when its memory is full (maxmemory-policy allkeys-lru" in said
    assert "IM_ALLOW_EVICTION=1" in said
    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == []
        assert client.function_list() == []
    assert not database.exists()


def test_allow_eviction_leaves_a_warning(server: RunningServer, settings: Settings) -> None:
    configure(server, ALLKEYS)
    with WorkerProcess(
        settings.data_dir / "w", "persist", "--burst", redis_url=settings.redis_url, allow_eviction=1
    ) as worker:
        assert worker.wait() == 0, worker.log
    assert ["groups, messages and offsets are dropped" in warning for warning in worker.warnings] == [True]
    assert refuse_eviction([], settings) is None  # type: ignore[func-returns-value]


def test_another_server_for_jobs_is_examined(
    server: RunningServer, settings: Settings, valkey: str, tmp_path: Path
) -> None:
    # Given jobs on the same server under another number, and on another server
    same = replace(settings, jobs_redis_url=f"{server.url}?db=3")
    another = replace(settings, jobs_redis_url=valkey)
    away = replace(settings, jobs_redis_url="redis://127.0.0.1:1")
    with Chat.connect(settings=settings) as chat, redis.Redis.from_url(valkey) as client:
        assert [each.holds for each in all_servers(chat.system.client, same, pytest.fail)] == ["chat"]
        warnings: list[str] = []
        assert [each.holds for each in all_servers(chat.system.client, away, warnings.append)] == ["chat"]
        assert warnings == [
            "the settings of a server are not known: no answer from Redis at redis://127.0.0.1:1: start it, or set "
            "IM_JOBS_REDIS_URL"
        ]
        # When that one drops keys
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            chat_server, jobs_server = all_servers(chat.system.client, another, pytest.fail)
            assert (chat_server.warnings, jobs_server.holds) == ((), "jobs")
            [warning] = jobs_server.warnings
            assert "jobs that wait may be dropped" in warning
            refuse_eviction([chat_server, jobs_server], settings)  # no group is lost
            urls = {"redis_url": settings.redis_url, "jobs_redis_url": valkey}
            with WorkerProcess(tmp_path / "w", "jobs", "--burst", **urls) as worker:
                assert worker.wait() == 0, worker.log
            [said] = worker.warnings
            assert warning in said
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
    assert [each.warnings for each in jobs_servers(another)] == [()]


MISSING = "no worker persist and no worker receipts runs: see im health\n"

JOBS_AWAY: dict[str, tuple[str, str]] = {
    "wrong password": (
        "{server}?username=nobody&password=x",
        r"refuses this user or password .*: set IM_JOBS_REDIS_URL$",
    ),
    "no rights": ("{server}?username=nothing&password=pw", ""),
    "nobody listens": ("redis://127.0.0.1:1/0", "no answer .* set IM_JOBS_REDIS_URL$"),
    "a cluster that is away": ("redis+cluster://127.0.0.1:1", "no answer"),
}


@pytest.mark.parametrize("kind", JOBS_AWAY)
def test_a_refusing_server_for_jobs_changes_nothing(
    server: RunningServer, settings: Settings, im: "Any", kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server of the jobs that cannot be looked at, and a difference
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL SETUSER nothing reset on >pw")
    url, said = JOBS_AWAY[kind]
    url = url.format(server=server.url)
    # When
    shown = im("stats", IM_JOBS_REDIS_URL=url)
    checked = im("check", IM_JOBS_REDIS_URL=url)
    # Then both say all that they have to say, and why that server is missing
    assert shown.exit_code == 0
    assert "holds\tserver\tversion\t" in shown.stdout
    assert "queued\trunning\tfailed\n" not in shown.stdout
    assert checked.exit_code == 1
    assert checked.stderr.endswith("im: differences between Redis and SQL: 1\n")
    for remarks in (shown.stderr.replace(MISSING, ""), checked.stderr):
        [remark, *_] = remarks.splitlines() or [""]
        assert not said or re.search(said, remark)
    # And so it is where there is no difference
    monkeypatch.setattr("imcore.repair.check.check", lambda *_, **__: [])
    checked = im("check", IM_JOBS_REDIS_URL=url)
    assert (checked.exit_code, checked.stderr.splitlines()[-1].lower()) == (0, "no difference")


def test_a_server_lost_after_the_check_does_not_change_its_result(
    settings: Settings, im: "Any", monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that is lost before its settings are read
    def refuses(*_: object, **__: object) -> None:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr("imcore.admin.server_settings.servers_of", refuses)
    # When, Then
    assert im("stats").exit_code == 0
    checked = im("check")
    assert checked.exit_code == 1
    assert "the settings of a server are not known: no answer from Redis" in checked.stderr
    assert checked.stderr.endswith("im: differences between Redis and SQL: 1\n")


def test_each_primary_of_a_cluster_is_examined(cluster: str, cluster_servers: RunningCluster) -> None:
    # Given a cluster with one node that drops keys
    settings = Settings.from_env({}, redis_url=cluster)
    node = cluster_servers.nodes[1]
    configure(node, ALLKEYS)
    try:
        with closing(RedisClient.connect(settings)) as redis_client:
            servers = chat_servers(redis_client)
        assert len(servers) == 3
        [dropping] = [each for each in servers if each.drops_anything]
        with pytest.raises(ConfigurationError, match=f"^{dropping.server} drops groups"):
            refuse_eviction(servers, settings)
        # And a warning for all of them comes once
        warning = warning_of(servers) or ""
        assert warning.count("appendonly is no") == 1
        assert warning.count(f". {dropping.server}: maxmemory-policy") == 1
    finally:
        configure(node, {"maxmemory": 0, "maxmemory-policy": "noeviction"})


def test_workers_of_im_up_do_not_repeat_the_warning(server: RunningServer, settings: Settings) -> None:
    configure(server, PROMISES["appendfsync"][0])
    with WorkerProcess(
        settings.data_dir / "w", "persist", "--burst", "--known-server", redis_url=settings.redis_url
    ) as worker:
        assert worker.wait() == 0, worker.log
    assert worker.warnings == []


def test_the_roles_may_read_the_settings(server: RunningServer, settings: Settings) -> None:
    with redis.Redis.from_url(server.url) as client:
        for role in (WORKER, READER):
            client.execute_command(*role.set_user().replace("#SHA256_OF_THE_PASSWORD", ">pw").split())
            url = settings.redis_url.replace("unix://", f"unix://{role.user}:pw@")
            with closing(RedisClient.connect(replace(settings, redis_url=url))) as redis_client:
                [node] = chat_servers(redis_client)
            assert (node.maxmemory_policy, node.appendonly, node.appendfsync) == ("allkeys-lru", True, None)
