"""A page of history costs what a page costs, wherever it is and however large the group is: calls, queries and rows."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from imcore import Chat
from imcore import msgid as msgids
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.system import System
from tests.helpers.history_pages import GID, READER, Costs, fill, packed, places
from tests.helpers.plain_history import page_of, plain_page

KEPT, LIMIT = 400, 50


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url, keep_ms=10**12, keep_messages=KEPT)


def group_of(system: System, messages: int) -> None:
    """A group of which SQL has all messages, and Redis the newest."""
    fill(system.database, messages, read=messages // 3)
    rebuild(system)


@pytest.mark.parametrize("messages", [600, 5000])
def test_a_page_takes_few_calls_one_query_and_no_more_rows_than_it_has(chat: Chat, messages: int) -> None:
    chat.system.database.upgrade()
    group_of(chat.system, messages)
    visible = chat.pull("ann", GID, limit=1) or list(chat.history("ann", GID, after=msgids.unpack(1), limit=1).messages)
    costs = Costs(chat)
    for place, where in places(messages, packed(messages - KEPT)).items():
        costs.clear()
        page = chat.history(READER, GID, limit=LIMIT, **where)
        assert len(page.messages) >= LIMIT // 2, place
        assert costs.redis <= 3, place
        assert costs.sql <= 1, place
        assert costs.sql_rows + costs.redis_messages <= LIMIT + 1, place
    assert visible[0].seq == 1


def test_each_query_is_a_range_of_the_primary_key(database: Database) -> None:
    fill(database, 60_000)
    statements: list[tuple[str, Any]] = []

    @event.listens_for(database._backend.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM group_msgs" in statement and "EXPLAIN" not in statement:
            statements.append((statement, parameters))

    between = (0, packed(60_000))
    database.history.around(GID, between, packed(20_000), 26, packed(20_000), 25)
    database.history.around_foreign(GID, READER, between, packed(20_000), 26, 25)
    after = database.messages_after(GID, packed(20_000), until=packed(50_000), limit=25)
    before = database.messages_before(GID, packed(40_000), limit=25, skip=10)
    assert database.history.seqs_at([(GID, packed(20_000)), ("no", 5)]) == {GID: 20_000, "no": 0}
    assert [row.seq for row in database.history.messages_at([(GID, packed(7)), ("no", 7)])] == [7]
    firsts = database.history.firsts_of_others(READER, [(GID, packed(20_000), packed(30_000)), ("no", 1, 2)])
    assert set(firsts) == {GID}
    assert [row.seq for row in after] == [*range(20_001, 20_026)]
    assert [row.seq for row in before] == [*range(39_965, 39_990)]

    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN "
    for statement, parameters in list(statements):
        with database.connection() as connection:
            if database.dialect == "postgresql":
                connection.exec_driver_sql("ANALYZE group_msgs")
            plan = [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]
        scans = [line for line in plan if "group_msgs" in line]
        assert scans, plan
        costly = ("Seq Scan", "SCAN group_msgs", "TEMP B-TREE")
        # The table of erasures has a row or two: it is read once for a query, and then looked up in memory.
        lines = [line for line in plan if "on erasures" not in line]
        assert not [line for line in lines if any(words in line for words in costly)], plan
        assert not [line for line in plan if "Sort" in line]


def test_pages_are_those_of_a_plain_list(chat: Chat) -> None:
    chat.system.database.upgrade()
    group_of(chat.system, 600)
    page = chat.history(READER, GID, limit=500)
    visible = [*chat.history(READER, GID, before=page.messages[0].msgid, limit=500).messages, *page.messages]

    assert [message.seq for message in visible] == list(range(1, 601))
    for seq in (1, 2, 199, 200, 201, 226, 574, 600):
        cursor = visible[seq - 1].msgid
        for where in ({"before": cursor}, {"after": cursor}, {"around": cursor}):
            assert page_of(chat, READER, GID, LIMIT, **where) == plain_page(visible, LIMIT, **where)
    unread = visible[200].msgid
    assert page_of(chat, READER, GID, LIMIT, first_unread=True) == plain_page(visible, LIMIT, around=unread)
