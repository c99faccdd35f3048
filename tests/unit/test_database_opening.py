"""A gateway opens its database in the background: no SQL query stalls other sessions, and no thread is left."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from imcore import msgid as msgids
from imcore.admin import retention
from imcore.chat import Chat
from imcore.errors import DatabaseNotReady, DatabaseOpening, DatabaseUnavailable
from imcore.model.rows import MessageRow
from imcore.operations import performer as performer_module
from imcore.operations.effects import Effects
from imcore.operations.performer import Performer
from imcore.operations.queries import MessagesAfter
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.calls import creation_calls
from imcore.streams.client import RedisClient
from imcore.streams.keys import CONFIG
from imcore.system import System
from imcore.util.backoff import ThrottledLog
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import Audience
from tests.helpers.workers import store

SLOW_S = 0.5
QUESTION = MessagesAfter("team", 0, msgids.HIGHEST, 100)


def _query() -> Effects[list[MessageRow]]:
    return (yield from QUESTION)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(Settings.from_env({}, data_dir=str(tmp_path)), block_ms=0)


def opening() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "imcore-opens-database"]


@pytest.fixture(autouse=True)
def _leaves_no_thread() -> Iterator[None]:
    wait_until(lambda: not opening())  # of a gateway of another test
    yield
    wait_until(lambda: not opening())


@pytest.fixture
def bound(client: RedisClient, database: Database) -> RedisClient:
    """A link to the server whose data the database has."""
    client.call(creation_calls.create(client.space, "team", ["ann"]))
    database.bind(2, client.query("HGET", CONFIG, "dataset").decode())
    return client


class Opener:
    """Opens a database when it may."""

    def __init__(self, database: Database) -> None:
        self.may = Event()
        self.calls = 0
        self.database = database

    def __call__(self) -> Database:
        self.calls += 1
        assert self.may.wait(10)
        return self.database


def test_the_first_question_of_sql_does_not_stall_live_traffic(
    client: RedisClient, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given cyd, whose missed messages are in SQL only, and a database that takes half a second to open
    with Chat(System(client, database, settings)) as chat:
        chat.create_group("team", ["ann", "cyd"])
        chat.create_group("home", ["ann", "bob"])
        for number in range(3):
            chat.send("team", str(number), sender_uid="ann")
        store(chat)
        retention.trim(chat.system, gid="team", keep_messages=0)

    def slow() -> Database:
        time.sleep(SLOW_S)
        return database

    monkeypatch.setattr("imcore.gateway.catch_up.LONGEST_WAIT_S", 0.1, raising=False)
    with Chat(System(client, slow, settings)) as chat, chat.gateway() as gateway:
        audience = Audience(gateway)
        # When both are there while it is opened
        bob, cyd = gateway.open("bob"), gateway.open("cyd")
        longest, sent = 0.0, 0
        while not audience.heard(cyd):
            sent += 1
            chat.send("home", f"live {sent}", sender_uid="ann")
            begun = time.monotonic()
            audience.poll(0.0)
            longest = max(longest, time.monotonic() - begun)
        # Then bob has got his messages all the time, and cyd hers once it was open
        audience.until(lambda: len(audience.heard(bob, "home")) == sent)
        audience.until(lambda: audience.heard(cyd) == ["0", "1", "2"])
    assert sent > 1
    assert longest < SLOW_S / 2


def test_a_query_that_may_not_wait_says_that_the_database_is_being_opened(
    bound: RedisClient, database: Database
) -> None:
    opener = Opener(database)
    performer = Performer(System(bound, opener, Settings.from_env({})))
    performer.open_early()
    with pytest.raises(DatabaseOpening, match="being opened"):
        performer.perform_one(QUESTION)
    opener.may.set()
    wait_until(lambda: not opening())

    assert performer.perform_one(QUESTION) == []
    assert opener.calls == 1
    performer.close()


def test_a_query_that_may_wait_does(bound: RedisClient, database: Database) -> None:
    opener = Opener(database)
    performer = Performer(System(bound, opener, Settings.from_env({})))
    performer.open_early()
    threading.Timer(0.1, opener.may.set).start()
    assert performer.perform(_query()) == []
    assert opener.calls == 1
    performer.close()


def test_only_a_gateway_opens_the_database_early(client: RedisClient, database: Database, settings: Settings) -> None:
    opener = Opener(database)
    opener.may.set()
    with Chat(System(client, opener, settings)) as chat:
        chat.create_group("team", ["ann", "bob"])
        chat.send("team", "hi", sender_uid="ann")
        chat.pull("bob")
        chat.ack("bob", "team")
        gateway = chat.gateway()
        assert opener.calls == 0
        with gateway:
            gateway.open("bob")
            gateway.open("ann")
            wait_until(lambda: not opening())
            assert opener.calls == 1


def test_without_a_database_nothing_is_opened(client: RedisClient) -> None:
    performer = Performer(System(client, None, Settings.from_env({})))
    performer.open_early()
    assert not opening()
    with pytest.raises(DatabaseUnavailable, match="give its URL"):
        performer.perform_one(QUESTION)


def test_without_a_thread_the_first_query_opens_the_database(
    bound: RedisClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    performer = Performer(System(bound, lambda: database, Settings.from_env({})))
    performer.open_early()
    assert performer.perform_one(QUESTION) == performer.perform(_query()) == []
    performer.close()


def _away() -> Database:
    raise DatabaseUnavailable("away")


@pytest.mark.parametrize(
    ("opens", "error"),
    [
        (_away, DatabaseUnavailable),
        (lambda: Database.connect("sqlite:////nowhere/at/all.db"), DatabaseNotReady),
    ],
)
def test_an_error_of_the_opening_is_raised_at_the_next_query(
    bound: RedisClient, opens: Callable[[], Database], error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    performer = Performer(System(bound, opens, Settings.from_env({})))
    performer.open_early()
    wait_until(lambda: not opening())
    with pytest.raises(error) as raised:
        performer.perform_one(QUESTION)
    assert not isinstance(raised.value, DatabaseOpening)
    assert caplog.messages == []
    performer.close()


def test_a_database_is_closed_while_it_is_being_opened(
    client: RedisClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performer_module, "_CLOSING_S", 0.05)
    closed: list[Database] = []
    monkeypatch.setattr(Database, "close", lambda database: closed.extend([database]))
    opener = Opener(database)
    performer = Performer(System(client, opener, Settings.from_env({})))
    performer.open_early()

    # When one that does not answer is closed, it is not waited for
    begun = time.monotonic()
    performer.close()
    assert time.monotonic() - begun < 1
    assert closed == []

    # Then it is closed once it has answered
    opener.may.set()
    wait_until(lambda: not opening())
    assert closed == [database]
    assert database.changes == 0


def test_a_database_is_closed_once_it_is_open(
    client: RedisClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Database] = []
    monkeypatch.setattr(Database, "close", lambda database: closed.extend([database]))
    performer = Performer(System(client, lambda: database, Settings.from_env({})))
    performer.open_early()
    performer.close()
    assert set(closed) == {database}
    assert not opening()


def test_no_warning_while_the_database_is_being_opened(caplog: pytest.LogCaptureFixture) -> None:
    trouble = ThrottledLog(time.monotonic)
    trouble.note(DatabaseOpening(), "it has to wait: %s")
    trouble.note(DatabaseUnavailable("away"), "it has to wait: %s")
    assert caplog.messages == ["it has to wait: away"]
