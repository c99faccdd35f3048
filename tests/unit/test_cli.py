"""The frame of the command line: help, shared options, exit codes, one line for every error."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import click
import pytest

from imcore.cli.app import Invocation, app, confirm
from imcore.cli.catalogue import COMMANDS, SHARED_OPTIONS, help_text
from imcore.errors import ImError, RedisUnavailable
from tests.helpers.cli import im


def all_commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", each) for sub, each in command.commands.items())


def names() -> list[str]:
    return [name for name, _ in all_commands()]


def test_the_catalogue_has_the_short_help_of_the_commands() -> None:
    for name, command in all_commands():
        if name in COMMANDS:
            assert command.name == name
            assert command.get_short_help_str(limit=200) == COMMANDS[name][1]


def test_the_help_names_every_command_and_option() -> None:
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", help_text(), re.MULTILINE)
    for parameter in app.params:
        assert parameter.opts[0] in help_text()
    assert max(map(len, help_text().splitlines())) <= 100


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", names())
def test_every_command_has_help_with_an_example(name: str, flag: str) -> None:
    result = im(*name.split(), flag)

    assert result.exit_code == 0
    example = result.stdout.split("\nExample:\n")[1]
    assert re.match(rf"  .*\bim {name}( |\n)", example)
    assert all(option in result.stdout for option, *_ in SHARED_OPTIONS)


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_help_breaks_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    whole = {name: im(*name.split(), "--help").stdout for name in ["", *names()]}
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, text in whole.items():
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            with pytest.raises(SystemExit):
                app.main([*name.split(), "--help"])
        shown = terminal.getvalue()

        assert max(map(len, shown.splitlines())) <= columns
        # A line of an example that is broken ends with a backslash; a word is broken at a hyphen, or if it is too long
        assert _words(re.sub(r" \\\n +", " ", shown)) == _words(text) or max(map(len, text.split())) > columns - 4
        assert "".join(re.sub(r" \\\n +", " ", shown).split()) == "".join(text.split())


def _words(text: str) -> list[str]:
    return re.sub(r"(?<=\w-)\n +", "", text).split()


_IMPORTED_BY_HELP = """
import sys
from imcore.cli.app import app
from imcore.cli.catalogue import COMMANDS
for name in COMMANDS:
    try:
        app.main([name, "--help"])
    except SystemExit:
        print(name, *{"redis", "sqlalchemy", "rich", "rq"}.intersection(sys.modules), file=sys.stderr)
"""


def test_no_help_waits_for_the_drivers() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTED_BY_HELP], capture_output=True, text=True, check=True)

    assert done.stdout.count("Usage: im") == len(COMMANDS)
    assert done.stderr.splitlines() == list(COMMANDS)


@pytest.mark.parametrize("name", names())
def test_every_example_is_valid(name: str) -> None:
    command = dict(all_commands())[name]
    example = re.findall(r"\bim (.*?)(?: (?:&&|\|).*)?$", command.example, re.MULTILINE)  # type: ignore[attr-defined]

    assert example
    if not isinstance(command, click.Group):
        for line in example:
            arguments = line.removeprefix(f"{name} ").removeprefix(name)
            command.make_context(name, re.findall(r"'[^']*'|\S+", arguments))


def test_help_of_the_whole_is_the_same_with_and_without_click() -> None:
    assert im("--help").stdout == help_text()
    assert im("--json", "-h").stdout == help_text()


def test_without_a_command_the_help_goes_to_stderr_and_the_code_is_2() -> None:
    result = im()

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == help_text()


def test_version() -> None:
    assert re.fullmatch(r"im \d+\.\d+.*\n", im("--version").stdout)


@pytest.mark.parametrize(
    ("args", "why", "where"),
    [
        (["snd", "team"], "there is no command 'snd'; is it 'send'?", "im"),
        (["\x1b[2J"], "there is no command '\\x1b[2J'", "im"),
        (["send", "team"], "'TEXT'", "im send"),
        (["--nonsense"], "--nonsense", "im"),
        (["pull", "ann", "--limit", "0"], "'--limit': 0 is not in the range", "im pull"),
        (["pull", "ann", "--limit", "\x1b[2J\n"], "'--limit': ", "im pull"),
        (["group", "add", "team"], "'UID...'", "im group add"),
        (["worker", "nobody"], "'nobody' is not one of 'persist', 'receipts', 'jobs'", "im worker"),
    ],
)
def test_wrong_usage_is_one_line_and_2(args: list[str], why: str, where: str) -> None:
    result = im(*args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("im: ")
    assert why in result.stderr
    assert result.stderr.endswith(f" (see {where} --help)\n")
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Let `im ack` call each thing in the list."""
    todo: list[object] = []

    def connect(self: Invocation) -> object:
        for each in todo:
            assert callable(each)
            each(self)
        raise ImError("end of the test")

    monkeypatch.setattr(Invocation, "connect", connect)
    return todo  # type: ignore[return-value]


def raising(error: BaseException) -> object:
    def throw(_: Invocation) -> None:
        raise error

    return throw


def test_a_domain_error_is_one_safe_line_without_passwords_and_1(probe: list[object]) -> None:
    probe.append(raising(RedisUnavailable("no answer\nfrom redis://ann:p@ss/w@host:1/0?password=x\x1b[31m")))

    result = im("ack", "bob", "team")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "im: no answer from redis://ann:***@host:1/0?password=***\n"


