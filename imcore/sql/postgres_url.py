"""The URL of a PostgreSQL database: where it leads, as whom, and with which options. Anything unknown is refused.

An option that is passed on unseen is a surprise later: a traceback of the driver, or a setting that breaks a promise.
A thing that is said twice, and not the same, would be another surprise: people see one, and libpq takes the other.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import cycle
from urllib.parse import parse_qsl

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from imcore.errors import ConfigurationError
from imcore.sql.postgres_options import OPTIONS, PORT

_SHAPE = (
    "IM_DATABASE_URL is not valid: it looks like postgresql://host:5432/name, with user:password@ before the host "
    "where that is needed, and special characters in percent form (@ is %40)"
)

_HOST_AND_PORT = re.compile(r"(\[[^\[\]]+\]|[^:\[\]/@][^:]*):([^:]*)")
"""`host:port` as one word. An IPv6 address has more colons; a socket's folder begins with `/`, or with `@`."""

_LISTS = ("host", "hostaddr", "port")

_IN_THE_URL = {"host": "the host", "port": "the port", "user": "the user", "password": "a password", "dbname": "a name"}
"""What the URL itself may say, by the option that says the same, in words."""


def parse(url: str) -> URL:
    """Return a PostgreSQL URL. Raise ConfigurationError, which shows no password, for one that cannot be used."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # An @ after the first one: part of a password, which must never be shown, would pass for the host's name.
    if parsed is None or "@" in f"{parsed.host}{parsed.database}":
        raise ConfigurationError(_SHAPE)
    if parsed.port is not None:
        _check("port", str(parsed.port))
    _check_options(_query_of(url, parsed))
    _check_twice(parsed)
    _check_servers(parsed)
    return parsed


def arguments(url: URL) -> dict[str, str]:
    """Return what libpq takes for a URL that was parsed here."""
    return {name: value for name, value in {**_in_the_url(url), **_in_the_query(url)}.items() if value}


def shown(url: URL) -> str:
    """Return the URL as people may see it: made of what is known to be harmless. An option may be a password."""
    given = arguments(url)
    hosts = given.get("host", "").split(",")
    ports = given.get("port", "").split(",")
    servers = ",".join(f"{_bracketed(host)}{port and ':'}{port}" for host, port in zip(hosts, cycle(ports)))
    user = f"{given['user']}@" if "user" in given else ""
    elsewhere = [f"{name}={given[name]}" for name in ("hostaddr", "service") if name in given]
    return f"postgresql://{user}{servers}/{given.get('dbname', '')}" + "?" * bool(elsewhere) + "&".join(elsewhere)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _in_the_url(url: URL) -> dict[str, str | None]:
    """Return what the URL says before its options, by the names of the options that say the same."""
    port = None if url.port is None else str(url.port)
    return {
        "user": url.username,
        "password": None if url.password is None else str(url.password),
        "host": url.host,
        "port": port,
        "dbname": url.database,
    }


def _in_the_query(url: URL) -> dict[str, str]:
    """Return the options: lists with commas, and a port that stands behind its host as a port."""
    given = {name: _option(url, name) for name in url.query}
    servers = list(_servers(given.get("host", "")))
    if any(port is not None for _, port in servers):
        given["host"] = ",".join(host for host, _ in servers)
        given["port"] = ",".join(port or "" for _, port in servers)
    return given


def _servers(hosts: str) -> Iterator[tuple[str, str | None]]:
    """Yield each host of a list, and its port where one stands behind it."""
    for host in hosts.split(","):
        pair = _HOST_AND_PORT.fullmatch(host)
        yield (pair[1].strip("[]"), pair[2]) if pair else (host, None)


def _query_of(url: str, parsed: URL) -> str:
    """Return the options as they were written, those without a value too. A password may have a `?` in it."""
    rest = url.partition("://")[2]
    if parsed.username is not None:
        rest = rest.partition("@")[2]
    return rest.partition("?")[2]


def _check_options(query: str) -> None:
    seen: set[str] = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in seen and not OPTIONS[name].is_list:
            raise ConfigurationError(f"IM_DATABASE_URL has the option {name} more than once: leave one of them out")
        seen.add(name)
        _check(name, value)


def _check(name: str, value: str) -> None:
    option = OPTIONS.get(name)
    if option is None:
        close = get_close_matches(name, OPTIONS, n=1)
        raise ConfigurationError(
            f"IM_DATABASE_URL has the option {_harmless(name)}, which imcore does not know: leave it out"
            + "".join(f" (or is it {each}?)" for each in close)
        )
    values = value.split(",") if option.is_list else [value]
    if wanted := next(filter(None, map(option.problem, values)), None):
        raise ConfigurationError(
            f"IM_DATABASE_URL has the option {name} with a value that it cannot have: give {wanted}"
        )


def _check_twice(url: URL) -> None:
    """Raise ConfigurationError where the URL itself says one thing, and an option another."""
    in_the_query = _in_the_query(url)
    for name, said in _in_the_url(url).items():
        if said and in_the_query.get(name, said) != said:
            raise ConfigurationError(
                f"IM_DATABASE_URL has {_IN_THE_URL[name]} before its options, and another one as the option {name}: "
                "leave one of them out"
            )


def _check_servers(url: URL) -> None:
    """Raise ConfigurationError for ports, hosts and their addresses that do not belong together."""
    in_the_host = [port for _, port in _servers(_option(url, "host"))]
    if any(port is not None for port in in_the_host):
        if "port" in url.query:
            raise ConfigurationError("IM_DATABASE_URL has ports in the option host, and the option port: leave it out")
        if wanted := next(filter(None, (PORT(port or "") for port in in_the_host)), None):
            raise ConfigurationError(
                "IM_DATABASE_URL has the option host with a port that it cannot have: give "
                f"{wanted} behind each host, or behind none"
            )
    given = arguments(url)
    hosts, addresses, ports = (given[name].count(",") + 1 if name in given else 1 for name in _LISTS)
    if {"host", "hostaddr"} <= given.keys() and hosts != addresses:
        raise ConfigurationError(f"IM_DATABASE_URL has {hosts} hosts and {addresses} hostaddr: give as many of each")
    if ports not in {1, max(hosts, addresses)}:
        raise ConfigurationError(
            f"IM_DATABASE_URL has {ports} ports for {max(hosts, addresses)} hosts: give one for each, or one for all"
        )


def _option(url: URL, name: str) -> str:
    """Return an option, as a list with commas where it is repeated."""
    value = url.query.get(name, "")
    return value if isinstance(value, str) else ",".join(value)


def _harmless(name: str) -> str:
    """Return an option's name as it may be shown: what looks like no name may be part of a password."""
    return name if re.fullmatch(r"[A-Za-z_]{1,40}", name) else "of another form"
