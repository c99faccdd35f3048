"""Messages and acks as a benchmark sends them, and what the workers have not stored of them yet."""

from collections.abc import Sequence
from typing import Any

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget, SendResult

TEXT = "x" * 100
"""The text of every message: as long as a usual chat message."""

_PAGE = 100_000


def send_each(chat: Chat, gid: str, sender: str, count: int) -> list[SendResult]:
    """Send messages, pipelined, each in a call of its own."""
    client = chat.system.client
    call = message_calls.send(client.space, gid, [Draft(sender, TEXT)], 1)
    return [raised(answer[0]) for answer in client.call_many([call] * count, repeatable=False)]


def ack_each(chat: Chat, gid: str, uids: Sequence[str], messages: Sequence[SendResult]) -> None:
    """Ack each message by all of these members, in one call a message as a gateway does."""
    client = chat.system.client
    targets = [AckTarget(msgids.pack(message.msgid), uids, message.seq) for message in messages]
    for results in client.call_many([message_calls.ack(client.space, gid, [target]) for target in targets]):
        for result in results:
            raised(result.target)


def backlog(chat: Chat, *kinds: str) -> int:
    """Return how many journal entries these kinds of workers have not done; 0 too where they have not begun.

    Benchmarks ask often. So it reads less than `imcore.admin.lag`, which reads the entries.
    """
    client = chat.system.client
    return sum(
        _not_done(chat, journal, group)
        for journal in client.space.journals()
        if client.query("EXISTS", journal)
        for group in client.query("XINFO GROUPS", journal)
        if group["name"].decode() in kinds
    )


def _not_done(chat: Chat, journal: str, group: dict[str, Any]) -> int:
    undelivered = group["lag"]
    if undelivered is None:  # the server does not know it once an entry was deleted: a new large group deletes some
        after = group["last-delivered-id"].decode()
        undelivered = len(chat.system.client.query("XRANGE", journal, f"({after}", "+", "COUNT", _PAGE))
    return int(undelivered + group["pending"])
