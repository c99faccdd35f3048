"""Counts from the servers themselves: what a storm really took, not what should have happened."""

from typing import Any

from sqlalchemy import inspect, text

from imcore.chat import Chat
from imcore.streams.events import Acked, read

_PAGE = 5000
_BUFFERS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
_STORED = ("group_msgs", "offset_moves", "msg_acks")


def commands(chat: Chat) -> dict[str, int]:
    """Return how often each command has run at the server, within functions too."""
    stats: dict[str, Any] = chat.system.client.query("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): counts["calls"] for name, counts in stats.items()}


def data_memory(chat: Chat) -> int:
    """Return the bytes that the server has allocated, without buffers of clients and of the append-only file."""
    info: dict[str, Any] = chat.system.client.query("INFO", "memory")
    return int(info["used_memory"] - sum(info.get(buffer, 0) for buffer in _BUFFERS))


def bytes_of_group(chat: Chat, gid: str) -> int:
    """Return the bytes of a group's keys as MEMORY USAGE sees them: stream, offsets and what belongs to them."""
    k = chat.system.client.space.group(gid)
    names = (k.stream, k.meta, k.acked, k.joined, k.left, k.idempotency_newer, k.idempotency_older)
    return sum(_usage(chat, name) for name in names)


def bytes_of_journal(chat: Chat, gid: str) -> int:
    """Return the bytes of the journal that a group's events go to."""
    return _usage(chat, chat.system.client.space.group(gid).journal)


def _usage(chat: Chat, key: str) -> int:
    return int(chat.system.client.query("MEMORY USAGE", key, "SAMPLES", 0) or 0)


def acks(chat: Chat, gid: str) -> tuple[int, int]:
    """Return by the journals in how many calls acks of a group moved offsets, and how many offsets they moved."""
    calls, moved = 0, 0
    journal, start = chat.system.client.space.group(gid).journal, "-"
    while page := chat.system.client.query("XRANGE", journal, start, "+", "COUNT", _PAGE):
        for entry_id, fields in page:
            event = read(0, entry_id, fields).event
            if isinstance(event, Acked) and event.gid == gid:
                calls += 1
                moved += sum(len(move.uids) for move in event.moves)
        start = f"({page[-1][0].decode()}"
    return calls, moved


def rows(chat: Chat, gid: str) -> dict[str, int]:
    """Return how many rows SQL stores for a group, by table; a view stores none."""
    with chat.system.database.connection() as connection:
        views = inspect(connection).get_view_names()
        counts = dict.fromkeys(_STORED, 0)
        for name in set(_STORED).difference(views):
            query = text(f"SELECT count(*) FROM {name} WHERE gid = :gid")  # noqa: S608 (our own names)
            counts[name] = connection.scalars(query, {"gid": gid}).one()
        return counts
