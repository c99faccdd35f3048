"""The counts of the storm, the naive design that it is compared with, and the databases of a benchmark."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.cli.bench.baseline.naive_design import NaiveStore
from imcore.cli.bench.harness.databases import SqliteFiles
from imcore.cli.bench.harness.sessions import ONLINE, SessionCounts
from imcore.gateway.fanout import NewMessage, ReceiptsChanged, Recipients, Session
from imcore.model.values import Message, Receipt

SENDER = Session("sender")
READERS = [Session(f"reader-{number}") for number in range(ONLINE)]
MESSAGE = Message("g", "5-0", 7, "sender", "hi")


def test_a_message_has_arrived_when_the_last_of_the_40_has_it() -> None:
    seen = SessionCounts()
    seen.note_sent("5-0", 7, 1.0)

    seen.note(NewMessage(Recipients([SENDER, *READERS[:5]]), MESSAGE, 1), SENDER, 2.0)
    for number, reader in enumerate(READERS[5:]):
        assert 7 not in seen.arrived
        seen.note(NewMessage(Recipients([reader]), MESSAGE, 1), SENDER, 3.0 + number)

    assert seen.arrived == {7: 37.0}
    assert seen.pushes == ONLINE  # the sender's own copy is not one of them


def test_the_sender_knows_once_a_digest_counts_40_readers_of_a_message_of_this_run() -> None:
    seen = SessionCounts()
    seen.note_sent("5-0", 7, 1.0)

    for at, msgid, read in ((2.0, "5-0", 39), (3.0, "4-0", 40), (4.0, "5-0", 40), (5.0, "5-0", 40)):
        seen.note(ReceiptsChanged(Recipients([SENDER]), (Receipt("g", msgid, read, 199 - read, read, 1),)), SENDER, at)

    assert seen.known == {7: 4.0}
    assert seen.digests == 4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NaiveStore]:
    with NaiveStore(SqliteFiles(tmp_path, "bench").new(), "g") as store:
        store.create(["ann", "bob", "eve"])
        yield store


def test_naive_store_keeps_an_unread_receipt_for_each_recipient(store: NaiveStore, tmp_path: Path) -> None:
    first, second, third = (store.send("ann", "hi") for _ in range(3))
    assert store.count_rows() == (3, 6)

    store.ack("bob", second)
    store.ack("bob", first)  # an old ack changes nothing
    store.ack("eve", third)

    with sqlite3.connect(tmp_path / "bench-0.db") as connection:
        read = connection.execute("SELECT recv_uid, msgid FROM msg_acks WHERE if_ack ORDER BY 1, 2").fetchall()
        offsets = connection.execute("SELECT uid, last_ack_msgid FROM group_users ORDER BY 1").fetchall()
    assert read == [("bob", first), ("bob", second), ("eve", first), ("eve", second), ("eve", third)]
    assert offsets == [("ann", 0), ("bob", second), ("eve", third)]


def test_sqlite_files_are_removed_with_their_logs(tmp_path: Path) -> None:
    (tmp_path / "theirs.db").write_text("precious")
    files = SqliteFiles(tmp_path, "bench")
    with NaiveStore(files.new(), "g") as store:
        store.create(["ann"])
        assert files.bytes_of(f"sqlite:///{tmp_path / 'bench-0.db'}") > 0

        files.drop_all()

    assert [path.name for path in tmp_path.iterdir()] == ["theirs.db"]
