"""Connections to Redis that keep what the server said while they began: its own word is the reason of a failure."""

import errno
import os
import socket
import ssl
from typing import Any, NamedTuple

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError

from imcore.files.folders import check_socket

_MOST_BYTES = 4096
_CLOSED = "Connection closed by server."
"""What the driver says where a server hangs up before it answers."""
_NOT_READ = b"-ERR Protocol error"
_BROKEN = {errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED}


class NotRedisError(RedisError):
    """What answers there does not speak the protocol of Redis; the text says how it began."""


class HungUpError(RedisConnectionError):
    """A server took the connection, and hung up without a word."""


class _Beginning:
    """A mixin for the driver's classes: what becomes of a connection while it begins.

    A server that refuses a client says why and hangs up, perhaps before the client has written anything. Then the
    client's first write fails, and the driver would drop the socket with the server's word in it.
    """

    _sock: Any
    _parser: Any
    pid: int
    _begins = _sends = False
    _left: "_Left | None" = None

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect. Raise NotRedisError, HungUpError, what the server said, or what else the driver raises."""
        if self._sock:
            return
        self._begins, self._left = True, None
        try:
            super().connect_check_health(check_health, retry_socket_connect)  # type: ignore[misc]
        except InvalidResponse as error:
            raise NotRedisError(str(error)) from error
        except RedisConnectionError as error:
            if self._left and _is_broken(error):
                raise self._reason(self._left) from (self._left.alert or error)
            raise
        finally:
            self._begins = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send. Raise what the driver raises, or what the server said of a command that it did not read to its end."""
        self._sends = True
        try:
            super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RedisConnectionError as error:
            if self._left and self._left.data.startswith(_NOT_READ) and not self._begins:
                raise self._reason(self._left) from error
            raise
        finally:
            self._sends = False

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect; after a failure read first what has come and nobody has read."""
        if (self._begins or self._sends) and self._sock is not None and os.getpid() == self.pid:
            self._left = (self._begins and self._left) or _left_in(self._sock)
        super().disconnect(*args, **kwargs)  # type: ignore[misc]

    def _reason(self, left: "_Left") -> Exception:
        if left.alert:
            return RedisConnectionError(str(left.alert))
        line = left.data.partition(b"\r\n")[0].decode(errors="replace")
        if line.startswith("-"):
            said: Exception = self._parser.parse_error(line[1:])
            return said
        return NotRedisError(line) if line else HungUpError(_CLOSED)


class TcpConnection(_Beginning, redis.Connection):
    """Over TCP."""


class TlsConnection(_Beginning, redis.SSLConnection):
    """Over TLS."""


class UnixConnection(_Beginning, redis.UnixDomainSocketConnection):
    """Over a unix socket, unless somebody else could have put it there."""

    def _connect(self) -> Any:
        check_socket(self.path)
        return super()._connect()  # type: ignore[no-untyped-call]


def _is_broken(error: Exception) -> bool:
    """Return whether the other end has hung up."""
    cause = error.__cause__ or error.__context__
    return str(error) == _CLOSED or (isinstance(cause, OSError) and cause.errno in _BROKEN)


class _Left(NamedTuple):
    """What has come from a server and was not read: data, or an alert of TLS."""

    data: bytes = b""
    alert: ssl.SSLError | None = None


def _left_in(sock: socket.socket) -> _Left:
    """Return what is left, without waiting for more."""
    try:
        sock.settimeout(0)
        return _Left(sock.recv(_MOST_BYTES))
    except (ssl.SSLWantReadError, ssl.SSLEOFError):
        return _Left()
    except ssl.SSLError as error:
        return _Left(alert=error)
    except (OSError, ValueError):  # also where it is closed
        return _Left()
