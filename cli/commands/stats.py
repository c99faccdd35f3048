"""The state of the whole system."""

from dataclasses import asdict

from cli import output
from cli.options import Invocation, command

_COLUMNS = ("groups", "members", "messages", "online", "journal", "dead_letters")
_WORKER_COLUMNS = ("worker", "backlog", "pending", "lag_ms")


@command("stats", example="im stats\nim stats --json | jq .workers")
def stats(run: Invocation) -> None:
    """Show streams, backlogs, dead letters and who is online.

    A worker's backlog is what it has not done yet, its lag the age of the oldest of that; pending is what a process
    has in hand.
    """
    from imcore.admin.stats import stats as stats_of  # noqa: PLC0415 (the help need not wait for the drivers)

    with run.chat() as chat:
        record = asdict(stats_of(chat))
    run.show([record], _COLUMNS)
    if not run.json:
        output.say("")
        run.show(record["workers"], _WORKER_COLUMNS)
