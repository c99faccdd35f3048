"""One worker in the foreground; its command line and environment. `imcore.workers` is not imported."""

import os
import sys
from collections.abc import Mapping

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.settings import Settings

NAMES = ("persist", "receipts", "jobs")


def command_of(name: str, *arguments: str) -> list[str]:
    """Return the command line of a worker. `-P`: a folder `imcore` in the working directory is not ours."""
    return [sys.executable, "-P", "-m", "imcore.workers", name, *arguments]


def environment_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `environment` with these settings for a worker."""
    return {
        **environment,
        "IM_DATA_DIR": str(settings.data_dir),
        "IM_REDIS_URL": settings.redis_url,
        "IM_DATABASE_URL": settings.database_url,
        "IM_JOBS_REDIS_URL": settings.jobs_redis_url,
        "IM_RECEIPT_WINDOW_MS": str(settings.receipt_window_ms),
        "IM_METRICS_PORT": str(settings.metrics_port or ""),
        "IM_METRICS_HOST": settings.metrics_host,
        "IM_LOG_FORMAT": settings.log_format,
        "IM_LOG_LEVEL": settings.log_level,
        "PYTHONUNBUFFERED": "1",
    }


@command("worker", example="im worker persist\nim worker persist --burst")
@click.argument("name", metavar="NAME", type=click.Choice(NAMES))
@click.option("--burst", is_flag=True, help="Drain what is there, and exit.")
def worker(run: Invocation, name: str, burst: bool) -> None:
    """`persist` stores what happened in the SQL database, `receipts` tells senders who has read, `jobs` does what may
    take long. Any number of each may run. Ctrl-C and SIGTERM end one after the batch in hand; what hangs is left to the
    next one after 7 s.
    """
    environment = environment_of(run.settings())
    output.flush()
    os.execve(  # noqa: S606 (our own program)
        sys.executable, command_of(name, *["--burst"] * burst), environment
    )
