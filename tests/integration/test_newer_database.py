"""Every program refuses a database that a newer program has made."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import text

from imcore.chat import Chat
from imcore.errors import ConfigurationError
from imcore.model.rows import Batch, GroupRow
from imcore.sql.database import Database
from imcore.streams.keys import Keyspace
from tests.helpers.cli import im as run_im
from tests.helpers.processes import WorkerProcess

NEWER = "is at version 9999, newer than this program"


def made_newer(url: str) -> str:
    with Database.connect(url) as database:
        database.upgrade()
        with database.connection() as connection:
            connection.execute(text("UPDATE imcore_version SET version_num = '9999'"))
    return url


@pytest.fixture
def newer_url(database_url: str) -> str:
    return made_newer(database_url)


@pytest.fixture
def sqlite_newer(sqlite_url: str) -> str:
    return made_newer(sqlite_url)


@pytest.mark.parametrize(
    "use",
    [
        lambda database: database.write(Batch(groups=[GroupRow("g", 1)])),
        lambda database: database.message("g", 1),
        lambda database: database.meta("dataset"),
        lambda database: database.set_meta("dataset", "x"),
        lambda database: database.read_times("g", 1),
        lambda database: database.refuse_newer(),
        lambda database: database.upgrade(),
        lambda database: database.check_version(),
    ],
)
def test_every_use_of_a_newer_database_is_refused(newer_url: str, use: Callable[[Database], object]) -> None:
    with Database.connect(newer_url) as database:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=NEWER):
                use(database)


def test_an_unreachable_database_is_not_refused() -> None:
    with Database.connect("postgresql://127.0.0.1:1/chat") as database:
        database.refuse_newer()


@pytest.fixture
def im(valkey: str, sqlite_newer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command line, where ann has written something that bob has read, and all but the newest message is in SQL."""
    for name, value in {"REDIS_URL": valkey, "DATABASE_URL": sqlite_newer, "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"IM_{name}", value)
    with Chat.connect(valkey) as chat:
        chat.create_group("team", ["ann", "bob"])
        sent = chat.send("team", "hi", sender_uid="ann")
        chat.ack("bob", "team")
    return lambda line: run_im(*shlex.split(line.replace("MSGID", sent.msgid)))


@pytest.mark.parametrize(
    "line", ["check", "trim", "status team MSGID", "rebuild --yes", "import /dev/null", "db upgrade", "check --repair"]
)
def test_every_command_refuses_a_newer_database(im: Callable[..., Result], line: str) -> None:
    result = im(line)
    assert (result.exit_code, result.stdout) == (1, "")
    assert NEWER in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["persist", "receipts", "jobs"])
@pytest.mark.usefixtures("im")
def test_every_worker_refuses_a_newer_database(valkey: str, sqlite_newer: str, tmp_path: Path, name: str) -> None:
    with WorkerProcess(tmp_path, name, redis_url=valkey, database_url=sqlite_newer) as worker:
        assert worker.wait() == 1
    assert NEWER in worker.log.splitlines()[-1]
    assert "Traceback" not in worker.log
    with Chat.connect(valkey) as chat:
        dead = [
            Keyspace(chat.system.client.space.partitions).dead_letters(p)
            for p in range(chat.system.client.space.partitions)
        ]
        assert set(chat.system.client.query_many([("XLEN", key) for key in dead])) == {0}
