"""Fixtures of the tests on real servers and databases.

`chat` and `other` are two processes' connections with the same `settings`. A file that needs other settings, another
server or a group to begin with overrides `settings`, `redis_url` or `chat`, and may take the fixture that it overrides.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from tests.helpers import apt
from tests.helpers.postgres import PostgresServer, require_postgres, running_postgres

collect_ignore_glob = [program.tests for program in apt.missing()]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests."""
    require_postgres()
    with running_postgres() as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'imcore.db'}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a PostgreSQL database without tables."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, of each kind."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with tables, of each kind."""
    with Database.connect(database_url) as database:
        database.upgrade()
        yield database


@pytest.fixture
def redis_url(valkey: str) -> str:
    """The URL of the Redis that `settings` name."""
    return valkey


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings.from_env({}, redis_url=redis_url, data_dir=str(tmp_path))


@pytest.fixture
def chat(settings: Settings) -> Iterator[Chat]:
    with Chat.connect(settings=settings) as chat:
        yield chat


@pytest.fixture
def other(settings: Settings) -> Iterator[Chat]:
    """Another process's connection."""
    with Chat.connect(settings=settings) as other:
        yield other
