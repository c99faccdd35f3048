"""A path or URL is checked before it is used: one that cannot hold the data is refused in one line that says why."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from imcore.device.local_database import LocalDatabase
from imcore.errors import ConfigurationError, DatabaseUnavailable, ImError, LocalDatabaseError
from imcore.model.rows import Batch, GroupRow
from imcore.settings import Settings
from imcore.sql import postgres_checks, sqlite_file
from imcore.sql.database import Database
from tests.helpers.postgres import PostgresServer, require_postgres
from tests.helpers.processes import WorkerProcess

BATCH = Batch(groups=[GroupRow("g", 1)])
NOBODY = 65_534
USES: dict[str, Callable[[Database], object]] = {
    "upgrade": lambda database: database.upgrade(),
    "write": lambda database: database.write(BATCH),
    "read": lambda database: database.messages_after("g", 0),
    "check": lambda database: database.check_version(),
    "begin": lambda database: database.refuse_newer(),
}


def refusal(action: Callable[[], object], kind: type[ImError] = ConfigurationError) -> str:
    """Return the one line with which an action is refused."""
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestPostgres:
    @pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
    @pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
    def test_a_database_with_another_encoding_is_refused(
        self, postgres_server: PostgresServer, encoding: str, use: Callable[[Database], object]
    ) -> None:
        url = postgres_server.new_database(f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        with Database.connect(url) as database:
            said = refusal(lambda: use(database))

        assert f"has the encoding {encoding}, and imcore needs UTF8" in said
        assert "CREATE DATABASE name ENCODING 'UTF8'" in said
        postgres_server.drop_database(url)

    @pytest.mark.parametrize("name", ["persist", "receipts", "jobs"])
    def test_no_worker_starts_with_another_encoding(
        self, postgres_server: PostgresServer, valkey: str, tmp_path: Path, name: str
    ) -> None:
        url = postgres_server.new_database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        with WorkerProcess(tmp_path, name, redis_url=valkey, database_url=url) as worker:
            assert worker.wait() == 1
            assert "imcore needs UTF8" in worker.log.splitlines()[-1]
            assert "Traceback" not in worker.log
        postgres_server.drop_database(url)

    @pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
    def test_a_postgresql_server_that_is_too_old_is_refused(
        self, postgres_url: str, monkeypatch: pytest.MonkeyPatch, use: Callable[[Database], object]
    ) -> None:
        monkeypatch.setattr(postgres_checks, "OLDEST", 990_000)
        with Database.connect(postgres_url) as database:
            assert "imcore needs 99 or newer" in refusal(lambda: use(database))


class TestRights:
    @pytest.fixture
    def url(self, postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
        """The database, for a role that may do nothing yet."""
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("CREATE ROLE app LOGIN")
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            yield postgres_url.replace("postgres@", "app@")
            connection.execute("DROP OWNED BY app")
            connection.execute("DROP ROLE app")

    @staticmethod
    def grant(url: str, *statements: str) -> None:
        with psycopg.connect(url, autocommit=True) as owner:
            for statement in statements:
                owner.execute(statement.encode())

    def test_a_role_without_a_right_on_the_schema_is_refused(self, url: str) -> None:
        with Database.connect(url) as database:
            assert "GRANT USAGE, CREATE ON SCHEMA name TO app" in refusal(database.upgrade)

    def test_a_role_that_may_not_create_tables_is_refused(self, url: str, postgres_url: str) -> None:
        self.grant(postgres_url, "GRANT USAGE ON SCHEMA public TO app")
        with Database.connect(url) as database:
            assert "GRANT CREATE ON SCHEMA public TO app" in refusal(database.upgrade)

            # A GRANT works at once, in the same process too
            self.grant(postgres_url, "GRANT CREATE ON SCHEMA public TO app")
            database.upgrade()
            database.write(BATCH)

    def test_a_role_with_too_few_rights_on_tables_is_refused(self, url: str, postgres_url: str) -> None:
        # Given tables of their owner, which a role may read
        with Database.connect(postgres_url) as owner:
            owner.upgrade()
        self.grant(
            postgres_url,
            "GRANT USAGE ON SCHEMA public TO app",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app",
            "REVOKE UPDATE ON group_spans FROM app",
            "REVOKE DELETE ON offset_moves FROM app",
        )
        with Database.connect(url) as database:
            # Then it reads, and the error names the right that a write needs
            assert database.messages_after("g", 0) == []
            for action in (database.upgrade, lambda: database.write(BATCH)):
                said = refusal(action)
                assert "UPDATE on group_spans, DELETE on offset_moves" in said

            # And stores as soon as it has got that
            self.grant(postgres_url, "GRANT UPDATE ON group_spans TO app", "GRANT DELETE ON offset_moves TO app")
            database.upgrade()
            database.write(BATCH)

    def test_a_role_that_may_not_read_is_refused(self, url: str, postgres_url: str) -> None:
        with Database.connect(postgres_url) as owner:
            owner.upgrade()
        self.grant(postgres_url, "GRANT USAGE ON SCHEMA public TO app", "GRANT SELECT ON imcore_version TO app")
        with Database.connect(url) as database:
            said = refusal(lambda: database.messages_after("g", 0))
        assert "permission denied for table group_msgs" in said
        assert "GRANT" in said


@pytest.fixture
def standby() -> Iterator[tuple[PostgresServer, str]]:
    """A server that follows another one, which is gone, and the URL of a database on it that has tables."""
    require_postgres()
    folder = Path(tempfile.mkdtemp(prefix="imcore-pg-"))
    server = PostgresServer(folder)
    try:
        url = server.new_database()
        with Database.connect(url) as database:
            database.upgrade()
        server.stop()
        (folder / "data" / "standby.signal").touch()
        server.start()
        yield server, url
    finally:
        server.stop()
        shutil.rmtree(folder)


def test_a_standby_is_only_read(standby: tuple[PostgresServer, str], valkey: str, tmp_path: Path) -> None:
    server, url = standby
    settings = replace(Settings.from_env({}, redis_url=valkey, database_url=url, data_dir=str(tmp_path)), block_ms=50)
    given = {"redis_url": valkey, "database_url": url}
    with Database.connect(url) as database, WorkerProcess(settings.data_dir, "persist", **given) as waiting:
        # Given a standby: it answers who reads, and refuses who stores
        assert database.messages_after("g", 0) == []
        for action in (database.upgrade, lambda: database.write(BATCH)):
            assert "is a standby, which takes no writes: set IM_DATABASE_URL to the primary" in refusal(
                action, DatabaseUnavailable
            )
        with WorkerProcess(settings.data_dir / "burst", "persist", "--burst", **given) as burst:
            assert burst.wait() == 1
            assert "is a standby" in burst.log.splitlines()[-1]
        waiting.wait_for("waiting: the database")

        # When it is promoted
        server.run("SELECT pg_promote()")

        # Then all continue by themselves
        database.write(BATCH)
        waiting.wait_for("working as")
        assert waiting.end() == 0


class TestSqlite:
    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        """A folder to which everybody can come."""
        folder = Path(tempfile.mkdtemp(prefix="imcore-"))
        yield folder
        shutil.rmtree(folder)

    def test_a_sqlite_library_that_is_too_old_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
        line = "this Python has SQLite 3.26.0, and imcore needs 3.37 or newer: use a newer Python"

        assert refusal(lambda: Database.connect(f"sqlite:///{tmp_path / 'imcore.db'}")) == line
        assert refusal(lambda: LocalDatabase(tmp_path / "ann.db", "ann"), LocalDatabaseError) == line
        assert list(tmp_path.iterdir()) == []

    def test_a_file_system_without_wal_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given one without shared memory, as that of some networks
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite_file.sqlite3, "connect", lambda name, **options: connect(f"{name}&vfs=unix-dotfile", **options)
        )

        with Database.connect(f"sqlite:///{tmp_path / 'imcore.db'}") as database:
            said = refusal(database.upgrade)
        assert "cannot keep SQLite's write-ahead log (journal mode delete): set IM_DATA_DIR or IM_DATABASE_URL" in said
        said = refusal(lambda: LocalDatabase(tmp_path / "ann.db", "ann"), LocalDatabaseError)
        assert "cannot keep SQLite's write-ahead log" in said
        assert "--no-local" in said

    @pytest.mark.parametrize("use", ["upgrade", "write"])
    def test_a_folder_that_cannot_hold_the_wal_is_refused(self, folder: Path, use: str) -> None:
        # Given a file that may be written, in a folder that may not
        with Database.connect(f"sqlite:///{folder / 'imcore.db'}") as database:
            database.upgrade()
        said = as_nobody(folder, "database", use)
        assert "the file and its folder, where SQLite keeps its log, must be writable" in said

    def test_a_local_database_is_refused_the_same_way(self, folder: Path) -> None:
        LocalDatabase(folder / "ann.db", "ann").close()
        said = as_nobody(folder, "local", "queue")
        assert "cannot be used now" in said
        assert "set IM_DATA_DIR to another folder" in said


_AS_NOBODY = """
import os, sys
from pathlib import Path
from imcore.errors import ImError
from imcore.device.local_database import LocalDatabase
from imcore.sql.database import Database
from imcore.model.rows import Batch, GroupRow
folder, kind, use = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    if kind == "local":
        LocalDatabase(folder / "ann.db", "ann").queue("team", "hi")
    else:
        database = Database.connect(f"sqlite:///{folder / 'imcore.db'}")
        database.upgrade() if use == "upgrade" else database.write(Batch(groups=[GroupRow("g", 1)]))
except ImError as error:
    print(type(error).__name__, error)
"""


def as_nobody(folder: Path, kind: str, use: str) -> str:
    """Use a file in an unwritable folder; return the error."""
    for path in folder.iterdir():
        path.chmod(0o666)
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, folder, kind, use],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    folder.chmod(0o755)
    assert len(done.stdout.splitlines()) == 1, done.stderr
    return done.stdout
