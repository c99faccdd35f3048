"""Whether everything that the chat needs is well."""

from dataclasses import asdict

import click

from imcore.cli.app import Invocation, NumberRange, command
from imcore.errors import ImError
from imcore.logs.redaction import redact

_COLUMNS = ("what", "ok", "detail")


@command("health", example="im health\nim health --max-age 10 --json | jq 'select(.ok | not)'")
@click.option(
    "--max-age",
    type=NumberRange(min=0),
    metavar="S",
    help="A backlog whose oldest entry waits longer is not well. [default: 60]",
)
def health(run: Invocation, max_age: float | None) -> None:
    """One line each for Redis, SQL, the workers persist, receipts and jobs, and the dead letters. The exit code is 1
    if any is not well: it needs somebody to look after it. A kind of worker is well if one process of it lives and its
    backlog is young; dead letters are not well, since nothing else handles them. It only reads, and answers within
    seconds, also if a server hangs.
    """
    from imcore.admin import health as admin  # noqa: PLC0415 (the help need not wait for the drivers)

    states = admin.health(run.settings(), max_age_s=admin.MAX_AGE_S if max_age is None else max_age)
    run.show([asdict(state) | {"detail": redact(state.detail)} for state in states], _COLUMNS)
    if ailing := [state.what for state in states if not state.ok]:
        raise ImError(f"not well: {', '.join(ailing)}")
