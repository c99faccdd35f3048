"""Counts from the servers themselves: acks, rows and bytes."""

from typing import Any

from sqlalchemy import inspect, text

from imcore.chat import Chat
from imcore.cli.bench.harness.servers import BenchServers
from imcore.streams.events import Acked, read

_PAGE = 5000
_BUFFERS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
_STORED = {"group_msgs": "rows_messages", "offset_moves": "rows_moves", "msg_acks": "rows_receipts"}


def data_memory(chat: Chat) -> int:
    """Return the bytes that the server has allocated, without buffers of clients and of the append-only file."""
    info: dict[str, Any] = chat.system.client.query("INFO", "memory")
    return int(info["used_memory"] - sum(info.get(buffer, 0) for buffer in _BUFFERS))


def counts_of(servers: BenchServers, chat: Chat, gid: str) -> dict[str, float]:
    """Return the counts of a group, by measure."""
    return {
        "acks": _acks(chat, gid),
        **_rows(chat, gid),
        "bytes_sql": servers.maker.bytes_of(servers.settings.database_url),
    }


def _acks(chat: Chat, gid: str) -> int:
    """Return the number of moved offsets of a group that the journal has."""
    moved = 0
    journal, start = chat.system.client.space.group(gid).journal, "-"
    while page := chat.system.client.query("XRANGE", journal, start, "+", "COUNT", _PAGE):
        events = [read(0, entry_id, fields).event for entry_id, fields in page]
        acks = [event for event in events if isinstance(event, Acked) and event.gid == gid]
        moved += sum(len(move.uids) for ack in acks for move in ack.moves)
        start = f"({page[-1][0].decode()}"
    return moved


def _rows(chat: Chat, gid: str) -> dict[str, int]:
    """Return how many rows SQL stores for a group, by measure; a view stores none."""
    with chat.system.database.connection() as connection:
        tables = set(_STORED).intersection(inspect(connection).get_table_names())
        queries = {name: text(f"SELECT count(*) FROM {name} WHERE gid = :gid") for name in tables}  # noqa: S608 (our names)
        counts = {_STORED[name]: connection.scalars(queries[name], {"gid": gid}).one() for name in tables}
        return dict.fromkeys(_STORED.values(), 0) | counts
