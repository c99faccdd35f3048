"""Comparing Redis with SQL."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.options import Invocation, command
from imcore.cli.output import Record
from imcore.cli.progress import progress

if TYPE_CHECKING:
    from imcore.repair.check import ReportedDifference

_COLUMNS = ("gid", "what", "redis", "sql")


@command("check", example="im check && echo they agree\nim check --repair")
@click.option("--repair", is_flag=True, help="Mend what can be mended, and say of each difference whether it was.")
def check(run: Invocation, repair: bool) -> None:
    """Compare Redis with the SQL database.

    Every count is computed anew. Each difference is a line; the exit code is 0 if there is none, or all were mended.
    What a running worker `persist` is about to store is no difference. What changes too fast to be compared is said on
    stderr, and so are settings of the Redis server that break a promise.
    """
    from imcore.admin import server_settings  # noqa: PLC0415 (the help need not wait for the drivers)
    from imcore.repair.check import check as differences_of  # noqa: PLC0415

    counts: Counter[str] = Counter()
    with run.chat() as chat, progress("groups") as shown:
        found = differences_of(chat.system, repair=repair, on_progress=lambda seen: shown.to(seen.groups, seen.of))
        records = (_record(each, repair=repair) for each in _counted(found, counts, shown.complain))
        if repair:
            run.show(output.handed_over(records), (*_COLUMNS, "repaired"))
        else:
            run.show(records, _COLUMNS)
        if warning := server_settings.warning_of(
            server_settings.all_servers(chat.system.client, chat.system.settings, output.remark)
        ):
            shown.complain(warning)
    if counts.total():
        output.complain(
            f"differences between Redis and SQL: {counts.total()}" + f", {counts['repaired']} mended" * repair
        )
    elif not run.json:
        output.remark("no difference")
    if counts["left"]:
        click.get_current_context().exit(output.FAILED)


def _counted(
    found: Iterable["ReportedDifference"], counts: Counter[str], complain: Callable[[str], None]
) -> Iterator["ReportedDifference"]:
    """Count and yield the differences; one that may be none is only reported."""
    for each in found:
        if each.unsure:
            complain(
                f"cannot be decided while it changes: {each.what} of {each.gid!r}: {each.redis}, in SQL {each.sql}"
            )
        else:
            counts["repaired" if each.repaired else "left"] += 1
            yield each


def _record(difference: "ReportedDifference", *, repair: bool) -> Record:
    record = {name: getattr(difference, name) for name in _COLUMNS}
    return record | {"repaired": difference.repaired} if repair else record
