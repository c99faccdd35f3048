"""`python -m imcore.workers NAME [--burst]`: one worker process, with its settings in the environment.

Exit codes: 0 ended by SIGTERM or SIGINT, or drained; 1 failed, with one line that says why; 2 wrong usage.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imcore.errors import ImError
from imcore.logs import setup
from imcore.metrics import WorkerMetrics
from imcore.process import Stopped, WorkerSignals
from imcore.settings import Settings
from imcore.util import best_effort
from imcore.workers.monitor import Monitor

if TYPE_CHECKING:
    from imcore.sql.database import Database
    from imcore.streams.client import RedisClient
    from imcore.workers.lanes import PartitionLane
    from imcore.workers.persist import Persist
    from imcore.workers.runner import Worker

log = logging.getLogger(__name__)

WORKERS = ("jobs", "persist", "receipts")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; return the exit code. A log that cannot be written changes nothing."""
    best_effort.install()
    parser = _Parser(prog="python -m imcore.workers", description="One worker process in the foreground.")
    parser.add_argument("name", choices=WORKERS, help="which worker")
    parser.add_argument("--burst", action="store_true", help="do what is there, and exit")
    parser.add_argument(
        "--known-server", action="store_true", help="do not look at the server's settings: whoever starts this has"
    )
    given = parser.parse_args(arguments)
    settings = None
    try:
        with WorkerSignals() as signals:  # a signal that arrives while the rest is loaded is not lost
            settings = Settings.from_env()
            setup.install(settings.log_format, settings.log_level, given.name)
            metrics = WorkerMetrics(given.name)
            with Monitor(settings, metrics):
                _run(given.name, settings, signals, metrics, burst=given.burst, checks_server=not given.known_server)
    except ImError as error:
        if settings and settings.log_format == "json":
            log.error("%s", error)
        else:
            print(f"im worker {given.name}: {error}", file=sys.stderr)
        return 1
    except Stopped:  # raised late, in the worker's last step
        pass
    return 0


def _run(name: str, settings: Settings, signals: WorkerSignals, metrics: WorkerMetrics, **how: bool) -> None:
    """Import a worker once signals are handled, and only that one."""
    if name == "jobs":
        from imcore.workers import jobs  # noqa: PLC0415

        jobs.run(settings, signals, metrics, **how)
        return
    if name == "persist":
        _serve(_persist, settings, signals, metrics, **how)
    else:
        from imcore.workers.receipts import ReceiptsWorker  # noqa: PLC0415

        _serve(ReceiptsWorker, settings, signals, metrics, **how, needs_sql=False)


def _persist(
    client: "RedisClient",
    database: "Database",
    settings: Settings,
    metrics: WorkerMetrics,
    lane: "PartitionLane | None" = None,
) -> "Persist":
    from imcore.repair.watch import Watch  # noqa: PLC0415
    from imcore.workers.persist import Persist  # noqa: PLC0415

    where = (lane.partition, lane.facts) if lane else ()
    return Persist(client, database, settings, Watch(client, database, settings, *where), metrics, lane)


def _serve(
    factory: "Callable[..., Worker]", settings: Settings, signals: WorkerSignals, metrics: WorkerMetrics, **how: bool
) -> None:
    """Run a worker in this thread or, on a cluster, in a lane for each partition."""
    from imcore.streams import urls  # noqa: PLC0415

    if urls.is_cluster(settings.redis_url):
        from imcore.workers import lanes  # noqa: PLC0415

        lanes.run(factory, settings, signals, metrics, **how)
    else:
        from imcore.workers import runner  # noqa: PLC0415

        runner.run(factory, settings, signals, metrics, **how)


class _Parser(argparse.ArgumentParser):
    """Writes its help as a whole, or exits with an error."""

    def print_help(self, _file: object = None) -> None:
        rest = self.format_help().encode()
        try:
            while rest:
                rest = rest[os.write(1, rest) :]
        except OSError as error:
            self.exit(1, f"im worker: the output could not be written: {error.strerror}\n")


if __name__ == "__main__":
    sys.exit(main())
