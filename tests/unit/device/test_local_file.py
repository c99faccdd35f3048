"""The file of a local database: private, held by one session, and one line for whatever is wrong with it."""

import os
import random
import re
import resource
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore.device.local_database import LocalDatabase, path_of, try_out
from imcore.device.local_file import LocalFile
from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.model.direct import gid_of
from imcore.model.values import Receipt, Tally
from tests.helpers.devices import message


def test_a_local_database_is_private(local: LocalDatabase) -> None:
    assert stat.S_IMODE(local.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(local.path.parent.stat().st_mode) == 0o700


def test_a_new_data_directory_is_private_and_its_parent_is_not(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with LocalDatabase(path_of(tmp_path / "share" / "imcore", "bob"), "bob") as local:
            folders = [local.path.parent, *local.path.parent.parents][:3]
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700, 0o755]


def test_a_second_session_is_refused_but_a_short_command_is_not(local: LocalDatabase) -> None:
    with pytest.raises(LocalDatabaseError, match="another session of 'bob' holds"):
        LocalDatabase(local.path, "bob", exclusive=True)
    with LocalDatabase(local.path, "bob") as beside:
        beside.keep([message(1, sender="bob")])
    with LocalDatabase(local.path, "bob", read_only=True) as reading:
        assert len(list(reading.log())) == 1


def test_the_end_of_a_session_frees_the_local_database(tmp_path: Path) -> None:
    for _ in range(2):
        with LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True):
            pass


def test_an_unusable_file_is_refused_with_one_line(tmp_path: Path) -> None:
    def refused(content: bytes | None = None, *, version: int | None = None, uid: str = "bob") -> str:
        path = tmp_path / "db"
        path.unlink(missing_ok=True)
        if content is None:
            LocalDatabase(path, "bob").close()
        else:
            path.write_bytes(content)
        if version is not None:
            connection = sqlite3.connect(path)
            connection.execute(f"PRAGMA user_version = {version}")
            connection.close()
        with pytest.raises(LocalDatabaseError) as error:
            LocalDatabase(path, uid)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "damaged" in refused(b"not a database at all, by any means" * 100)
    assert "newer imcore" in refused(version=99)
    assert "older imcore" in refused(version=1)
    assert "damaged" in refused(version=-1)
    assert "belongs to 'bob'" in refused(uid="eve")


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(LocalDatabaseError, match="something else"):
        LocalDatabase(path, "bob")
    assert path.read_bytes() == before


def test_a_file_that_is_just_being_made_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    path.touch()
    with pytest.raises(LocalDatabaseError, match="has no local database here"):
        LocalDatabase(path, "bob", read_only=True)
    LocalDatabase(path, "bob").close()


def test_a_file_that_another_program_has_locked_cannot_be_used_now(
    local: LocalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.01}))
    other = connect(local.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LocalDatabaseError, match="cannot be used now: database is locked"):
        LocalDatabase(local.path, "bob")
    other.close()


def test_reading_a_local_database_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(LocalDatabaseError, match="has no local database here"):
        LocalDatabase(path_of(tmp_path, "bob"), "bob", read_only=True)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("a file, where a folder must be")
    with pytest.raises(LocalDatabaseError, match="cannot be used"):
        LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True)


# Whether it could be used.


def test_a_write_trial_makes_and_removes_no_file(tmp_path: Path) -> None:
    for data_dir in (tmp_path / "new" / "imcore", tmp_path):
        path = path_of(data_dir, "bob")
        for _ in range(2):
            before = sorted(tmp_path.rglob("*"))
            try_out(path, "bob", 100_000)
            assert sorted(tmp_path.rglob("*")) == before
            path.parent.mkdir(parents=True, exist_ok=True)


