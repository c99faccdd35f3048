"""Redis URLs: their form and errors, and the driver's clients for them.

Every client is made here, with the same checks: those of chats, workers, statistics and benchmarks.
"""

import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from imcore.errors import ConfigurationError
from imcore.streams.cluster import Cluster
from imcore.streams.connections import TcpConnection, TlsConnection, UnixConnection
from imcore.streams.places import Place, places_of
from imcore.streams.redis_errors import address, driver_errors
from imcore.streams.sentinel import PrimaryConnection, Sentinels, TlsPrimaryConnection
from imcore.streams.url_options import CLUSTER, SENTINEL, TCP, TLS, TLS_CLUSTER, TLS_SENTINEL, UNIX, options_of

Client = redis.Redis | Cluster

_CONNECTIONS = {
    TCP: TcpConnection,
    CLUSTER: TcpConnection,
    TLS: TlsConnection,
    TLS_CLUSTER: TlsConnection,
    UNIX: UnixConnection,
    SENTINEL: PrimaryConnection,
    TLS_SENTINEL: TlsPrimaryConnection,
}

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds before the first probe, seconds between probes, and how many, by the names on several systems."""


def is_cluster(url: str) -> bool:
    return url.partition("://")[0] in {CLUSTER, TLS_CLUSTER}


def _has_sentinels(url: str) -> bool:
    return url.partition("://")[0] in {SENTINEL, TLS_SENTINEL}


def open_client(url: str, *, timeout_s: float | None = 10.0, block_ms: int = 1000) -> Client:
    """Return a driver's client for a Redis URL. Nothing is sent yet, except to a cluster, which is asked for its nodes.

    The client itself repeats nothing: only `RedisClient` knows which calls may be repeated. `timeout_s` is how long to
    wait for an answer, unless the URL says so; a timeout in the URL is checked against `block_ms` (IM_BLOCK_MS). Raise
    ConfigurationError for a wrong URL or option, RedisUnavailable if no node of a cluster answers.
    """
    return client_opener(url, timeout_s=timeout_s, block_ms=block_ms)()


def client_opener(url: str, *, timeout_s: float | None = 10.0, block_ms: int = 1000) -> Callable[[], Client]:
    """Check a URL as `open_client` does, without any I/O on the network; return what opens the client."""
    scheme, where = url.partition("://")[0], address(url)
    try:
        if scheme not in _CONNECTIONS or not url.isprintable():
            raise ValueError("not a Redis URL")
        options = {**_keepalive(scheme), "socket_timeout": timeout_s, **options_of(url, where, block_ms)}
        place, places = _place(url), _places(url)
    except ValueError:  # its text may be a part of a password
        raise ConfigurationError(f"{where} is {_wrong_with(scheme)}") from None
    _check_files(options, where)
    options["connection_class"] = _CONNECTIONS[scheme]
    retry = Retry(NoBackoff(), 0)
    if _has_sentinels(url):
        options["sentinels"] = _sentinels(url, places, where, options)
    if not is_cluster(url):
        return partial(redis.Redis.from_url, place, retry=retry, **options)
    options.setdefault("socket_connect_timeout", options["socket_timeout"])
    if options.pop("db", 0):
        raise ConfigurationError(f"{where} names a database number, and a cluster has one database only: leave it out")

    user, separator, _ = urlsplit(url).netloc.rpartition("@")

    def open_cluster() -> Cluster:
        with driver_errors(url):
            return Cluster(places, f"{user}{separator}", retry=retry, **options)

    return open_cluster


def _sentinels(url: str, places: list[Place], where: str, options: dict[str, Any]) -> Sentinels:
    """Return the Sentinels of a URL; take their options out of those of the primary."""
    own = {name: value for name, value in options.items() if name.startswith("ssl_") or name == "protocol"}
    own["connection_class"] = TlsConnection if url.startswith(TLS_SENTINEL) else TcpConnection
    for name in ("username", "password"):
        if value := options.pop(f"sentinel_{name}", None):
            own[name] = value
    return Sentinels(places, urlsplit(url).path.strip("/"), where, own)


def _keepalive(scheme: str) -> dict[str, Any]:
    if scheme == UNIX:
        return {}
    probes = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": probes}


def _place(url: str) -> str:
    """Return the URL without options, in the driver's form. Raise ValueError for an invalid host, port or path."""
    parts = urlsplit(url)
    if parts.scheme == UNIX:
        # A host is left over from a path that begins with two slashes only.
        if parts.hostname or not unquote(parts.path).strip("/"):
            raise ValueError("no path of a socket")
        return f"unix://{parts.netloc}{parts.path}"
    if _has_sentinels(url):
        if not re.fullmatch(r"/[\w.-]{1,100}", parts.path):
            raise ValueError("no name of a primary")
        user, separator, _ = parts.netloc.rpartition("@")
        return f"redis://{user}{separator}{places_of(parts.netloc)[0]}"
    return f"redis://{parts.netloc}"  # the connection's class decides about TLS


def _places(url: str) -> list[Place]:
    """Return the hosts of a URL. Raise ValueError for several of one server."""
    places = places_of(urlsplit(url).netloc)
    if len(places) > 1 and not is_cluster(url) and not _has_sentinels(url):
        raise ValueError("several hosts")
    return places


def _wrong_with(scheme: str) -> str:
    if scheme == UNIX:
        return "not valid: it looks like unix:///path/of/the/socket?db=0, with special characters in percent form"
    if scheme in {SENTINEL, TLS_SENTINEL}:
        return f"not valid: it looks like {scheme}://host:26379,other/name, with the name that the Sentinels watch"
    if scheme in _CONNECTIONS:
        return (
            "not valid: it looks like redis://host:6379/0, with user:password@ before the host where that is needed, "
            "and special characters in percent form (@ is %40)"
        )
    return "not a Redis URL: use redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"


def _check_files(options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigurationError for a TLS option whose file cannot be used."""
    if not any(name.startswith("ssl_") for name in options):
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    key, password = options.get("ssl_keyfile"), options.get("ssl_password") or ""
    loads: Mapping[str, Callable[[str], object]] = {
        "ssl_ca_certs": context.load_verify_locations,
        "ssl_ca_path": os.listdir,
        "ssl_certfile": lambda path: context.load_cert_chain(path, key, password),
    }
    for option in loads.keys() & options.keys():
        try:
            loads[option](options[option])
        except OSError as error:  # of TLS, too
            reason = getattr(error, "reason", None) or error.strerror
            raise ConfigurationError(
                f"the file {options[option]} (option {option} of {where}) cannot be used: {reason}"
            ) from error
