"""Recalls on real servers: in both databases, and on the devices of online users."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore import msgid as msgids
from imcore.admin import retention
from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.model.values import Message, Receipt
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.workers.fetch import WorkItem, fetch
from imcore.workers.persist import Persist
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.rows import contents
from tests.helpers.workers import store

GID = "team"


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of ann, bob and cy, on each kind of database."""
    chat.system.database.upgrade()
    chat.create_group(GID, ["ann", "bob", "cy"])
    return chat


@pytest.fixture
def worker(chat: Chat) -> Iterator[Persist]:
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    yield worker
    worker.close()


def acks(database: Database, msgid: str) -> dict[str, bool]:
    """The readers of a message, from SQL alone."""
    query = f"SELECT recv_uid, if_ack FROM msg_acks WHERE gid = '{GID}' AND msgid = {msgids.pack(msgid)}"
    with database.connection() as connection:
        return {uid: bool(is_read) for uid, is_read in connection.exec_driver_sql(query)}


def test_recall_blanks_the_content_in_sql_and_keeps_its_receipts(chat: Chat) -> None:
    # Given two stored messages, which bob has read
    messages = [chat.send(GID, text, sender_uid="ann") for text in ("regrettable", "fine")]
    chat.ack("bob", GID)
    store(chat)
    assert contents(chat.system.database) == ["regrettable", "fine"]

    # When the first one is recalled, and cy reads on
    chat.recall(GID, messages[0].msgid, by="ann")
    chat.ack("cy", GID)
    store(chat)

    # Then its words are gone, and its receipts are not
    assert contents(chat.system.database) == ["", "fine", ""]
    assert acks(chat.system.database, messages[0].msgid) == {"bob": True, "cy": True}
    retention.trim(chat.system, keep_messages=0)
    assert [each.content for each in chat.pull("bob", GID)] == [""]
    status = chat.message_status(GID, messages[0].msgid)
    assert (status.message.recalled, status.message.content) == (True, "")
    assert {reader.uid for reader in status.read_by if reader.read_at} == {"bob", "cy"}


def test_a_tombstone_that_is_stored_before_its_message(chat: Chat, worker: Persist) -> None:
    # Given a worker that has fetched a message, and is slow to store it
    message = chat.send(GID, "regrettable", sender_uid="ann")
    works = [WorkItem(entry) for entry in worker._journal.read()]
    fetch(chat.system.client, chat.system.database, works)

    # When another one stores the recall first
    chat.recall(GID, message.msgid, by="ann")
    other = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    assert other.step() == 1
    other.close()
    worker._write(works, [])

    # Then what was said is not stored
    assert contents(chat.system.database) == ["", ""]


@pytest.mark.parametrize("acks_every", [1, 100])
def test_online_users_lose_the_content_at_once(valkey: str, tmp_path: Path, acks_every: int) -> None:
    # Given bob, online, who has a message in his local database
    settings = Settings.from_env({}, redis_url=valkey, data_dir=str(tmp_path))
    with (
        Chat.connect(settings=settings) as chat,
        Chat.connect(settings=settings) as bobs,
        LocalDatabase(path_of(tmp_path, "bob"), "bob", exclusive=True) as local,
    ):
        chat.create_group(GID, ["ann", "bob"])
        heard: list[Message | Receipt] = []
        stop = False
        events = Device(bobs, "bob", local).live(lambda: stop, ack_every=acks_every)
        message = chat.send(GID, "regrettable", sender_uid="ann")
        heard.append(next(events))
        assert [line.content for line in local.log()] == ["regrettable"]

        # When it is recalled
        tombstone = chat.recall(GID, message.msgid, by="ann")
        heard.append(next(events))

        # Then he is handed the tombstone, his local database is blank, and the tombstone is acked like any message
        assert heard == [message, tombstone]
        assert [(line.content, line.recalled) for line in local.log()] == [("", True)]
        assert chat.unread("bob")[0].unread == 0
        stop = True
        assert list(events) == []
        wait_until(lambda: chat.unread("bob")[0].last_ack_msgid == tombstone.msgid)
