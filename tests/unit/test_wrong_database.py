"""A forgotten IM_DATABASE_URL: a database that belongs to other data than Redis is neither read nor written."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseUnavailable
from imcore.importer.importer import import_events
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.calls import message_calls
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import drain

SETTINGS = replace(Settings.from_env({}, data_dir="/nowhere"), block_ms=0, retry_ms=0)


@pytest.fixture
def msgid(client: RedisClient, database: Database) -> str:
    """The second of three messages; Redis has the last one only."""
    with Chat(System(client, database, SETTINGS)) as chat:
        chat.create_group("team", ["ann", "bob"])
        sent = [chat.send("team", text, sender_uid="ann").msgid for text in "abc"]
        persist = new_persist(client, database, SETTINGS)
        drain(persist)
        persist.close()
        client.call(message_calls.trim(client.space, "team", msgids.pack(sent[1])))
        return sent[1]


@pytest.fixture
def wrong(client: RedisClient, tmp_path: Path) -> Iterator[Chat]:
    """The same Redis, with a new database."""
    with Database.connect(f"sqlite:///{tmp_path / 'wrong.db'}") as database:
        database.upgrade()
        yield Chat(System(client, database, SETTINGS))


QUESTIONS: dict[str, Callable[[Chat, str], object]] = {
    "pull": lambda chat, _: chat.pull("bob"),
    "status": lambda chat, _: chat.status("team"),
    "tally": lambda chat, msgid: chat.tally("team", msgid),
    "names": lambda chat, msgid: chat.message_status("team", msgid),
    "ack": lambda chat, msgid: chat.ack("bob", "team", msgid),
    "recall": lambda chat, msgid: chat.recall("team", msgid, by="ann"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_trimmed_messages_are_not_read_from_a_wrong_database(wrong: Chat, msgid: str, question: str) -> None:
    with pytest.raises(DatabaseNotReady, match="holds nothing of this system yet"):
        QUESTIONS[question](wrong, msgid)
    # And not where there is something else either
    wrong.system.database.set_meta("dataset", "another")
    with pytest.raises(ConfigurationError, match="holds the data of another system"):
        QUESTIONS[question](wrong, msgid)


def test_read_times_do_not_come_from_a_wrong_database(client: RedisClient, database: Database, msgid: str) -> None:
    # Given
    chat = Chat(System(client, database, SETTINGS))
    newest = chat.send("team", "d", sender_uid="bob").msgid
    chat.ack("ann", "team", newest)
    persist = new_persist(client, database, SETTINGS)
    drain(persist)
    [ann] = chat.message_status("team", newest).read_by
    assert ann.read_at
    # When the same is in the database of another system
    database.set_meta("dataset", "another")
    with pytest.raises(ConfigurationError, match="holds the data of another system"):
        Chat(System(client, database, SETTINGS)).message_status("team", newest)


def test_readers_are_known_without_the_database(
    client: RedisClient,
    database: Database,
    msgid: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object) -> None:
        raise DatabaseUnavailable("it is away")

    chat = Chat(System(client, database, SETTINGS))
    newest = chat.send("team", "d", sender_uid="ann").msgid
    chat.ack("bob", "team", newest)
    monkeypatch.setattr(Database, "meta", away)
    for _ in range(3):
        [bob] = chat.message_status("team", newest).read_by
        assert (bob.uid, bob.read_at) == ("bob", None)
    assert caplog.messages == ["when each has read it cannot be told now: it is away"]


def test_an_import_into_the_database_of_another_system_is_refused(wrong: Chat, msgid: str) -> None:
    wrong.system.database.set_meta("dataset", "another")
    with pytest.raises(ConfigurationError, match="holds the data of another system"):
        import_events(wrong, [b'{"type": "join", "gid": "team", "uid": "cy"}'], on_error=lambda *_: None)
    # And nothing at all where Redis has lost what SQL has
    wrong.system.client.driver.flushall()
    with pytest.raises(ConfigurationError, match=r"set IM_DATABASE_URL or IM_REDIS_URL if .* run im rebuild"):
        import_events(wrong, [b'{"type": "join", "gid": "team", "uid": "cy"}'], on_error=lambda *_: None)
    assert list(wrong.groups()) == []


def test_an_import_without_a_database_is_refused(client: RedisClient, msgid: str, tmp_path: Path) -> None:
    chat = Chat(System(client, Database.connect(f"sqlite:///{tmp_path / 'none.db'}"), SETTINGS))
    for question in QUESTIONS.values():
        with pytest.raises(DatabaseNotReady):
            question(chat, msgid)


def test_the_worker_stores_nothing_in_a_wrong_database(wrong: Chat, database: Database, msgid: str) -> None:
    # Given
    newest = wrong.send("team", "d", sender_uid="bob").msgid
    # When
    with pytest.raises(DatabaseUnavailable, match="set IM_DATABASE_URL"):
        new_persist(wrong.system.client, wrong.system.database, SETTINGS).step()
    # Then
    assert wrong.system.database.meta("dataset") is None
    assert wrong.system.database.messages_after("team", 0) == []
    # And the right one gets it all
    persist = new_persist(wrong.system.client, database, SETTINGS)
    drain(persist)
    assert [row.msgid for row in database.messages_after("team", msgids.pack(msgid))][-1] == msgids.pack(newest)
