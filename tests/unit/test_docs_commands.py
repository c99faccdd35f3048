"""Every command that the documentation shows can be given as it is shown there."""

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest

from imcore.cli.app import app
from imcore.cli.catalogue import COMMANDS, SHARED_OPTIONS
from tests.helpers.documents import README, Document, documents
from tests.house.sources import ROOT

_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")


def parsed(words: list[str]) -> click.Context:
    """Return how click understands the arguments of `im`. Raise click.UsageError for a command that cannot be given."""
    command: click.Command = app
    context = click.Context(app, info_name="im")
    words = list(words)
    while isinstance(command, click.Group) and words and words != ["--help"]:
        name = words.pop(0)
        inner = command.get_command(context, name)
        if inner is None:
            raise click.UsageError(f"no command {name!r}", context)
        command, context = inner, click.Context(inner, parent=context, info_name=name)
    if isinstance(command, click.Group):
        return context
    return command.make_context(command.name, words, parent=context.parent)


def commands_shown(document: Document) -> list[str]:
    """Return the `im` commands of a document's code blocks, without their comments."""
    lines = [line for block in document.blocks_in("sh", "console") for line in block.lines]
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("im ")]


def shown() -> Iterator[tuple[str, str]]:
    for document in documents():
        yield from ((document.name, line) for line in commands_shown(document))


