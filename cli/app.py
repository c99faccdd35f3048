"""The command group `im`: it imports only the command that runs, and makes one line of every error."""

import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from imcore.cli import output
from imcore.cli.catalogue import COMMANDS, ENDED_BY_SIGNALS, EXAMPLE, PURPOSE, help_text
from imcore.cli.options import CommandGroup, let_signals_end, print_and_exit
from imcore.errors import ImError, InvalidInput


class Im(CommandGroup):
    """The group of the commands in `imcore.cli.catalogue`."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, _ = COMMANDS[cmd_name]
        module = importlib.import_module(f"imcore.cli.commands.{module_name}")
        if cmd_name not in ENDED_BY_SIGNALS:
            let_signals_end()
        command: click.Command = getattr(module, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name. Raise UsageError with a similar name for an unknown one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib  # noqa: PLC0415 (only a mistake needs it)

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            raise click.UsageError(f"there is no command {name!r}" + "".join(f"; is it {n!r}?" for n in near), ctx)
        return super().resolve_command(ctx, args)

    def get_help(self, _ctx: click.Context) -> str:
        """Return the text that `im --help` prints without importing click."""
        return help_text().rstrip()

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error is one line."""
        output.exit_with(lambda: self._run(_own_arguments() if args is None else args))

    def _run(self, args: Sequence[str]) -> int:
        try:
            # click returns the code of ctx.exit here; the commands themselves return nothing.
            code: int | None = super().main(args, prog_name="im", standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError as error:
            output.remark(*error.message.splitlines())
            return error.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "im"
            output.complain(f"{error.format_message().rstrip('.')} (see {path} --help)")
            return error.exit_code
        except click.Abort as error:
            if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
                return output.interrupted()
            raise ImError("nothing was done") from error
        return code or output.DONE


def _own_arguments() -> list[str]:
    """Return the arguments of this process decoded as UTF-8, whatever the locale says."""
    arguments = []
    for number, argument in enumerate(sys.argv[1:], 1):
        try:
            arguments.append(os.fsencode(argument).decode())
        except UnicodeDecodeError:
            raise InvalidInput(f"argument {number} is not valid UTF-8") from None
    return arguments


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib import metadata  # noqa: PLC0415 (it takes as long to import as click)

        print_and_exit(ctx, f"im {metadata.version('imcore')}")


app = Im(
    "im",
    example=EXAMPLE,
    help=PURPOSE,
    params=[click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_print_version)],
)
