"""Groups and their members."""

import click

from imcore.cli.catalogue import COMMANDS
from imcore.cli.names import name
from imcore.cli.options import CommandGroup, Invocation, command, confirm, yes_option
from imcore.cli.records import GROUP_COLUMNS, MEMBER_COLUMNS, record_of
from imcore.model import values

_COUNT_COLUMNS = ("gid", "members")


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


@command("list", of=group, example="im group list")
def list_(run: Invocation) -> None:
    """List all groups, by gid."""
    with run.chat() as chat:
        run.show(map(record_of, chat.groups()), GROUP_COLUMNS)


@command("show", of=group, example="im group show team")
@click.argument("gid")
def show(run: Invocation, gid: str) -> None:
    """Show the members of a group, by uid: their offset, what they have not read, and who is online."""
    with run.chat() as chat:
        run.show(map(record_of, chat.members(gid)), MEMBER_COLUMNS)


def _show_count(run: Invocation, changed: values.Group) -> None:
    run.show([{"gid": changed.gid, "members": changed.members}], _COUNT_COLUMNS)
