"""The options that a Redis URL may have: their types, their limits, and what they must not contradict.

Everything else is refused. The driver would take any argument of its classes from a URL: some of them change the
answers that the program reads, some repeat by themselves what must happen once, and some were never checked.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from imcore.errors import ConfigurationError

LONGEST_BLOCK_MS = 5000
"""For so long a worker waits for journal entries at most, whatever IM_BLOCK_MS says."""

FEWEST_CONNECTIONS = 3
"""rq's worker hears commands on one connection, and needs two more for a job whose dependents it watches; a gateway
needs one for acks that are under way, and one for questions; everything else needs one."""

_SLACK_MS = 1000
"""A server that answers a wait at its end may be so late: it was busy, or the machine was."""

_LONGEST_S = 86_400

TCP, TLS, UNIX, CLUSTER, TLS_CLUSTER = "redis", "rediss", "unix", "redis+cluster", "rediss+cluster"
_SINGLE = {TCP, TLS, UNIX}
_CLUSTERS = {CLUSTER, TLS_CLUSTER}
_ALL = _SINGLE | _CLUSTERS
_NETWORK = _ALL - {UNIX}
_ENCRYPTED = {TLS, TLS_CLUSTER}

_NAME = re.compile(r"[A-Za-z_]{1,40}")
_CLIENT_NAME = re.compile(r"[!-~]{1,128}")
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True, slots=True)
class _Option:
    """One option: the schemes of the URLs that take it, how its text becomes a value, and what it must be, in words.

    `read` raises ValueError for a text that cannot be one.
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


def _yes_or_no(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError
    return text.lower() in _TRUE


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError
        return text

    return read


_A_TIME = f"seconds, more than 0 and at most {_LONGEST_S}"

OPTIONS: Mapping[str, _Option] = {
    "db": _Option(_ALL, _whole(0, 2**31 - 1), "the number of a database"),
    "username": _Option(_ALL, str, "the name of a user"),
    "password": _Option(_ALL, str, "a password", is_secret=True),
    "protocol": _Option(_ALL, _whole(2, 3), "2 or 3"),
    "client_name": _Option(_ALL, _matching(_CLIENT_NAME), "ASCII without spaces, at most 128 letters"),
    "max_connections": _Option(
        _ALL, _whole(FEWEST_CONNECTIONS, 100_000), f"a whole number from {FEWEST_CONNECTIONS} (what a worker needs)"
    ),
    "socket_timeout": _Option(_ALL, _seconds, _A_TIME),
    "socket_connect_timeout": _Option(_NETWORK, _seconds, _A_TIME),
    "health_check_interval": _Option(_SINGLE, _whole(0, _LONGEST_S), f"whole seconds from 0 (never) to {_LONGEST_S}"),
    "ssl_ca_certs": _Option(_ENCRYPTED, str, "the path of a file"),
    "ssl_ca_path": _Option(_ENCRYPTED, str, "the path of a folder"),
    "ssl_certfile": _Option(_ENCRYPTED, str, "the path of a file"),
    "ssl_keyfile": _Option(_ENCRYPTED, str, "the path of a file"),
    "ssl_password": _Option(_ENCRYPTED, str, "a password", is_secret=True),
    "ssl_cert_reqs": _Option(
        _ENCRYPTED, _one_of("required", "optional", "none"), "one of 'required', 'optional' and 'none'"
    ),
    "ssl_check_hostname": _Option(_ENCRYPTED, _yes_or_no, "'true' or 'false'"),
}

_NEEDS = {"ssl_keyfile": "ssl_certfile", "ssl_password": "ssl_certfile"}


def options_of(url: str, where: str, block_ms: int) -> dict[str, Any]:
    """Return the options of a URL, by name, and what its place says beside them: the database number.

    `where` is the URL as it may be shown, `block_ms` for how long a worker waits for entries (IM_BLOCK_MS). Raise
    ConfigurationError for an option that cannot be, ValueError for a text that is no list of options at all.
    """
    scheme = urlsplit(url).scheme
    found: dict[str, Any] = {}
    for name, text in _pairs(url):
        option = _known(name, scheme, where)
        if name in found:
            raise ConfigurationError(f"{where} has the option {name!r} twice")
        try:
            found[name] = option.read(text)
        except ValueError as error:
            value = "" if option.is_secret else f"={reprlib.repr(text)}"
            raise ConfigurationError(
                f"{where} has a wrong option: {name}{value} is not valid, it must be {option.must_be}"
            ) from error
    _check_place(url, found, where)
    _check_together(found, where)
    _check_timeout(found.get("socket_timeout"), where, block_ms)
    return found


def _pairs(url: str) -> Sequence[tuple[str, str]]:
    """Return the names and values of a URL's query. Raise ValueError for what may be a part of a password."""
    parts = urlsplit(url)
    if parts.fragment or (parts.scheme != UNIX and "@" in parts.path):
        raise ValueError("what stands behind the place is no list of options")
    pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    if not all(_NAME.fullmatch(name) for name, _ in pairs) or not all(value.isprintable() for _, value in pairs):
        raise ValueError("what stands behind the ? is no list of options")
    if parts.scheme != UNIX and "@" in parts.query and not all(name in OPTIONS for name, _ in pairs):
        raise ValueError("an @ behind the ? may be that of a password")
    if empty := next((name for name, value in pairs if name in OPTIONS and not value), None):
        raise ConfigurationError(f"a Redis URL has the option {empty!r} without a value: give one, or leave it out")
    return pairs


def _known(name: str, scheme: str, where: str) -> _Option:
    option = OPTIONS.get(name)
    if option and scheme in option.schemes:
        return option
    if name.startswith("ssl_") and scheme not in _ENCRYPTED:
        hint = "TLS is for rediss://"
    else:
        hint = f"it may have {', '.join(name for name, option in OPTIONS.items() if scheme in option.schemes)}"
    raise ConfigurationError(f"{where} does not take the option {name!r}: {hint}")


def _check_place(url: str, found: dict[str, Any], where: str) -> None:
    """Join what the place says with what the options say: user, password and database number are said once."""
    parts = urlsplit(url)
    for name, said in (("username", parts.username), ("password", parts.password)):
        if said and name in found:
            raise ConfigurationError(f"{where} has a {name} before the host and as an option: leave one out")
    path = "" if parts.scheme == UNIX else parts.path.strip("/")
    if not path:
        return
    number = _whole(0, 2**31 - 1)(path)
    if found.setdefault("db", number) != number:
        raise ConfigurationError(f"{where} names the database {number}, and db={found['db']}: leave one out")


def _check_together(found: Mapping[str, Any], where: str) -> None:
    for name, needed in _NEEDS.items():
        if name in found and needed not in found:
            raise ConfigurationError(f"{where} has the option {name!r} without {needed!r}: give both, or none")
    if found.get("ssl_cert_reqs") == "none" and found.get("ssl_check_hostname"):
        raise ConfigurationError(f"{where} has ssl_cert_reqs=none, which checks no host name: leave one option out")


def _check_timeout(socket_timeout: float | None, where: str, block_ms: int) -> None:
    waits_ms = min(block_ms, LONGEST_BLOCK_MS)
    shortest = (waits_ms + _SLACK_MS) / 1000
    if socket_timeout is not None and socket_timeout < shortest:
        raise ConfigurationError(
            f"{where} has a wrong option: socket_timeout={socket_timeout:g} is too short, since workers wait up to "
            f"{waits_ms} ms for an answer (IM_BLOCK_MS): it must be at least {shortest:g}"
        )
