"""Withdrawing a message."""

from contextlib import nullcontext

import click

from imcore.cli.local import no_local_option, sender_of, show_stored
from imcore.cli.names import name
from imcore.cli.options import Invocation, command, confirm, yes_option
from imcore.cli.peers import chat_called


@command("recall", example="im recall team 1767225600000-0 --by ann --yes")
@click.argument("gid")
@click.argument("msgid")
@click.option("--by", "by_uid", metavar="UID", required=True, help="Who withdraws it: its sender.")
@click.option("--admin", is_flag=True, help="UID may withdraw what others have sent, and need not be a member.")
@no_local_option
@yes_option
def recall(run: Invocation, gid: str, msgid: str, *, by_uid: str, admin: bool, no_local: bool, yes: bool) -> None:
    """Withdraw a message: what it said is gone for good.

    Its place stays, with who has read it, and no `im unread` counts it. A tombstone goes to every member, and is
    printed; for a message that is recalled already there is no second one, and the message is printed as it is now.
    """
    confirm(f"Recall message {msgid} of {name(gid)}? What it says is gone for good.", yes=yes)
    with run.chat() as chat:
        with nullcontext() if no_local or admin else sender_of(run, chat, by_uid) as sender:
            message = chat.recall(chat_called(gid, by_uid), msgid, by=by_uid, admin=admin)
            if sender:
                sender.keep(message)
        show_stored(run, chat, by_uid, message)
