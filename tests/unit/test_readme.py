"""README.md tells the truth about what can be run."""

import re
from pathlib import Path

from imcore.cli.catalogue import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_block(heading: str) -> list[str]:
    """The lines of the first code block under a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def test_the_quick_start_is_one_line_and_ends_with_the_demo() -> None:
    [line] = first_block("Quick start")
    assert line.endswith("im demo")


def test_ci_calls_the_test_line_to_the_letter() -> None:
    [line] = first_block("Test")
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert line in map(str.strip, script.splitlines())


def test_short_commands_of_a_maintainer_are_the_parts_of_the_test_line() -> None:
    parts = first_block("Test")[0].split(" && ")
    commands = {name: (ROOT / ".ci" / name).read_text(encoding="utf-8") for name in ("setup", "test")}
    assert " && ".join(parts[:2]) in commands["setup"].splitlines()
    assert parts[2] in commands["test"].splitlines()


def test_every_command_is_shown() -> None:
    assert [name for name in COMMANDS if f"im {name}" not in README] == []


def test_the_procfile_runs_every_worker() -> None:
    lines = (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{name}: python -m imcore.workers {name}" for name in ("persist", "receipts", "jobs")]
