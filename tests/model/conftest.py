"""Fixtures of the tests by chance."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from imcore.sql.database import Database


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[], Path]:
    """Makes a folder with an empty database, each time: a copy, because migrations take their time."""
    template = tmp_path / "template.db"
    with Database.connect(f"sqlite:///{template}") as database:
        database.upgrade()
    numbers = count()

    def new() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        shutil.copy(template, folder / "imcore.db")
        return folder

    return new


@pytest.fixture
def new_database(new_folder: Callable[[], Path]) -> Callable[[], Database]:
    """Makes an empty database, each time."""
    return lambda: Database.connect(f"sqlite:///{new_folder() / 'imcore.db'}")
