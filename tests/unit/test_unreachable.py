"""The error for a server that is no Redis, or refuses a connection at once: its own words, and what to do."""

import errno
import os
import socket
import traceback
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from imcore.chat import Chat
from imcore.errors import ConfigurationError, ImError, RedisRefuses, RedisUnavailable
from imcore.streams.redis_errors import translated
from tests.helpers.fake_server import answering, hanging_up

PASSWORD = "s3cret"


def refusal(url: str) -> ImError:
    with pytest.raises(ImError) as refused, Chat.connect(url) as chat:
        chat.unread("ann")
    assert len(str(refused.value).splitlines()) == 1
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))
    return refused.value


MAXCLIENTS = b"-ERR max number of clients reached\r\n"
WORDS: dict[str, tuple[bytes, type[ImError], str]] = {
    "maxclients": (MAXCLIENTS, RedisRefuses, "as many clients as it takes (maxclients)"),
    "maxclients of a cluster": (
        b"-ERR max number of clients + cluster connections reached\r\n",
        RedisRefuses,
        "as many clients as it takes (maxclients)",
    ),
    "protected mode": (
        b"-DENIED Redis is running in protected mode because protected mode is enabled and no password is set.\r\n",
        ConfigurationError,
        "is in protected mode",
    ),
    "no such protocol": (b"-NOPROTO unsupported protocol version\r\n", ConfigurationError, "add ?protocol=2"),
    "loading": (b"-LOADING Redis is loading the dataset in memory\r\n", RedisRefuses, "still loading"),
    "redirect": (b"-REDIRECT 10.0.0.1:6379\r\n", RedisRefuses, "connect to the new primary"),
    "no password": (b"-NOAUTH Authentication required.\r\n", ConfigurationError, "wants a password"),
    "LDAP": (b"-ERR problem with LDAP service\r\n", RedisRefuses, "LDAP"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", ConfigurationError, "is no Redis"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", ConfigurationError, "is no Redis"),
    "SMTP": (b"220 mail.example ESMTP\r\n", ConfigurationError, "is no Redis"),
    "MySQL": (b"J\x00\x00\x00\x0a8.0.36\x00", ConfigurationError, "is no Redis"),
    "memcached": (b"ERROR\r\n", ConfigurationError, "is no Redis"),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", ConfigurationError, "speaks TLS: use rediss://"),
    "nothing": (b"", RedisUnavailable, "it hangs up without a word; if it wants TLS, use rediss://"),
}


@pytest.mark.parametrize("hears", [True, False], ids=["after our word", "before our word"])
@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_the_word_with_which_a_server_hangs_up(kind: str, hears: bool, scheme: str) -> None:
    word, error, said = WORDS[kind]
    with hanging_up(word, hears=hears) as port:
        for options in ("", "?protocol=2"):
            url = f"{scheme}://ann:{PASSWORD}@127.0.0.1:{port}{options}"
            raised = refusal(url)
            assert type(raised) is error
            assert said in str(raised)
            assert f"{scheme}://127.0.0.1:{port}" in str(raised)


def test_the_word_of_a_server_that_hangs_up_before_our_first_write(tmp_path: Path) -> None:
    # Given a server that has hung up on a unix socket: the first write fails there, with its word still unread
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        connect = socket.socket.connect

        def connected_and_dropped(sock: socket.socket, address: object) -> None:
            connect(sock, address)  # type: ignore[arg-type]
            connection, _ = server.accept()
            with connection:
                connection.sendall(MAXCLIENTS)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", connected_and_dropped)
            # Then
            assert "maxclients" in str(refusal(f"unix://{path}"))


def test_broken_bytes_on_a_connection_that_has_begun_may_be_tried_again(tmp_path: Path) -> None:
    answers = iter([b"?what is this\r\n"])
    path = tmp_path / "s.sock"

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"HELLO":
            return b"%1\r\n+proto\r\n:3\r\n"
        return b"+OK\r\n" if command[0] == b"CLIENT" else next(answers, b"-ERR enough\r\n")

    with answering(path, answer):
        error = refusal(f"unix://{path}")
    assert isinstance(error, RedisUnavailable)
    assert "broken on its way" in str(error)


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for scheme in ("redis", "rediss", "redis+cluster"):
        error = refusal(f"{scheme}://ann:{PASSWORD}@nowhere.example")
        assert isinstance(error, RedisUnavailable)  # names come back, too
        assert str(error) == (
            f"the name of the host in {scheme}://nowhere.example cannot be resolved (Name or service not known)"
        )


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.EMFILE, RedisUnavailable, "as many files open as it may (raise ulimit -n)"),
        (errno.ENFILE, RedisUnavailable, "as many files open as it may (raise ulimit -n)"),
        (errno.EACCES, ConfigurationError, "no right to use the socket"),
        (errno.EPERM, ConfigurationError, "no right to use the socket"),
        (errno.ENOTDIR, RedisUnavailable, "(Not a directory): start it with `im up`"),
        (errno.EADDRNOTAVAIL, RedisUnavailable, "(Cannot assign requested address): start it"),
        (errno.ECONNREFUSED, RedisUnavailable, "/s.sock: start it with `im up`, or set IM_REDIS_URL"),
        (errno.ENOENT, RedisUnavailable, "/s.sock: start it with `im up`, or set IM_REDIS_URL"),
    ],
)
def test_errors_of_the_system_are_translated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, error: type[ImError], said: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "connect", fails)
    raised = refusal(f"unix://{tmp_path}/s.sock")
    assert type(raised) is error
    assert said in str(raised)


def test_only_a_socket_of_this_machine_is_started_by_us() -> None:
    said = str(refusal("redis://127.0.0.1:1"))
    assert said == "no answer from Redis at redis://127.0.0.1:1: start it, or set IM_REDIS_URL"


def test_a_socket_whose_path_is_too_long() -> None:
    assert "is too long for this system" in str(refusal(f"unix:///tmp/{'x' * 200}"))


def test_as_many_connections_as_the_url_allows(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with answering(path, lambda _: b"%1\r\n+proto\r\n:3\r\n"), Chat.connect(f"unix://{path}?max_connections=3") as chat:
        pool = chat.system.client.driver.connection_pool  # type: ignore[union-attr]
        held = [pool.get_connection() for _ in range(3)]
        with pytest.raises(RedisRefuses, match="raise max_connections in the URL"):
            chat.unread("ann")
        for connection in held:
            pool.release(connection)


def test_an_error_that_says_nothing_is_no_answer() -> None:
    assert isinstance(translated(RedisConnectionError(""), "redis://host"), RedisUnavailable)
