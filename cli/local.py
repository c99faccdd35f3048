"""The local database of the user that a command acts for."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.options import Invocation
from imcore.cli.peers import peers_at
from imcore.cli.records import MESSAGE_COLUMNS, message_record
from imcore.errors import LocalDatabaseError

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.device.device import Device, Flushed
    from imcore.device.local_database import LocalDatabase, Outgoing
    from imcore.model.values import Message

no_local_option = click.option(
    "--no-local", is_flag=True, help="Leave the user's local database on this machine alone (see `im log`)."
)


def local_database(run: Invocation, uid: str, *, exclusive: bool = False, read_only: bool = False) -> "LocalDatabase":
    """Open a user's local database. Raise LocalDatabaseError."""
    from imcore.device.local_database import LocalDatabase, path_of  # noqa: PLC0415 (it takes SQLite)

    return LocalDatabase(path_of(run.settings().data_dir, uid), uid, exclusive=exclusive, read_only=read_only)


@contextmanager
def client_of(run: Invocation, chat: "Chat", uid: str) -> Iterator["Device"]:
    """Open a user's local database for a moment; a live session may hold it meanwhile.

    Raise LocalDatabaseError, also where the server has other data than it was made with.
    """
    from imcore.device.device import Device  # noqa: PLC0415 (the help of a command need not wait for the Redis client)

    with local_database(run, uid) as local:
        client = Device(chat, uid, local)
        client.check_dataset()
        yield client


@contextmanager
def client_if_any(run: Invocation, chat: "Chat", uid: str) -> Iterator["Device | None"]:
    """Open a user's local database as `client_of` does, if there is one: nothing is made for who may be nobody."""
    from imcore.device.local_database import path_of  # noqa: PLC0415

    if not path_of(run.settings().data_dir, uid).exists():
        yield None
        return
    with client_of(run, chat, uid) as client:
        yield client


def sync_outside(run: Invocation, chat: "Chat", uid: str) -> None:
    """Do for a user who is in no group what a login does: their first message may wait, or the last tallies.

    Raise why what waits has to go on waiting.
    """
    with client_if_any(run, chat, uid) as client:
        if client:
            flushed = client.sync()
            complain_of_refused(flushed)
            if flushed.stopped_by:
                raise flushed.stopped_by


def complain_of_refused(flushed: "Flushed", besides: "Outgoing | None" = None) -> None:
    """Say which messages that waited in the outbox will never be sent."""
    for outgoing, reason in flushed.refused:
        if outgoing != besides:
            output.complain(f"a message that waited in the outbox was refused (see `im log`): {reason}")


class Sender:
    """What a user sends is kept in their local database, which is opened before anything is sent.

    One that is not there is made by the first message that the server has taken: the user's name may be mistyped.
    """

    def __init__(self, run: Invocation, chat: "Chat", uid: str, client: "Device | None") -> None:
        self.client = client
        self._run = run
        self._chat = chat
        self._uid = uid

    def keep(self, message: "Message") -> None:
        """Keep what was sent. Where that cannot be all the same, say that it is sent."""
        try:
            with nullcontext(self.client) if self.client else client_of(self._run, self._chat, self._uid) as client:
                client.keep([message])
        except LocalDatabaseError as error:
            output.complain(f"{message.msgid} is stored, but {error}")


@contextmanager
def sender_of(run: Invocation, chat: "Chat", uid: str, content: str = "") -> Iterator[Sender]:
    """Make sure that a message with this content can be kept. Raise LocalDatabaseError: then nothing is to be sent."""
    from imcore.device.local_database import path_of, try_out  # noqa: PLC0415

    path = path_of(run.settings().data_dir, uid)
    chat.system.client.require_functions(writes=True)  # as a send does: what comes before it only reads
    is_known = path.exists() or bool(chat.groups_of(uid))
    try_out(path, uid, len(content.encode(errors="replace")))
    with client_of(run, chat, uid) if is_known else nullcontext() as client:
        yield Sender(run, chat, uid, client)


def show_stored(run: Invocation, chat: "Chat", uid: str, message: "Message") -> None:
    """Show what a user has stored at the server. Where that cannot be, say that it is stored all the same."""
    try:
        run.show([peers_at(chat, uid).named(message_record(message))], MESSAGE_COLUMNS)
        output.flush()
    except output.OutputError as error:
        raise output.OutputError(f"{message.msgid} is stored, but {error}") from error
