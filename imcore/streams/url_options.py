"""The options that a Redis URL may have: their types, their limits, and their contradictions.

All others are refused. The driver would take any argument of its classes from a URL: some of them change the answers
that the program reads, some repeat commands that must run once, and some were never tested.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from imcore.errors import ConfigurationError
from imcore.settings import BLOCK_SLACK_MS, LONGEST_BLOCK_MS

FEWEST_CONNECTIONS = 3
"""rq's worker hears commands on one connection, and needs two more for a job whose dependents it watches; a gateway
needs one for acks in flight, and one for queries; everything else needs one."""

_LONGEST_S = 86_400

TCP, TLS, UNIX, CLUSTER, TLS_CLUSTER = "redis", "rediss", "unix", "redis+cluster", "rediss+cluster"
SENTINEL, TLS_SENTINEL = "redis+sentinel", "rediss+sentinel"
_SENTINELS = {SENTINEL, TLS_SENTINEL}
_SINGLE = {TCP, TLS, UNIX} | _SENTINELS
_NETWORK = {TCP, TLS, CLUSTER, TLS_CLUSTER} | _SENTINELS
_ALL = _SINGLE | _NETWORK
_ENCRYPTED = {TLS, TLS_CLUSTER, TLS_SENTINEL}

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True, slots=True)
class _Option:
    """One option: the schemes that allow it, how its text is read, and what it must be, in words.

    `read` raises ValueError for an invalid text.
    """

    schemes: set[str]
    read: Callable[[str], Any]
    must_be: str
    is_secret: bool = False


def _seconds(text: str) -> float:
    seconds = float(text)
    if not text.isascii() or not math.isfinite(seconds) or not 0 < seconds <= _LONGEST_S:
        raise ValueError
    return seconds


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > 10 or not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)

    return read


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read


def _yes_or_no(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError
    return text.lower() in _TRUE


_database = _whole(0, 2**31 - 1)
_A_TIME = f"seconds, more than 0 and at most {_LONGEST_S}"
_A_COUNT = f"a whole number from {FEWEST_CONNECTIONS} (what a worker needs)"

OPTIONS: Mapping[str, _Option] = {
    "db": _Option(_ALL, _database, "the number of a database"),
    "username": _Option(_ALL, str, "the name of a user"),
    "password": _Option(_ALL, str, "a password", is_secret=True),
    "protocol": _Option(_ALL, _whole(2, 3), "2 or 3"),
    "client_name": _Option(_ALL, _matching("[!-~]{1,128}"), "ASCII without spaces, at most 128 letters"),
    "max_connections": _Option(_ALL, _whole(FEWEST_CONNECTIONS, 100_000), _A_COUNT),
    "socket_timeout": _Option(_ALL, _seconds, _A_TIME),
    "socket_connect_timeout": _Option(_NETWORK, _seconds, _A_TIME),
    "health_check_interval": _Option(_SINGLE, _whole(0, _LONGEST_S), f"whole seconds from 0 (never) to {_LONGEST_S}"),
    "sentinel_username": _Option(_SENTINELS, str, "the name of a user of the Sentinels"),
    "sentinel_password": _Option(_SENTINELS, str, "a password of the Sentinels", is_secret=True),
    "ssl_ca_certs": _Option(_ENCRYPTED, str, "the path of a file"),
    "ssl_ca_path": _Option(_ENCRYPTED, str, "the path of a folder"),
    "ssl_certfile": _Option(_ENCRYPTED, str, "the path of a file"),
    "ssl_keyfile": _Option(_ENCRYPTED, str, "the path of a file"),
    "ssl_password": _Option(_ENCRYPTED, str, "a password", is_secret=True),
    "ssl_cert_reqs": _Option(
        _ENCRYPTED, _matching("required|optional|none"), "one of 'required', 'optional' and 'none'"
    ),
    "ssl_check_hostname": _Option(_ENCRYPTED, _yes_or_no, "'true' or 'false'"),
}


def options_of(url: str, where: str, block_ms: int) -> dict[str, Any]:
    """Return the options of a URL by name, among them the database number that its path may have.

    `where` is the URL as it may be shown, `block_ms` how long a worker waits for entries (IM_BLOCK_MS). Raise
    ConfigurationError for an invalid option, ValueError for a text that is no list of options at all.
    """
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {}
    for name, text in _pairs(url):
        option = _allowed(name, scheme, where)
        if name in options:
            raise ConfigurationError(f"{where} has the option {name!r} twice")
        try:
            options[name] = option.read(text)
        except ValueError as error:
            value = "" if option.is_secret else f"={reprlib.repr(text)}"
            raise ConfigurationError(
                f"{where} has a wrong option: {name}{value} is not valid, it must be {option.must_be}"
            ) from error
    _check_place(url, options, where)
    _check_together(options, where)
    _check_timeout(options.get("socket_timeout"), where, block_ms)
    return options


def _pairs(url: str) -> Sequence[tuple[str, str]]:
    """Return the names and values of a URL's query. Raise ValueError for a text that may be part of a password."""
    parts = urlsplit(url)
    path, query = ("", "") if parts.scheme == UNIX else (parts.path, parts.query)
    if parts.fragment or "@" in path:
        raise ValueError("the text behind the host is no list of options")
    pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    for name, value in pairs:
        if not re.fullmatch("[A-Za-z_]{1,40}", name) or not value.isprintable():
            raise ValueError("the text behind the ? is no list of options")
    if "@" in query and not dict(pairs).keys() <= OPTIONS.keys():
        raise ValueError("an @ behind the ? may be that of a password")
    _refuse_empty(pairs)
    return pairs


