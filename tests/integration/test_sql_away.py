"""An outage of the SQL database: the chat works, the backlog grows, and the workers catch up by themselves."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import psycopg
import pytest

from imcore.admin import retention
from imcore.chat import Chat
from imcore.errors import DatabaseUnavailable
from imcore.process import WorkerSignals
from imcore.settings import Settings
from imcore.sql import sqlite
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.util.backoff import FIRST_WAIT_S, LONGEST_WAIT_S
from imcore.workers.receipts import ReceiptsWorker
from imcore.workers.runner import Retrier
from tests.helpers.cli import im
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.postgres import PostgresServer, require_postgres, running_postgres
from tests.helpers.workers import drain, start_worker

GID = "team"


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of our own, to be stopped and started."""
    require_postgres()
    with running_postgres() as server:
        yield server


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=50)


def backlog(settings: Settings) -> int:
    """The backlog of the worker `persist` in `im stats`."""
    where = ["--redis-url", settings.redis_url, "--database-url", settings.database_url]
    result = im("stats", "--json", *where)
    assert (result.exit_code, result.stderr) == (0, "")
    [persist_stats] = [each for each in json.loads(result.stdout)["workers"] if each["worker"] == "persist"]
    return int(persist_stats["backlog"])


def stored(database: Database) -> int:
    return len(database.messages_after(GID, 0))


def test_postgresql_stopped_and_started(settings: Settings, postgres: PostgresServer) -> None:
    # Given workers that have done all there is
    settings = replace(settings, database_url=postgres.new_database())
    with (
        Chat.connect(settings=settings) as chat,
        start_worker(settings, max_deliveries=2) as persist,
        start_worker(settings, "receipts") as receipts,
    ):
        persist.wait_for("working as")
        receipts.wait_for("working as")
        chat.create_group(GID, ["ann", "bob", "cy"])
        chat.send(GID, "before", sender_uid="ann")
        wait_until(lambda: backlog(settings) == 0)

        # When the database is stopped
        postgres.stop()

        # Then people send and ack, and get receipts
        for number in range(50):
            chat.send(GID, f"meanwhile {number}", sender_uid="ann")
        newest = chat.pull("bob", GID)[-1].msgid
        assert chat.ack("bob", GID).advanced
        assert [each.unread for each in chat.unread("cy")] == [51]
        assert (chat.tally(GID, newest).read, chat.tally(GID, newest).unread) == (1, 1)
        wait_until(lambda: len(chat.receipts("ann")) == 51)
        persist.wait_for("waiting: the database")

        # And the backlog shows, and grows
        first = backlog(settings)
        assert first >= 51
        chat.send(GID, "one more", sender_uid="cy")
        assert backlog(settings) == first + 1

        # And a worker that needs no database begins without it
        with start_worker(settings, "receipts") as another:
            another.wait_for("working as receipts-2")
            assert another.end() == 0

        # When it is back
        postgres.start()

        # Then the worker catches up by itself, and nothing is lost or put aside
        wait_until(lambda: backlog(settings) == 0, timeout_s=30)
        assert stored(chat.system.database) == 52
        status = chat.message_status(GID, newest)
        assert [(reader.uid, reader.read_at is not None) for reader in status.read_by] == [("bob", True)]
        assert list(dead_letters.list_dead(chat.system.client)) == []
        assert (persist.end(), receipts.end()) == (0, 0)
    assert persist.log.count("going on") == 1
    assert "Traceback" not in persist.log + receipts.log


