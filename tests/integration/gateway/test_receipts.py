"""Receipts come pushed or with the heartbeat."""

from dataclasses import replace

from imcore.chat import Chat
from imcore.gateway.gateway import Gateway
from tests.helpers.gateways import Audience
from tests.helpers.talk import push_receipts, say


def test_receipts_come_pushed_or_with_the_heartbeat(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    polling = Gateway(
        chat.performer,
        replace(chat.system.settings, heartbeat_ms=300),
        receipts="poll",
        ack_interval_s=0.05,
    )
    with chat.gateway(acks="off") as pushing, polling:
        one, two = Audience(pushing), Audience(polling)
        pushed, polled = pushing.open("ann"), polling.open("ann")
        one.settled()
        two.settled()
        # When
        [message] = say(chat, "hi")
        chat.ack("bob", "team")
        push_receipts(chat, message)
        # Then
        one.until(lambda: one.receipts[pushed])
        two.until(lambda: two.receipts[polled])
        assert {(each.msgid, each.read, each.unread) for each in one.receipts[pushed] + two.receipts[polled]} == {
            (message.msgid, 1, 0)
        }
        two.until(lambda: chat.receipts("ann") == [])