def test_a_write_trial_leaves_the_folder_of_another_first_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given another one that has just made the folder, and not yet its file
    path = path_of(tmp_path / "imcore", "bob")

    def open_beside_another(*args: Any, **options: Any) -> LocalFile:
        path.parent.mkdir(parents=True, exist_ok=True)
        return LocalFile(*args, **options)

    monkeypatch.setattr("imcore.device.local_database.LocalFile", open_beside_another)
    # When
    try_out(path, "bob", 10)
    # Then
    assert list(tmp_path.rglob("*")) == [tmp_path / "imcore", path.parent]


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_write_trial_finds_a_full_disk_beside_an_existing_file(local: LocalDatabase, size: int) -> None:
    before = sorted(local.path.parent.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, limits[1]))
    try:
        with pytest.raises(LocalDatabaseError, match=rf"{local.path} cannot be used now: File too large; free it"):
            try_out(local.path, "bob", size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(local.path.parent.iterdir()) == before


def test_a_write_trial_leaves_existing_files_alone(local: LocalDatabase) -> None:
    local.keep([message(1)])
    before = sorted(local.path.parent.iterdir())
    try_out(local.path, "bob", 10)
    assert sorted(local.path.parent.iterdir()) == before
    assert [line.content for line in local.log()] == ["words 1"]


@pytest.mark.parametrize(("pages", "size"), [(3, 10), (30, 200_000)])
def test_a_write_trial_finds_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, size: int
) -> None:
    # Given a disk with room for this many pages
    connect = sqlite3.connect

    def full(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", full)
    path = path_of(tmp_path, "bob")
    # When, then
    with pytest.raises(LocalDatabaseError, match=re.escape(f"the local database {path} cannot be used now: ")):
        try_out(path, "bob", size)
    assert list(tmp_path.iterdir()) == []


# Damage.

FUZZ = int(os.environ.get("IM_FUZZ_EXAMPLES", "150"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with something in every table."""
    path = tmp_path_factory.mktemp("sound") / "db"
    with LocalDatabase(path, "ann") as local:
        local.bind("data", "there")
        local.begin({"g": message(1).msgid})
        local.keep(message(seq, sender="ann" if seq % 2 else "bob") for seq in range(1, 400))
        local.keep(Receipt("g", message(seq).msgid, 1, 2, 1, seq) for seq in range(1, 400, 2))
        local.keep([replace(message(400, sender="ann"), content="", recalls=message(1).msgid)])
        local.refuse(local.queue("g", "one"), "no member")
        local.queue(gid_of("ann", "b" * 128), "two", to_uid="b" * 128)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return path.read_bytes()


def use(path: Path) -> None:
    """Do everything that can be done with it."""
    with LocalDatabase(path, "ann", read_only=True) as local:
        list(local.log())
    with LocalDatabase(path, "ann", exclusive=True) as local:
        local.bind("data", "there")
        assert local.begun in (True, False)
        assert all(isinstance(each, str) for each in [*local.resume_points().values(), *local.peers().values()])
        last = None
        while page := local.unread_own_messages(last):
            last = list(page)[-1]
        list(local.log("g"))
        assert local.mark_tried() <= {"g", *local.peers()}
        local.keep([*map(message, range(395, 405)), Tally("g", message(3).msgid, 3, 0, 3)], {"g": message(404).msgid})
        local.keep([message(9, sender="ann")])
        local.note_peer(gid_of("ann", "c" * 128), "c" * 128)
        local.refuse(local.queue("g", "three"), "no")
        assert all(isinstance(each.content, str) for each in local.waiting())
        local.begin({"h": message(1).msgid})


def damaged(sound: bytes, chance: random.Random) -> bytes:
    """The file with some bytes changed, a page lost, or its end missing."""
    data = bytearray(sound)
    page = 4096 * chance.randrange(len(data) // 4096)
    match chance.randrange(4):
        case 0:
            for _ in range(chance.choice([1, 5, 50])):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case 1:
            data[page : page + 4096] = chance.choice([bytes(4096), chance.randbytes(4096)])
        case 2:
            del data[chance.randrange(len(data)) :]
        case 3:
            data[page + chance.randrange(100)] = chance.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_local_database_never_ends_in_a_traceback(sound: bytes, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(FUZZ // 10):
        path = tmp_path / f"{number}.db"
        path.write_bytes(damaged(sound, chance))
        with suppress(LocalDatabaseError, InvalidInput):
            use(path)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM owner",
        "INSERT INTO owner (uid) VALUES ('eve')",
        "DROP TABLE outbox",
        "DROP TABLE messages",
        "UPDATE messages SET content = CAST(x'ff41' AS TEXT)",
        "UPDATE messages SET msgid = msgid - 9000000000000000000",
        "UPDATE messages SET msgid = msgid + 9000000000000000000",
        "UPDATE resume_points SET msgid = -1",
        "UPDATE tallies SET msgid = 0 WHERE msgid = (SELECT MAX(msgid) FROM tallies)",
        "UPDATE outbox SET written_ms = 9000000000000000000",
        "UPDATE outbox SET content = CAST(x'ff41' AS TEXT)",
        "DROP TABLE owner; CREATE TABLE owner (uid, dataset, begun); INSERT INTO owner VALUES (7, 'data', 1)",
        "DROP TABLE owner; CREATE TABLE owner (uid, dataset, begun); INSERT INTO owner VALUES ('ann', x'00', 1)",
        "DROP TABLE outbox; CREATE TABLE outbox (id, gid, to_uid, content, client_msgid, written_ms, tried, refused);"
        " INSERT INTO outbox VALUES (1, 'g', NULL, 7, 'c', 1, 0, NULL)",
    ],
)
def test_a_damaged_local_database_is_reported_in_one_line(sound: bytes, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "db"
    path.write_bytes(sound)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(damage)
    with pytest.raises(LocalDatabaseError, match="is damaged: move it away") as error:
        use(path)
    assert "\n" not in str(error.value)


def test_a_commit_that_fails_is_rolled_back_and_the_next_one_works(local: LocalDatabase) -> None:
    # Given a disk with room for a little more
    local.keep([message(1)])
    connection = local._connection
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    # When
    with pytest.raises(LocalDatabaseError, match=r"cannot be used now: .*full.*IM_DATA_DIR.*--no-local"):
        local.keep(replace(message(seq), content="x" * 60_000) for seq in range(2, 9))
    connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    # Then
    local.keep([message(2)])
    assert [line.content for line in local.log()] == ["words 1", "words 2"]


def test_the_failing_commit_itself_is_rolled_back(local: LocalDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    connection = local._connection

    class Full:
        """A connection whose next COMMIT finds the disk full."""

        in_transaction = property(lambda self: connection.in_transaction)

        def __getattr__(self, name: str) -> Callable[..., object]:
            return getattr(connection, name)

        def execute(self, sql: str, *values: object) -> object:
            if sql == "COMMIT":
                monkeypatch.undo()
                raise sqlite3.OperationalError("database or disk is full")
            return connection.execute(sql, *values)

    monkeypatch.setattr(local, "_connection", Full())
    # When
    with pytest.raises(LocalDatabaseError):
        local.keep([message(1)])
    # Then
    local.keep([message(2)])
    assert [line.content for line in local.log()] == ["words 2"]
