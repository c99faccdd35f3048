"""The command group `im`, and the parts of all commands: the shared options, and the way to the library.

It imports only the command that runs, and makes one line of every error.
"""

import importlib
import keyword
import math
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, cast

import click

from imcore.cli import output
from imcore.cli.catalogue import COMMANDS, ENDED_BY_SIGNALS, EXAMPLE, PURPOSE, SHARED_OPTIONS, help_text
from imcore.cli.records import readable, zone_trouble
from imcore.errors import ImError, InvalidInput, RefusedError
from imcore.model.records import Record
from imcore.settings import Settings

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.system import System

P = ParamSpec("P")

_WIDEST = 100
_CLICKS_WIDTH = 78
_GOES_ON = " " * 4
_QUOTED = re.compile(r"'[^']*'")


@dataclass(slots=True)
class Invocation:
    """One call of `im`, with the values of the shared options; the last of several counts."""

    overrides: dict[str, str] = field(default_factory=dict)
    json: bool = False
    local_time: bool = False

    def settings(self) -> Settings:
        """Return the settings of the environment and the options. Raise ConfigurationError for one that is invalid."""
        return Settings.from_env(None, **self.overrides)

    def connect(self) -> "System":
        """Return the system with these settings, to be closed; the library's warnings go to stderr."""
        from imcore.system import System  # noqa: PLC0415 (the help of a command need not wait for it)

        _show_warnings()
        return System.connect(settings=self.settings())

    def chat(self) -> "Chat":
        """Return a Chat with these settings, to be used in a `with`."""
        from imcore.chat import Chat  # noqa: PLC0415 (as above)

        return Chat(self.connect())

    def show(self, records: Iterable[Record], columns: Sequence[str]) -> None:
        """Write the records as JSON Lines, or these columns of them as a table."""
        output.show(records if self.json else map(self.readable, records), columns, as_json=self.json)

    def readable(self, record: Record) -> Record:
        """Return an object as people read it, with times as the options say."""
        return readable(record, local=self.local_time, short=output.is_terminal(sys.stdout))


def standard_input() -> BufferedIOBase:
    """Return stdin, as bytes. Raise InvalidInput if it is closed."""
    if sys.stdin is None:
        raise InvalidInput("stdin is closed: there is nothing to read")
    return cast("BufferedIOBase", sys.stdin.buffer)


class NumberRange(click.FloatRange):
    """A range of numbers. click's own accepts NaN in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class HelpFormatter(click.HelpFormatter):
    """On a narrow terminal long options get a line of their own."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, col_max if self.width >= _CLICKS_WIDTH else self.width // 3, col_spacing)


class Command(click.Command):
    """A command with the shared options, and with an example at the end of its help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"context_settings": {"help_option_names": ["-h", "--help"]}})
        self.example = example
        self.params += [
            click.Option(
                [flag],
                metavar=metavar,
                help=text,
                is_flag=metavar is None,
                default=None,
                expose_value=False,
                callback=_note,
            )
            for flag, metavar, text in SHARED_OPTIONS
        ]  # their values go to the Invocation

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option that prints the help in our own way: click's ignores a full disk."""
        option = super().get_help_option(ctx)
        if option:
            option.callback = _print_help
        return option

    def get_help(self, ctx: click.Context) -> str:
        is_terminal = output.is_terminal(sys.stdout)
        formatter = HelpFormatter(width=min(output.width(sys.stdout), _WIDEST) if is_terminal else None)
        self.format_help(ctx, formatter)
        return formatter.getvalue().rstrip("\n")

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example so that it can be copied: on a terminal each break has a backslash for the shell."""
        with formatter.section("Example"):
            indent = " " * formatter.current_indent
            for line in self.example.splitlines():
                parts = [line]
                if output.is_terminal(sys.stdout) and len(indent + line) > formatter.width:
                    whole = _QUOTED.sub(lambda match: match[0].replace(" ", "\0"), line)  # no break within quotes
                    width = formatter.width - len(f"{indent}{_GOES_ON} \\")
                    parts = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
                formatter.write(indent + f" \\\n{indent}{_GOES_ON}".join(parts).replace("\0", " ") + "\n")


class CommandGroup(Command, click.Group):
    """A group of commands with the shared options."""


def command(
    name: str, *, example: str, of: click.Group | None = None
) -> Callable[[Callable[Concatenate[Invocation, P], None]], Command]:
    """Make a function a command of `im`, or of the group `of`; its first argument is the Invocation.

    Its docstring is the help; that of a command of `im` begins with the line in the catalogue.
    """

    def decorate(function: Callable[Concatenate[Invocation, P], None]) -> Command:
        # click keeps the options below the decorator on the function.
        passing = click.make_pass_decorator(Invocation, ensure=True)(function)
        text = cleandoc(function.__doc__ or "")
        if of is None:
            text = f"{COMMANDS[name][1]}\n\n{text}"
        short = f"{text.partition('.')[0]}."  # whole: click cuts what it shortens itself
        made = click.command(name, cls=Command, example=example, help=text, short_help=short)(passing)
        if of is not None:
            of.add_command(made)
        return made

    return decorate


def confirm(question: str, *, yes: bool) -> None:
    """Ask before data is destroyed. Raise RefusedError without a terminal, click.Abort if the answer is no.

    The question goes to stderr, which must be a terminal, too, or nobody sees it.
    """
    if yes:
        return
    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
        raise RefusedError(f"{question} There is no terminal to ask on: repeat it with --yes if it is meant")
    click.confirm(output.safe(question), abort=True, err=True)


def chosen(values: Iterable[str], choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what NAME=VALUE arguments choose, by name. Raise UsageError for another name or value."""
    known = ", ".join(f"{name}={'|'.join(possible)}" for name, possible in choices.items())
    named: dict[str, str] = {}
    for each in values:
        name, _, value = each.partition("=")
        if name not in choices or value not in choices[name]:
            raise click.UsageError(f"{each!r} cannot be set: give {known}")
        if named.setdefault(name, value) != value:
            raise click.UsageError(f"{name} is set twice: give one of {named[name]} and {value}")
    return named


def let_signals_end() -> None:
    """Let those signals end the process that `imcore.cli.main` holds back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def print_and_exit(ctx: click.Context, *lines: str) -> NoReturn:
    """Print help or the like, and run no command."""
    let_signals_end()
    output.say(*lines)
    ctx.exit()


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def _show_warnings() -> None:
    import logging  # noqa: PLC0415 (as for Chat)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.complain(record.getMessage())

    logging.basicConfig(level=logging.WARNING, handlers=[Lines()])


def _print_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print_and_exit(ctx, *output.fitted(sys.stdout, *ctx.get_help().splitlines()))


def _note(ctx: click.Context, param: click.Parameter, value: str | bool | None) -> None:
    invocation = ctx.ensure_object(Invocation)
    if isinstance(value, str):
        invocation.overrides[str(param.name)] = value
    elif value and param.name == "json":
        invocation.json = True
    elif value:
        invocation.local_time = True
        if trouble := zone_trouble():
            output.complain(trouble)


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
