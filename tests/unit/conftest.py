"""Fixtures of most unit tests: Redis is fakeredis, SQL a SQLite file of the test.

A file that needs other settings, partitions or a group to begin with overrides `settings`, `partitions` or `chat`, and
may take the fixture that it overrides.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fakeredis
import pytest

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System


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
def partitions() -> int:
    """How many partitions `client` has."""
    return 2


@pytest.fixture
def client(partitions: int) -> RedisClient:
    """A client of a new, empty server."""
    return RedisClient(fakeredis.FakeRedis(server=fakeredis.FakeServer()), partitions=partitions)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """fakeredis does not block, so nothing waits."""
    return replace(Settings.from_env({}, data_dir=str(tmp_path)), block_ms=0, retry_ms=0, receipt_window_ms=0)


@pytest.fixture
def chat(client: RedisClient, database: Database, settings: Settings) -> Iterator[Chat]:
    """A Chat without groups."""
    with Chat(System(client, database, settings)) as chat:
        chat.system.client.upgrade()
        yield chat
