"""What short commands do to the local database of the user they act for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cli.options import Invocation

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.client import Client

no_local_option = click.option(
    "--no-local", is_flag=True, help="Leave the user's local database on this machine alone (see `im log`)."
)


@contextmanager
def client_of(run: Invocation, chat: "Chat", uid: str) -> Iterator["Client"]:
    """Open a user's local database for a moment; a live session may hold it meanwhile. Raise LocalDatabaseError."""
    from imcore.client import Client  # noqa: PLC0415 (the help of a command need not wait for the Redis client)
    from imcore.live.localdb import LocalDatabase, path_of  # noqa: PLC0415

    with LocalDatabase(path_of(run.settings().data_dir, uid), uid) as local:
        yield Client(chat, uid, local)
