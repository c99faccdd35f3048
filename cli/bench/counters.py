"""Counting at the servers what a storm really took: nothing here is taken from what should have happened."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import inspect, text

from imcore.chat import Chat
from imcore.streams.events import Acked, Event, read

_PAGE = 5000
_BUFFERS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
_STORED = ("group_msgs", "offset_moves", "group_spans", "msg_acks")


class Moves(NamedTuple):
    """What the journals say about the acks of one group."""

    calls: int
    acks: int


def commands(chat: Chat) -> dict[str, int]:
    """Return how often each command has run at the server, within functions too."""
    return {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in _info(chat, "commandstats").items()}


def data_memory(chat: Chat) -> int:
    """Return the bytes that the server has allocated, buffers of clients and of the append-only file left out."""
    info = _info(chat, "memory")
    return int(info["used_memory"] - sum(info.get(buffer, 0) for buffer in _BUFFERS))


def bytes_of_group(chat: Chat, gid: str) -> int:
    """Return the bytes of a group's keys as MEMORY USAGE sees them: stream, offsets and what belongs to them."""
    k = chat.system.client.space.group(gid)
    names = (k.stream, k.meta, k.acked, k.joined, k.left, k.idempotency_newer, k.idempotency_older)
    return sum(chat.system.client.query("MEMORY USAGE", key, "SAMPLES", 0) or 0 for key in names)


def bytes_of_journal(chat: Chat, gid: str) -> int:
    """Return the bytes of the journal that a group's events go to."""
    return int(chat.system.client.query("MEMORY USAGE", chat.system.client.space.group(gid).journal, "SAMPLES", 0) or 0)


def moves(chat: Chat, gid: str) -> Moves:
    """Return how many acks of a group moved an offset, and in how many calls they came."""
    acked = [event for event in _events(chat, gid) if isinstance(event, Acked) and event.gid == gid]
    return Moves(len(acked), sum(len(move.uids) for event in acked for move in event.moves))


def rows(chat: Chat, gid: str) -> dict[str, int]:
    """Return how many rows SQL stores for a group, by table; a view stores none."""
    with chat.system.database.connection() as connection:
        views = inspect(connection).get_view_names()
        return {
            name: 0
            if name in views
            else connection.scalars(text(f"SELECT count(*) FROM {name} WHERE gid = :gid"), {"gid": gid}).one()  # noqa: S608
            for name in _STORED
        }


def _events(chat: Chat, gid: str) -> Iterator[Event]:
    journal, start = chat.system.client.space.group(gid).journal, "-"
    while page := chat.system.client.query("XRANGE", journal, start, "+", "COUNT", _PAGE):
        yield from (read(0, entry_id, fields).event for entry_id, fields in page)
        start = f"({page[-1][0].decode()}"


def _info(chat: Chat, section: str) -> dict[str, Any]:
    found: dict[str, Any] = chat.system.client.query("INFO", section)
    return found
