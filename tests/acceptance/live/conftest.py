"""Fixtures of the tests of live sessions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.live_stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    stack.close()
