"""The entry point `im`.

It imports our other modules only in `main`: a Ctrl-C before would print a traceback.
"""

import os
import sys

_VARIABLES = {"--redis-url": "IM_REDIS_URL", "--database-url": "IM_DATABASE_URL"}


def main() -> None:
    """Run `im` with the arguments of this process, and exit."""
    try:
        _run()
    except KeyboardInterrupt:
        from imcore.cli import output  # noqa: PLC0415 (as below)

        sys.exit(output.interrupted())


def _run() -> None:
    if sys.argv[1:] in (["-h"], ["--help"]) and _printed_help():
        return
    import signal  # noqa: PLC0415 (the help need not wait for these)

    # Until the command is imported: one that ends in order upon a signal has to handle it itself.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    from imcore.cli import output  # noqa: PLC0415
    from imcore.util import best_effort  # noqa: PLC0415

    best_effort.install()
    output.install()
    _hide_passwords()
    from imcore.cli.app import app  # noqa: PLC0415 (importing click takes twice as long as printing the help)

    app.main()


def _printed_help() -> bool:
    if sys.stdout is None:
        return False
    from imcore.cli.catalogue import help_text  # noqa: PLC0415

    text = help_text()
    if sys.stdout.isatty():
        from imcore.cli.terminal import fit, width_of  # noqa: PLC0415 (a pipe gets the lines as they are)

        columns = width_of(sys.stdout.fileno())
        text = "\n".join(part for line in text.split("\n") for part in fit(line, columns))
    rest = text.encode()
    try:
        while rest:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]
    except OSError:
        return False  # the usual way fails, too, and reports the error
    return True


def _hide_passwords() -> None:
    """Start the program again, with the value in its environment, if an option has a URL with a password.

    Everybody on the machine can read a command line.
    """
    rest, moved = without_passwords(sys.argv[1:])
    if moved:
        command = [sys.executable, "-P", "-m", "imcore.cli.main", *rest]
        os.execve(sys.executable, command, {**os.environ, **moved})  # noqa: S606 (our own program)


def without_passwords(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without the options that hold a password, and the environment that replaces these."""
    from imcore.logs.redaction import has_password  # noqa: PLC0415

    options = _url_options(arguments)
    secret = {name for name, value, _ in options if has_password(value)}
    moved = [option for option in options if option[0] in secret]
    taken = {at for _, _, places in moved for at in places}
    rest = [argument for at, argument in enumerate(arguments) if at not in taken]
    return rest, {_VARIABLES[name]: value for name, value, _ in moved}  # the last one counts


def _url_options(arguments: list[str]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the options that take a URL, in order: name, value, and their places in the arguments."""
    options: list[tuple[str, str, tuple[int, ...]]] = []
    for at, argument in enumerate(arguments):
        if argument == "--":
            break
        name, equals, value = argument.partition("=")
        if name in _VARIABLES and equals:
            options.append((name, value, (at,)))
        elif name in _VARIABLES and at + 1 < len(arguments):
            options.append((name, arguments[at + 1], (at, at + 1)))
    return options


if __name__ == "__main__":
    main()
