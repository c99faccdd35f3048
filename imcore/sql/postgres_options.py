"""The options in the URL of a PostgreSQL database: their values, and which of them are secret.

This module loads neither SQLAlchemy nor psycopg: the command line reads it before anything else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Problem = Callable[[str], str | None]
"""Returns None for a valid value, else what the value has to be."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of libpq. One that `is_list` may have a value per server, with commas, or by repeating the option."""

    problem: Problem
    is_list: bool = False
    is_secret: bool = False


def _one_of(*words: str) -> Problem:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def _number(lowest: int, highest: int) -> Problem:
    def problem(value: str) -> str | None:
        is_number = value.isascii() and value.isdigit() and len(value) <= 10 and lowest <= int(value) <= highest
        return None if is_number else f"a whole number from {lowest} to {highest}"

    return problem


def _text(value: str) -> str | None:
    return None if value and "\x00" not in value else "a text"


PORT = _number(1, 65_535)
_TEXT = Option(_text)
_TEXTS = Option(_text, is_list=True)
_SECRET = Option(_text, is_secret=True)
_SECONDS = Option(_number(1, 86_400))
_SWITCH = Option(_one_of("0", "1"))
_TLS = Option(_one_of("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"))

OPTIONS: Mapping[str, Option] = {
    # The servers, and the user.
    "host": _TEXTS,
    "hostaddr": _TEXTS,
    "port": Option(PORT, is_list=True),
    **dict.fromkeys(("user", "passfile", "dbname", "service"), _TEXT),
    "password": _SECRET,
    "target_session_attrs": Option(_one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby")),
    "load_balance_hosts": Option(_one_of("disable", "random")),
    # TLS and authentication.
    "sslmode": Option(_one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full")),
    "sslnegotiation": Option(_one_of("postgres", "direct")),
    "sslsni": _SWITCH,
    "sslcertmode": Option(_one_of("disable", "allow", "require")),
    "sslpassword": _SECRET,
    **dict.fromkeys(("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir"), _TEXT),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version"), _TLS),
    **dict.fromkeys(("requirepeer", "require_auth", "krbsrvname"), _TEXT),
    "channel_binding": Option(_one_of("disable", "prefer", "require")),
    "gssencmode": Option(_one_of("disable", "prefer", "require")),
    # When a vanished server becomes an error.
    "connect_timeout": _SECONDS,
    "keepalives": _SWITCH,
    **dict.fromkeys(("keepalives_idle", "keepalives_interval"), _SECONDS),
    "keepalives_count": Option(_number(1, 100)),
    "tcp_user_timeout": Option(_number(0, 86_400_000)),
    # Settings of the session.
    **dict.fromkeys(("application_name", "options"), _TEXT),
}
"""The permitted options. imcore itself sets the encoding, and that no statement is prepared."""
