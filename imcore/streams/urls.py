"""Redis URLs: what they say, what is wrong with them, and the clients for them.

Every client is made here, with the same checks: those of chats, workers, statistics and benchmarks.
"""

import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from imcore.errors import ConfigurationError
from imcore.streams.connections import TcpConnection, TlsConnection, UnixConnection
from imcore.streams.redis_errors import address, driver_errors
from imcore.streams.url_options import CLUSTER, TCP, TLS, TLS_CLUSTER, UNIX, options_of

_CONNECTIONS = {
    TCP: TcpConnection,
    CLUSTER: TcpConnection,
    TLS: TlsConnection,
    TLS_CLUSTER: TlsConnection,
    UNIX: UnixConnection,
}

_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After so many seconds of silence a peer is probed, so often, so many times; by the names that systems have for it."""


def is_cluster(url: str) -> bool:
    """Whether the URL names a cluster."""
    return url.partition("://")[0] in {CLUSTER, TLS_CLUSTER}


def client_of(url: str, timeout_s: float | None, block_ms: int) -> redis.Redis | RedisCluster:
    """Return a client, which repeats nothing. It sends nothing yet; but a cluster is asked for its nodes.

    `timeout_s` is for a URL that does not say how long to wait for an answer, `block_ms` is IM_BLOCK_MS. Raise
    ConfigurationError for a URL that is none, or has an option that cannot be; for a cluster what the driver raises.
    """
    scheme, where = url.partition("://")[0], address(url)
    try:
        options = {**_patience(scheme, timeout_s), **_checked_options(url, where, block_ms)}
        place = _place(url)
    except ValueError:  # its text may be a part of a password
        raise ConfigurationError(f"{where} is {_wrong_with(scheme)}") from None
    _check_files(options, where)
    options["connection_class"] = _CONNECTIONS[scheme]
    retry = Retry(NoBackoff(), 0)
    if not is_cluster(url):
        return redis.Redis.from_url(place, retry=retry, **options)
    if options.pop("db", 0):
        raise ConfigurationError(f"{where} names a database number, and a cluster has one database only: leave it out")
    with driver_errors(url):
        return RedisCluster.from_url(place, retry=retry, **options)


def _patience(scheme: str, timeout_s: float | None) -> dict[str, Any]:
    """Return what the driver is to do about a peer that does not answer, or is gone without a word."""
    if scheme == UNIX:
        return {"socket_timeout": timeout_s}
    probes = {getattr(socket, name): value for name, value in _PROBES.items() if hasattr(socket, name)}
    return {"socket_timeout": timeout_s, "socket_keepalive": True, "socket_keepalive_options": probes}


def _checked_options(url: str, where: str, block_ms: int) -> dict[str, Any]:
    if url.partition("://")[0] not in _CONNECTIONS or not url.isprintable():
        raise ValueError("no URL of ours")
    return options_of(url, where, block_ms)


def _place(url: str) -> str:
    """Return the URL without options, as the driver knows it. Raise ValueError for a place that is none."""
    parts = urlsplit(url)
    if parts.scheme == UNIX:
        # A host is what is left of a path that begins with two slashes only.
        if parts.hostname or not unquote(parts.path).strip("/"):
            raise ValueError("no path of a socket")
        return f"unix://{parts.netloc}{parts.path}"
    if parts.port == 0:  # the driver would take its default
        raise ValueError("no port")
    return f"redis://{parts.netloc}"  # TLS is a matter of the connection's class


def _wrong_with(scheme: str) -> str:
    if scheme == UNIX:
        return "not valid: it looks like unix:///path/of/the/socket?db=0, with special characters in percent form"
    if scheme in _CONNECTIONS:
        return (
            "not valid: it looks like redis://host:6379/0, with user:password@ before the host where that is needed, "
            "and special characters in percent form (@ is %40)"
        )
    return "not a Redis URL: use redis://, rediss://, unix:// or redis+cluster://"


def _check_files(options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigurationError for an option of TLS that names a file which cannot be used."""
    if not any(name.startswith("ssl_") for name in options):
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    loads: Mapping[str, Callable[[str], object]] = {
        "ssl_ca_certs": context.load_verify_locations,
        "ssl_ca_path": os.listdir,
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
