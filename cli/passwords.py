"""Keeps passwords out of sight: out of what is written, and off the command line of a running `im`.

Everybody on the machine can read a command line. A password gets there by an option, for a moment; then the program
starts anew, with the option's value in its environment. Which options of a URL are secret, their own tables say.
"""

import os
import re
import sys
from collections.abc import Sequence
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
    """Return `text` with the password of each URL in it as `***`, and so each of its options that are secret."""
    return _without_secret_options(_BEHIND_USER.sub(_without_password, text))


def hide(arguments: Sequence[str]) -> None:
    """Start anew if a URL among the arguments has a password in it; else do nothing."""
    rest, moved = without_passwords(arguments)
    if moved:
        command = [sys.executable, "-P", "-m", "imcore.cli.main", *rest]
        os.execve(sys.executable, command, {**os.environ, **moved})  # noqa: S606 (our own program)


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without the options that hold a password, and the environment that says the same."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = _given(arguments[:end])
    secret = {name for name, value, _ in given if _has_password(value)}
    taken = {at for name, _, places in given if name in secret for at in places}
    rest = [argument for at, argument in enumerate(arguments) if at not in taken]
    return rest, {_VARIABLES[name]: value for name, value, _ in given if name in secret}  # the last one counts


def _given(arguments: Sequence[str]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return these options as they come: name, value, and at which places in the arguments they stand."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in _VARIABLES and equals:
            found.append((name, value, (at,)))
        elif name in _VARIABLES and at + 1 < len(arguments):
            found.append((name, arguments[at + 1], (at, at + 1)))
    return found


def _has_password(url: str) -> bool:
    """Return whether a URL may have a password in it. A blank may be a part of one, and an @ too."""
    user_and_password = (url.partition("://")[2] or url).rpartition("@")[0]
    return ":" in user_and_password or any(_is_secret(option[1]) for option in _OPTION.finditer(url))


def _without_password(match: re.Match[str]) -> str:
    user, password, rest = match.groups()
    if any(_is_secret(option[1]) for option in _OPTION.finditer(password)):
        return f"{user}:{_HIDDEN}"  # the @ may be that of the option: what follows it is secret too
    return f"{user}:{_HIDDEN}@{rest}"


def _without_secret_options(text: str) -> str:
    shown, at = "", 0
    for option in _OPTION.finditer(text):
        if option.start() >= at and _is_secret(option[1]):
            shown += text[at : option.end()] + _HIDDEN
            at = option.end(2)
    return shown + text[at:]


def _is_secret(name: str) -> bool:
    """Return whether an option is secret, in whatever form its name is written. One that is misspelled may be."""
    known = re.split("[?&;]", unquote_plus(name))[-1].strip().lower()
    return _IS_SECRET.get(known, "pass" in known)
