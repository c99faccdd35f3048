"""Every command of `im` with random arguments: exit code 0, 1 or 2, one clean line on stderr, no change on error.

`IM_FUZZ_EXAMPLES` says how many examples, as in test_fuzz.py.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import click
import fakeredis
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from imcore import Chat
from imcore.cli.app import app
from imcore.cli.output import safe
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.model.examples import fuzzed
from tests.model.fingerprint import fingerprint
from tests.model.mischief import GIDS, MSGIDS, ODD, UIDS

STARTS_PROCESSES = {"up", "serve", "worker", "demo", "bench"}
"""These are given one argument too many: what they start is no matter of arguments."""

GOES_ON = {"import", "dead requeue", "dead drop", "pull"}
"""These do what can be done before they fail: valid lines, letters that are there, groups that were printed."""

NEEDS_MORE = {"rebuild", "--repair"}
"""What fakeredis cannot do ends these half-way."""

SHOWN = "[red]x[/red] [/]"
"""What rich would read as markup, and complain of."""

words = st.sampled_from((*ODD, "-", "--", "-x", "--no-such-option", "--limit", "-h")) | st.text(max_size=10)
numbers = st.sampled_from(["0", "1", "3", "-1", "99999999999999999999", "1e309", "nan", "x", ""])
contents = st.sampled_from(["hi", SHOWN, "\x1b[2J", "{0} %s"]) | words


def mostly(*good: str) -> st.SearchStrategy[str]:
    """One of these, and now and then anything."""
    return st.sampled_from([*good * (6 // len(good) + 1), None]).flatmap(
        lambda word: words if word is None else st.just(word)
    )


ARGUMENTS: dict[str, st.SearchStrategy[str]] = {
    "gid": mostly(*GIDS[:2]),
    "uid": mostly(*UIDS),
    "uids": mostly(*UIDS),
    "text": contents,
    "msgid": mostly("KNOWN") | st.sampled_from(MSGIDS),
    "dead_id": mostly("0:1767225600000-0") | st.sampled_from(MSGIDS),
    "dead_ids": mostly("0:1767225600000-0") | st.sampled_from(MSGIDS),
    "file": mostly("-") | st.just("/no/such/file"),
    "roles": mostly("worker", "gateway", "reader"),
    "name": words,
    "values": mostly("receipts=off", "receipts=names", "asked-by=members"),
}
"""By the argument's name in the command."""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command, and every command of a group of them, by what is typed."""
    context = click.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", each) for sub, each in command.commands.items())
        else:
            yield name, command


COMMANDS = dict(commands())


def option(parameter: click.Option) -> st.SearchStrategy[list[str]]:
    """An option with a value, or without one where it is a flag."""
    flag = parameter.opts[-1]
    if parameter.is_flag:
        return st.just([flag])
    values = ARGUMENTS["uid"] if "uid" in str(parameter.name) else numbers if parameter.metavar != "ID" else words
    return values.map(lambda value: [flag, value])


def arguments(name: str) -> st.SearchStrategy[list[str]]:
    """What is typed after a command's name: its arguments, some options, and now and then anything else."""
    parameters = COMMANDS[name].params
    given = [
        ARGUMENTS[str(each.name)].map(lambda argument: [argument])
        for each in parameters
        if isinstance(each, click.Argument)
    ]
    options = [each for each in parameters if isinstance(each, click.Option) and "URL" not in str(each.metavar)]
    options = [each for each in options if each.name not in {"data_dir", "help"} and each.metavar != "FILE"]
    must = [option(each) for each in options if each.required or each.name == "sender_uid"]
    may = st.lists(st.one_of([option(each) for each in options]), max_size=2).map(lambda many: [*chain(*many)])
    more = st.sampled_from([False] * 7 + [True]).flatmap(
        lambda odd: st.lists(words, min_size=1) if odd else st.just([])
    )
    return st.tuples(*given, *must, may, more).map(lambda parts: [word for part in parts for word in part])