def _refuse_empty(pairs: Sequence[tuple[str, str]]) -> None:
    for name, value in pairs:
        if name in OPTIONS and not value:
            raise ConfigurationError(f"a Redis URL has the option {name!r} without a value: give one, or leave it out")


def _allowed(name: str, scheme: str, where: str) -> _Option:
    option = OPTIONS.get(name)
    if option and scheme in option.schemes:
        return option
    if name.startswith("ssl_") and scheme not in _ENCRYPTED:
        hint = "TLS is for rediss://"
    else:
        hint = f"it may have {', '.join(name for name, option in OPTIONS.items() if scheme in option.schemes)}"
    raise ConfigurationError(f"{where} does not take the option {name!r}: {hint}")


def _check_place(url: str, options: dict[str, Any], where: str) -> None:
    """Add the database number of the path. User, password and number may be given only once."""
    parts = urlsplit(url)
    for name, value in (("username", parts.username), ("password", parts.password)):
        if value and name in options:
            raise ConfigurationError(f"{where} has a {name} before the host and as an option: leave one out")
    path = "" if parts.scheme in {UNIX, *_SENTINELS} else parts.path.strip("/")
    if path and options.setdefault("db", number := _database(path)) != number:
        raise ConfigurationError(f"{where} names the database {number}, and db={options['db']}: leave one out")


def _check_together(options: Mapping[str, Any], where: str) -> None:
    for name in ("ssl_keyfile", "ssl_password"):
        if name in options and "ssl_certfile" not in options:
            raise ConfigurationError(f"{where} has the option {name!r} without 'ssl_certfile': give both, or none")
    if options.get("ssl_cert_reqs") == "none" and options.get("ssl_check_hostname"):
        raise ConfigurationError(f"{where} has ssl_cert_reqs=none, which checks no host name: leave one option out")


def _check_timeout(socket_timeout: float | None, where: str, block_ms: int) -> None:
    waits_ms = min(block_ms, LONGEST_BLOCK_MS)
    shortest = (waits_ms + BLOCK_SLACK_MS) / 1000
    if socket_timeout is not None and socket_timeout < shortest:
        raise ConfigurationError(
            f"{where} has a wrong option: socket_timeout={socket_timeout:g} is too short, since workers wait up to "
            f"{waits_ms} ms for an answer (IM_BLOCK_MS): it must be at least {shortest:g}"
        )
