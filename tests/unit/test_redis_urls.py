"""Redis URLs in outputs and errors: they show no password, and no part of one."""

import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from imcore.errors import ConfigurationError, RedisUnavailable
from imcore.logs.redaction import redact
from imcore.settings import Settings, socket_path, socket_url
from imcore.streams.client import RedisClient, open_client
from imcore.streams.redis_errors import address
from tests.helpers.fake_server import Answer, answering

PASSWORD = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://ann:s3cret@host:6380/2?health_check_interval=5", "redis://host:6380/2"),
        ("rediss://:s3cret@[::1]:6380", "rediss://[::1]:6380"),
        ("redis+cluster://ann:s3@cret@host:7000", "redis+cluster://host:7000"),
        ("redis+sentinel://ann:s3cret@a,b:1/mine?sentinel_password=s3cret", "redis+sentinel://a,b:1/mine"),
        ("redis+sentinel://ann:s3/cret@a/mine", "redis+sentinel://..."),
        ("redis+sentinel://a/mine&sentinel_password=s3cret", "redis+sentinel://a/..."),
        ("unix:///run/redis.sock?password=s3cret", "unix:///run/redis.sock"),
        ("unix://ann:s3cret@/run/redis.sock", "unix:///run/redis.sock"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("redis://host/0&password=s3cret", "redis://host/..."),
        ("rediss://host/0;ssl_password=s3cret", "rediss://host/..."),
        ("redis://host/0%3Fpassword=s3cret", "redis://host/..."),
        ("redis://ann:s3/cret@host", "redis://..."),
        ("redis://ann:12?s3cret@host", "redis://..."),
        ("redis://:s3#cret@host:6379/0", "redis://..."),
        ("unix://ann:s3/cret@/run/redis.sock", "unix://..."),
        ("redis://ann:s3cret@host:port", "redis://..."),
        ("redis://ann:s3cret@[::1", "redis://..."),
        ("ann:s3cret@host", "the given text"),
        ("redis:s3cret@host", "the given text"),
        ("ann s3cret://host", "the given text"),
    ],
)
def test_an_address_shows_no_password(url: str, shown: str) -> None:
    assert address(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost", "http://ann:s3cret@host", "ann:s3cret@host", "redis:ann:s3cret@host"),
        *("redis://ann:s3/cret@host", "redis://ann:s3cret@host:port", "redis://ann:s3cret@[::1"),
        *("redis://ann:s3cret@host:99999", "redis+cluster://ann:s3cret@host:99999", "redis+cluster://ann:s3cret@[::1"),
        *("redis://ann:s3cret@host?colour=red", "redis+cluster://ann:s3cret@host?colour=red"),
        *("redis://ann:s3cret@host?db=one", "redis://host?password=s3cret&colour=red"),
    ],
)
def test_an_unusable_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_client(url)
    assert PASSWORD not in f"{refused.value} {refused.value!r}"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://localhost:abc", "redis+cluster://localhost:99999", "redis://a:s3/cret@host"),
        *("redis://localhost/chat", "rediss://localhost/1/2", "redis+cluster://localhost/²"),
    ],
)
def test_a_url_that_is_nearly_one_gets_an_example(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"is not valid: it looks like redis://.* percent form \(@ is %40\)$"
    ) as refused:
        open_client(url)
    assert redact(str(refused.value)) == str(refused.value)  # an example is no secret


def unknown(command: list[bytes]) -> bytes:
    return b"-ERR unknown command `%s`, with args beginning with: \r\n" % command[0]


def redis_5(command: list[bytes]) -> bytes:
    return {b"SELECT": b"+OK\r\n", b"HGET": b"$-1\r\n"}.get(command[0].upper()) or unknown(command)


def redis_6(command: list[bytes]) -> bytes:
    hello = b"%3\r\n+server\r\n+redis\r\n+version\r\n+6.2.14\r\n+proto\r\n:3\r\n"
    return hello if command[0].upper() == b"HELLO" else redis_5(command)


def without_functions(command: list[bytes]) -> bytes:
    return unknown(command) if command[0].upper() == b"FUNCTION" else redis_6(command)


@pytest.mark.parametrize("answer", [redis_5, redis_6, without_functions])
def test_a_server_that_is_too_old(tmp_path: Path, answer: Answer) -> None:
    url = f"unix://{tmp_path / 'old.sock'}"
    with answering(tmp_path / "old.sock", answer), Chat.connect(url) as chat:
        for act in (lambda: chat.create_group("team"), lambda: chat.unread("ann")):
            with pytest.raises(ConfigurationError, match=r"is too old: .* Redis 7\.0 or Valkey 7\.2, or newer$"):
                act()


