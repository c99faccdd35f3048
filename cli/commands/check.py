"""Whether Redis and SQL say the same."""

from typing import TYPE_CHECKING

import click

from cli import output
from cli.options import Invocation, command
from cli.output import Record
from cli.progress import progress

if TYPE_CHECKING:
    from imcore.admin.audit import Difference

_COLUMNS = ("gid", "what", "redis", "sql")


@command("check", example="im check && echo they agree\nim check --repair")
@click.option("--repair", is_flag=True, help="Mend what can be mended, and say of each difference whether it was.")
def check(run: Invocation, repair: bool) -> None:
    """Compare Redis with the SQL database.

    Every count is computed anew. Each difference is a line; the exit code is 0 if there is none, or all were mended.
    What a running worker `persist` is about to store is no difference.
    """
    from imcore.admin.audit import check as differences_of  # noqa: PLC0415 (the help need not wait for the drivers)

    with run.chat() as chat, progress("groups") as shown:
        found = list(differences_of(chat, repair=repair, on_progress=lambda seen: shown.to(seen.groups, seen.of)))
    run.show([_record(each, repair=repair) for each in found], (*_COLUMNS, "repaired") if repair else _COLUMNS)
    left = sum(not each.repaired for each in found)
    if found:
        output.complain(f"differences between Redis and SQL: {len(found)}" + f", {len(found) - left} mended" * repair)
    if left:
        click.get_current_context().exit(output.FAILED)


def _record(difference: "Difference", *, repair: bool) -> Record:
    record = {name: getattr(difference, name) for name in _COLUMNS}
    return record | {"repaired": difference.repaired} if repair else record
