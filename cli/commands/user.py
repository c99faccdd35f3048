"""`im user`: sets and shows a user's own choice, and erases a user."""

from contextlib import closing
from dataclasses import asdict

import click

from imcore.cli import records
from imcore.cli.app import CommandGroup, Invocation, chosen, command, confirm, yes_option
from imcore.cli.catalogue import COMMANDS
from imcore.cli.progress import progress
from imcore.model.limits import USER_RECEIPTS
from imcore.model.records import record_of

user = CommandGroup("user", help=COMMANDS["user"][1], example="im user set bob receipts=off")


@command("set", of=user, example="im user set bob receipts=off\nim user set bob")
@click.argument("uid")
@click.argument("values", metavar="[receipts=on|off]", nargs=-1)
def set_(run: Invocation, uid: str, values: tuple[str, ...]) -> None:
    """Set whether others are told what UID reads. Without a value, show whether they are, and change nothing.

    While it is off, acks of UID are private, and UID is told numbers only, no names. What was read before stays read.
    """
    wanted = chosen(values, {"receipts": USER_RECEIPTS})
    with run.chat() as chat:
        policy = chat.set_user(uid, receipts=wanted["receipts"]) if wanted else chat.user_policy(uid)
        run.show([record_of(policy)], records.USER_COLUMNS)


@command("erase", of=user, example="im user erase ann\nim user erase ann --yes --json | jq .messages")
@click.argument("uid")
@yes_option
def erase(run: Invocation, uid: str, yes: bool) -> None:
    """Erase a user: texts and name are gone, counts stay.

    No answer has them any more as soon as this has begun, and nothing that is stored when it has ended and the worker
    `persist` has handled all entries: Redis, journals, dead letters, SQL. Messages keep their places, without a text,
    and so do the numbers of those who have read them. The user is called `erased-` and 16 random digits there. A
    one-to-one chat, whose gid says the names, gets another gid. Other users' local databases follow at their next
    session, append-only files when the worker `jobs` or `im trim` has them rewritten. Backups keep all.

    The same UID is a new user afterwards, who is in no group; it can join none before. If this is interrupted,
    `im check` says so: start it again.
    """
    from imcore.admin.erasure import erase_user  # noqa: PLC0415 (the help need not wait for the drivers)

    confirm(f"Erase {uid!r}, and all that they have written, for good?", yes=yes)
    with closing(run.connect()) as system, progress("groups") as shown:
        erased = erase_user(system, uid, on_progress=shown)
    run.show([asdict(erased)], ("uid", "messages"))
