"""Keeps passwords out of all output, and off the command line of a running `im`.

Everybody on the machine can read a command line. An option puts a password there for a moment; then the program starts
again, with the option's value in its environment. The tables of URL options say which of them are secret.
"""

import os
import re
import sys
from collections.abc import Sequence
from itertools import chain
from urllib.parse import unquote_plus

from imcore.sql.postgres_options import OPTIONS as POSTGRES_OPTIONS
from imcore.streams.url_options import OPTIONS as REDIS_OPTIONS

_VARIABLES = {"--redis-url": "IM_REDIS_URL", "--database-url": "IM_DATABASE_URL"}

_IS_SECRET: dict[str, bool] = {
    **{name: option.is_secret for name, option in POSTGRES_OPTIONS.items()},
    **{name: option.is_secret for name, option in REDIS_OPTIONS.items()},
}
_BEHIND_USER = re.compile(r"(?<=://)([^\s/:@]*):(\S*)@(\S*)")
_OPTION = re.compile(r"(?:[?&;]|%3F|%26|%3B)([^\s?&;=]+)=(?=([^&\s]*))", re.IGNORECASE)
_HIDDEN = "***"


def redact(text: str) -> str:
    """Return `text` with `***` for the password of each URL in it, and for each secret option."""
    return _without_secret_options(_BEHIND_USER.sub(_without_password, text))


def hide(arguments: Sequence[str]) -> None:
    """Start the program again if a URL among the arguments has a password in it."""
    rest, moved = without_passwords(arguments)
    if moved:
        command = [sys.executable, "-P", "-m", "imcore.cli.main", *rest]
        os.execve(sys.executable, command, {**os.environ, **moved})  # noqa: S606 (our own program)


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without the options that hold a password, and the environment that replaces these."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = _url_options(arguments[:end])
    secret = {name for name, value, _ in options if _has_password(value)}
    moved = [option for option in options if option[0] in secret]
    taken = set(chain.from_iterable(places for _, _, places in moved))
    rest = [argument for at, argument in enumerate(arguments) if at not in taken]
    return rest, {_VARIABLES[name]: value for name, value, _ in moved}  # the last one counts


def _url_options(arguments: Sequence[str]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the options that take a URL, in order: name, value, and their places in the arguments."""
    options: list[tuple[str, str, tuple[int, ...]]] = []
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in _VARIABLES and equals:
            options.append((name, value, (at,)))
        elif name in _VARIABLES and at + 1 < len(arguments):
            options.append((name, arguments[at + 1], (at, at + 1)))
    return options


def _has_password(url: str) -> bool:
    """Return whether a URL may have a password in it, which may contain blanks and @."""
    user_and_password = (url.partition("://")[2] or url).rpartition("@")[0]
    return ":" in user_and_password or any(_is_secret(option[1]) for option in _OPTION.finditer(url))


def _without_password(match: re.Match[str]) -> str:
    user, password, rest = match.groups()
    if any(_is_secret(option[1]) for option in _OPTION.finditer(password)):
        return f"{user}:{_HIDDEN}"  # the @ may be a part of the option: the rest is secret, too
    return f"{user}:{_HIDDEN}@{rest}"


def _without_secret_options(text: str) -> str:
    shown, at = "", 0
    for option in _OPTION.finditer(text):
        if option.start() >= at and _is_secret(option[1]):
            shown += text[at : option.end()] + _HIDDEN
            at = option.end(2)
    return shown + text[at:]


def _is_secret(name: str) -> bool:
    """Return whether an option is secret, in any spelling of its name. An unknown one may be."""
    known = re.split("[?&;]", unquote_plus(name))[-1].strip().lower()
    return _IS_SECRET.get(known, "pass" in known)
