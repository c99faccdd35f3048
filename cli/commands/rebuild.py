"""Rebuilding Redis from SQL."""

from dataclasses import asdict

import click

from imcore.cli.options import Invocation, command, confirm, yes_option
from imcore.cli.progress import progress


@command("rebuild", example="im rebuild\nim rebuild --yes")
@click.option("--adopt", is_flag=True, help="Merge groups that Redis got after this system had lost it, too.")
@yes_option
def rebuild(run: Invocation, yes: bool, adopt: bool) -> None:
    """Rebuild Redis from the SQL database.

    For a Redis that has lost its data. What the worker `persist` had not stored yet is not in SQL, and stays lost;
    groups that Redis has are merged. Interrupted, it can be started again.
    """
    from imcore.repair import rebuild as admin  # noqa: PLC0415 (the help need not wait for the drivers)

    with run.chat() as chat:
        before = admin.look_before(chat.system)
        confirm(
            f"Rebuild Redis at {chat.system.client.address}, which holds {before.redis_groups} groups, from the "
            f"{before.sql_groups} groups of {chat.system.database.address}?",
            yes=yes,
        )
        with progress("groups") as shown:
            shown.to(0, before.sql_groups)
            summary = admin.rebuild(
                chat.system,
                yes=True,
                adopt=adopt,
                on_progress=lambda so_far: shown.to(
                    so_far.groups + so_far.merged + so_far.done_before, before.sql_groups
                ),
            )
    run.show([asdict(summary)], tuple(asdict(summary)))
