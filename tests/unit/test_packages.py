"""One module has one name: commands and workers are imported as `imcore.cli` and `imcore.workers` only.

The folders `cli/` and `workers/` are linked into `imcore/`. In the repository a module could be loaded under a second
name, with a second set of classes. Where the product is installed, these two names belong to its user.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import sources
from tests.house.loaded import TAKEN, second_names

_IN_TEXT = re.compile(r"\b(import (cli|workers)|from (cli|workers)(\.\w+)* import|-m (cli|workers))\b")


@pytest.mark.parametrize("folder", ["imcore", "tests"])
def test_no_source_imports_cli_or_workers_by_their_own_names(folder: str) -> None:
    places = [
        f"{path.relative_to(sources.ROOT)}: {name}"
        for path in sources.files(folder, ".py")
        if path != Path(__file__)
        for name in _modules_named_in(path)
        if name.split(".")[0] in TAKEN
    ]
    assert places == []


def test_no_program_in_a_text_or_script_uses_these_names() -> None:
    texts = [
        sources.ROOT / "Procfile",
        *sources.ROOT.glob("*.md"),
        *sources.files(".ci", ""),
        *sources.files(".github", ".md"),
    ]
    texts += [*sources.files("imcore", ".py", ".md"), *sources.files("tests", ".py", ".md")]
    places = [path for path in texts if path != Path(__file__) and _IN_TEXT.search(path.read_text(encoding="utf-8"))]
    assert list(map(str, places)) == []


def test_no_module_of_this_process_has_two_names() -> None:
    assert second_names() == []  # the fixture in `tests/conftest.py` asks again when the session ends


@pytest.mark.parametrize("name", TAKEN)
def test_the_links_lead_to_the_folders_of_the_repository(name: str) -> None:
    link = sources.ROOT / "imcore" / name
    assert link.is_dir()
    if link.is_symlink():  # in a source distribution it is the folder itself
        assert str(link.readlink()) == f"../{name}"


def _modules_named_in(path: Path) -> Iterator[str]:
    """Yield what a source imports, and texts that look like the name of a module, as `importlib` and jobs take them."""
    for node in ast.walk(sources.syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+(\.\w+)+", str(node.value)):
            yield str(node.value)
