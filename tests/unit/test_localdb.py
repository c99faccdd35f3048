import os
import random
import re
import resource
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imcore import msgid as msgids
from imcore.device.local_database import PAGE, LocalDatabase, UnreadOwnMessage, path_of, try_out
from imcore.device.local_file import LocalFile
from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.model.direct import gid_of
from imcore.model.values import Message, Receipt, Tally
from imcore.util.backoff import ThrottledLog

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


def test_the_log_is_by_time_across_groups_and_then_what_waits(local: LocalDatabase) -> None:
    # Given
    local.queue("a", "first to wait")
    local.keep([message(4, gid="a"), message(2, gid="z"), message(3, gid="m", sender="bob")])
    local.queue("z", "second to wait")
    # When what is older comes later, and two messages of one moment
    local.keep([message(1, gid="z"), message(3, gid="b")])
    # Then
    assert [(line.gid, line.content) for line in local.log()] == [
        ("z", "words 1"),
        ("z", "words 2"),
        ("b", "words 3"),
        ("m", "words 3"),
        ("a", "words 4"),
        ("a", "first to wait"),
        ("z", "second to wait"),
    ]
    assert [line.content for line in local.log("z")] == ["words 1", "words 2", "second to wait"]
    assert [line.content for line in local.unsent("a")] == ["first to wait"]


