"""What most unit tests stand on: Redis is fakeredis, SQL a SQLite file of the test's own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest

from imcore.sql.database import Database
from imcore.streams.client import RedisClient


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables and no rows: copying it is quicker than making them."""
    path = tmp_path_factory.mktemp("template") / "empty.db"
    with Database.connect(f"sqlite:///{path}") as database:
        database.upgrade()
    return path


@pytest.fixture
def database(_empty_database: Path, tmp_path: Path) -> Iterator[Database]:
    """A new database, in the file `imcore.db` of the test's folder."""
    shutil.copy(_empty_database, tmp_path / "imcore.db")
    with Database.connect(f"sqlite:///{tmp_path / 'imcore.db'}") as database:
        yield database


@pytest.fixture
def client() -> RedisClient:
    """A client of a new, empty server that has two partitions."""
    return RedisClient(fakeredis.FakeRedis(server=fakeredis.FakeServer()), partitions=2)
