"""The gateway for sockets and HTTP, and tokens for its users."""

import os
import sys
from pathlib import Path

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.cli.commands.worker import environment_of
from imcore.web import extra

_FILE = click.Path(dir_okay=False, path_type=Path)
_TTL_S = click.IntRange(1, 10 * 365 * 24 * 3600)


def command_of(*arguments: str) -> list[str]:
    """Return the command line of the gateway. `-P`: a folder `imcore` in the working directory is not ours."""
    return [sys.executable, "-P", "-m", "imcore.web", *arguments]


@command("serve", example="im serve\nim serve --host 0.0.0.0 --port 8443 --certfile chat.pem --keyfile chat.key")
@click.option("--host", default="127.0.0.1", metavar="H", help="The address to listen on. [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, metavar="P", help="The port. [8080]")
@click.option("--processes", type=click.IntRange(min=1), default=1, metavar="N", help="How many share the port. [1]")
@click.option("--certfile", type=_FILE, metavar="FILE", help="Serve HTTPS with this certificate (PEM).")
@click.option("--keyfile", type=_FILE, metavar="FILE", help="Its key (PEM), if that is in another file.")
def serve(run: Invocation, /, **options: str | int | Path | None) -> None:
    """Tokens are checked with IM_WEB_KEY, a secret of 32 bytes or more, or with IM_WEB_PUBLIC_KEY. The page is at /,
    the protocol at /ws and /rpc. After Ctrl-C or SIGTERM what is in hand is finished, within 10 s. It needs the extra
    `imcore[web]`.
    """
    environment = environment_of(run.settings())
    arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
    output.flush()
    os.execve(sys.executable, command_of(*arguments), environment)  # noqa: S606 (our own program)


@command("token", example="im token ann\nim token backend --server --ttl 86400")
@click.argument("uid")
@click.option("--server", "is_server", is_flag=True, help="For a back end, which speaks for others.")
@click.option("--ttl", "ttl_s", type=_TTL_S, default=3600, metavar="S", help="How many seconds it lasts. [3600]")
def token(run: Invocation, uid: str, is_server: bool, ttl_s: int) -> None:
    """It is signed with IM_WEB_KEY. Whoever has it is UID to the server until it ends: keep it out of logs and URLs."""
    extra.require("im token")
    from imcore.web.auth import Tokens  # noqa: PLC0415 (what it needs may be missing)
    from imcore.web.settings import WebSettings  # noqa: PLC0415 (as above)

    made = Tokens(WebSettings.from_env()).issue(uid, ttl_s, is_server=is_server)
    if run.json:
        run.show([{"token": made}], ("token",))
    else:
        output.say(made)
