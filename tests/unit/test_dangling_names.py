"""A name or mark that damage left behind without its data hides nothing else."""

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.streams.calls import repair_calls
from tests.helpers.deadline import wait_until
from tests.helpers.workers import deliver_receipts


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def test_a_user_whose_list_names_a_missing_group_still_pulls(chat: Chat) -> None:
    # Given
    chat.system.client.driver.sadd(chat.system.client.space.groups_of(0, "bob"), "gone")
    sent = chat.send("team", "hi", sender_uid="ann").msgid
    # When, then
    assert [message.msgid for message in chat.pull("bob")] == [sent]
    assert [(position.gid, position.unread) for position in chat.unread("bob")] == [("team", 1)]
    with chat.listen("bob") as listener:
        wait_until(lambda: [message.msgid for message in listener.poll(0.01)] == [sent])


def test_a_dirty_receipt_of_a_missing_message_hides_no_other_receipt(chat: Chat) -> None:
    # Given
    sent = chat.send("team", "hi", sender_uid="ann").msgid
    chat.ack("bob", "team")
    deliver_receipts(chat)
    [receipt] = chat.receipts("ann")
    for gid, message in (("gone", msgids.pack(sent)), ("team", msgids.pack(sent) + 1), ("team", msgids.pack(sent) - 1)):
        chat.system.client.call(repair_calls.dirty(chat.system.client.space.group(gid), "ann", [message]))
    # When, then
    assert chat.receipts("ann") == [receipt]
    with chat.listen("ann") as listener:
        wait_until(lambda: receipt in listener.poll(0.01))
