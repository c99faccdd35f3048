"""Counts from the servers themselves: commands, acks, rows and bytes."""

from typing import Any

from sqlalchemy import inspect, text

from imcore.chat import Chat
from imcore.cli.bench.harness.servers import BenchServers
from imcore.streams.events import Acked, read

_PAGE = 5000
_BUFFERS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
_STORED = {"group_msgs": "rows_messages", "offset_moves": "rows_moves", "msg_acks": "rows_receipts"}


def commands(chat: Chat) -> dict[str, int]:
    """Return how often the server has run each command, within functions too."""
    stats: dict[str, Any] = chat.system.client.query("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): counts["calls"] for name, counts in stats.items()}


def data_memory(chat: Chat) -> int:
    """Return the bytes that the server has allocated, without buffers of clients and of the append-only file."""
    info: dict[str, Any] = chat.system.client.query("INFO", "memory")
    return int(info["used_memory"] - sum(info.get(buffer, 0) for buffer in _BUFFERS))


def counts_of(servers: BenchServers, chat: Chat, gid: str) -> dict[str, float]:
    """Return the counts of the server, and those of a group, by measure."""
    ran, k = commands(chat), chat.system.client.space.group(gid)
    calls, acks = _acks(chat, gid)
    return {
        "commands": sum(ran.values()),
        "calls": ran.get("fcall", 0) + ran.get("fcall_ro", 0),
        "publishes": ran.get("spublish", 0),
        "ack_calls": calls,
        "acks": acks,
        **_rows(chat, gid),
        "bytes_sql": servers.maker.bytes_of(servers.settings.database_url),
        "bytes_group": _usage(
            chat, k.stream, k.meta, k.acked, k.joined, k.left, k.idempotency_newer, k.idempotency_older
        ),
        "bytes_journal": _usage(chat, k.journal),
    }


def _usage(chat: Chat, *keys: str) -> int:
    sizes = chat.system.client.query_many([("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys])
    return sum(size or 0 for size in sizes)


def _acks(chat: Chat, gid: str) -> tuple[int, int]:
    """Return from the journal the number of calls that moved offsets of a group, and the number of moved offsets."""
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


def _rows(chat: Chat, gid: str) -> dict[str, int]:
    """Return how many rows SQL stores for a group, by measure; a view stores none."""
    with chat.system.database.connection() as connection:
        tables = set(_STORED).intersection(inspect(connection).get_table_names())
        queries = {name: text(f"SELECT count(*) FROM {name} WHERE gid = :gid") for name in tables}  # noqa: S608 (our names)
        counts = {_STORED[name]: connection.scalars(queries[name], {"gid": gid}).one() for name in tables}
        return dict.fromkeys(_STORED.values(), 0) | counts