def test_a_held_lock_on_sqlite(settings: Settings) -> None:
    with Chat.connect(settings=settings) as chat, start_worker(settings) as persist:
        persist.wait_for("working as")
        chat.create_group(GID, ["ann", "bob"])
        wait_until(lambda: backlog(settings) == 0)

        # When somebody holds the database, and there is something to store
        with closing(sqlite3.connect(settings.data_dir / "imcore.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            chat.send(GID, "meanwhile", sender_uid="ann")
            assert chat.ack("bob", GID).advanced
            assert backlog(settings) == 2
            other.execute("ROLLBACK")

        # Then it is stored as soon as they let go
        wait_until(lambda: backlog(settings) == 0)
        assert persist.end() == 0
    assert all("appendonly is no" in warning for warning in persist.warnings)


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Hold the database, so that nobody else can write."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
    else:
        with closing(psycopg.connect(database_url)) as holder:
            holder.execute("LOCK TABLE group_msgs, group_spans, chat_groups, offset_moves IN ACCESS EXCLUSIVE MODE")
            yield


def test_a_long_lock_moves_no_entry_to_the_dead_letters(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lock that outlasts all patience of the driver, more often than an entry may be delivered
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 10)
    monkeypatch.setattr("imcore.sql.postgres.LOCK_TIMEOUT_MS", 10)
    settings = replace(settings, max_deliveries=2, database_url=database_url)
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        persist = new_persist(chat.system.client, chat.system.database, settings)
        chat.create_group(GID, ["ann", "bob"])
        chat.send(GID, "meanwhile", sender_uid="ann")
        with locked(database_url):
            for _ in range(5):
                with pytest.raises(DatabaseUnavailable, match=r"database is locked|lock .* for too long"):
                    persist.step()

        # Then it is stored, and nothing is a dead letter
        drain(persist)
        persist.close()
        assert stored(chat.system.database) == 1
        assert list(dead_letters.list_dead(chat.system.client)) == []


def test_a_lock_timeout_of_the_operator_is_kept(postgres_url: str) -> None:
    name = f"{postgres_url}&options=-c%20lock_timeout%3D1min"
    for url, limit in ((postgres_url, "10s"), (name, "1min")):
        with Database.connect(url) as database, database.connection() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == limit


def test_waits_grow_up_to_a_limit_and_are_short_again_after_a_time_without_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a server that is away for thirty tries
    waits: list[float] = []
    now = 0.0
    with WorkerSignals() as signals:
        monkeypatch.setattr(signals, "wait", waits.append)
        retrier = Retrier(signals, clock=lambda: now)
        answers = iter([*[DatabaseUnavailable()] * 30, None, None, DatabaseUnavailable(), None])

        def attempt() -> None:
            answer = next(answers)
            if answer:
                raise answer

        # When it is waited for, and again after a while
        retrier.call(attempt)
        now += LONGEST_WAIT_S
        retrier.call(attempt)
        retrier.call(attempt)

    # Then each wait is up to twice as long as the one before, and none is longer than the limit
    longest = [min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries) for tries in range(30)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, [*longest, FIRST_WAIT_S], strict=True))
    assert sum(waits) > 60


def test_a_group_that_waits_for_sql_delays_no_other_group(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two groups, one of them in SQL only
    settings = replace(settings, receipt_window_ms=0, max_deliveries=2)
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        receipts = ReceiptsWorker(chat.system.client, chat.system.database, settings)
        persist = new_persist(chat.system.client, chat.system.database, settings)
        sent = {}
        for gid in ("old", "new"):
            chat.create_group(gid, ["ann", "bob"])
            sent[gid] = chat.send(gid, "hi", sender_uid="ann").msgid
            for worker in (persist, receipts):
                drain(worker)
            retention.trim(chat.system, gid="old", keep_messages=0)

        # When somebody reads both while the database is away
        chat.ack("bob", "old")
        chat.ack("bob", "new")
        with monkeypatch.context() as away:
            away.setattr(Database, "messages_after", refuse)
            for _ in range(5):
                with pytest.raises(DatabaseUnavailable):
                    receipts.step()

            # Then the sender gets the receipt of the message that Redis has
            assert [each.msgid for each in chat.receipts("ann")] == [sent["new"]]

        # And of the other one once the database is back
        receipts.step()
        assert {each.msgid for each in chat.receipts("ann")} == set(sent.values())
        assert list(dead_letters.list_dead(chat.system.client)) == []
        for worker in (persist, receipts):
            worker.close()


def refuse(*_: object, **__: object) -> None:
    raise DatabaseUnavailable
