"""PostgreSQL behind PgBouncer: in transaction mode a session is somebody else's as soon as a transaction has ended."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO

import psycopg
import pytest

from imcore.chat import Chat
from imcore.errors import ConfigurationError, DatabaseUnavailable
from imcore.importer.importer import import_events
from imcore.model.rows import Batch, GroupRow, MessageRow, SpanRow
from imcore.repair import check, rebuild
from imcore.settings import Settings
from imcore.sql import postgres, queries
from imcore.sql.database import Database
from tests.helpers.deadline import wait_until
from tests.helpers.pgbouncer import Bouncer, running_pgbouncer
from tests.helpers.postgres import PostgresServer, name_of
from tests.helpers.workers import start_worker, store

GID = "team"
SESSIONS = 2
"""Fewer than the connections that ask for one: each transaction gets whichever is free."""


@pytest.fixture(scope="module", params=["transaction", "session"])
def bouncer(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[Bouncer]:
    """A PgBouncer in each mode that can do transactions."""
    size = SESSIONS if request.param == "transaction" else 20
    with running_pgbouncer(postgres_server, pool_mode=request.param, default_pool_size=size) as bouncer:
        yield bouncer


@pytest.fixture
def bouncer_url(bouncer: Bouncer, postgres_url: str) -> str:
    return bouncer.url(postgres_url)


@pytest.fixture
def settings(settings: Settings, bouncer_url: str) -> Settings:
    return replace(settings, database_url=bouncer_url, block_ms=50)


def test_workers_store_all_through_a_pooler(settings: Settings) -> None:
    # Given more workers than sessions
    with (
        start_worker(settings) as first,
        start_worker(settings) as second,
        start_worker(settings, "receipts") as receipts,
        Chat.connect(settings=settings) as chat,
    ):
        workers = (first, second, receipts)
        for worker in workers:
            worker.wait_for("working as")

        # When people talk, read and withdraw
        for gid in (GID, "other", "third"):
            chat.create_group(gid, ["ann", "bob"])
        for number in range(30):
            for gid in (GID, "other", "third"):
                sent = chat.send(gid, f"message {number}", sender_uid="ann")
            chat.ack("bob", GID)
        chat.recall("third", sent.msgid, by="ann")

        # Then all is stored, and can be looked at
        wait_until(lambda: len(chat.system.database.messages_after(GID, 0)) == 30)
        wait_until(lambda: list(check.check(chat.system)) == [], timeout_s=30)
        assert chat.message_status(GID, chat.status(GID)[-1].message.msgid).read_by[0].read_at is not None
        assert [each.end() for each in workers] == [0, 0, 0]
        for worker in workers:
            assert all("fsync = off" in warning or "appendonly is no" in warning for warning in worker.warnings)
            assert "Traceback" not in worker.log


def test_repeated_statements_work_through_a_pooler(bouncer_url: str) -> None:
    # Given programs that get each other's sessions, in which a driver may have prepared a statement for itself
    with ExitStack() as stack:
        databases = [stack.enter_context(Database.connect(bouncer_url)) for _ in range(SESSIONS + 1)]
        databases[0].upgrade()

        # When each does the same more often than a driver would without preparing it
        for number in range(1, 21):
            for place, database in enumerate(databases):
                row = MessageRow(GID, 100 * number + place, number, "ann", 0, "hi", None, None)
                database.write(Batch(messages=[row], spans=[SpanRow(GID, "ann", 0, None, 1, row.msgid)]))
                database.write(Batch(messages=[row._replace(msgid=row.msgid + 50, recalls=row.msgid)]))
                assert database.message(GID, row.msgid)

        # Then all is there
        assert len(databases[-1].messages_after(GID, 0)) == 2 * 20 * len(databases)


def test_a_rebuild_and_an_import_work_through_a_pooler(settings: Settings) -> None:
    with Chat.connect(settings=settings) as chat:
        # Given an import, stored in SQL
        lines = [
            {"type": "message", "gid": GID, "uid": "ann", "content": f"{n}", "client_msgid": f"{n}"} for n in range(99)
        ]
        events = "\n".join(json.dumps(line) for line in lines).encode()
        chat.system.database.upgrade()
        assert import_events(chat, BytesIO(events), on_error=pytest.fail).messages == 99
        store(chat)
        chat.system.client.driver.flushall()

    # When Redis has lost it
    with Chat.connect(settings=settings) as chat:
        assert rebuild.rebuild(chat.system).messages == 99

        # Then it is back
        assert list(check.check(chat.system)) == []


def test_several_migrations_at_once_work_through_a_pooler(bouncer_url: str) -> None:
    def upgrade(number: int) -> None:
        with Database.connect(bouncer_url) as database:
            database.upgrade()
            database.write(Batch(groups=[GroupRow(f"g{number}", 1)]))

    with ThreadPoolExecutor(SESSIONS) as threads:
        list(threads.map(upgrade, range(2 * SESSIONS)))

    with Database.connect(bouncer_url) as database:
        database.check_version()
        assert queries.count_groups(database) == 2 * SESSIONS


def test_a_stream_of_pages_works_beside_other_queries(bouncer_url: str) -> None:
    rows = [MessageRow(GID, n, n, "ann", 0, "hi", None, None) for n in range(1, 2 * queries.PAGE + 2)]
    with Database.connect(bouncer_url) as database:
        database.upgrade()
        database.write(Batch(groups=[GroupRow(GID, 1)], messages=rows))

        seen = 0
        for row in queries.messages(database, [GID], after=0):
            seen += 1
            if row.seq % queries.PAGE == 1:
                assert queries.heads(database, [GID])[GID].messages == len(rows)

        assert seen == len(rows)


def test_a_wait_for_a_lock_is_limited(bouncer_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_MS", 10)
    with Database.connect(bouncer_url) as database, psycopg.connect(postgres_url) as holder:
        database.upgrade()
        holder.execute("LOCK TABLE chat_groups IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailable, match="somebody has had a lock"):
            database.write(Batch(groups=[GroupRow(GID, 1)]))


def test_settings_of_a_role_are_overridden_in_each_transaction(
    bouncer_url: str, postgres_url: str, postgres_server: PostgresServer
) -> None:
    postgres_server.run(f"ALTER DATABASE {name_of(postgres_url)} SET timezone = 'America/New_York'")
    with Database.connect(bouncer_url) as one, Database.connect(bouncer_url) as other:
        one.upgrade()
        for database in (one, other, one):
            with database.connection() as connection:
                assert connection.exec_driver_sql("SHOW timezone").scalar() == "UTC"

    # And it stays in there: the next one to have that session finds what the database says
    with psycopg.connect(bouncer_url, autocommit=True) as somebody:
        assert somebody.execute("SHOW timezone").fetchone() == ("America/New_York",)


def test_a_mode_without_transactions_is_refused_in_one_line(postgres_server: PostgresServer, postgres_url: str) -> None:
    with (
        running_pgbouncer(postgres_server, pool_mode="statement") as bouncer,
        Database.connect(bouncer.url(postgres_url)) as database,
        pytest.raises(ConfigurationError, match=r"pool_mode=statement.*: set pool_mode to transaction$"),
    ):
        database.upgrade()


def test_an_option_that_the_pooler_drops_is_an_error(postgres_server: PostgresServer, postgres_url: str) -> None:
    options = "&options=-cstatement_timeout%3D0"
    with (
        running_pgbouncer(postgres_server, pool_mode="transaction") as bouncer,
        Database.connect(bouncer.url(postgres_url, options)) as database,
        pytest.raises(ConfigurationError, match="unsupported startup parameter: options"),
    ):
        database.upgrade()
    with (
        running_pgbouncer(postgres_server, pool_mode="transaction", ignore_startup_parameters="options") as bouncer,
        Database.connect(bouncer.url(postgres_url, options)) as database,
    ):
        database.upgrade()
