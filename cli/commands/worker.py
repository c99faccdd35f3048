"""One worker in the foreground."""

import os
import sys

import click

from imcore.cli import output, worker_command
from imcore.cli.options import Invocation, command


@command("worker", example="im worker persist\nim worker persist --burst")
@click.argument("name", metavar="NAME", type=click.Choice(worker_command.NAMES))
@click.option("--burst", is_flag=True, help="Drain what is there, and exit.")
def worker(run: Invocation, name: str, burst: bool) -> None:
    """`persist` stores what happened in the SQL database, `receipts` tells senders who has read, `jobs` does what may
    take long. Any number of each may run. Ctrl-C and SIGTERM end one after the batch in hand; what hangs is left to the
    next one after 7 s.
    """
    environment = worker_command.environment_of(run.settings())
    output.flush()
    os.execve(  # noqa: S606 (our own program)
        sys.executable, worker_command.command_of(name, *["--burst"] * burst), environment
    )
