"""Translates errors of connections: what the system, TLS and the driver say of a server that cannot be reached."""

import errno
import socket
import ssl
from collections.abc import Iterator

from redis.exceptions import TimeoutError as RedisTimeoutError

from imcore.errors import ConfigurationError, ImError, RedisUnavailable
from imcore.settings import CHAT_URL, JOBS_URL
from imcore.streams.connections import HungUpError, NotRedisError

_NO_FILES = {errno.EMFILE, errno.ENFILE}
_NO_RIGHTS = {errno.EACCES, errno.EPERM}
_NOT_LISTENING = {None, errno.ECONNREFUSED, errno.ENOENT}

_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
"""OpenSSL's reasons for the answer of a server that does not speak TLS."""

_CERTIFICATE_REFUSED = {
    *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_UNKNOWN_CA"),
    *("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    *("SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
}
_TLS_ALERT = ("\\x15", "\x15")
"""How an alert of TLS begins, as the driver and as the system show it."""

_START = {CHAT_URL: "start it with `im up`", JOBS_URL: "start it"}


def no_protocol(error: Exception, where: str, variable: str = CHAT_URL) -> ImError:
    """Return what is wrong with a server, named by a variable, that does not speak the protocol of Redis."""
    if not isinstance(error, NotRedisError):  # it did when the connection began
        return RedisUnavailable(f"what came from {where} was broken on its way ({_short(error)}): try again")
    if any(begin in str(error) for begin in _TLS_ALERT):
        return ConfigurationError(f"{where} speaks TLS: use rediss://")
    return ConfigurationError(
        f"what answers at {where} is no Redis ({_short(error)}): set {variable} to the port where Redis listens"
    )


def unavailable(error: Exception, where: str, variable: str = CHAT_URL) -> ImError:
    """Return why no answer came from the server that a variable names."""
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return _over_tls(cause, where)
    if isinstance(error, RedisTimeoutError) and "connecting" in str(error) and where.startswith("rediss"):
        return RedisUnavailable(f"no answer from Redis at {where} over TLS: if it does not speak that, use redis://")
    if isinstance(error, HungUpError):
        hint = "" if where.startswith(("rediss", "unix")) else "; if it wants TLS, use rediss://"
        return RedisUnavailable(f"no answer from Redis at {where}: it hangs up without a word{hint}")
    return _system_error(causes, where, variable)


def _over_tls(error: ssl.SSLError, where: str) -> ImError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{where} is not trusted ({error.verify_message}): name the file of its authority, ?ssl_ca_certs=FILE"
        )
    if error.reason in _NOT_TLS:
        return ConfigurationError(f"{where} does not speak TLS: use redis:// or redis+cluster://")
    if error.reason in _CERTIFICATE_REFUSED:
        return ConfigurationError(
            f"{where} does not accept our certificate, or the want of one ({error.reason}): "
            "name one that it trusts, ?ssl_certfile=FILE&ssl_keyfile=FILE"
        )
    return RedisUnavailable(f"no answer from Redis at {where} over TLS ({error.reason or 'it ended too early'})")


def _system_error(causes: list[BaseException], where: str, variable: str) -> ImError:
    error = _first_system_error(causes)
    if "path too long" in str(error):  # it has no errno
        return ConfigurationError(f"the path of the socket in {where} is too long for this system: use a shorter one")
    if isinstance(error, socket.gaierror):
        return RedisUnavailable(f"the name of the host in {where} cannot be resolved ({error.strerror})")
    if error.errno in _NO_FILES:
        return RedisUnavailable(
            f"no connection to {where}: this process has as many files open as it may (raise ulimit -n)"
        )
    if error.errno in _NO_RIGHTS and where.startswith("unix"):
        return ConfigurationError(f"this user has no right to use the socket of {where}: {error.strerror}")
    reason = "" if error.errno in _NOT_LISTENING else f" ({error.strerror})"
    return RedisUnavailable(f"no answer from Redis at {where}{reason}: {_START[variable]}, or set {variable}")


def _first_system_error(causes: list[BaseException]) -> OSError:
    """Return the first error with a number, else the first one, else one that says nothing."""
    errors = [cause for cause in causes if isinstance(cause, OSError)]
    return next((error for error in errors if error.errno), errors[0] if errors else OSError())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: Exception) -> str:
    return str(error)[:100].strip() or type(error).__name__
