import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from imcore import msgid as msgids
from imcore.errors import LocalDatabaseError
from imcore.live.localdb import LocalDatabase, path_of
from imcore.values import Message, Receipt

BASE = msgids.EPOCH_MS + 1000


def message(seq: int, *, sender: str = "ann", gid: str = "g") -> Message:
    return Message(gid, f"{BASE + seq}-0", seq, sender, f"words {seq}")


@pytest.fixture
def local(tmp_path: Path):
    with LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True) as opened:
        yield opened


def test_a_message_is_kept_once(local: LocalDatabase) -> None:
    local.keep([message(1), message(2)])
    local.keep([message(2), message(3)])
    assert [line.content for line in local.log()] == ["words 1", "words 2", "words 3"]


def test_places_move_forward_only_and_only_if_told_to(local: LocalDatabase) -> None:
    # Given
    local.keep([message(1), message(2)], {"g": message(2).msgid})
    # When
    local.keep([message(9, sender="bob")])
    local.keep([], {"g": message(1).msgid})
    # Then
    assert local.places() == {"g": message(2).msgid}


def test_where_groups_begin_is_noted_once(local: LocalDatabase) -> None:
    assert not local.begun
    local.begin({"g": message(4).msgid})
    local.begin({"g": message(9).msgid, "h": message(9).msgid})
    assert (local.begun, local.places()) == (True, {"g": message(4).msgid})


def test_own_messages_show_how_far_they_have_come(local: LocalDatabase) -> None:
    # Given
    for seq in range(1, 4):
        local.keep([message(seq, sender="bob")])
    local.queue("g", "still here")
    # When
    local.keep([Receipt("g", message(1).msgid, 3, 4, 1), Receipt("g", message(2).msgid, 7, 0, 2)])
    # Then
    assert [line.state for line in local.log("g")] == ["read 3/7", "read by all", "stored", "waiting"]


def test_a_late_digest_takes_no_reader_away(local: LocalDatabase) -> None:
    local.keep([message(1, sender="bob")])
    local.keep([Receipt("g", message(1).msgid, 3, 1, 2)])
    local.keep([Receipt("g", message(1).msgid, 2, 2, 1)])
    assert [line.state for line in local.log()] == ["read 3/4"]


def test_a_receipt_may_come_before_its_message(local: LocalDatabase) -> None:
    local.keep([Receipt("g", message(1).msgid, 1, 0, 1)])
    local.keep([message(1, sender="bob")])
    assert [line.state for line in local.log()] == ["read by all"]


def test_the_outbox_keeps_its_order_until_the_server_has_it(local: LocalDatabase) -> None:
    # Given
    first, second, third = (local.queue("g", text) for text in ("one", "two", "three"))
    # When
    local.keep([replace(message(1, sender="bob"), client_msgid=first.client_msgid)])
    local.refuse(second, "not a member")
    # Then
    assert local.waiting() == [third]
    assert [line.state for line in local.log()] == ["stored", "refused: not a member", "waiting"]


def test_it_is_private(local: LocalDatabase) -> None:
    assert stat.S_IMODE(local.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(local.path.parent.stat().st_mode) == 0o700


def test_a_second_session_is_refused_but_a_short_command_is_not(local: LocalDatabase) -> None:
    with pytest.raises(LocalDatabaseError, match="another session of 'bob' holds"):
        LocalDatabase(local.path, "bob", exclusive=True)
    with LocalDatabase(local.path, "bob") as beside:
        beside.keep([message(1, sender="bob")])
    with LocalDatabase(local.path, "bob", read_only=True) as reading:
        assert len(list(reading.log())) == 1


def test_the_end_of_a_session_frees_it(tmp_path: Path) -> None:
    for _ in range(2):
        with LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True):
            pass


def test_what_cannot_be_used_is_refused_with_one_line(tmp_path: Path) -> None:
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


def test_one_that_is_just_being_made_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    path.touch()
    with pytest.raises(LocalDatabaseError, match="has no local database here"):
        LocalDatabase(path, "bob", read_only=True)
    LocalDatabase(path, "bob").close()


def test_one_that_another_program_has_locked_cannot_be_used_now(
    local: LocalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.01}))
    other = connect(local.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LocalDatabaseError, match="cannot be used now: database is locked"):
        LocalDatabase(local.path, "bob")
    other.close()


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LocalDatabaseError, match="has no local database here"):
        LocalDatabase(path_of(tmp_path, "bob"), "bob", read_only=True)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("a file, where a folder must be")
    with pytest.raises(LocalDatabaseError, match="cannot be used"):
        LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True)
