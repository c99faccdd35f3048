"""What users have chosen for themselves."""

import click

from imcore.cli import records
from imcore.cli.app import CommandGroup, Invocation, chosen, command
from imcore.cli.catalogue import COMMANDS
from imcore.model.limits import USER_RECEIPTS
from imcore.model.records import record_of

user = CommandGroup("user", help=COMMANDS["user"][1], example="im user set bob receipts=off")


@command("set", of=user, example="im user set bob receipts=off")
@click.argument("uid")
@click.argument("values", metavar="receipts=on|off", nargs=-1, required=True)
def set_(run: Invocation, uid: str, values: tuple[str, ...]) -> None:
    """Set whether others are told what UID reads.

    While it is off, acks of UID are private, and UID is told numbers only, no names. What was read before stays read.
    """
    receipts = chosen(values, {"receipts": USER_RECEIPTS})["receipts"]
    with run.chat() as chat:
        run.show([record_of(chat.set_user(uid, receipts=receipts))], records.USER_COLUMNS)
