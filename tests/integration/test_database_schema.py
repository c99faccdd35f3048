"""The schema: names that other programs rely on, migrations there and back, versions, and several upgrades at once."""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text

from imcore.errors import ConfigurationError, DatabaseUnavailable
from imcore.model.rows import Batch, GroupRow
from imcore.sql.database import Database
from imcore.sql.migrations import HEAD, VERSION_TABLE, run
from imcore.sql.tables import Derived, Stored

NAMES = {
    "group_msgs": "msgid seq span time sent_at recalls confirmed_read "
    "confirmed_delivered gid sender_uid client_msgid meta content",
    "group_spans": "gid uid joined_msgid left_msgid changed acked_msgid delivered_msgid",
    "bookmarks": "gid uid joined_msgid private_msgid mark_msgid changed",
    "erasures": "uid gid alias",
    "offset_moves": "msgid entry start reach gid uids",
    "deleted_groups": "gid entry is_done",
    "chat_groups": "gid created_at receipts asked_by policy_changed",
    "user_settings": "uid receipts changed",
    "imcore_meta": "name value",
    "imcore_version": "version_num",
    "group_users": "gid uid last_ack_msgid last_delivered_msgid joined_msgid",
    "msg_acks": "sender_uid msgid recv_uid gid if_ack if_delivered",
}
VIEWS = {"group_users", "msg_acks"}
OTHER_KINDS_INDEXES = {
    "sqlite": {"ix_group_msgs_client_hash", "ix_offset_moves_entry"},
    "postgresql": {"ix_group_msgs_client"},
}


def names(connection: Connection) -> dict[str, str]:
    """The columns of every table and view."""
    inspector = inspect(connection)
    return {
        name: " ".join(column["name"] for column in inspector.get_columns(name))
        for name in inspector.get_table_names() + inspector.get_view_names()
    }


def catalogue(connection: Connection) -> list[str]:
    """The tables as the database itself describes them, types and storage included."""
    queries = {
        "sqlite": "SELECT sql FROM sqlite_schema WHERE type IN ('table', 'index') AND sql IS NOT NULL",
        "postgresql": """
            SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT concat_ws(' ', relname, relkind, reloptions)
              FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            UNION ALL SELECT concat_ws(' ', table_name, ordinal_position, column_name, data_type, datetime_precision,
                                       collation_name, is_nullable, column_default)
              FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
              WHERE table_schema = 'public' AND table_type = 'BASE TABLE'
            """,
    }
    lines = connection.scalars(text(queries[connection.dialect.name]))
    # SQLite keeps the text of a statement: only its white space may differ.
    return sorted(re.sub(r"\s*([(),])\s*|\s+", r"\1 ", line).strip() for line in lines if VERSION_TABLE not in line)


class TestMigrations:
    def test_tables_and_columns_have_the_promised_names(self, database: Database) -> None:
        with database.connection() as connection:
            assert names(connection) == NAMES
            assert set(inspect(connection).get_view_names()) == VIEWS
        assert set(Derived.metadata.tables) == VIEWS

    def test_upgrade_downgrade_upgrade(self, database: Database) -> None:
        with database.connection() as connection:
            columns = names(connection)
            run.downgrade(connection, "base")
        with database.connection() as connection:
            assert names(connection) == {VERSION_TABLE: "version_num"}
        with pytest.raises(ConfigurationError, match="run im db upgrade"):
            database.check_version()

        database.upgrade()

        with database.connection() as connection:
            assert names(connection) == columns

    @pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
    def test_migrations_make_the_tables_of_the_classes(self, database: Database) -> None:
        def compared(_object: object, name: str | None, *_: object) -> bool:
            return name not in OTHER_KINDS_INDEXES[connection.dialect.name]

        with database.connection() as connection:
            options = {"version_table": VERSION_TABLE, "include_object": compared}
            assert compare_metadata(MigrationContext.configure(connection, opts=options), Stored.metadata) == []

            migrated = catalogue(connection)
            run.downgrade(connection, "base")
            Stored.metadata.create_all(connection)
            assert catalogue(connection) == migrated

    def test_head_is_the_newest(self) -> None:
        versions = ScriptDirectory(str(Path(run.__file__).parent))
        assert versions.get_heads() == [HEAD]

    def test_an_upgrade_changes_nothing_the_second_time(self, database: Database) -> None:
        database.write(Batch(groups=[GroupRow("g", 1)]))

        database.upgrade()

        with database.connection() as connection:
            assert connection.scalar(text("SELECT count(*) FROM chat_groups")) == 1

    def test_several_upgrades_at_once(self, database_url: str) -> None:
        writers = 6
        start = Barrier(writers)

        def upgrade(number: int) -> None:
            with Database.connect(database_url) as database:
                start.wait()
                database.upgrade()
                database.write(Batch(groups=[GroupRow(f"g{number}", 1)]))

        with ThreadPoolExecutor(writers) as threads:
            list(threads.map(upgrade, range(writers)))

        with Database.connect(database_url) as database:
            database.check_version()
            with database.connection() as connection:
                assert connection.scalar(text("SELECT count(*) FROM chat_groups")) == writers