def test_an_interrupt_is_130_without_a_traceback(probe: list[object]) -> None:
    probe.append(raising(KeyboardInterrupt()))

    result = im("ack", "bob", "team")

    assert (result.exit_code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


def test_shared_options_count_before_and_after_the_name_and_the_later_wins(probe: list[object]) -> None:
    seen: list[Invocation] = []
    probe.append(seen.append)

    im("--redis-url", "redis://one", "--json", "ack", "bob", "team", "--data-dir", "/tmp/x")
    im("--redis-url", "redis://one", "ack", "bob", "--redis-url", "redis://two", "team")
    im("group", "--database-url", "sqlite:///x", "list", "--json")

    assert [run.overrides for run in seen] == [
        {"redis_url": "redis://one", "data_dir": "/tmp/x"},
        {"redis_url": "redis://two"},
        {"database_url": "sqlite:///x"},
    ]
    assert [run.json for run in seen] == [True, False, True]


def test_an_option_beats_the_environment(probe: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []
    probe.append(lambda run: urls.append(run.settings().redis_url))
    monkeypatch.setenv("IM_REDIS_URL", "redis://environment")

    im("ack", "bob", "team")
    im("ack", "bob", "team", "--redis-url", "redis://option")

    assert urls == ["redis://environment", "redis://option"]


def test_confirm_needs_yes_where_there_is_no_terminal() -> None:
    result = im("group", "remove", "team", "bob", stdin="y\n")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "im: Remove bob from team? There is no terminal to ask on: repeat it with --yes if it is meant\n"
    )


def test_confirm_asks_on_a_terminal(probe: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.cli.output.is_terminal", lambda _: True)

    refused = im("group", "remove", "team", "b\x1b[31mob", stdin="n\n")
    agreed = im("group", "remove", "team", "bob", stdin="y\n")

    assert refused.exit_code == 1
    assert refused.stderr.startswith("Remove b␛[31mob from team? [y/N]:")
    assert refused.stderr.endswith("im: nothing was done\n")
    assert agreed.stderr.endswith("im: end of the test\n")


def test_confirm_is_silent_with_yes() -> None:
    confirm("Sure?", yes=True)


def process(*args: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "imcore.cli.main", *args],
        capture_output=True,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        check=False,
    )


@pytest.mark.parametrize("args", [["up", "--help"], ["listen", "-h"], ["--version", "worker"]], ids=" ".join)
def test_a_signal_ends_the_wait_for_the_reader_of_a_help(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Given signals that are held back until a command runs
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    held: list[set[signal.Signals | int]] = []
    monkeypatch.setattr("imcore.cli.output.say", lambda *_: held.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    # When
    try:
        im(*args)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Then no signal is held back while the help is printed
    assert held == [before]


@pytest.mark.parametrize("arguments", [["--help"], ["send", "--help"]])
def test_a_help_for_a_closed_stdout_is_an_error(arguments: list[str]) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "imcore.cli.main", *arguments],
        stderr=subprocess.PIPE,
        check=False,
    )

    assert (result.returncode, result.stderr) == (1, b"im: the output could not be written: stdout is closed\n")


@pytest.mark.parametrize(
    "program",
    [["imcore.cli.main", "--help"], ["imcore.cli.main", "ack", "-h"], ["imcore.workers", "--help"]],
    ids=" ".join,
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_help_on_a_disk_that_fills_up_is_an_error(program: list[str], unbuffered: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(500))
        file.flush()
        result = subprocess.run(
            ["/bin/sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-m", *program],
            stdout=file,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )

    assert result.returncode == 1
    assert re.fullmatch(rb"im.*: the output could not be written: File too large\n", result.stderr)


def test_help_does_not_import_click() -> None:
    script = (
        "import sys; sys.argv = ['im', '--help']; from imcore.cli import main; main.main(); "
        "sys.exit('click' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)

    assert (result.returncode, result.stdout.decode()) == (0, help_text())


def test_nothing_is_imported_before_an_interrupt_can_be_told() -> None:
    script = (
        "import sys, os; before = set(sys.modules); import imcore.cli.main; print(*sorted({*sys.modules} - before))"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert result.stdout.split() == [b"imcore", b"imcore.cli", b"imcore.cli.main"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check"], ["check", "--redis-url", "redis://h"], ["up"]], ids=" ".join
)
@pytest.mark.parametrize(
    "module", ["imcore.cli.catalogue", "imcore.cli.output", "imcore.cli.app", "click", "imcore.util.best_effort"]
)
def test_an_interrupt_of_any_import_is_one_line(module: str, arguments: list[str]) -> None:
    script = f"""
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
sys.argv = ["im", *{arguments!r}]
import imcore.cli.main
imcore.cli.main.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "IM_REDIS_URL": "redis://127.0.0.1:1"},
        check=False,
    )

    if arguments != ["--help"] or module == "imcore.cli.catalogue":  # which imports no more
        assert (result.returncode, result.stderr) == (130, b"im: interrupted\n")


def test_an_argument_that_is_not_utf8() -> None:
    result = process("send", "team", b"\xff", "--from", "ann")

    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"im: argument 3 is not valid UTF-8\n"


@pytest.mark.parametrize("arguments", [["--help"], ["send", "--help"]])
def test_output_that_cannot_be_written_is_an_error(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "imcore.cli.main", *arguments], stdout=full, stderr=subprocess.PIPE, check=False
        )

    assert result.returncode == 1
    assert result.stderr == b"im: the output could not be written: No space left on device\n"
