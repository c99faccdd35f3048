"""Redis from SQL."""

from dataclasses import asdict

from cli.options import Invocation, command, confirm, yes_option
from cli.progress import progress


@command("rebuild", example="im rebuild\nim rebuild --yes")
@yes_option
def rebuild(run: Invocation, yes: bool) -> None:
    """Rebuild Redis from the SQL database.

    For a Redis that has lost its data. What the worker `persist` had not stored yet is not in SQL, and stays lost;
    groups that Redis has are merged. Interrupted, it can be started again.
    """
    from imcore.admin.rebuild import rebuild as rebuilt  # noqa: PLC0415 (the help need not wait for the drivers)

    confirm("Rebuild Redis from SQL?", yes=yes)
    with run.chat() as chat, progress("groups") as shown:
        summary = asdict(
            rebuilt(chat, yes=True, on_progress=lambda so_far: shown.to(so_far.groups + so_far.done_before, None))
        )
    run.show([summary], tuple(summary))
