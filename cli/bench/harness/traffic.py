"""Messages and acks as a benchmark sends them, and what the servers count and hold of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect, text

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.harness.nodes import total
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.repair import window
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget, SendResult
from imcore.streams.events import Acked

TEXT = "x" * 100
"""The text of every message: as long as a usual chat message."""

_PAGE = 5000
_BUFFERS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
_STORED = {"group_msgs": "rows_messages", "offset_moves": "rows_moves", "msg_acks": "rows_receipts"}


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

    Benchmarks ask often. So it reads less than `imcore.streams.consumers`, which reads the entries.
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


def data_memory(chat: Chat) -> int:
    """Return the bytes that the servers have allocated, without buffers of clients and of the append-only file."""
    return int(total(chat, "memory", "used_memory") - total(chat, "memory", *_BUFFERS))


def count_acks(chat: Chat, gid: str) -> int:
    """Return the number of moved offsets of a group that the journal has."""
    client = chat.system.client
    events = (entry.event for entry in window.entries(client, client.space.partition_of(gid), "-"))
    acks = (event for event in events if isinstance(event, Acked) and event.gid == gid)
    return sum(len(move.uids) for ack in acks for move in ack.moves)


def count_rows(chat: Chat, gid: str) -> dict[str, int]:
    """Return how many rows SQL stores for a group, by measure; a view stores none."""
    with chat.system.database.connection() as connection:
        tables = set(_STORED).intersection(inspect(connection).get_table_names())
        queries = {name: text(f"SELECT count(*) FROM {name} WHERE gid = :gid") for name in tables}  # noqa: S608 (our names)
        counts = {_STORED[name]: connection.scalars(queries[name], {"gid": gid}).one() for name in tables}
        return dict.fromkeys(_STORED.values(), 0) | counts