@pytest.mark.parametrize("gid", [None, "g"])
def test_nothing_is_sorted_for_a_log(local: LocalDatabase, monkeypatch: pytest.MonkeyPatch, gid: str | None) -> None:
    """However many messages there are, the first lines are there at once, and few are in memory."""
    asked: list[tuple[str, object]] = []
    rows = LocalFile.rows
    monkeypatch.setattr(
        LocalFile,
        "rows",
        lambda self, sql, types, values=(): asked.append((sql, values)) or rows(self, sql, types, values),
    )

    assert list(local.log(gid)) == []

    with closing(sqlite3.connect(local.path)) as connection:
        plans = [row[3] for sql, values in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert not any("TEMP B-TREE" in step for step in plans)
    assert any("INDEX chat" in step if gid is None else "PRIMARY KEY (gid=?)" in step for step in plans)


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


def test_what_is_about_to_be_sent_may_have_been_sent_before_from_then_on(local: LocalDatabase) -> None:
    refused = local.queue("r", "one")
    local.queue("g", "two")
    assert local.attempt() == set()
    local.refuse(refused, "no member")
    local.queue("h", "three")
    assert local.attempt() == {"g"}
    assert local.attempt() == {"g", "h"}


def test_what_comes_back_waits_no_longer(local: LocalDatabase) -> None:
    # Given two in the outbox, of which one was refused: an earlier attempt was stored, and its answer got lost
    sent, refused = local.queue("g", "sent"), local.queue("g", "refused")
    local.refuse(refused, "not a member")
    others = local.queue("h", "another group")
    # When another device brings them
    local.keep(
        replace(message(seq, sender="bob"), content=each.content, client_msgid=each.client_msgid)
        for seq, each in enumerate((sent, refused), 1)
    )
    local.keep([replace(message(3), client_msgid=others.client_msgid)])
    # Then
    assert [(line.content, line.state) for line in local.log("g")][:2] == [("sent", "stored"), ("refused", "stored")]
    assert local.waiting() == [others]


def test_own_messages_that_all_have_not_read_are_listed_newest_first_by_the_page(local: LocalDatabase) -> None:
    # Given
    for seq in range(1, PAGE + 4):
        local.keep([message(seq, sender="bob", gid=f"g{seq % 2}")])
    local.keep([message(1, gid="theirs")])
    local.keep([replace(message(PAGE + 4, sender="bob"), content="", recalls=message(1).msgid)])
    # When
    local.keep([Tally("g0", message(PAGE + 2).msgid, 3, 0), Tally("g1", message(PAGE + 3).msgid, 2, 1)])
    first = local.unsettled()
    second = local.unsettled(first[-1])
    # Then
    assert first[0] == UnreadOwnMessage("g1", message(PAGE + 3).msgid, 2, 1)
    assert first[1] == UnreadOwnMessage("g1", message(PAGE + 1).msgid, 0, None)
    assert [each.msgid for each in second] == [message(2).msgid, message(1).msgid]
    assert local.unsettled(second[-1]) == []


def test_a_database_is_for_the_data_of_one_server(local: LocalDatabase) -> None:
    local.bind(None, "there")
    local.bind("one", "there")
    local.bind("one", "there")
    for other in ("another", None):
        with pytest.raises(LocalDatabaseError, match="other data than there has") as error:
            local.bind(other, "there")
        assert "IM_REDIS_URL" in str(error.value)
        assert "IM_DATA_DIR" in str(error.value)


def test_who_the_other_is_is_kept_where_the_gid_does_not_say_it(local: LocalDatabase) -> None:
    # Given
    ann, cy, eve = "a" * 128, "c" * 128, "e" * 128
    silent, asked, written = (gid_of("bob", uid) for uid in (ann, cy, eve))
    # When
    local.note_peer(silent, ann)
    local.queue(asked, "hi", to_uid=cy)
    local.keep([message(1, gid=written, sender=eve), message(2, gid=written, sender="an administrator")])
    local.note_peer(gid_of("bob", "dan"), "dan")
    local.note_peer("g", "dan")
    # Then
    assert local.peers() == {silent: ann, asked: cy, written: eve}


def test_it_is_private(local: LocalDatabase) -> None:
    assert stat.S_IMODE(local.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(local.path.parent.stat().st_mode) == 0o700


def test_a_data_directory_that_it_makes_is_private_and_what_that_is_in_is_not(tmp_path: Path) -> None:
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


# Whether it could be used.


def test_a_trial_makes_and_removes_nothing(tmp_path: Path) -> None:
    for data_dir in (tmp_path / "new" / "imcore", tmp_path):
        path = path_of(data_dir, "bob")
        for _ in range(2):
            before = sorted(tmp_path.rglob("*"))
            try_out(path, "bob", 100_000)
            assert sorted(tmp_path.rglob("*")) == before
            path.parent.mkdir(parents=True, exist_ok=True)


def test_a_trial_leaves_another_first_send_the_folder_that_it_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_trial_finds_out_that_there_is_no_room_for_what_is_there(local: LocalDatabase, size: int) -> None:
    before = sorted(local.path.parent.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, limits[1]))
    try:
        with pytest.raises(LocalDatabaseError, match=rf"{local.path} cannot be used now: File too large; free it"):
            try_out(local.path, "bob", size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(local.path.parent.iterdir()) == before


def test_a_trial_leaves_alone_what_is_there(local: LocalDatabase) -> None:
    local.keep([message(1)])
    before = sorted(local.path.parent.iterdir())
    try_out(local.path, "bob", 10)
    assert sorted(local.path.parent.iterdir()) == before
    assert [line.content for line in local.log()] == ["words 1"]


@pytest.mark.parametrize(("pages", "size"), [(3, 10), (30, 200_000)])
def test_a_trial_finds_out_that_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, size: int
) -> None:
    # Given a disk with room for so many pages
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


# What the server hands over.


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ],
)
def test_a_message_of_any_time_is_kept(local: LocalDatabase, moment: datetime) -> None:
    local.keep([replace(message(1), sent_at=moment)])
    assert [line.content for line in local.log()] == ["words 1"]


UNKEEPABLE: list[Message | Receipt] = [
    replace(message(2), msgid="5-1"),
    replace(message(2), msgid="18446744073709551615-1"),
    replace(message(2), seq=2**70),
    replace(message(2), content="\ud800"),
    replace(message(2), sender_uid=None),  # type: ignore[arg-type]
    replace(message(2), recalls="0-0"),
    replace(message(2), sent_at=datetime(2026, 1, 1)),  # noqa: DTZ001 (that is the fault)
    Receipt("g", "0-0", 1, 1, 1),
    Receipt("g", message(1).msgid, 2**70, 1, 1),
]


@pytest.mark.parametrize("odd", UNKEEPABLE, ids=str)
def test_an_item_that_cannot_be_kept_stops_no_other(
    local: LocalDatabase, caplog: pytest.LogCaptureFixture, odd: Message | Receipt
) -> None:
    # When
    own = message(1, sender="bob")
    local.keep([own, odd, message(3), Receipt("g", own.msgid, 1, 0, 1)], {"g": message(3).msgid, "h": "none"})
    # Then
    assert [(line.content, line.state) for line in local.log()] == [("words 1", "read by all"), ("words 3", None)]
    assert local.places() == {"g": message(3).msgid}
    [of_place, of_item] = caplog.messages
    assert of_place.startswith("the place of 'h' is not kept in the local database: 'none' is not a msgid")
    assert of_item.startswith(f"{odd.msgid} of 'g' is not kept in the local database: ")


