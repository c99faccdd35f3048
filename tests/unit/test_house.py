"""The house stays within its bounds. `python -m tests.house --why` prints each figure and what is behind it."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers.servers import require_server
from tests.house.figures import BOUNDS
from tests.house.sources import ROOT


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    """What the command measures, by name."""
    require_server()
    command = [sys.executable, "-m", "tests.house", "--json"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    return {figure["name"]: figure for figure in json.loads(answer.stdout)}


def test_every_bound_is_measured(figures: dict[str, dict[str, Any]]) -> None:
    assert figures.keys() == BOUNDS.keys()


@pytest.mark.parametrize("name", BOUNDS)
def test_the_house_keeps_its_bound(figures: dict[str, dict[str, Any]], name: str) -> None:
    figure = figures[name]
    assert figure["value"] <= BOUNDS[name], "\n".join(figure["because"])
