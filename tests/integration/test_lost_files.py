"""Files that somebody removes or replaces while they are in use: this is noticed, and nothing is stored in vain."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import ConfigurationError, DatabaseReplaced, DatabaseUnavailable, ImError, LocalDatabaseError
from imcore.model.rows import Batch, GroupRow, WatermarkRow
from imcore.settings import Settings
from imcore.sql import corrections, queries, sqlite_file
from imcore.sql.database import Database
from tests.helpers.deadline import wait_until
from tests.helpers.workers import start_worker

GID = "team"
WRITES: dict[str, Callable[[Database], object]] = {
    "write": lambda database: database.write(Batch(groups=[GroupRow("g", 1)])),
    "set_meta": lambda database: database.set_meta("name", "value"),
    "replace_marks": lambda database: queries.replace_watermarks(database, [WatermarkRow(0, "me", 1)], []),
    "forget_moves": lambda database: queries.forget_moves(database, 1, 1),
    "close_gaps": lambda database: corrections.close_gaps(database, "g"),
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=50)


@pytest.fixture
def file(settings: Settings) -> Path:
    return settings.data_dir / "imcore.db"


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """A database that has connections open."""
    with Database.connect(settings.database_url) as database:
        database.upgrade()
        database.write(Batch(groups=[GroupRow("before", 1)]))
        yield database


def copy_of(file: Path, to: Path) -> Path:
    """Copy a database, as a backup does."""
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_nothing_is_stored_in_a_removed_file(
    database: Database, file: Path, tmp_path: Path, write: Callable[[Database], object]
) -> None:
    kept = tmp_path / "kept"
    file.rename(kept)

    for _ in range(2):  # it is said for as long as it is so
        with pytest.raises(DatabaseUnavailable, match="was removed while it was in use, and nothing is stored: put"):
            write(database)

    # With the file in place again, it works
    kept.rename(file)
    write(database)
    assert queries.listed(database, ["before"]) == {"before"}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_nothing_is_stored_in_a_replaced_file(
    database: Database, file: Path, tmp_path: Path, write: Callable[[Database], object]
) -> None:
    copy_of(file, tmp_path / "backup").rename(file)

    with pytest.raises(DatabaseReplaced, match=r"imcore.db was replaced while it was in use.*im check --repair"):
        write(database)

    # From then on it is the one that is there
    write(database)
    assert queries.listed(database, ["before"]) == {"before"}


def test_a_replacement_is_examined_like_any_other_database(database: Database, file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE theirs (x)")
    (tmp_path / "other").rename(file)

    with pytest.raises(DatabaseReplaced):
        database.write(Batch(groups=[GroupRow("g", 1)]))
    with pytest.raises(ConfigurationError, match="has not the tables of imcore"):
        database.write(Batch(groups=[GroupRow("g", 1)]))


def test_a_removed_wal_file_loses_no_row(database: Database, file: Path) -> None:
    # Given something that is in the log alone
    database.write(Batch(groups=[GroupRow("in the log", 1)]))
    log = file.with_name("imcore.db-wal")
    assert log.stat().st_size

    # When somebody removes it
    log.unlink()
    with pytest.raises(DatabaseReplaced, match=r"imcore\.db-wal was removed while it was in use"):
        database.write(Batch(groups=[GroupRow("g", 1)]))

    # Then its rows are in the file, and everybody continues
    database.write(Batch(groups=[GroupRow("after", 1)]))
    with Database.connect(f"sqlite:///{file}") as another:
        assert set(queries.gids(another)) == {"before", "in the log", "after"}


def test_reads_come_from_the_file_in_place(database: Database, file: Path, tmp_path: Path) -> None:
    copy_of(file, tmp_path / "backup").rename(file)
    with pytest.raises(DatabaseReplaced):
        database.messages_after(GID, 0)
    assert database.messages_after(GID, 0) == []


def test_a_file_removed_during_a_write_acks_nothing(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = sqlite_file.begin_writing

    def begun(*args: object) -> None:
        begin(*args)  # type: ignore[arg-type]
        file.unlink()

    monkeypatch.setattr(sqlite_file, "begin_writing", begun)
    with pytest.raises(DatabaseReplaced):
        database.write(Batch(groups=[GroupRow("g", 1)]))


def test_a_worker_waits_for_its_file_and_acks_nothing_meanwhile(settings: Settings, file: Path, tmp_path: Path) -> None:
    with Chat.connect(settings=settings) as chat, start_worker(settings) as worker:
        # Given a worker that has stored something
        worker.wait_for("working as")
        chat.create_group(GID, ["ann", "bob"])
        chat.send(GID, "before", sender_uid="ann")
        wait_until(lambda: len(chat.system.database.messages_after(GID, 0)) == 1)

        # When its file is removed, and people talk on
        kept = tmp_path / "kept"
        file.rename(kept)
        for number in range(10):
            chat.send(GID, f"meanwhile {number}", sender_uid="ann")
        worker.wait_for("was removed while it was in use, and nothing is stored")
        assert worker.runs
        assert not file.exists()

        # Then nothing was confirmed: it is stored once the file is back
        kept.rename(file)
        worker.wait_for("going on")
        with Database.connect(settings.database_url) as database:
            wait_until(lambda: len(database.messages_after(GID, 0)) == 11)
        assert worker.end() == 0
    assert worker.log.count("was removed") == 1


def test_an_empty_replacement_is_not_written(settings: Settings, file: Path) -> None:
    with Chat.connect(settings=settings) as chat, start_worker(settings) as worker:
        worker.wait_for("working as")
        chat.create_group(GID, ["ann", "bob"])
        chat.send(GID, "before", sender_uid="ann")
        wait_until(lambda: len(chat.system.database.messages_after(GID, 0)) == 1)

        # When somebody begins a new database under a worker that runs (stopped meanwhile: without tables it would end)
        os.kill(worker.pid, signal.SIGSTOP)
        file.unlink()
        with Database.connect(settings.database_url) as fresh:
            fresh.upgrade()
        os.kill(worker.pid, signal.SIGCONT)
        chat.send(GID, "after", sender_uid="ann")

        # Then it says so, and stores nothing there
        worker.wait_for("is empty, though much of")
        assert worker.end() == 0
        with Database.connect(settings.database_url) as fresh:
            assert fresh.messages_after(GID, 0) == []


class TestLocalDatabase:
    @pytest.fixture
    def local(self, tmp_path: Path) -> Iterator[LocalDatabase]:
        """One that a session holds."""
        local = LocalDatabase(tmp_path / "ann.db", "ann", exclusive=True)
        local.queue(GID, "before")
        yield local
        local.close()

    @pytest.mark.parametrize("how", ["removed", "replaced", "lock"])
    def test_nothing_is_stored_in_a_lost_local_database(self, local: LocalDatabase, tmp_path: Path, how: str) -> None:
        path = local.path
        if how == "replaced":
            copy_of(path, tmp_path / "backup").rename(path)
        elif how == "removed":
            path.unlink()
        else:
            path.with_suffix(".lock").unlink()

        with pytest.raises(
            LocalDatabaseError, match="was removed or replaced while it was in use, and it keeps nothing"
        ):
            local.queue(GID, "hi")

    def test_a_short_command_beside_a_session_works(self, local: LocalDatabase) -> None:
        with LocalDatabase(local.path, "ann") as other:
            other.queue(GID, "hi")
        local.queue(GID, "more")
        assert [each.content for each in local.waiting()] == ["before", "hi", "more"]


def test_a_session_ends_with_one_line(settings: Settings) -> None:
    path = path_of(settings.data_dir, "bob")
    with Chat.connect(settings=settings) as chat, LocalDatabase(path, "bob", exclusive=True) as local:
        chat.create_group(GID, ["ann", "bob"])
        chat.send(GID, "one", sender_uid="ann")
        events = Device(chat, "bob", local).live(lambda: False)
        next(events)
        path.unlink()
        chat.send(GID, "two", sender_uid="ann")

        with pytest.raises(ImError, match="was removed or replaced"):
            list(events)

    # And messages that it could not store are not acked
    with Chat.connect(settings=settings) as chat:
        assert [each.content for each in chat.pull("bob", GID)][-1] == "two"


def test_connections_that_open_and_close_lose_no_file(settings: Settings, file: Path) -> None:
    # Given connections that open and close, and a log that is removed with the last of them
    for number in range(3):
        with Database.connect(settings.database_url) as one, Database.connect(settings.database_url) as other:
            one.upgrade()
            for database in (one, other, one):
                database.write(Batch(groups=[GroupRow(f"g{number}", 1)]))
            one.close()
            other.write(Batch(groups=[GroupRow(f"h{number}", 1)]))
            other.close()
            assert not file.with_name("imcore.db-wal").exists()
            one.write(Batch(groups=[GroupRow(f"i{number}", 1)]))
    shutil.copy(file, file.with_name("copy"))
    with Database.connect(f"sqlite:///{file.with_name('copy')}") as copy:
        assert queries.count_groups(copy) == 9