class Stopping:
    """The signals of a live session that was asked to stop after its first look."""

    def __init__(self) -> None:
        self._looks = iter([False, True])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def defer(self) -> None:
        pass

    @property
    def stopping(self) -> bool:
        return next(self._looks)


@dataclass(frozen=True)
class World:
    """A Chat with something in it, which commands open anew."""

    open_chat: Callable[[], Chat]
    folder: Path
    msgid: str

    def look(self, chat: Chat) -> Any:
        return fingerprint(chat, self.folder / "imcore.db")

    def im(self, *words: str, stdin: bytes = b"") -> Result:
        stop = patch("imcore.cli.commands.live.StopSignals", Stopping)
        with patch("imcore.cli.app.Invocation.chat", lambda _: self.open_chat()), stop:
            return CliRunner(env={"IM_DATA_DIR": str(self.folder)}).invoke(app, words, input=stdin)


def world(folder: Path) -> World:
    server = fakeredis.FakeServer()
    settings = replace(Settings.from_env({}, data_dir=str(folder)), partitions=2)

    def open_chat() -> Chat:
        database = Database.connect(f"sqlite:///{folder / 'imcore.db'}")
        return Chat(System(RedisClient(fakeredis.FakeRedis(server=server), partitions=2), database, settings))

    with open_chat() as chat:
        chat.create_group(GIDS[0], UIDS)
        chat.create_group(GIDS[1], UIDS[:1])
        return World(open_chat, folder, chat.send(GIDS[0], SHOWN, sender_uid=UIDS[0]).msgid)


@contextmanager
def terminal(is_one: bool) -> Iterator[None]:
    """Let a person look at stdout, or a program; nobody is there to be asked."""
    with patch("imcore.cli.output.is_terminal", lambda stream: is_one and stream is sys.stdout):
        yield


def check_clean(result: Result) -> None:
    """No traceback, nothing that acts on a terminal, and one line for an error."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in {0, 1, 2}
    for line in (result.stdout + result.stderr).split("\n"):
        assert all(safe(cell) == cell for cell in line.split("\t")), line
    assert "Traceback" not in result.stderr


def check_stderr(name: str, result: Result) -> None:
    lines = result.stderr.split("\n")[:-1]
    if result.exit_code and name != "import":
        assert len(lines) == 1, lines
    assert all("im: " in line or ": im " in line for line in lines), lines  # the latter is a hint how to go on


@pytest.mark.parametrize("name", COMMANDS)
def test_random_arguments(name: str, new_folder: Callable[[], Path]) -> None:
    @fuzzed(12)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        sandbox = world(new_folder())
        words = [sandbox.msgid if word == "KNOWN" else word for word in data.draw(arguments(name))]
        words += ["one too many", "and another"] if name in STARTS_PROCESSES else []
        with sandbox.open_chat() as chat, terminal(data.draw(st.booleans(), "terminal")):
            before = sandbox.look(chat)
            as_json = ["--json"] * data.draw(st.booleans(), "JSON")
            result = sandbox.im(
                *as_json, *name.split(), *words, stdin=data.draw(st.sampled_from([b"y\n", b"", b"\xff", b"{}\n"]))
            )
            check_clean(result)
            check_stderr(name, result)
            if as_json and not result.exit_code and not result.stdout.startswith("Usage: "):
                assert all(isinstance(json.loads(line), dict) for line in result.stdout.splitlines())
            if result.exit_code and name not in GOES_ON and not NEEDS_MORE.intersection([name, *words]):
                assert sandbox.look(chat) == before

    fuzz()


@pytest.mark.parametrize("words", [["send", GIDS[0], SHOWN, "--from", UIDS[0]], ["pull", UIDS[1]], ["status", GIDS[0]]])
def test_markup_is_shown_as_it_is(words: list[str], new_folder: Callable[[], Path]) -> None:
    sandbox = world(new_folder())

    with terminal(True):
        result = sandbox.im(*words)

    assert result.exit_code == 0
    assert SHOWN.replace(" ", "") in "".join(result.stdout.split())
