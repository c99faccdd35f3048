"""Bob's local database, held by a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.device.local_database import LocalDatabase, path_of


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalDatabase]:
    with LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True) as opened:
        yield opened
