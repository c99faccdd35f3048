"""Which options a Redis URL may have, and what each is checked against."""

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from imcore.admin.stats import stats
from imcore.chat import Chat
from imcore.errors import ConfigurationError
from imcore.metrics import WorkerMetrics
from imcore.process import WorkerSignals
from imcore.settings import Settings
from imcore.streams.client import RedisClient, open_client
from imcore.streams.url_options import FEWEST_CONNECTIONS, OPTIONS
from imcore.system import System
from imcore.workers import jobs, runner
from imcore.workers.receipts import ReceiptsWorker

GIVEN = {
    "db": "3",
    "username": "ann",
    "password": "s3cret",
    "protocol": "3",
    "client_name": "gateway-1",
    "max_connections": str(FEWEST_CONNECTIONS),
    "socket_timeout": "2.5",
    "socket_connect_timeout": "0.5",
    "health_check_interval": "30",
    "ssl_cert_reqs": "none",
    "ssl_check_hostname": "false",
}
"""One value of each option that names no file."""
OF_SENTINELS = {"sentinel_username", "sentinel_password"}


def kwargs_of(url: str) -> dict[str, Any]:
    client = open_client(url)
    assert isinstance(client, redis.Redis)
    return {**client.connection_pool.connection_kwargs, "max_connections": client.connection_pool.max_connections}