@pytest.mark.parametrize(("document", "line"), list(shown()))
def test_every_command_of_a_block_can_be_given(document: str, line: str) -> None:
    parsed(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_command_within_a_line_is_one_of_im(document: Document) -> None:
    wrong = {}
    for code in document.code:
        if code.startswith("im "):
            words = [word for word in shlex.split(code.split(" | ")[0])[1:] if not _PLACEHOLDER.fullmatch(word)]
            try:
                parsed(words)
            except click.MissingParameter:
                pass  # it is named, not shown
            except click.UsageError as error:
                wrong[code] = error.format_message()
    assert wrong == {}


def test_every_line_of_a_shell_block_is_covered_by_a_test() -> None:
    known = ("im *", "python3 -m venv *", ".ci/setup", ".ci/lint", ".ci/test*", ".venv/bin/pytest *")
    lines = [
        (document.name, line)
        for document in documents()
        for block in document.blocks_in("sh", "console")
        for line in block.lines
    ]
    assert [each for each in lines if not any(fnmatch(each[1].removeprefix("$ "), form) for form in known)] == []


def test_every_block_is_of_a_language_that_a_test_reads() -> None:
    """Blocks of no language are pictures."""
    assert {block.language for document in documents() for block in document.blocks} <= {"", "sh", "console", "python"}
    assert [document.name for document in documents() for _ in document.blocks_in("python")] == [
        "README.md",
        "imcore/gateway/README.md",
        "imcore/web/README.md",
    ]  # run by tests/integration/test_docs_python.py, gateway/test_example.py and web/test_mounted.py


def all_commands() -> dict[str, click.Command]:
    context = click.Context(app)
    return {name: command for name in COMMANDS if (command := app.get_command(context, name))}


def test_the_table_has_every_command_with_its_parts() -> None:
    table = " ".join(cell for row in README.table("for") for cell in row[1:])
    entries = re.findall(r"`im (\w+)(?: ([a-z]+))?(?: [A-Z]+)?`([a-z, ]*)", table)
    parts = {name: set(re.findall("[a-z]+", f"{part} {more}")) for name, part, more in entries}
    groups = {name: command for name, command in all_commands().items() if isinstance(command, click.Group)}
    assert parts == {name: set(groups[name].commands) if name in groups else set() for name in COMMANDS}


def test_every_option_is_one_of_a_command() -> None:
    options = {"--help", "--version"} | {flag for flag, *_ in SHARED_OPTIONS}
    for command in all_commands().values():
        described = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        options |= {option for one in described for parameter in one.params for option in parameter.opts}
    named = {word for document in documents() for code in document.code for word in code.split() if word[:2] == "--"}
    assert named - options == set()


def test_the_quick_start_is_one_line_and_ends_with_the_demo() -> None:
    [line] = README.blocks_in("sh")[0].lines
    assert line == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/im demo"


def the_test_line() -> str:
    [line] = README.blocks_in("sh")[-1].lines
    return line


def test_ci_calls_the_test_line_to_the_letter() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert the_test_line() in map(str.strip, script.splitlines())


@pytest.mark.parametrize("name", ["README.md", "tests/README.md"])
def test_the_test_line_is_the_same_wherever_it_is_shown(name: str) -> None:
    section = [block.text for block in Document(name).blocks_in("sh") if "pytest" in block.text]
    assert section == [f"{the_test_line()}\n"]


def test_short_commands_of_a_maintainer_are_the_parts_of_the_test_line() -> None:
    parts = the_test_line().split(" && ")
    commands = {name: (ROOT / ".ci" / name).read_text(encoding="utf-8") for name in ("setup", "test")}
    assert " && ".join(parts[:2]) in commands["setup"].splitlines()
    assert parts[2] in commands["test"].splitlines()


def test_lint_runs_what_contributing_says() -> None:
    contributing = Document(".github/CONTRIBUTING.md").words
    assert "`.ci/lint` runs ruff (format and lint), mypy strict, and import-linter's contracts" in contributing
    lines = (ROOT / ".ci/lint").read_text(encoding="utf-8").splitlines()
    run = [line.split()[:2] for line in lines if line.startswith(".venv/bin/")]
    assert [[program.removeprefix(".venv/bin/"), *arguments] for program, *arguments in run] == [
        ["ruff", "format"],
        ["ruff", "check"],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ]
    assert "\nstrict = true\n" in (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.mypy]", 1)[1]


def test_a_commit_runs_what_lint_runs() -> None:
    assert "With `pre-commit install` each commit is linted" in Document(".github/CONTRIBUTING.md").words
    hooks = re.findall(r"entry: (\S+ ?\S*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    lint = (ROOT / ".ci/lint").read_text(encoding="utf-8")
    assert [" ".join(line.split()[:2]) for line in lint.splitlines() if line.startswith(".venv/bin/")] == hooks


def test_ci_does_what_contributing_says_of_a_release() -> None:
    assert "`.ci/run` must pass in a fresh clone" in Document(".github/CONTRIBUTING.md").words
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "\n.ci/lint\n" in script


@pytest.mark.parametrize("name", ["run", "setup", "lint", "test"])
def test_short_commands_can_be_run(name: str) -> None:
    assert (ROOT / ".ci" / name).stat().st_mode & 0o111 == 0o111


def pytest_commands() -> list[str]:
    """Return the pytest commands that the documentation names, but for those that run everything."""
    in_blocks = [line for document in documents() for block in document.blocks_in("sh") for line in block.lines]
    within = [re.sub(r"^IM_\w+=\S+ ", "", code) for document in documents() for code in document.code]
    return [line.removeprefix(".venv/bin/") for line in in_blocks + within if re.match(r"(\.venv/bin/)?pytest ", line)]


def files_run_by(line: str) -> list[Path]:
    """Return the test files that a pytest command names, without those in which `-k` selects nothing."""
    words = shlex.split(line)[1:]
    [place] = [ROOT / word for word in words if "/" in word]
    paths = [place] if place.is_file() else sorted(place.rglob("test_*.py"))
    filter_text = words[words.index("-k") + 1] if "-k" in words else ""
    tests = {path: [path.name, *re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))] for path in paths}
    return [path for path, names in tests.items() if any(filter_text in name for name in names)]


@pytest.mark.parametrize("line", pytest_commands())
def test_every_pytest_command_has_something_to_run(line: str) -> None:
    assert files_run_by(line)


@pytest.mark.parametrize(
    ("variable", "line"), [(row[0], row[2]) for row in Document("tests/README.md").table("variable")]
)
def test_every_long_form_runs_tests_that_read_its_variable(variable: str, line: str) -> None:
    name = variable.strip("`").partition("=")[0]
    run = files_run_by(line.strip("`"))
    helpers = {path for folder in {path.parent for path in run} for path in folder.glob("[!t]*.py")}
    assert [path for path in (*run, *helpers) if name in path.read_text(encoding="utf-8")]


def test_the_procfile_runs_every_worker_and_the_gateway() -> None:
    lines = (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    workers = [f"{name}: python -m imcore.workers {name}" for name in ("persist", "receipts", "jobs")]
    assert lines == [*workers, "web: python -m imcore.web"]
