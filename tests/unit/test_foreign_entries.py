"""What somebody has added to a group's stream by hand is no message, and stops nobody."""

from collections.abc import Iterator
from dataclasses import replace

import fakeredis
import pytest

from imcore import Chat
from imcore.errors import UnknownMessage
from imcore.settings import Settings
from imcore.streams.link import Link
from workers.receipts import ReceiptsWorker


@pytest.fixture
def chat() -> Iterator[Chat]:
    settings = replace(Settings.from_env({}), block_ms=0, retry_ms=0, partitions=1, receipt_window_ms=0)
    with Chat(Link(fakeredis.FakeRedis(), partitions=1), None, settings) as chat:
        chat.create_group("g", ["ann", "bob"])
        yield chat


def add_garbage(chat: Chat) -> str:
    entry_id: bytes = chat.link.client.xadd(chat.link.space.group("g").stream, {"nonsense": "1"})
    return entry_id.decode()


def test_it_is_passed_over_by_who_reads(chat: Chat) -> None:
    # Given
    sent = []
    for number in range(4):
        add_garbage(chat)
        sent.append(chat.send("g", f"message {number}", sender_uid="ann").msgid)
        add_garbage(chat)
    # When, then
    assert [message.msgid for message in chat.pull("bob", "g")] == sent
    assert [message.msgid for message in chat.pull("bob", "g", limit=2)] == sent[:2]
    assert [tally.message.msgid for tally in chat.status("g", limit=3)] == sent[1:]
    assert chat.unread("bob")[0].unread == 4
    assert chat.ack("bob", "g", sent[1]).advanced
    assert chat.unread("bob")[0].unread == 2
    assert chat.tally("g", sent[1]).read == 1


def test_it_is_no_message_to_ask_for(chat: Chat) -> None:
    # Given
    chat.send("g", "hi", sender_uid="ann")
    garbage = add_garbage(chat)
    chat.send("g", "there", sender_uid="ann")
    # When, then
    for ask in (lambda: chat.tally("g", garbage), lambda: chat.ack("bob", "g", garbage)):
        with pytest.raises(UnknownMessage):
            ask()
    with pytest.raises(UnknownMessage):
        chat.message_status("g", garbage)
    with pytest.raises(UnknownMessage):
        chat.recall("g", garbage, by="ann")


def test_senders_are_told_of_what_stands_around_it(chat: Chat) -> None:
    # Given
    first = chat.send("g", "hi", sender_uid="ann")
    add_garbage(chat)
    second = chat.send("g", "there", sender_uid="ann")
    chat.ack("bob", "g")
    # When
    worker = ReceiptsWorker(chat.link, None, chat.settings)  # type: ignore[arg-type]
    while worker.step():
        pass
    # Then
    assert [(receipt.msgid, receipt.read) for receipt in chat.receipts("ann")] == [(first.msgid, 1), (second.msgid, 1)]
