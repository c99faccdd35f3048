"""Rules for the users of Redis."""

import click

from imcore.admin.acl import ROLES
from imcore.cli import output
from imcore.cli.options import Invocation, command


@command("acl", example="im acl\nim acl gateway reader --aclfile")
@click.argument("roles", metavar="[worker] [gateway] [reader]", nargs=-1, type=click.Choice(list(ROLES)))
@click.option("--aclfile", is_flag=True, help="As lines of the server's aclfile, not as commands.")
def acl(run: Invocation, roles: tuple[str, ...], aclfile: bool) -> None:
    """Print Redis ACL rules for gateways, workers and readers.

    Each is of least privilege. Put the SHA-256 of a password (printf %s PASSWORD | sha256sum) where the line says so:
    as it stands, the server refuses it. Nothing is asked of the server.
    """
    for role in dict.fromkeys(roles or ROLES):
        rules = ROLES[role]
        if run.json:
            run.show([{"role": role, "user": rules.user, "rules": list(rules.rules)}], ())
        else:
            output.say(rules.file_line() if aclfile else rules.set_user())
