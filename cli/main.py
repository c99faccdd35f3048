"""The entry point `im`."""

import sys

from cli.catalogue import ENDED_BY_SIGNALS, command_in, help_text


def main() -> None:
    """Run `im` with the arguments of this process, and exit."""
    if command_in(sys.argv[1:]) in ENDED_BY_SIGNALS:
        _hold_signals()
    if sys.argv[1:] in (["-h"], ["--help"]) and _printed_help():
        return
    if any(argument.startswith(("--redis-url", "--database-url")) for argument in sys.argv):
        from cli import passwords  # noqa: PLC0415 (it is needed where such an option is given)

        passwords.hide(sys.argv[1:])
    from cli.app import app  # noqa: PLC0415 (importing click takes twice as long as printing the help)

    app.main()


def _hold_signals() -> None:
    """Let signals wait until the command can end in order: it says when, and importing it takes a while."""
    import signal  # noqa: PLC0415 (most commands need it not)

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _printed_help() -> bool:
    text = help_text()
    if sys.stdout is not None and sys.stdout.isatty():
        from cli.terminal import fit, width_of  # noqa: PLC0415 (a pipe gets the lines as they are)

        columns = width_of(sys.stdout.fileno())
        text = "\n".join(part for line in text.split("\n") for part in fit(line, columns))
    try:
        print(text, end="", flush=True)
    except OSError:
        return False  # the usual way fails too, and says why
    return True


if __name__ == "__main__":
    main()
