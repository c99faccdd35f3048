"""Which messages a trim holds for stored, when it compares whole pages: on a real server and both databases."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin import retention, stored_pages
from imcore.admin.retention import trim
from imcore.admin.stored_pages import StreamStart
from imcore.model.values import Draft, Message
from imcore.settings import Settings
from tests.helpers.workers import store

UIDS = ["ann", "bob", "žofie"]
MESSAGES = 10


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url)


@pytest.fixture
def sent(chat: Chat) -> list[Message]:
    """Messages that are stored, one with all that a message may have."""
    chat.create_group("g", UIDS)
    drafts = [Draft(UIDS[number % 3], f"number {number}") for number in range(MESSAGES - 2)]
    sent = [chat.send("g", draft.content, sender_uid=draft.sender_uid) for draft in drafts]
    sent.append(chat.send("g", "čau\n", sender_uid="ann", client_msgid="a-1", meta={"topic": "ž"}))
    sent.append(chat.recall("g", sent[2].msgid, by=UIDS[2]))
    store(chat)
    return sent


def change(chat: Chat, statement: str, message: Message) -> None:
    with chat.system.database.writing() as connection:
        connection.execute(text(statement), {"msgid": msgids.pack(message.msgid)})


def in_redis(chat: Chat) -> int:
    length: int = chat.system.client.query("XLEN", chat.system.client.space.group("g").stream)
    return length


def test_a_page_is_compared_as_a_whole(chat: Chat, sent: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a trim that may look at no single message
    monkeypatch.setattr(retention, "_stored", lambda *_: iter(()))
    # Then it drops all of them
    assert StreamStart(chat.system, "g").page() == (msgids.pack(sent[-1].msgid), MESSAGES)
    assert trim(chat.system, keep_messages=0).entries == MESSAGES


@pytest.mark.parametrize("page", [1, 3, 100])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE group_msgs SET seq = 99 WHERE msgid = :msgid",
        "UPDATE group_msgs SET sender_uid = 'bo' WHERE msgid = :msgid",
        "UPDATE group_msgs SET span = 1 WHERE msgid = :msgid",
        "UPDATE group_msgs SET span = NULL WHERE msgid = :msgid",
        "DELETE FROM group_msgs WHERE msgid = :msgid",
    ],
)
def test_it_stops_before_a_message_that_differs(
    chat: Chat, sent: list[Message], monkeypatch: pytest.MonkeyPatch, page: int, statement: str
) -> None:
    monkeypatch.setattr(stored_pages, "PAGE", page)
    change(chat, statement, sent[4])
    assert trim(chat.system, keep_messages=0).entries == 4
    assert in_redis(chat) == MESSAGES - 4


def test_another_msgid_is_no_page(chat: Chat, sent: list[Message]) -> None:
    change(chat, "UPDATE group_msgs SET msgid = msgid - 1 WHERE msgid = :msgid", sent[0])
    assert StreamStart(chat.system, "g").page() is None


def test_an_unreadable_entry_is_no_page(chat: Chat, sent: list[Message]) -> None:
    chat.system.client.execute_once("XADD", chat.system.client.space.group("g").stream, "*", "seq", "x")
    assert StreamStart(chat.system, "g").page() is None
    assert trim(chat.system, keep_ms=0).entries == len(sent)
    assert in_redis(chat) == 1


def test_the_newest_messages_stay_though_their_page_is_stored(chat: Chat, sent: list[Message]) -> None:
    assert trim(chat.system, keep_messages=2).entries == len(sent) - 2
