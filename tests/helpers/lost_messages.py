"""Messages that a server pushes and then loses, made by hand; and a server that is another one afterwards."""

from dataclasses import replace
from typing import Any

from imcore import Chat, Message
from imcore import msgid as msgids
from imcore.streams.calls import session_calls
from imcore.streams.keys import SEPARATOR


def process(chat: Chat) -> str:
    return chat.system.client.call(session_calls.process(chat.system.client.space))


def push(chat: Chat, message: Message, by: str) -> None:
    """Publish a message that the server does not have."""
    fields = ("m", message.gid, message.msgid, message.seq, by, message.sender_uid, message.client_msgid or "", "", "")
    data = SEPARATOR.join(map(str, (*fields, message.content)))
    chat.system.client.driver.execute_command("SPUBLISH", chat.system.client.space.group(message.gid).channel, data)


def after(message: Message, text: str, by_ms: int = 1, **fields: Any) -> Message:
    """A message of the time after another one."""
    msgid = msgids.unpack(msgids.pack(message.msgid) + (by_ms << msgids.COUNTER_BITS))
    return replace(message, msgid=msgid, seq=message.seq + 1, content=text, **fields)


def restart(chat: Chat) -> None:
    """Let the server have another name, as after a restart."""
    chat.system.client.driver.execute_command("FUNCTION", "FLUSH", "SYNC")
    chat.system.client.upgrade()
