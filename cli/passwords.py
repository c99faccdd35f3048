"""Keeps passwords off the command line of a running `im`, where everybody on the machine can read them.

They get there by an option, for a moment; then the program starts anew, with the option's value in its environment.
"""

import os
import sys
from collections.abc import Sequence

from cli.output import redact

_VARIABLES = {"--redis-url": "IM_REDIS_URL", "--database-url": "IM_DATABASE_URL"}


def hide(arguments: Sequence[str]) -> None:
    """Start anew if a URL among the arguments has a password in it; else do nothing."""
    rest, moved = without_passwords(arguments)
    if moved:
        command = [sys.executable, "-P", "-m", "cli.main", *rest]
        os.execve(sys.executable, command, {**os.environ, **moved})  # noqa: S606 (our own program)


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without the options that hold a password, and the environment that says the same."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = _given(arguments[:end])
    secret = {name for name, value, _ in given if redact(value) != value}
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
