"""The URL of a PostgreSQL database: servers, user, database, and options. An unknown option is refused.

Passed on, it would be a surprise later: a traceback of the driver, or a setting that breaks a promise. Contradictions
are refused too: people would read one value, and libpq would use the other.
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
"""`host:port` as one word. An IPv6 address has more colons; the path of a socket's folder begins with `/` or `@`."""

_BEFORE_OPTIONS = {
    "host": "the host",
    "port": "the port",
    "user": "the user",
    "password": "a password",
    "dbname": "a name",
}
"""The parts of a URL before its options, by the option with the same meaning, in words."""


def parse(url: str) -> dict[str, str]:
    """Return the arguments of libpq for a PostgreSQL URL. Raise ConfigurationError, which shows no password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # A second @ is part of a password, which would pass for the host's name and be shown.
    if parsed is None or "@" in f"{parsed.host}{parsed.database}":
        raise ConfigurationError(_SHAPE)
    if parsed.port is not None:
        _check("port", str(parsed.port))
    _check_options(_query_of(url, parsed))
    before, options = _before_options(parsed), _options(parsed)
    _check_contradictions(before, options)
    arguments = {name: value for name, value in {**before, **options}.items() if value}
    _check_numbers(arguments)
    return arguments


def shown(arguments: dict[str, str]) -> str:
    """Return the URL as people may see it, made of harmless parts only: any other option may be a password."""
    hosts = arguments.get("host", "").split(",")
    ports = arguments.get("port", "").split(",")
    servers = ",".join(f"{_bracketed(host)}{port and ':'}{port}" for host, port in zip(hosts, cycle(ports)))
    user = f"{arguments['user']}@" if "user" in arguments else ""
    elsewhere = "&".join(f"{name}={arguments[name]}" for name in ("hostaddr", "service") if name in arguments)
    return f"postgresql://{user}{servers}/{arguments.get('dbname', '')}{elsewhere and '?'}{elsewhere}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _before_options(url: URL) -> dict[str, str]:
    return {name: str(value) for name, value in url.translate_connect_args(username="user", database="dbname").items()}


def _options(url: URL) -> dict[str, str]:
    """Return the options. Repeated ones become a list with commas; ports behind hosts become the option port."""
    options = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    servers = options.get("host", "").split(",")
    pairs = [_HOST_AND_PORT.fullmatch(server) for server in servers]
    if not any(pairs):
        return options
    if "port" in options:
        raise ConfigurationError("IM_DATABASE_URL has ports in the option host, and the option port: leave it out")
    hosts, ports = zip(*(pair.groups() if pair else ("", "") for pair in pairs), strict=True)
    if wanted := _first_problem(map(PORT, ports)):
        raise ConfigurationError(
            "IM_DATABASE_URL has the option host with a port that it cannot have: give "
            f"{wanted} behind each host, or behind none"
        )
    return {**options, "host": ",".join(host.strip("[]") for host in hosts), "port": ",".join(ports)}


def _query_of(url: str, parsed: URL) -> str:
    """Return the options as they were written, with those without a value. A password may contain `?`."""
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
        # The name is shown only if it looks like one: it may be part of a password.
        shown_name = name if re.fullmatch(r"[A-Za-z_]{1,40}", name) else "of another form"
        raise ConfigurationError(
            f"IM_DATABASE_URL has the option {shown_name}, which imcore does not know: leave it out"
            + "".join(f" (or is it {known}?)" for known in get_close_matches(name, OPTIONS, n=1))
        )
    if wanted := _first_problem(map(option.problem, value.split(",") if option.is_list else [value])):
        raise ConfigurationError(
            f"IM_DATABASE_URL has the option {name} with a value that it cannot have: give {wanted}"
        )


def _first_problem(problems: Iterator[str | None]) -> str | None:
    return next(filter(None, problems), None)


def _check_contradictions(before: dict[str, str], options: dict[str, str]) -> None:
    for name, value in before.items():
        if options.get(name, value) != value:
            raise ConfigurationError(
                f"IM_DATABASE_URL has {_BEFORE_OPTIONS[name]} before its options, and another one as the option "
                f"{name}: leave one of them out"
            )


def _check_numbers(arguments: dict[str, str]) -> None:
    """Raise ConfigurationError for lists of hosts, addresses and ports of different lengths."""
    lists = ("host", "hostaddr", "port")
    hosts, addresses, ports = (arguments[name].count(",") + 1 if name in arguments else 1 for name in lists)
    if {"host", "hostaddr"} <= arguments.keys() and hosts != addresses:
        raise ConfigurationError(f"IM_DATABASE_URL has {hosts} hosts and {addresses} hostaddr: give as many of each")
    if ports not in {1, max(hosts, addresses)}:
        raise ConfigurationError(
            f"IM_DATABASE_URL has {ports} ports for {max(hosts, addresses)} hosts: give one for each, or one for all"
        )
