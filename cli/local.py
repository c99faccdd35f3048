"""The local database of the user for whom a command acts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.app import Invocation
from imcore.cli.records import MESSAGE_COLUMNS, records_for
from imcore.device.local_database import LocalDatabase, Outgoing, path_of, try_out
from imcore.errors import LocalDatabaseError

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.device.device import Device, Flushed
    from imcore.model.values import Message

no_local_option = click.option(
    "--no-local", is_flag=True, help="Leave the user's local database on this machine alone (see `im log`)."
)


def local_database(run: Invocation, uid: str, *, exclusive: bool = False, read_only: bool = False) -> LocalDatabase:
    """Open a user's local database. Raise LocalDatabaseError."""
    return LocalDatabase(path_of(run.settings().data_dir, uid), uid, exclusive=exclusive, read_only=read_only)


@contextmanager
def device_of(run: Invocation, chat: "Chat", uid: str) -> Iterator["Device"]:
    """Open a user's local database. Raise LocalDatabaseError, also if it has the data of another server."""
    from imcore.device.device import Device  # noqa: PLC0415 (the help of a command need not wait for the Redis client)

    with local_database(run, uid) as local:
        device = Device(chat, uid, local)
        device.check_dataset()
        yield device


def device_if_any(run: Invocation, chat: "Chat", uid: str) -> "AbstractContextManager[Device | None]":
    """Open a user's local database as `device_of` does, if there is one: the name of a new user may be mistyped."""
    return device_of(run, chat, uid) if path_of(run.settings().data_dir, uid).exists() else nullcontext()


def complain_of_refused(flushed: "Flushed", besides: Outgoing | None = None) -> None:
    """Report the messages of the outbox that will never be sent."""
    for outgoing, reason in flushed.refused:
        if outgoing != besides:
            output.complain(f"a message that waited in the outbox was refused (see `im log`): {reason}")


def store(
    run: Invocation,
    chat: "Chat",
    uid: str,
    send: "Callable[[Device | None], Message]",
    *,
    content: str = "",
    keeps: bool,
) -> None:
    """Send a message of a user, and show it. If it `keeps` them, keep it in the local database.

    A user who has no local database and is in no group gets it with the first message: the name may be mistyped. Raise
    LocalDatabaseError before anything is sent, if a message with this content cannot be kept there.
    """
    with _sending_device(run, chat, uid, content) if keeps else nullcontext() as device:
        message = send(device)
        if keeps:
            try:
                with nullcontext(device) if device else device_of(run, chat, message.sender_uid) as sender:
                    sender.keep([message])
            except LocalDatabaseError as error:
                output.complain(f"{message.msgid} is stored, but {error}")
    show_stored(run, chat, uid, message)


def _sending_device(run: Invocation, chat: "Chat", uid: str, content: str) -> "AbstractContextManager[Device | None]":
    path = path_of(run.settings().data_dir, uid)
    chat.system.client.require_functions(writes=True)  # as a send does: what comes before it only reads
    is_known = path.exists() or bool(chat.groups_of(uid))
    try_out(path, uid, len(content.encode(errors="replace")))
    return device_of(run, chat, uid) if is_known else nullcontext()


def show_stored(run: Invocation, chat: "Chat", uid: str, message: "Message") -> None:
    """Show a message that the server has stored. If that fails, say that it is stored all the same."""
    try:
        run.show(records_for(chat, uid, [message]), MESSAGE_COLUMNS)
        output.flush()
    except output.OutputError as error:
        raise output.OutputError(f"{message.msgid} is stored, but {error}") from error
