"""What people and workers do around a test's subject, in one call each."""

from collections.abc import Iterable

from imcore import Chat, Message
from imcore import msgid as msgids
from imcore.model.values import Draft
from imcore.streams.calls import message_calls, receipt_calls
from imcore.streams.calls.receipt_calls import TallyChange
from tests.helpers.workers import store


def say(chat: Chat, *texts: str, gid: str = "team", sender: str = "ann") -> list[Message]:
    """Send a message for each text."""
    return [chat.send(gid, text, sender_uid=sender) for text in texts]


def say_many(chat: Chat, count: int, *, gid: str = "team", sender: str = "ann") -> list[str]:
    """Send the texts 0, 1, 2, ... in one call; return their msgids."""
    drafts = [Draft(sender, str(number)) for number in range(count)]
    sent = chat.system.client.call(message_calls.send(chat.system.client.space, gid, drafts, 1000))
    return [each.msgid for each in sent if isinstance(each, message_calls.SendResult)]


def offset(chat: Chat, uid: str, gid: str = "team") -> str | None:
    """The msgid that a member has acked last."""
    [position] = [member for member in chat.members(gid) if member.uid == uid]
    return position.last_ack_msgid


def publish_receipts(chat: Chat, sent: Iterable[str], *, gid: str = "team", sender: str = "ann") -> None:
    """Do what the worker `receipts` does once it knows that the tallies of these messages have changed."""
    changes = [TallyChange(sender, msgids.pack(msgid), 0) for msgid in sent]
    chat.system.client.call(receipt_calls.publish_receipts(chat.system.client.space, gid, sender, changes))


def push_receipts(chat: Chat, *messages: Message) -> None:
    """Publish a digest for each of these messages."""
    for message in messages:
        publish_receipts(chat, [message.msgid], gid=message.gid, sender=message.sender_uid)


def leave_to_sql(chat: Chat, msgid: str, gid: str = "team") -> None:
    """Store everything, and drop the messages up to this one from Redis."""
    store(chat)
    chat.system.client.call(message_calls.trim(chat.system.client.space, gid, msgids.pack(msgid)))
