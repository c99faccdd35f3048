"""Redis URLs: what they say, and what is wrong with them."""

import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from imcore.errors import ConfigurationError
from imcore.socket_folder import check_socket
from imcore.streams.redis_errors import address

_CLUSTER = "+cluster"

_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After so many seconds of silence a peer is probed, so often, so many times; by the names that systems have for it."""


def is_cluster(url: str) -> bool:
    """Whether the URL names a cluster."""
    return url.partition("://")[0] in {f"redis{_CLUSTER}", f"rediss{_CLUSTER}"}


def plain(url: str) -> str:
    """Return the URL as the driver knows it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme.removesuffix(_CLUSTER)}{separator}{rest}"


def options(url: str, timeout_s: float | None) -> dict[str, Any]:
    """Return what the driver is to do about a peer that does not answer, or is gone without a word."""
    if url.partition("://")[0] == "unix":
        return {"socket_timeout": timeout_s}
    probes = {getattr(socket, name): value for name, value in _PROBES.items() if hasattr(socket, name)}
    return {"socket_timeout": timeout_s, "socket_keepalive": True, "socket_keepalive_options": probes}


def client_of(url: str, timeout_s: float | None) -> redis.Redis:
    """Return a client, of a cluster for the node that the URL names, which sends nothing yet and repeats nothing.

    Raise ConfigurationError for a URL that is none, or has an option that is none.
    """
    scheme = url.partition("://")[0]
    try:
        _check_number(url)
        client = redis.Redis.from_url(plain(url), retry=Retry(NoBackoff(), 0), **options(url, timeout_s))
        if scheme == "unix":
            client.connection_pool.connection_class = _SocketConnection
        _check_options(client, address(url))
    except ValueError as error:
        raise ConfigurationError(f"{address(url)} is {_wrong_with(scheme)}") from error
    return client


def _check_number(url: str) -> None:
    """Raise ValueError for a path that is no database number: the driver would pass over it."""
    parts = urlsplit(url)
    number = parts.path.strip("/")
    if parts.scheme != "unix" and number and not (number.isascii() and number.isdecimal()):
        raise ValueError(f"{number!r} is no number of a database")


class _SocketConnection(redis.UnixDomainSocketConnection):
    def _connect(self) -> Any:
        check_socket(self.path)
        return super()._connect()  # type: ignore[no-untyped-call]


def _wrong_with(scheme: str) -> str:
    if scheme.removesuffix(_CLUSTER) in {"redis", "rediss", "unix"}:
        return (
            "not valid: it looks like redis://host:6379/0, with user:password@ before the host where that is needed, "
            "and special characters in percent form (@ is %40)"
        )
    return "not a Redis URL: use redis://, rediss://, unix:// or redis+cluster://"


def _check_options(client: redis.Redis, where: str) -> None:
    """Raise ConfigurationError for an option of the URL that is unknown, wrong, or names a file that cannot be read."""
    pool = client.connection_pool
    try:
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing yet
    except TypeError as error:
        option = str(error).rpartition(" ")[2]
        hint = ": TLS is for rediss://" if option.startswith("'ssl_") else ""
        raise ConfigurationError(f"{where} does not take the option {option}{hint}") from error
    except RedisError as error:
        raise ConfigurationError(f"{where} has a wrong option: {error}") from error
    if pool.connection_kwargs.get("decode_responses"):
        raise ConfigurationError(f"{where} does not take the option 'decode_responses'")
    _check_files(pool.connection_kwargs, where)


def _check_files(options: Mapping[str, Any], where: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    loads = {
        "ssl_ca_certs": context.load_verify_locations,
        "ssl_certfile": lambda path: context.load_cert_chain(
            path, options.get("ssl_keyfile"), options.get("ssl_password") or ""
        ),
    }
    for option in loads.keys() & options.keys():
        try:
            loads[option](options[option])
        except OSError as error:  # of TLS, too
            reason = getattr(error, "reason", None) or error.strerror
            raise ConfigurationError(
                f"the file {options[option]} (option {option} of {where}) cannot be used: {reason}"
            ) from error
