"""Groups and their members."""

import click

from imcore.cli import records
from imcore.cli.app import CommandGroup, Invocation, chosen, command, confirm, yes_option
from imcore.cli.catalogue import COMMANDS
from imcore.cli.names import gid_alone, name
from imcore.cli.progress import progress
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS
from imcore.model.records import record_of
from imcore.model.values import Group

group = CommandGroup("group", help=COMMANDS["group"][1], example="im group create team ann bob\nim group show team")


@command("create", of=group, example="im group create team ann bob cleo")
@click.argument("gid")
@click.argument("uids", metavar="[UID]...", nargs=-1)
def create(run: Invocation, gid: str, uids: tuple[str, ...]) -> None:
    """Create a group. The same group with the same members again changes nothing."""
    with run.chat() as chat:
        _show_count(run, chat.create_group(gid, uids))


@command("add", of=group, example="im group add team dora emil")
@click.argument("gid")
@click.argument("uids", metavar="UID...", nargs=-1, required=True)
def add(run: Invocation, gid: str, uids: tuple[str, ...]) -> None:
    """Let users join a group. Members stay as they are."""
    with run.chat() as chat:
        _show_count(run, chat.add_members(gid, uids))


@command("remove", of=group, example="im group remove team emil\nim group remove team emil --yes")
@click.argument("gid")
@click.argument("uids", metavar="UID...", nargs=-1, required=True)
@yes_option
def remove(run: Invocation, gid: str, uids: tuple[str, ...], yes: bool) -> None:
    """Let members leave a group. What they had read stays read."""
    confirm(f"Remove {', '.join(map(name, uids))} from {name(gid)}?", yes=yes)
    with run.chat() as chat:
        _show_count(run, chat.remove_members(gid, uids))


@command("delete", of=group, example="im group delete team\nim group delete team --yes")
@click.argument("gid")
@yes_option
def delete(run: Invocation, gid: str, yes: bool) -> None:
    """Delete a group, its messages and all receipts, in Redis and in SQL. GID is what `im group list` shows, also for a
    one-to-one chat. The group is gone for everybody at once, and what it had soon after; interrupted, the command
    can be repeated, or a worker does the rest. A new group may have the same GID then.
    """
    from imcore.operations import deletion  # noqa: PLC0415 (the help need not wait for the drivers)

    gid = gid_alone(gid)
    confirm(f"Delete group {name(gid)} with all its messages and receipts? Nobody can bring them back.", yes=yes)
    with run.chat() as chat, progress("rows and members") as shown:
        deleted = chat.performer.perform(deletion.delete_group(gid, on_progress=lambda done: shown(done, None)))
    run.show([record_of(deleted)], ("gid", "messages"))


@command("set", of=group, example="im group set team receipts=counts asked-by=members\nim group set team")
@click.argument("gid")
@click.argument("values", metavar="[NAME=VALUE]...", nargs=-1)
def set_(run: Invocation, gid: str, values: tuple[str, ...]) -> None:
    """Set what members are told about readers. Without a value, show what they are told, and change nothing.

    receipts: names (who has read a message, the default), counts (how many have), off (nothing). asked-by, who may ask
    about a message: its sender (the default), or all members.
    """
    wanted = chosen(values, {"receipts": GROUP_RECEIPTS, "asked-by": ASKED_BY})
    gid = gid_alone(gid)
    with run.chat() as chat:
        if wanted:
            policy = chat.set_group(gid, receipts=wanted.get("receipts"), asked_by=wanted.get("asked-by"))
        else:
            policy = chat.group_policy(gid)
        run.show([record_of(policy)], records.POLICY_COLUMNS)


@command("list", of=group, example="im group list")
def list_(run: Invocation) -> None:
    """List all groups, by gid."""
    with run.chat() as chat:
        run.show(map(record_of, chat.groups()), records.GROUP_COLUMNS)


@command("show", of=group, example="im group show team")
@click.argument("gid")
def show(run: Invocation, gid: str) -> None:
    """Show the members of a group, by uid: their offset, what they have not read, and who is online."""
    with run.chat() as chat:
        run.show(map(record_of, chat.members(gid)), records.MEMBER_COLUMNS)


def _show_count(run: Invocation, changed: Group) -> None:
    run.show([{"gid": changed.gid, "members": changed.members}], ("gid", "members"))
