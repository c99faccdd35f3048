"""Writes to the database and reads from it, on SQLite and PostgreSQL."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlmodel import Session

from imcore.model.rows import Batch, ConfirmRow, GroupRow, MessageRow, MoveRow, SpanRow
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.sql.postgres import PostgresBackend
from imcore.sql.tables import GROUP_MSGS, GroupMsg
from tests.helpers.chat_data import ODD_GIDS, ODD_NAMES, ODD_TEXTS
from tests.helpers.rows import FIRST_MS, at, clear, message, stored

MOST_BYTES = 250
"""The limit of a stored message beyond its texts, with its indexes."""

reusing_the_database = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_old_moves_are_forgotten_some_at_a_time(database: Database) -> None:
    # Given moves of two groups, from entries 1 to 20
    moves = [MoveRow(gid, at(number), at(number - 1), at(number), ("ann",)) for number in range(1, 21) for gid in "gh"]
    database.write(Batch(moves=moves))
    # When those before entry 11 are forgotten
    counts = [queries.forget_moves(database, at(11), 8) for _ in range(4)]
    # Then
    assert counts == [8, 8, 4, 0]
    assert stored(database).moves == sorted(move for move in moves if move.entry >= at(11))


class TestWrite:
    def test_stores_every_kind_of_row(self, database: Database) -> None:
        batch = Batch(
            groups=[GroupRow("g", FIRST_MS)],
            messages=[message(1), message(2, client_msgid="c-2", sent_at_ms=-1, span=at(1))],
            spans=[SpanRow("g", "ann", 0, None, 5, at(2)), SpanRow("g", "bob", 0, at(1), 7, 0)],
            moves=[MoveRow("g", at(2), at(1), at(3), ("ann", "bob"))],
        )

        database.write(batch)

        assert stored(database) == batch

    def test_what_a_sender_has_confirmed_never_goes_back(self, database: Database) -> None:
        database.write(Batch(messages=[message(1), message(2), message(1, "h")]))
        numbers: list[list[tuple[int, int]]] = []
        for confirms in (
            [ConfirmRow("g", at(1), 2, 5), ConfirmRow("g", at(2), 0, 1), ConfirmRow("g", at(9), 1, 1)],
            [ConfirmRow("g", at(1), 3, 4), ConfirmRow("g", at(2), 0, 0), ConfirmRow("g", at(2), 1, 1)],
            [ConfirmRow("g", at(1), 1, 1)],
        ):
            database.write(Batch(confirms=confirms))
            rows = queries.light(database, ["g", "h"])
            numbers.append([(row.confirmed_read, row.confirmed_delivered) for row in rows])
        assert numbers == [[(2, 5), (0, 1), (0, 0)], [(3, 5), (1, 1), (0, 0)], [(3, 5), (1, 1), (0, 0)]]

    def test_writes_nothing_without_a_row(self, database_url: str) -> None:
        with Database.connect(database_url) as database:  # no tables
            database.write(Batch())

    def test_keeps_any_text(self, database: Database) -> None:
        texts = [*ODD_TEXTS, *map(chr, range(1, 0x20)), "\x7f\x85\u2028", "\\N", "\\.", "😀" * 9]
        batch = Batch(messages=[message(number, content=content) for number, content in enumerate(texts, 1)])

        database.write(batch)
        database.write(batch)  # the way of a known row is another one

        assert stored(database) == batch

    def test_keeps_any_name(self, database: Database) -> None:
        names = [*ODD_NAMES, *ODD_GIDS, "A", "a", "Ä", "ä", "a\u0308", "é" * 64]
        batch = Batch(
            groups=[GroupRow(name, 0) for name in names],
            messages=[message(1, name, sender_uid=name, client_msgid=name) for name in names],
            spans=[SpanRow(name, name, 0, None, 1, 0) for name in names],
            moves=[MoveRow(name, at(1), 0, at(1), (name,)) for name in names],
        ).merged()

        database.write(batch)

        assert stored(database) == batch
        assert [database.message_by_client_msgid(name, name) for name in sorted(set(names))] == batch.messages

    @reusing_the_database
    @given(content=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1))
    def test_keeps_random_text(self, database: Database, content: str) -> None:
        clear(database)
        database.write(Batch(messages=[message(1, content=content)]))

        assert database.message("g", at(1)) == message(1, content=content)

    def test_keeps_the_longest_content(self, database: Database) -> None:
        long = message(1, content="\x01" * 65_536)

        database.write(Batch(messages=[long]))

        assert database.message("g", at(1)) == long

    def test_derives_the_time_from_the_msgid(self, database: Database) -> None:
        database.write(Batch(messages=[message(1)]))

        with Session(database._backend.engine) as session:
            row = session.get_one(GroupMsg, {"gid": "g", "msgid": at(1)})
        assert row.time == datetime(2026, 1, 1, 0, 0, 1, 123_000, UTC)


class TestReads:
    @pytest.fixture
    def messages(self, database: Database) -> list[MessageRow]:
        """Messages 1 to 10 by ann and bob in turn, among those of another group."""
        messages = [
            message(number, sender_uid=("ann", "bob")[number % 2], client_msgid=f"c{number}", sent_at_ms=FIRST_MS)
            for number in range(1, 11)
        ]
        database.write(Batch(messages=messages + [message(number, "g2", client_msgid="c2") for number in range(1, 11)]))
        return messages

    def test_one_message(self, database: Database, messages: list[MessageRow]) -> None:
        assert database.message("g", at(3)) == messages[2]
        assert database.message("g", at(3) + 1) is None
        assert database.message("h", at(3)) is None

    def test_a_message_by_client_msgid(self, database: Database, messages: list[MessageRow]) -> None:
        assert database.message_by_client_msgid("g", "c2") == messages[1]
        assert database.message_by_client_msgid("g", "2c2") is None
        assert database.message_by_client_msgid("g2", "c1") is None
        assert database.message_by_client_msgid("g", "c2", sender_uid="ann") == messages[1]
        assert database.message_by_client_msgid("g", "c2", sender_uid="bob") is None
        # The same characters, split in another place
        assert database.message_by_client_msgid("", "gc2") is None
        assert database.message_by_client_msgid("gc", "2") is None

    def test_the_first_message_of_a_repeated_client_msgid(self, database: Database) -> None:
        database.write(Batch(messages=[message(number, client_msgid="same") for number in (3, 1, 2)]))

        assert database.message_by_client_msgid("g", "same") == message(1, client_msgid="same")

    def test_messages_after(self, database: Database, messages: list[MessageRow]) -> None:
        assert database.messages_after("g", 0) == messages
        assert database.messages_after("g", at(4)) == messages[4:]
        assert database.messages_after("g", at(4), limit=2) == messages[4:6]
        assert database.messages_after("g", at(4), until=at(6)) == messages[4:6]
        assert database.messages_after("g", at(4), until=at(6), limit=1) == messages[4:5]
        assert database.messages_after("g", at(10)) == []

    def test_messages_before(self, database: Database, messages: list[MessageRow]) -> None:
        assert database.messages_before("g", at(4), limit=2) == messages[1:3]
        assert database.messages_before("g", at(4), limit=9) == messages[:3]
        assert database.messages_before("g", at(1), limit=9) == []
        assert database.messages_before("g", at(4), limit=1, skip=1) == messages[1:2]
        assert database.messages_before("g", at(4), limit=1, skip=3) == []

    def test_meta(self, database: Database) -> None:
        assert database.meta("partitions") is None
        database.set_meta("partitions", "8")
        database.set_meta("partitions", "9")
        assert database.meta("partitions") == "9"

    def test_times_are_utc_in_any_time_zone(self, postgres_url: str) -> None:
        with Database.connect(f"{postgres_url}&options={quote('-c timezone=Asia/Tokyo')}") as database:
            database.upgrade()
            database.write(Batch(messages=[message(1, sent_at_ms=FIRST_MS)]))

            with Session(database._backend.engine) as session:
                row = session.get_one(GroupMsg, {"gid": "g", "msgid": at(1)})
            assert row.time.tzinfo is UTC
            assert database.message("g", at(1)) == message(1, sent_at_ms=FIRST_MS)

    def test_a_bound_time_is_cut_to_the_millisecond(self, database: Database) -> None:
        moment = datetime(2026, 1, 1, 9, 0, 1, 123_999, timezone(timedelta(hours=9)))
        rows = [
            GroupMsg(gid="g", msgid=n, seq=n, span=0, time=moment, sent_at=sent_at, sender_uid="ann", content="hello")
            for n, sent_at in [(1, None), (2, moment)]
        ]

        with Session(database._backend.engine) as session:
            session.add_all(rows)
            session.commit()
        with database.connection() as connection:
            times = connection.execute(select(GROUP_MSGS.c.time, GROUP_MSGS.c.sent_at).order_by(GROUP_MSGS.c.seq)).all()

        cut = datetime(2026, 1, 1, 0, 0, 1, 123_000, UTC)
        assert times == [(cut, None), (cut, cut)]

    def test_a_server_that_was_restarted_is_not_noticed(self, postgres_url: str) -> None:
        with Database.connect(postgres_url) as database, psycopg.connect(postgres_url, autocommit=True) as other:
            database.upgrade()
            others = "FROM pg_stat_activity WHERE application_name = 'imcore' AND datname = current_database()"
            ended = other.execute(f"SELECT pg_terminate_backend(pid, 5000) {others}").fetchall()

            database.write(Batch(messages=[message(1)]))

            assert ended
            assert database.message("g", at(1)) == message(1)


@pytest.mark.parametrize("groups", [1, 50])
def test_a_message_takes_little_beyond_its_texts(database: Database, groups: int) -> None:
    chance = random.Random(1)
    rows = [
        message(n, f"group-{n % groups}", content="x" * 80, sender_uid=f"user-{n % 7}", client_msgid=f"{n:036}")
        for n in range(1, 5001)
    ]
    for start in range(0, len(rows), 500):
        database.write(Batch(messages=chance.sample(rows[start : start + 500], 500)))

    texts = sum(len(row.gid + row.sender_uid + row.content + (row.client_msgid or "")) for row in rows)
    assert (_bytes_of_messages(database) - texts) / len(rows) <= MOST_BYTES


def _bytes_of_messages(database: Database) -> int:
    sizes = {
        "sqlite": "SELECT sum(pgsize) FROM dbstat WHERE name LIKE '%group_msgs%'",
        "postgresql": "SELECT pg_total_relation_size('group_msgs')",
    }
    with database.connection() as connection:
        return int(connection.execute(text(sizes[connection.dialect.name])).scalar_one())


def test_a_recall_of_a_stored_message_is_written_at_once(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not first tried in vain: that would be an error in the log of PostgreSQL for each recall."""
    tries: list[Batch] = []
    write_once = PostgresBackend._write_once

    def counted(self: PostgresBackend, batch: Batch, *, may_copy: bool) -> None:
        tries.append(batch)
        write_once(self, batch, may_copy=may_copy)

    monkeypatch.setattr(PostgresBackend, "_write_once", counted)
    with Database.connect(postgres_url) as database:
        database.upgrade()
        database.write(Batch(messages=[message(1)]))

        database.write(Batch(messages=[message(1, content=""), message(2, content="", recalls=at(1))]))

        assert len(tries) == 2
        assert [row.recalls for row in database.messages_after("g", 0)] == [None, at(1)]


def test_an_interrupted_write_leaves_nothing(database: Database) -> None:
    # Given two changes that belong together
    database.set_meta("name", "before")

    # When it ends between the two
    def change(between: Callable[[], object]) -> None:
        with database.writing() as connection:
            connection.execute(text("UPDATE imcore_meta SET value = 'after' WHERE name = 'name'"))
            between()

    with pytest.raises(ZeroDivisionError):
        change(lambda: 1 / 0)

    # Then neither was made, and the next one can make both
    assert database.meta("name") == "before"
    change(lambda: None)
    assert database.meta("name") == "after"
