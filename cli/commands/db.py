"""The schema of the SQL database, and the functions in Redis."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.options import CommandGroup, Invocation, command
from imcore.errors import RedisUnavailable
from imcore.settings import Settings

if TYPE_CHECKING:
    from imcore.streams.client import RedisClient

_COLUMNS = ("database", "redis", "status")


@click.group("db", cls=CommandGroup, example="im db upgrade")
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
    with ExitStack() as stack:
        client = _link_if_any(stack, settings)  # first: who cannot write there is to have written nowhere
        with Database.connect(settings.database_url, data_dir=settings.data_dir) as database:
            database.upgrade()
        redis = client and _upgrade_functions(client)
    run.show([{"database": database.address, "redis": redis, "status": "up to date"}], _COLUMNS)


def _link_if_any(stack: ExitStack, settings: Settings) -> "RedisClient | None":
    """Return a link to a Redis that takes writes, None where no Redis answers. Raise RedisRefuses."""
    from imcore.streams.client import RedisClient  # noqa: PLC0415

    with _complaining():
        client = stack.enter_context(closing(RedisClient.connect(settings)))
        client.require_writes()
        return client
    return None


def _upgrade_functions(client: "RedisClient") -> str | None:
    """Return where they are up to date now; None if that cannot be done."""
    with _complaining():
        client.upgrade()
        return client.address
    return None


@contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except RedisUnavailable as error:
        output.complain(f"the functions in Redis are as they were: {error}")
