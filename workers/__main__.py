"""`python -m imcore.workers NAME [--burst]`: one worker process, with its settings in the environment.

Exit codes: 0 ended by SIGTERM or SIGINT, or drained; 1 failed, with one line that says why; 2 wrong usage.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

from imcore.errors import ImError
from imcore.process import Stopped, WorkerSignals
from imcore.settings import Settings
from imcore.util import best_effort


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; return the exit code. Whether its log can be written decides nothing."""
    best_effort.install()
    parser = _Parser(prog="python -m imcore.workers", description="One worker process in the foreground.")
    parser.add_argument("name", choices=sorted(WORKERS), help="which worker")
    parser.add_argument("--burst", action="store_true", help="do what is there, and exit")
    parser.add_argument(
        "--known-server", action="store_true", help="do not look at the server's settings: whoever starts this has"
    )
    given = parser.parse_args(arguments)
    _log_to_stderr(given.name)
    # A signal that comes while the rest is loaded is not lost.
    try:
        with WorkerSignals() as signals:
            WORKERS[given.name](Settings.from_env(), signals, given.burst, not given.known_server)
    except ImError as error:
        print(f"im worker {given.name}: {error}", file=sys.stderr)
        return 1
    except Stopped:  # the patience with it ended while it did
        pass
    return 0


def _persist(settings: Settings, signals: WorkerSignals, burst: bool, looks: bool) -> None:
    from imcore.workers import persist, runner  # noqa: PLC0415 (only once the signals are handled, and only what is needed)

    runner.run(persist.Persist, settings, signals, burst=burst, looks=looks)


def _receipts(settings: Settings, signals: WorkerSignals, burst: bool, looks: bool) -> None:
    from imcore.workers import receipts, runner  # noqa: PLC0415

    runner.run(receipts.ReceiptsWorker, settings, signals, burst=burst, looks=looks, needs_sql=False)


def _jobs(settings: Settings, signals: WorkerSignals, burst: bool, looks: bool) -> None:
    from imcore.workers import jobs  # noqa: PLC0415

    jobs.run(settings, signals, burst=burst, looks=looks)


WORKERS: dict[str, Callable[[Settings, WorkerSignals, bool, bool], None]] = {
    "jobs": _jobs,
    "persist": _persist,
    "receipts": _receipts,
}


class _Parser(argparse.ArgumentParser):
    """One whose help is written as a whole, or is an error."""

    def print_help(self, _file: object = None) -> None:
        """Write the help to stdout; exit with 1 where that fails."""
        rest = self.format_help().encode()
        try:
            while rest:
                rest = rest[os.write(1, rest) :]
        except OSError as error:
            self.exit(1, f"im worker: the output could not be written: {error.strerror}\n")


def _log_to_stderr(name: str) -> None:
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ %(levelname)s {name}: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("alembic", "rq.worker", "rq.queue", "rq.job"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
