"""Fixtures of the tests on real databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.sql.database import Database
from tests.helpers import apt
from tests.helpers.postgres import PostgresServer, require_postgres, running_postgres

collect_ignore = [program.tests for program in apt.missing()]


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
