"""The entry point `im`.

It imports our other modules only in `main`: a Ctrl-C before would print a traceback.
"""

import os
import sys


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
    from imcore.cli import output, passwords  # noqa: PLC0415
    from imcore.util import best_effort  # noqa: PLC0415

    best_effort.install()
    output.install()
    passwords.hide(sys.argv[1:])
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


if __name__ == "__main__":
    main()
