"""The schema of the SQL database, and the functions in Redis."""

from contextlib import closing

import click

from cli import output
from cli.options import Group, Invocation, command
from imcore.errors import RedisUnavailable
from imcore.settings import Settings

_COLUMNS = ("database", "redis", "status")


@click.group("db", cls=Group, example="im db upgrade")
def db() -> None:
    """Bring the SQL database and the functions in Redis up to date."""


@command("upgrade", of=db, example="im db upgrade --database-url postgresql:///chat")
def upgrade(run: Invocation) -> None:
    """Make the tables, or change them to what this version of the program needs.

    The functions in Redis are loaded, or replaced by those of this version. Where Redis cannot be reached that is left
    to the workers, who do it when they start.
    """
    from imcore.sql.database import Database  # noqa: PLC0415 (the help need not wait for the drivers)

    settings = run.settings()
    with Database.connect(settings.database_url, data_dir=settings.data_dir) as database:
        database.upgrade()
    record = {"database": database.address, "redis": _upgrade_functions(settings), "status": "up to date"}
    run.show([record], _COLUMNS)


def _upgrade_functions(settings: Settings) -> str | None:
    """Return where they are up to date now; None if that cannot be done."""
    from imcore.streams.link import Link  # noqa: PLC0415

    try:
        with closing(Link.connect(settings)) as link:
            link.upgrade()
    except RedisUnavailable as error:
        output.complain(f"the functions in Redis are as they were: {error}")
        return None
    return link.address
