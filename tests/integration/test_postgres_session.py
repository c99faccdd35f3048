"""Settings of a database, a role and the PG* variables change no stored and no read value."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection

from imcore import msgid as msgids
from imcore.admin import retention
from imcore.chat import Chat
from imcore.errors import ConfigurationError, DatabaseUnavailable
from imcore.model.rows import Batch, GroupRow, MessageRow
from imcore.repair import check, rebuild
from imcore.settings import Settings
from imcore.sql import corrections
from imcore.sql.database import Database
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import PostgresServer, name_of
from tests.helpers.workers import run_workers

ROLE = "talker"
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 30, 23, 59, 59, 999_000, tzinfo=UTC)
TIMES = [FIRST, LAST, datetime(1970, 1, 1, tzinfo=UTC), datetime(1883, 11, 18, 17, 0, 0, 1000, tzinfo=UTC)]

SAID = {
    "TimeZone": ["America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati"],
    "DateStyle": ["SQL, DMY", "German", "Postgres, MDY"],
    "IntervalStyle": ["iso_8601"],
    "client_encoding": ["LATIN1", "SQL_ASCII"],
    "standard_conforming_strings": ["off"],
    "transform_null_equals": ["on"],
    "default_transaction_isolation": ["serializable", "repeatable read"],
    "synchronous_commit": ["off"],
    "extra_float_digits": ["-15"],
    "bytea_output": ["escape"],
    "array_nulls": ["off"],
    "plan_cache_mode": ["force_generic_plan"],
    "enable_seqscan": ["off"],
}


@pytest.fixture
def role(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """A role that owns the database, and says nothing yet."""
    name = name_of(postgres_url)
    postgres_server.run(f"CREATE ROLE {ROLE} LOGIN", f'ALTER DATABASE "{name}" OWNER TO {ROLE}')
    yield ROLE
    postgres_server.drop_database(postgres_url)
    postgres_server.run(f"DROP ROLE {ROLE}", f'CREATE DATABASE "{name}"')  # the fixture of the URL drops that one


@pytest.fixture
def url(postgres_url: str, role: str) -> str:
    return postgres_url.replace("postgres@", f"{role}@")


def by_database(server: PostgresServer, url: str, name: str, value: str) -> None:
    server.run(f"ALTER DATABASE \"{name_of(url)}\" SET {name} = '{value}'")


def by_role(server: PostgresServer, url: str, name: str, value: str) -> None:
    server.run(f"ALTER ROLE {ROLE} SET {name} = '{value}'")


Say = Callable[[PostgresServer, str, str, str], None]
CASES: list[tuple[Say, str, str]] = [
    *((by_database, name, value) for name, values in SAID.items() for value in values),
    (by_role, "TimeZone", "America/New_York"),
    (by_role, "DateStyle", "German"),
]


@pytest.mark.parametrize(("say", "name", "value"), CASES, ids=[" ".join((s.__name__, *said)) for s, *said in CASES])
def test_everything_works_with_any_session_settings(
    say: Say, name: str, value: str, postgres_server: PostgresServer, valkey: str, url: str, tmp_path: Path
) -> None:
    # Given a session that begins with something unusual
    say(postgres_server, url, name, value)
    settings = Settings.from_env({}, redis_url=valkey, database_url=url, data_dir=str(tmp_path))

    # When messages are stored, of any time and in any script, and dropped from Redis
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        chat.create_group("team", ["ann", "bob"])
        sent = [
            chat.send(
                "team",
                "emoji \N{WAVING HAND SIGN} \u7fa4 \\ ' NULL",
                sender_uid="ann",
                sent_at=sent_at,
                client_msgid=f"\\{n}",
            )
            for n, sent_at in enumerate(TIMES)
        ]
        chat.ack("bob", "team")
        run_workers(chat)
        assert retention.trim(chat.system, keep_messages=0, keep_ms=0).entries == len(sent)

        # Then both sides agree, and everybody gets every message
        assert list(check.check(chat.system)) == []
        assert list(corrections.wrong_times(chat.system.database, ["team"])) == []
        assert [each.message for each in chat.status("team")] == sent
        assert [row.sent_at_ms for row in chat.system.database.messages_after("team", 0)] == list(
            map(msgids.to_ms, TIMES)
        )
        stored = chat.system.database.message_by_client_msgid("team", "\\1")
        assert stored
        assert stored.sent_at_ms == msgids.to_ms(LAST)

        # And a Redis that is lost comes back
        chat.system.client.driver.flushall()
    with Chat.connect(settings=settings) as chat:
        assert rebuild.rebuild(chat.system).messages == len(sent)
        assert list(check.check(chat.system)) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("PGTZ", "America/New_York"), ("PGDATESTYLE", "German"), ("PGCLIENTENCODING", "LATIN1")),
        ("PGOPTIONS", "-c timezone=America/New_York -c datestyle=German -c client_encoding=LATIN1"),
    ],
)
def test_everything_works_with_any_pg_variables(
    variable: str, value: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    row = MessageRow("g", 1 << 40, 1, "ann", 0, "\N{WAVING HAND SIGN}", None, msgids.to_ms(FIRST))
    with Database.connect(postgres_url) as database:
        database.upgrade()
        database.write(Batch(messages=[row]))

        assert database.messages_after("g", 0) == [row]
        assert list(corrections.wrong_times(database, ["g"])) == []


def test_a_commit_is_on_the_disk(postgres_server: PostgresServer, url: str) -> None:
    # Given a database without synchronous commits, and a server with more than that
    for said, expected in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
        by_database(postgres_server, url, "synchronous_commit", said)
        with Database.connect(url) as database, database.connection() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == expected


def test_a_server_without_fsync_is_logged(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    # Given the server of the tests, which need not outlive a power cut
    with Database.connect(postgres_url) as database:
        database.upgrade()

        [message] = caplog.messages
        assert message.startswith(f"the server of {database.address} has fsync = off and full_page_writes = off")

        # Those who only use it need not read it each time
        caplog.clear()
        database.write(Batch(groups=[GroupRow("g", 1)]))
        assert caplog.messages == []


class TestLimits:
    """Limits of a role are errors that say what to do."""

    def test_a_statement_timeout_of_the_server_is_an_error(self, postgres_server: PostgresServer, url: str) -> None:
        with Database.connect(url) as database:
            database.upgrade()
        # Not 1 ms: a limit that passes as a statement ends is reported as the wish of a user.
        by_role(postgres_server, url, "statement_timeout", "200")
        with (
            Database.connect(url) as database,
            pytest.raises(DatabaseUnavailable, match=r"statement timeout.*ALTER ROLE name SET statement_timeout = 0$"),
            database.connection() as connection,
        ):
            connection.exec_driver_sql("SELECT pg_sleep(1)")

    def test_an_idle_transaction_timeout_of_the_server_is_an_error(
        self, postgres_server: PostgresServer, url: str
    ) -> None:
        by_role(
            postgres_server, url, "idle_in_transaction_session_timeout", "500"
        )  # longer than the start of a session
        with (
            Database.connect(url) as database,
            pytest.raises(DatabaseUnavailable, match=r"idle_in_transaction_session_timeout = 0$"),
            database.connection() as connection,
        ):
            ask_again_once_it_ended(postgres_server, connection)

    def test_a_read_only_role_is_refused(self, postgres_server: PostgresServer, url: str) -> None:
        # Given a role that may write no more, and a program that wrote just now
        with Database.connect(url) as before:
            before.upgrade()
            by_role(postgres_server, url, "default_transaction_read_only", "on")
            before.write(Batch(groups=[GroupRow("g", 1)]))
            postgres_server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")

            # Then it waits, and says what to do
            with pytest.raises(DatabaseUnavailable, match="default_transaction_read_only = off"):
                before.write(Batch(groups=[GroupRow("g", 1)]))

        # And the next one does not begin
        with Database.connect(url) as database:
            assert database.messages_after("g", 0) == []
            for refused in (database.upgrade, lambda: database.write(Batch(groups=[GroupRow("g", 1)]))):
                with pytest.raises(
                    ConfigurationError, match=f"ALTER ROLE {ROLE} SET default_transaction_read_only = off"
                ):
                    refused()

            # Until that is put right
            by_role(postgres_server, url, "default_transaction_read_only", "off")
            database.close()
            database.upgrade()


def ask_again_once_it_ended(server: PostgresServer, connection: Connection) -> None:
    """Wait until the server has ended the session by itself, and use it."""
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()

    def is_gone() -> bool:
        with psycopg.connect(server.url) as other:
            return other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is None

    wait_until(is_gone)
    connection.exec_driver_sql("SELECT 1")
