"""An unreadable row, written by hand, is reported and blocks nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from imcore.admin import retention
from imcore.chat import Chat
from imcore.model.values import Message
from imcore.repair import check, rebuild
from imcore.settings import Settings
from imcore.sql import queries
from tests.helpers.workers import run_workers

BAD, GOOD = "bad", "good"
NAMES = ["ann", "bob", "cy"]

POSTGRES = {
    "sent_at": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'10000-01-01 00:00:00+00'"],
    "time": ["'infinity'", "'-infinity'", "'0044-03-15 BC'"],
    "msgid": ["1::bigint << 62", "-7"],
    "seq": ["1::bigint << 62", "-7"],
    "span": ["1::bigint << 62"],
    "recalls": ["-7", "1::bigint << 62"],
    "confirmed_read": ["-7"],
    "content": ["''"],
}
BLOB, NOT_UTF8, WORD, HALF = "x'ff41'", "CAST(x'ff41' AS TEXT)", "'word'", "1.5"
SQLITE = {
    **{name: [BLOB, WORD, HALF, "1 << 62"] for name in ("seq", "msgid")},
    **{name: [BLOB, WORD] for name in ("span", "recalls", "confirmed_read")},
    **{name: [BLOB, NOT_UTF8] for name in ("sender_uid", "client_msgid", "content")},
    "sent_at": [
        *(BLOB, NOT_UTF8, WORD, HALF, "'2024-02-31T00:00:00.000Z'", "'2024-01-01'", "'0000-01-01T00:00:00.000Z'"),
        *("'10000-01-01T00:00:00.000Z'", "'0001-01-01T00:00:00.000+05:00'", "''"),
    ],
    "time": [BLOB, NOT_UTF8, WORD, HALF],
}
OF_OTHER_TABLES = {
    "sqlite": [
        *(
            (table, column, value)
            for table, column in (("group_spans", "uid"), ("chat_groups", "gid"))
            for value in (BLOB,)
        ),
        *(("group_spans", column, value) for column in ("changed", "acked_msgid") for value in (BLOB, WORD)),
        *(("offset_moves", "uids", value) for value in (BLOB, WORD, "'{}'", "'[1]'")),
        *(("imcore_meta", "value", value) for value in (BLOB, WORD)),
    ],
    "postgresql": [
        ("group_spans", "changed", "1::bigint << 62"),
        ("chat_groups", "created_at", "'infinity'"),
        ("imcore_meta", "value", "'word'"),
        *(("offset_moves", "uids", value) for value in ("'word'", "'{}'", "'[1]'")),
    ],
}
ROW = {
    "group_msgs": f"gid = '{BAD}' AND seq = 2",
    "group_spans": f"gid = '{BAD}' AND uid = 'bob'",
    "chat_groups": f"gid = '{BAD}'",
    "offset_moves": f"gid = '{BAD}'",
    "imcore_meta": "name LIKE 'stored:%' OR name = 'partitions'",
}
CASES = [
    *(("sqlite", "group_msgs", name, value) for name, values in SQLITE.items() for value in values),
    *(("postgresql", "group_msgs", name, value) for name, values in POSTGRES.items() for value in values),
    *((kind, *each) for kind, cases in OF_OTHER_TABLES.items() for each in cases),
]
BLANK = {("postgresql", "content", "''")}
"""Readable values that differ from the old ones."""


@dataclass
class System:
    """Redis and SQL; SQL has all messages."""

    settings: Settings
    chat: Chat
    sent: list[Message]

    def store(self) -> None:
        """Let workers do what there is to do."""
        run_workers(self.chat)

    def write(self, table: str, column: str, value: str) -> None:
        """Write something into a row, by hand."""
        with self.chat.system.database.writing() as connection:
            assert connection.execute(text(f"UPDATE {table} SET {column} = {value} WHERE {ROW[table]}")).rowcount

    def trim(self) -> int:
        return retention.trim(self.chat.system, keep_messages=0, keep_ms=0).groups

    def differences(self) -> list[str]:
        return [f"{each.gid} {each.what}: {each.sql}" for each in check.check(self.chat.system)]

    def look(self) -> None:
        """Do what users and operators do: nothing of it may fail, and of the good group all is as it was."""
        for gid in (GOOD, BAD):
            for tally in self.chat.status(gid, limit=0):
                self.chat.message_status(gid, tally.message.msgid)
        assert [each.message for each in self.chat.status(GOOD, limit=0)] == self.sent
        assert self.chat.pull("bob", GOOD) == self.sent
        self.chat.pull("bob", BAD)
        assert {each.gid for each in self.chat.unread("bob")} >= {GOOD}


@pytest.fixture
def system(request: pytest.FixtureRequest, valkey: str, tmp_path: Path) -> Iterator[System]:
    """Two groups, of whose messages SQL has a copy, on the kind of database that a test names."""
    kind = request.param
    url = f"sqlite:///{tmp_path / 'imcore.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    settings = replace(Settings.from_env({}, redis_url=valkey, database_url=url, data_dir=str(tmp_path)), block_ms=5)
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        system = System(settings, chat, [])
        at = datetime(2026, 1, 1, tzinfo=UTC)
        for gid in (BAD, GOOD):
            chat.create_group(gid, NAMES)
            system.sent = [
                chat.send(gid, f"hi {number}", sender_uid="ann", client_msgid=f"c{number}", sent_at=at)
                for number in range(3)
            ]
            chat.ack("cy", gid)
        system.store()
        yield system


@pytest.mark.parametrize(
    ("system", "table", "column", "value"),
    CASES,
    indirect=["system"],
    ids=[f"{kind} {table}.{column} {value}" for kind, table, column, value in CASES],
)
def test_an_unreadable_row_blocks_nothing(
    system: System, table: str, column: str, value: str, request: pytest.FixtureRequest
) -> None:
    # Given a value that the column should never hold
    system.write(table, column, value)
    cannot_be_read = bool(list(queries.unreadable(system.chat.system.database, [BAD])))

    # When all is done that there is to do, with Redis as it is
    system.chat.send(GOOD, "more", sender_uid="bob")
    system.sent.append(system.chat.status(GOOD)[-1].message)
    system.store()
    assert system.chat.system.client.query("XLEN", system.chat.system.client.space.dead_letters(0)) == 0
    system.look()
    before = system.differences()
    dropped = system.trim()
    after = system.differences()
    system.look()

    # Then the other group is unchanged, and unreadable cells are reported, also after Redis has trimmed the message
    assert dropped >= 1
    assert not [line for line in (*before, *after) if line.startswith(GOOD)]
    if cannot_be_read:
        assert [line for line in before if "cannot be read" in line]
        assert [line for line in after if "cannot be read" in line]

    # And neither a repair nor a loss of Redis changes that
    list(check.check(system.chat.system, repair=True))
    system.look()
    system.chat.system.client.driver.flushall()
    with Chat.connect(settings=system.settings) as chat:
        rebuild.rebuild(chat.system)
        again = System(system.settings, chat, system.sent)
        again.store()
        again.look()
        assert not [line for line in again.differences() if line.startswith(GOOD)]