def without_fcall(info: bytes) -> Answer:
    """A server that reports a version that is new enough, and has no functions all the same."""

    def answer(command: list[bytes]) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(info), info) if command[0].upper() == b"INFO" else redis_6(command)

    return answer


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (b"redis_version:7.2.4\r\nredis_mode:sentinel\r\n", "is a Sentinel: set IM_REDIS_URL to the primary"),
        (
            b"redis_version:7.2.4\r\nredis_mode:standalone\r\n",
            "is Redis 7.2.4, but has an unknown command `FCALL_RO`: ",
        ),
        (
            b"redis_version:7.2.4\r\nvalkey_version:9.1.2\r\n",
            "is Valkey 9.1.2, but has an unknown command `FCALL_RO`: ",
        ),
        (b"redis_version:6.2.14\r\nredis_mode:standalone\r\n", "is too old: "),
        (b"redis_version:7.2.4\r\nvalkey_version:7.1.0\r\n", "is too old: "),
        (b"", "is too old: "),
    ],
)
def test_a_server_without_functions_that_is_not_too_old(tmp_path: Path, info: bytes, said: str) -> None:
    path = tmp_path / "s.sock"
    with answering(path, without_fcall(info)), Chat.connect(f"unix://{path}") as chat:
        with pytest.raises(ConfigurationError) as refused:
            chat.unread("ann")
        assert said in str(refused.value)


def test_a_sentinel_is_refused_at_the_first_command(tmp_path: Path) -> None:
    def answer(command: list[bytes]) -> bytes:
        info = b"redis_mode:sentinel\r\nredis_version:7.0.15\r\n"
        return {
            b"HELLO": b"%1\r\n+proto\r\n:3\r\n",
            b"CLIENT": b"+OK\r\n",
            b"INFO": b"$%d\r\n%s\r\n" % (len(info), info),
        }.get(command[0], unknown(command))

    with answering(tmp_path / "s.sock", answer), Chat.connect(f"unix://{tmp_path}/s.sock") as chat:
        for act in (lambda: chat.unread("ann"), lambda: chat.create_group("team"), chat.system.client.upgrade):
            with pytest.raises(ConfigurationError, match="is a Sentinel: set IM_REDIS_URL"):
                act()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("NOAUTH Authentication required.", "wants a password: set IM_REDIS_URL to redis://USER:PASSWORD@HOST"),
        ("NOAUTH HELLO must be called with the client already authenticated, otherwise ...", "wants a password: "),
        ("WRONGPASS invalid username-password pair or user is disabled.", r"refuses this .* \(.*\): set IM_REDIS_URL$"),
    ],
)
def test_a_password_that_is_missing_or_wrong(tmp_path: Path, answer: str, said: str) -> None:
    path = tmp_path / "s.sock"
    with (
        answering(path, lambda _: f"-{answer}\r\n".encode()),
        Chat.connect(f"unix://ann:{PASSWORD}@{path}") as chat,
        pytest.raises(ConfigurationError, match=said) as refused,
    ):
        chat.unread("ann")
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "rediss", "rediss+cluster"])
def test_nobody_there_is_said_without_the_password(scheme: str) -> None:
    url = f"{scheme}://ann:{PASSWORD}@127.0.0.1:1"

    with pytest.raises(RedisUnavailable) as refused:
        RedisClient(open_client(url), url=url).query("PING")

    assert str(refused.value).startswith(f"no answer from Redis at {scheme}://127.0.0.1:1: ")
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))


def test_nothing_that_is_printed_for_debugging_has_a_password_in_it(tmp_path: Path) -> None:
    redis_url, database_url = f"redis://ann:{PASSWORD}@127.0.0.1:1", f"postgresql://ann:{PASSWORD}@127.0.0.1:1/chat"
    settings = Settings.from_env({}, redis_url=redis_url, database_url=database_url, data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat:
        for thing in (settings, chat, chat.performer, chat.system.database, chat.gateway()):
            assert PASSWORD not in f"{thing} {thing!r}"
        assert PASSWORD not in chat.system.client.address


@pytest.fixture(params=["open", "link", "foreign"])
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The short folder of a data directory, made by somebody else."""
    folder = socket_path(tmp_path / ("long" * 30)).parent
    if request.param == "link":
        (tmp_path / "trap").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "trap")
    else:
        folder.mkdir(mode=0o700)
    if request.param == "open":
        folder.chmod(0o755)
    if request.param == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, 65534, 65534)
    yield folder
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def test_a_server_in_a_folder_that_somebody_else_has_made_is_not_spoken_to(trap: Path) -> None:
    heard: list[list[bytes]] = []

    def answer(command: list[bytes]) -> bytes:
        heard.append(command)
        return b"+OK\r\n"

    url = socket_url(trap / "redis.sock")
    with answering(trap / "redis.sock", answer), Chat.connect(url) as chat:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"is not a folder of the user \d+ alone"):
                chat.create_group("team")
    assert heard == []
