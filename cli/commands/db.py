"""The schema of the SQL database, and the functions in Redis."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, TypeVar

import click

from imcore.cli import output
from imcore.cli.options import CommandGroup, Invocation, command
from imcore.errors import RedisUnavailable
from imcore.settings import Settings

if TYPE_CHECKING:
    from imcore.streams.client import RedisClient

T = TypeVar("T")

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
        client = _attempt(lambda: _writable(stack, settings))  # first: without the right to write there, change nothing
        with Database.connect(settings.database_url, data_dir=settings.data_dir) as database:
            database.upgrade()
        redis = client and _attempt(lambda: _upgraded(client))
    run.show([{"database": database.address, "redis": redis, "status": "up to date"}], _COLUMNS)


def _attempt(action: Callable[[], T]) -> T | None:
    """Return the result of an action; None, with a line on stderr, if Redis cannot be reached."""
    try:
        return action()
    except RedisUnavailable as error:
        output.complain(f"the functions in Redis are as they were: {error}")
        return None


def _writable(stack: ExitStack, settings: Settings) -> "RedisClient":
    """Return a client that may write. Raise RedisRefuses, RedisUnavailable."""
    from imcore.streams.client import RedisClient  # noqa: PLC0415

    client = stack.enter_context(closing(RedisClient.connect(settings)))
    client.require_writes()
    return client


def _upgraded(client: "RedisClient") -> str:
    client.upgrade()
    return client.address
