"""A PostgreSQL that sends neither an answer nor an error: a process that waits for it logs so."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from imcore.chat import Chat
from imcore.model.rows import Batch, GroupRow
from imcore.settings import Settings
from imcore.sql import postgres
from imcore.sql.database import Database
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import PostgresServer, name_of
from tests.helpers.processes import WorkerProcess

GID = "team"
WORDS = "has not answered for"


def sessions(server: PostgresServer, url: str) -> list[int]:
    """The processes that serve those who use a database."""
    with psycopg.connect(server.url) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", [name_of(url)])
        return [pid for (pid,) in rows]


@contextmanager
def silent(server: PostgresServer, url: str) -> Iterator[None]:
    """Stop all of them for a while."""
    pids = sessions(server, url)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "action",
    [
        lambda database: database.messages_after("g", 0),
        lambda database: database.write(Batch(groups=[GroupRow("g", 1)])),
        lambda database: database.upgrade(),
    ],
    ids=["read", "write", "upgrade"],
)
def test_a_wait_for_a_silent_server_is_logged(
    postgres_server: PostgresServer,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    action: Callable[[Database], object],
) -> None:
    monkeypatch.setattr(postgres, "SLOW_AFTER_S", 0.2)
    caplog.set_level(logging.INFO)
    with Database.connect(postgres_url) as database:
        database.upgrade()
        waiting = threading.Thread(target=action, args=(database,))
        with silent(postgres_server, postgres_url):
            waiting.start()
            wait_until(lambda: WORDS in caplog.text)
            assert waiting.is_alive()
        waiting.join(30)

    # It is said once, with the address, and that it is over
    logged = [message for message in caplog.messages if "database" in message]
    assert [WORDS in message for message in logged] == [True, False]
    assert logged[0].startswith(f"the database {database.address} {WORDS}")
    assert "answers again after" in logged[1]


def test_a_worker_logs_the_wait_and_ends_on_a_signal(
    postgres_server: PostgresServer, postgres_url: str, valkey: str, tmp_path: Path
) -> None:
    settings = replace(Settings.from_env({}, redis_url=valkey, database_url=postgres_url, data_dir=str(tmp_path)))
    given = {"redis_url": valkey, "database_url": postgres_url, "block_ms": 50}
    with Chat.connect(settings=settings) as chat, WorkerProcess(tmp_path, "persist", **given) as worker:
        worker.wait_for("working as")
        chat.create_group(GID, ["ann", "bob"])
        with silent(postgres_server, postgres_url):
            chat.send(GID, "hi", sender_uid="ann")
            worker.wait_for(WORDS)
            assert worker.end() == 0
    assert worker.log.count(WORDS) == 1
    assert "Traceback" not in worker.log
