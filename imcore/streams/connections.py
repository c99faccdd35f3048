"""Connections to Redis that keep what the server sent while they began: its own words are the reason of a failure."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError

from imcore.files.folders import check_socket
from imcore.streams.packing import Packer

_MOST_BYTES = 4096
_CLOSED = "Connection closed by server."
"""The driver's text for a server that hangs up before it answers."""
_NOT_READ = b"-ERR Protocol error"
_BROKEN = {errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED}


_BEGUN_WITHIN: ContextVar[float | None] = ContextVar("begun_within", default=None)


@contextmanager
def begun_within(seconds: float) -> Iterator[None]:
    """Let connections that begin in a `with` wait no longer for the server, whatever their timeouts are."""
    token = _BEGUN_WITHIN.set(seconds)
    try:
        yield
    finally:
        _BEGUN_WITHIN.reset(token)


class NotRedisError(RedisError):
    """The server does not speak the protocol of Redis; the text says how its answer began."""


class HungUpError(RedisConnectionError):
    """A server accepted the connection, and hung up without a word."""


class _Unread(NamedTuple):
    """Unread bytes of a server: data, or an alert of TLS."""

    data: bytes = b""
    alert: ssl.SSLError | None = None


class _ConnectionMixin:
    """A mixin for the driver's classes: a signal does not crash it, and a connection that fails at its start says why.

    A server that refuses a client sends the reason and hangs up, perhaps before the client has written anything. Then
    the client's first write fails, and the driver would drop the socket with the reason in it.
    """

    _sock: Any
    _parser: Any
    socket_timeout: float | None
    socket_connect_timeout: float | None
    pid: int
    _begins = _sends = False
    _unread: _Unread | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, command_packer=Packer())  # type: ignore[call-arg]

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect. Raise NotRedisError, HungUpError, the server's own error, or what else the driver raises."""
        if self._sock:
            return
        self._begins, self._unread = True, None
        try:
            with self._hurry():
                super().connect_check_health(check_health, retry_socket_connect)  # type: ignore[misc]
        except InvalidResponse as error:
            raise NotRedisError(str(error)) from error
        except RedisConnectionError as error:
            if self._unread and _is_broken(error):
                raise self._reason(self._unread) from (self._unread.alert or error)
            raise
        finally:
            self._begins = False

    @contextmanager
    def _hurry(self) -> Iterator[None]:
        """Wait no longer than `begun_within` says; then as long as ever."""
        within_s = _BEGUN_WITHIN.get()
        if within_s is None:
            yield
            return
        usual_s, connect_s = self.socket_timeout, getattr(self, "socket_connect_timeout", None)
        self.socket_timeout = self.socket_connect_timeout = within_s
        try:
            yield
        finally:
            self.socket_timeout, self.socket_connect_timeout = usual_s, connect_s
            self._parser._socket_timeout = usual_s
            if self._sock:
                self._sock.settimeout(usual_s)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send. Raise what the driver raises, or the server's error about a command that it did not read to its end."""
        self._sends = True
        try:
            super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RedisConnectionError as error:
            if self._unread and self._unread.data.startswith(_NOT_READ) and not self._begins:
                raise self._reason(self._unread) from error
            raise
        finally:
            self._sends = False

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect; after a failure read first what has arrived."""
        if (self._begins or self._sends) and self._sock is not None and os.getpid() == self.pid:
            self._unread = (self._begins and self._unread) or _unread_of(self._sock)
        super().disconnect(*args, **kwargs)  # type: ignore[misc]

    def _reason(self, unread: _Unread) -> Exception:
        if unread.alert:
            return RedisConnectionError(str(unread.alert))
        line = unread.data.partition(b"\r\n")[0].decode(errors="replace")
        if line.startswith("-"):
            reason: Exception = self._parser.parse_error(line[1:])
            return reason
        return NotRedisError(line) if line else HungUpError(_CLOSED)


class TcpConnection(_ConnectionMixin, redis.Connection):
    pass


class TlsConnection(_ConnectionMixin, redis.SSLConnection):
    pass


class UnixConnection(_ConnectionMixin, redis.UnixDomainSocketConnection):
    """Over a unix socket, unless another user could have put it there."""

    def _connect(self) -> Any:
        check_socket(self.path)
        return super()._connect()  # type: ignore[no-untyped-call]


def _is_broken(error: Exception) -> bool:
    """Return whether the other end has hung up."""
    cause = error.__cause__ or error.__context__
    return str(error) == _CLOSED or (isinstance(cause, OSError) and cause.errno in _BROKEN)


def _unread_of(sock: socket.socket) -> _Unread:
    """Return what has arrived, without waiting for more."""
    try:
        sock.settimeout(0)
        return _Unread(sock.recv(_MOST_BYTES))
    except (ssl.SSLWantReadError, ssl.SSLEOFError):
        return _Unread()
    except ssl.SSLError as error:
        return _Unread(alert=error)
    except (OSError, ValueError):  # also if it is closed
        return _Unread()
