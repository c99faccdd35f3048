"""The URL of a PostgreSQL database: which options it may have, and of what kind each is. Anything else is refused.

An option that is passed on unseen is a surprise later: a traceback of the driver, or a setting that breaks a promise.
"""

import re
from collections.abc import Callable
from difflib import get_close_matches
from urllib.parse import parse_qsl

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from imcore.errors import ConfigurationError

_SHAPE = (
    "IM_DATABASE_URL is not valid: it looks like postgresql://host:5432/name, with user:password@ before the host "
    "where that is needed, and special characters in percent form (@ is %40)"
)

Problem = Callable[[str], str | None]
"""Returns what a value has to be, if it is not."""


def _one_of(*words: str) -> Problem:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def _number(lowest: int, highest: int) -> Problem:
    def problem(value: str) -> str | None:
        is_number = value.isascii() and value.isdigit() and len(value) <= 10 and lowest <= int(value) <= highest
        return None if is_number else f"a whole number from {lowest} to {highest}"

    return problem


def _text(value: str) -> str | None:
    return None if value and "\x00" not in value else "a text"


_PORT = _number(1, 65_535)
_SECONDS = _number(1, 86_400)
_SWITCH = _one_of("0", "1")
_TLS = _one_of("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")

OPTIONS: dict[str, Problem] = {
    # Where, and as whom.
    **dict.fromkeys(("host", "hostaddr", "user", "password", "passfile", "dbname", "service"), _text),
    "port": _PORT,
    "target_session_attrs": _one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": _one_of("disable", "random"),
    # TLS, and who the server must be.
    "sslmode": _one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": _one_of("postgres", "direct"),
    "sslsni": _SWITCH,
    "sslcertmode": _one_of("disable", "allow", "require"),
    **dict.fromkeys(("sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslcrldir"), _text),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version"), _TLS),
    **dict.fromkeys(("requirepeer", "require_auth", "krbsrvname"), _text),
    "channel_binding": _one_of("disable", "prefer", "require"),
    "gssencmode": _one_of("disable", "prefer", "require"),
    # After how long a server that is gone without a word is an error.
    "connect_timeout": _SECONDS,
    "keepalives": _SWITCH,
    **dict.fromkeys(("keepalives_idle", "keepalives_interval"), _SECONDS),
    "keepalives_count": _number(1, 100),
    "tcp_user_timeout": _number(0, 86_400_000),
    # What the server is told.
    **dict.fromkeys(("application_name", "options"), _text),
}
"""The options of libpq that may be set, and what each has to be. imcore sets the encoding, and prepares nothing."""

_SEVERAL = {"host", "hostaddr", "port"}
"""Options that may name several servers, of which the first one that answers is taken: with commas, or repeated."""

_HOST_AND_PORT = re.compile(r"([A-Za-z0-9.-]+):([0-9]+)")


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
    return parsed


def arguments(url: URL) -> dict[str, str]:
    """Return what libpq takes for a URL that was parsed here."""
    given = {"user": url.username, "password": url.password, "host": url.host, "dbname": url.database}
    if url.port is not None:
        given["port"] = str(url.port)
    for name, value in url.query.items():
        values = [value] if isinstance(value, str) else list(value)
        if name == "host" and (pairs := [_HOST_AND_PORT.fullmatch(each) for each in values]) and all(pairs):
            given["host"] = ",".join(pair[1] for pair in pairs if pair)
            given["port"] = ",".join(pair[2] for pair in pairs if pair)
        else:
            given[name] = ",".join(values)
    return {name: value for name, value in given.items() if value}


def shown(url: URL) -> str:
    """Return the URL as people may see it: made of what is known to be harmless. An option may be a password."""
    user = url.username or _option(url, "user")
    name = url.database or _option(url, "dbname")
    host = url.host or _option(url, "host")
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{f'{user}@' if user else ''}{host}{port}/{name}"


def _option(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else ",".join(value)


def _query_of(url: str, parsed: URL) -> str:
    """Return the options as they were written, those without a value too. A password may have a `?` in it."""
    rest = url.partition("://")[2]
    if parsed.username is not None:
        rest = rest.partition("@")[2]
    return rest.partition("?")[2]


def _check_options(query: str) -> None:
    seen: set[str] = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in seen and name not in _SEVERAL:
            raise ConfigurationError(f"IM_DATABASE_URL has the option {name} more than once: leave one of them out")
        seen.add(name)
        _check(name, value)


def _check(name: str, value: str) -> None:
    problem = OPTIONS.get(name)
    if problem is None:
        close = get_close_matches(name, OPTIONS, n=1)
        raise ConfigurationError(
            f"IM_DATABASE_URL has the option {_harmless(name)}, which imcore does not know: leave it out"
            + "".join(f" (or is it {each}?)" for each in close)
        )
    values = value.split(",") if name in _SEVERAL else [value]
    if wanted := next(filter(None, map(problem, values)), None):
        raise ConfigurationError(
            f"IM_DATABASE_URL has the option {name} with a value that it cannot have: give {wanted}"
        )


def _harmless(name: str) -> str:
    """Return an option's name as it may be shown: what looks like no name may be part of a password."""
    return name if re.fullmatch(r"[A-Za-z_]{1,40}", name) else "of another form"