def refused(url: str, block_ms: int = 1000) -> str:
    with pytest.raises(ConfigurationError) as error:
        open_client(url, block_ms=block_ms)
    assert len(str(error.value).splitlines()) == 1
    assert "s3cret" not in "".join(traceback.format_exception_only(error.value))
    assert "s3cret" not in f"{error.value.__cause__}"
    return str(error.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_each_option_reaches_the_driver_as_its_type(scheme: str) -> None:
    place = "unix:///run/redis.sock" if scheme == "unix" else f"{scheme}://host"
    given = {name: text for name, text in GIVEN.items() if scheme in OPTIONS[name].schemes}
    kwargs = kwargs_of(f"{place}?{'&'.join(f'{name}={text}' for name, text in given.items())}")
    assert {name: kwargs[name] for name in given} == {name: OPTIONS[name].read(text) for name, text in given.items()}


def test_every_option_is_tried_here() -> None:
    files = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"}
    assert set(GIVEN) | files | OF_SENTINELS == set(OPTIONS)


def test_the_options_of_sentinels_are_not_those_of_their_primary() -> None:
    kwargs = kwargs_of("redis+sentinel://ann:one@a,b:1/mine?db=2&sentinel_username=bob&sentinel_password=two")
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("ann", "one", 2)
    assert not OF_SENTINELS & kwargs.keys()
    sentinels = kwargs["sentinels"]
    assert (sentinels._options["username"], sentinels._options["password"]) == ("bob", "two")
    assert list(map(str, sentinels._places)) == ["a:26379", "b:1"]
    assert "two" not in f"{kwargs}"


@pytest.mark.parametrize("path", ["", "/", "/a/b", "/a b", "/name%20", "/" + "n" * 101])
def test_sentinels_watch_a_name(path: str) -> None:
    assert "looks like redis+sentinel://host:26379,other/name" in refused(f"redis+sentinel://ann:s3cret@a,b{path}")


def test_only_sentinels_have_their_options() -> None:
    assert "does not take the option 'sentinel_password'" in refused("redis://host?sentinel_password=s3cret")


@pytest.mark.parametrize(
    "name",
    [
        # What the driver would take, and what would change the answers, repeat by itself, or was never thought of.
        *("retry_on_timeout", "retry_on_error", "decode_responses", "encoding", "encoding_errors", "legacy_responses"),
        *("socket_read_size", "socket_keepalive", "single_connection_client", "lib_name", "parser_class", "timeout"),
        *("connection_class", "retry", "credential_provider", "redis_connect_func", "host", "port", "path", "url"),
        *("cache", "ssl_min_version", "ssl_ciphers", "ssl_validate_ocsp", "DB", "colour"),
    ],
)
@pytest.mark.parametrize("place", ["redis://host", "rediss://host", "unix:///s", "redis+cluster://host"])
def test_any_other_option_is_refused_by_its_name(place: str, name: str) -> None:
    said = refused(f"{place}?{name}=1")
    assert said.startswith(f"{place} does not take the option {name!r}: ")
    assert name.startswith("ssl_") or "db, username, password, protocol" in said


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_cert_reqs", "ssl_check_hostname", "ssl_password"])
def test_options_of_tls_are_for_tls(name: str) -> None:
    for place in ("redis://host", "unix:///s", "redis+cluster://host"):
        assert refused(f"{place}?{name}=s3cret").endswith(": TLS is for rediss://")


def test_options_that_a_cluster_would_pass_over_are_refused() -> None:
    assert "'health_check_interval'" in refused("redis+cluster://host?health_check_interval=5")
    assert "names a database number" in refused("redis+cluster://host?db=1")
    assert "names a database number" in refused("redis+cluster://host/1")


@pytest.mark.parametrize(
    ("option", "must_be"),
    [
        *((f"socket_timeout={text}", "seconds, more than 0") for text in ("soon", "0", "-1", "nan", "inf", "1e9", "٣")),
        *((f"socket_connect_timeout={text}", "seconds, more than 0") for text in ("soon", "0", "-0.1", "nan")),
        *((f"health_check_interval={text}", "whole seconds from 0") for text in ("1.5", "-1", "nan", "often", "²")),
        *((f"max_connections={text}", f"from {FEWEST_CONNECTIONS}") for text in ("0", "1", "2", "-1", "many", "1e3")),
        *((f"protocol={text}", "2 or 3") for text in ("1", "4", "RESP3", "3.0")),
        *((f"db={text}", "the number of a database") for text in ("one", "-1", "1.0", "99999999999")),
        *((f"client_name={text}", "ASCII without spaces") for text in ("a%20b", "caf%C3%A9", "x" * 129)),
        *((f"ssl_cert_reqs={text}", "one of 'required'") for text in ("sometimes", "NONE")),
        *((f"ssl_check_hostname={text}", "'true' or 'false'") for text in ("maybe", "2")),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(option: str, must_be: str) -> None:
    said = refused(f"rediss://ann:s3cret@host?{option}")
    assert said.startswith(f"rediss://host has a wrong option: {option.partition('=')[0]}=")
    assert must_be in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host?db=1&db=2", "has the option 'db' twice"),
        ("redis://host?protocol=3&protocol=3", "has the option 'protocol' twice"),
        ("redis://host?socket_timeout=", "the option 'socket_timeout' without a value"),
        ("redis://host?password=", "the option 'password' without a value"),
        ("redis://host/1?db=2", "names the database 1, and db=2"),
        ("redis://ann:s3cret@host?password=s3cret", "has a password before the host and as an option"),
        ("unix://ann:s3cret@/s?username=bob", "has a username before the host and as an option"),
        ("rediss://host?ssl_keyfile=/k.pem", "'ssl_keyfile' without 'ssl_certfile'"),
        ("rediss://host?ssl_password=s3cret", "'ssl_password' without 'ssl_certfile'"),
        ("rediss://host?ssl_cert_reqs=none&ssl_check_hostname=true", "checks no host name"),
        ("rediss://host?ssl_ca_path=/nowhere", "the file /nowhere .option ssl_ca_path of rediss://host."),
    ],
)
def test_contradicting_options_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        open_client(url)
    refused(url)


def test_an_option_given_twice_with_one_value_is_taken() -> None:
    assert kwargs_of("redis://host/2?db=2")["db"] == 2


@pytest.mark.parametrize(
    "url",
    [
        # What the driver would pass over, or take for its default.
        *("redis://host:0", "redis://host?db", "redis://host?=1", "redis://host?db=1&&", "redis://host#1"),
        *(
            "unix://",
            "unix:///",
            "unix://run/redis.sock",
            "unix://./redis.sock",
            "redis://host/\t1",
            "redis://host?db=1\n",
        ),
        *("redis://ann:12?s3cret=1@host", "rediss://ann:12?db=s3cret@host&x", "redis://ann:1?s3cret&db=1@host"),
    ],
)
def test_a_text_that_is_no_list_of_options_may_be_a_password_and_is_not_shown(url: str) -> None:
    assert "is not valid: it looks like" in refused(url)


def test_a_password_may_have_any_sign_where_it_is_an_option() -> None:
    for place in ("redis://host", "unix:///s"):
        assert kwargs_of(f"{place}?username=ann&password=s3%26cret%40@")["password"] == "s3&cret@@"


class TestTheWaitForAnswers:
    @pytest.mark.parametrize(
        ("block_ms", "shortest"), [(1, 1.001), (1000, 2.0), (3000, 4.0), (5000, 6.0), (60_000, 6.0)]
    )
    def test_has_to_be_longer_than_that_of_a_worker_for_entries(self, block_ms: int, shortest: float) -> None:
        open_client(f"redis://host?socket_timeout={shortest}", block_ms=block_ms)
        said = refused(f"redis://host?socket_timeout={shortest - 0.001}", block_ms=block_ms)
        assert "workers wait up to" in said
        assert said.endswith(f"(IM_BLOCK_MS): it must be at least {shortest:g}")

    def test_of_a_server_that_does_not_say_is_of_no_worry(self) -> None:
        assert kwargs_of("redis://host")["socket_timeout"] == 10.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({}, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "option", ["socket_timeout=3", "max_connections=1", "retry_on_timeout=yes", "protocol=4", "socket_timeout=0.5"]
)
def test_whoever_opens_a_connection_checks_the_options(settings: Settings, option: str) -> None:
    url = f"redis://127.0.0.1:1?{option}"
    wrong = replace(settings, redis_url=url, block_ms=4000)
    wrong_jobs = replace(settings, jobs_redis_url=url, block_ms=4000)
    with WorkerSignals() as signals, Chat(System(RedisClient(redis.Redis()), None, wrong_jobs)) as chat:
        for open_it in (
            lambda: Chat.connect(settings=wrong),
            lambda: Chat.connect(url, settings=replace(settings, block_ms=4000)),
            lambda: runner.run(ReceiptsWorker, wrong, signals, WorkerMetrics("receipts"), burst=False),
            lambda: jobs.run(replace(wrong_jobs, redis_url=url), signals, WorkerMetrics("jobs"), burst=True),
            lambda: jobs.run(wrong_jobs, signals, WorkerMetrics("jobs"), burst=True),
            lambda: stats.__globals__["_jobs"](chat.system.settings),
        ):
            with pytest.raises(ConfigurationError, match=option.partition("=")[0]):
                open_it()