def test_a_text_that_is_too_long_for_sqlite_is_passed_over(
    local: LocalDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    local._file._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
    local.keep([replace(message(1), content="x" * 60_000), message(2)])
    assert [line.content for line in local.log()] == ["words 2"]
    assert len(caplog.messages) == 1


def test_where_a_group_begins_is_noted_for_the_others(local: LocalDatabase, caplog: pytest.LogCaptureFixture) -> None:
    local.begin({"g": message(4).msgid, "h": "5-1", "x" * 1000: message(5).msgid})
    assert local.places() == {"g": message(4).msgid, "x" * 1000: message(5).msgid}
    assert len(caplog.messages) == 1


def test_of_very_many_that_cannot_be_kept_few_are_named(
    local: LocalDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    now = 1000.0
    monkeypatch.setattr(local, "_warnings", ThrottledLog(lambda: now))
    many = [replace(message(seq), msgid=f"{seq}-1") for seq in range(100)]
    # When, then
    local.keep([*many, message(1)])
    assert len(caplog.messages) == 10
    assert caplog.messages[-1].endswith("more of these are not logged for a minute")
    assert [line.content for line in local.log()] == ["words 1"]
    now += 60
    local.keep(many)
    assert len(caplog.messages) == 20


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
        local.keep(Receipt("g", message(seq).msgid, 1, 2, seq) for seq in range(1, 400, 2))
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
        assert all(isinstance(each, str) for each in [*local.places().values(), *local.peers().values()])
        last = None
        while page := local.unsettled(last):
            last = page[-1]
        list(local.log("g"))
        assert local.attempt() <= {"g", *local.peers()}
        local.keep([*map(message, range(395, 405)), Tally("g", message(3).msgid, 3, 0)], {"g": message(404).msgid})
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
def test_no_damage_ends_in_a_traceback(sound: bytes, tmp_path: Path, seed: int) -> None:
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
        "UPDATE places SET msgid = -1",
        "UPDATE tallies SET msgid = 0 WHERE msgid = (SELECT MAX(msgid) FROM tallies)",
        "UPDATE outbox SET written_ms = 9000000000000000000",
        "UPDATE outbox SET content = CAST(x'ff41' AS TEXT)",
        "DROP TABLE owner; CREATE TABLE owner (uid, dataset, begun); INSERT INTO owner VALUES (7, 'data', 1)",
        "DROP TABLE owner; CREATE TABLE owner (uid, dataset, begun); INSERT INTO owner VALUES ('ann', x'00', 1)",
        "DROP TABLE outbox; CREATE TABLE outbox (id, gid, to_uid, content, client_msgid, written_ms, tried, refused);"
        " INSERT INTO outbox VALUES (1, 'g', NULL, 7, 'c', 1, 0, NULL)",
    ],
)
def test_damage_is_one_line_that_says_so(sound: bytes, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "db"
    path.write_bytes(sound)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(damage)
    with pytest.raises(LocalDatabaseError, match="is damaged: move it away") as error:
        use(path)
    assert "\n" not in str(error.value)


def test_a_commit_that_fails_is_taken_back_and_the_next_one_works(local: LocalDatabase) -> None:
    # Given a disk with room for a little more
    local.keep([message(1)])
    connection = local._file._connection
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    # When
    with pytest.raises(LocalDatabaseError, match=r"cannot be used now: .*full.*IM_DATA_DIR.*--no-local"):
        local.keep(replace(message(seq), content="x" * 60_000) for seq in range(2, 9))
    connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    # Then
    local.keep([message(2)])
    assert [line.content for line in local.log()] == ["words 1", "words 2"]


def test_a_failing_commit_itself_is_taken_back(local: LocalDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    connection = local._file._connection

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

    monkeypatch.setattr(local._file, "_connection", Full())
    # When
    with pytest.raises(LocalDatabaseError):
        local.keep([message(1)])
    # Then
    local.keep([message(2)])
    assert [line.content for line in local.log()] == ["words 2"]