class TestVersions:
    def test_the_right_version(self, database: Database) -> None:
        database.check_version()

    def test_no_database_yet(self, database_url: str) -> None:
        with Database.connect(database_url) as database, pytest.raises(ConfigurationError, match="run im db upgrade"):
            database.check_version()

    def test_no_tables_yet(self, postgres_url: str) -> None:
        with Database.connect(postgres_url) as database, pytest.raises(ConfigurationError, match="run im db upgrade"):
            database.write(Batch(groups=[GroupRow("g", 1)]))

    def test_an_older_version(self, database: Database) -> None:
        self.set_version(database, "0000")
        with pytest.raises(ConfigurationError, match=r"is at version 0000, .*: run im db upgrade$"):
            database.check_version()

    def test_a_newer_version(self, database: Database) -> None:
        newer = f"{int(HEAD) + 1:04}"
        self.set_version(database, newer)
        for refused in (database.check_version, database.upgrade):
            with pytest.raises(
                ConfigurationError, match=rf"is at version {newer}, newer than this program .*"
            ) as caught:
                refused()
            assert "\n" not in str(caught.value)

    @staticmethod
    def set_version(database: Database, version: str) -> None:
        with database.connection() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'"))


class TestSqliteFile:
    @pytest.fixture
    def data_dir(self, tmp_path: Path) -> Path:
        return tmp_path / "share" / "100% odd?#;name"

    @pytest.fixture
    def database(self, data_dir: Path) -> Iterator[Database]:
        with Database.connect(f"sqlite:///{data_dir / 'imcore.db'}", data_dir=data_dir) as database:
            yield database

    def test_the_file_is_for_its_owner_only(self, database: Database, data_dir: Path) -> None:
        database.upgrade()
        database.write(Batch(groups=[GroupRow("g", 1)]))

        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data_dir.iterdir()}
        assert files == dict.fromkeys(["imcore.db", "imcore.db-wal", "imcore.db-shm"], 0o600)

    def test_each_folder_of_the_path_is_for_its_owner_only(self, data_dir: Path) -> None:
        path = data_dir / "some" / "where" / "chat.db"
        before = os.umask(0o022)
        try:
            with Database.connect(f"sqlite:///{path}", data_dir=data_dir) as database:
                database.upgrade()
        finally:
            os.umask(before)

        modes = [stat.S_IMODE(folder.stat().st_mode) for folder in list(path.parents)[:4]]
        assert modes == [0o700, 0o700, 0o700, 0o755]

    def test_a_commit_outlives_a_power_cut(self, database: Database) -> None:
        database.upgrade()

        with database.connection() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL

    def test_a_read_makes_no_file(self, database: Database, data_dir: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"there is no database .*: run im db upgrade"):
            database.check_version()
        with pytest.raises(ConfigurationError, match=r"there is no database .*: run im db upgrade"):
            database.message("g", 1)

        assert not data_dir.exists()

    def test_a_folder_outside_the_data_directory_is_not_made(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'mistyped' / 'imcore.db'}"
        with (
            Database.connect(url, data_dir=tmp_path / "data") as database,
            pytest.raises(
                ConfigurationError, match=r"^cannot write .*mistyped.* \(No such file or directory\): set IM_"
            ),
        ):
            database.upgrade()

    def test_an_unwritable_folder(self, tmp_path: Path) -> None:
        nobody = 65_534
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        database = Database.connect(f"sqlite:///{closed / 'imcore.db'}", data_dir=closed)
        user = os.geteuid()
        try:
            if user == 0:  # who may write anywhere
                os.seteuid(nobody)
            with pytest.raises(ConfigurationError, match=r"^cannot write .* \(Permission denied\): set IM_DATA_DIR"):
                database.upgrade()
        finally:
            os.seteuid(user)

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for data_dir in (tmp_path / "file", tmp_path / "file" / "sub"):
            database = Database.connect(f"sqlite:///{data_dir / 'imcore.db'}", data_dir=data_dir)
            with pytest.raises(ConfigurationError, match=r"^cannot write "):
                database.upgrade()

    def test_a_file_without_a_database(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("not a database " * 99)
        with (
            Database.connect(f"sqlite:///{tmp_path / 'text'}") as database,
            pytest.raises(ConfigurationError, match=r"^cannot use .*file is not a database"),
        ):
            database.check_version()

    def test_a_file_of_another_program(self, tmp_path: Path) -> None:
        create_engine(f"sqlite:///{tmp_path / 'other.db'}").connect().close()
        with (
            Database.connect(f"sqlite:///{tmp_path / 'other.db'}") as database,
            pytest.raises(ConfigurationError, match="has not the tables of imcore: run im db upgrade"),
        ):
            database.message("g", 1)

    def test_upgrade_waits_for_a_reader_before_wal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a file that is not in WAL mode yet, as a backup may be, and that someone reads
        other = sqlite3.connect(tmp_path / "imcore.db", isolation_level=None)
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM theirs").fetchall()
        with Database.connect(f"sqlite:///{tmp_path / 'imcore.db'}") as database:
            # When they run for too long
            monkeypatch.setattr("imcore.sql.sqlite.BUSY_TIMEOUT_MS", 0)
            with pytest.raises(DatabaseUnavailable, match="database is locked"):
                database.upgrade()
            # When they end while we wait
            monkeypatch.undo()
            monkeypatch.setattr("imcore.sql.sqlite_file.time.sleep", lambda _: other.close())
            database.upgrade()
            # Then it is ours
            database.check_version()

    def test_a_file_locked_by_another_program(
        self, database: Database, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.upgrade()
        database.close()
        monkeypatch.setattr("imcore.sql.sqlite.BUSY_TIMEOUT_MS", 10)
        other = sqlite3.connect(data_dir / "imcore.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(DatabaseUnavailable, match="database is locked"):
                database.write(Batch(groups=[GroupRow("g", 1)]))
        finally:
            other.close()
