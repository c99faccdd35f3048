"""The SQL database's schema."""

import click

from cli.options import Group, Invocation, command


@click.group("db", cls=Group, example="im db upgrade")
def db() -> None:
    """Bring the SQL database up to date."""


@command("upgrade", of=db, example="im db upgrade --database-url postgresql:///chat")
def upgrade(run: Invocation) -> None:
    """Make the tables, or change them to what this version of the program needs."""
    from imcore.sql.database import Database  # noqa: PLC0415 (the help need not wait for the drivers)

    settings = run.settings()
    with Database.connect(settings.database_url, data_dir=settings.data_dir) as database:
        database.upgrade()
        run.show([{"database": database.address, "status": "up to date"}], ("database", "status"))
