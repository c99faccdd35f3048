"""The worker `persist`: how fast it stores the journal in SQL, beside the driver's own bulk path.

The yardstick writes the same rows into tables and indexes of the same schema, and does nothing else: executemany into
SQLite, COPY into PostgreSQL, in transactions of as many rows. Both begin once the database has nothing left to do.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import text

from imcore.chat import Chat
from imcore.cli.bench.harness.databases import SQLITE, DatabaseMaker
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, Yardstick, interleave
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.sessions import MEMBERS, ONLINE
from imcore.cli.bench.harness.traffic import ack_each, backlog, send_each
from imcore.util.batches import batches

ROWS_PER_TRANSACTION = 5000
"""The worker writes as many."""

_BURST = 10
_TABLES = ("chat_groups", "group_msgs", "group_spans", "offset_moves")
_AIM = Aim(">=", 0.6)

Rows = dict[str, tuple[list[str], list[tuple[Any, ...]]]]
"""The column names and the rows of each table."""


def run_persist(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure journal entries a second, with every kind of database that there is."""
    contestants: dict[str, Callable[[], Measured]] = {}
    for maker in servers.databases:
        progress(f"the tables in {maker.kind}")
        writers = servers.using(servers.tables(maker)), servers.tables(maker)
        contestants[maker.kind] = partial(_turn, *writers, maker, plan.size(1000, 400))
    rounds = interleave(contestants, plan, progress)
    return [
        Figure(
            bench="persist",
            what=f"{what} into {kind}",
            charted=what == "rows",
            unit=unit,
            rounds=measured[f"{what} worker"],
            yardstick=Yardstick("executemany" if kind == SQLITE else "COPY", measured[f"{what} driver"]),
            aim=_AIM,
        )
        for kind, measured in rounds.items()
        for what, unit in (("journal entries", "entries/s"), ("rows", "rows/s"))
    ]


def _turn(servers: BenchServers, driver_url: str, maker: DatabaseMaker, bursts: int) -> Measured:
    """Fill the journals, let a worker empty them, and write the same rows into `driver_url` with the driver alone."""
    with servers.chat() as chat:
        gid = f"{servers.name}-persist-{time.monotonic_ns()}"
        entries = _fill(chat, gid, bursts)
        maker.settle()
        per_second = _watch(servers, chat, entries)
        rows = _read(chat, gid)
    count = sum(len(values) for _, values in rows.values())
    maker.settle()
    driver_s = (_executemany if maker.kind == SQLITE else _copy)(driver_url, rows)
    return {
        "journal entries worker": per_second,
        "rows worker": per_second * count / entries,
        "journal entries driver": entries / driver_s,
        "rows driver": count / driver_s,
    }


def _fill(chat: Chat, gid: str, bursts: int) -> int:
    """Send bursts of messages, each acked by 40 members in one call; return how many entries that makes."""
    uids = [f"{gid}-{number}" for number in range(MEMBERS)]
    chat.create_group(gid, uids)
    for _ in range(bursts):
        ack_each(chat, gid, uids[1 : ONLINE + 1], send_each(chat, gid, uids[0], _BURST))
    # Before the first worker ever, no entry was done.
    client = chat.system.client
    return backlog(chat, "persist") or sum(client.query("XLEN", key) for key in client.space.journals())


def _watch(servers: BenchServers, chat: Chat, entries: int) -> float:
    """Run the worker until nothing is left; return its entries per second, from the end of its first batch on."""
    left = entries

    def has_begun() -> bool:
        nonlocal left
        left = backlog(chat, "persist")
        return left < entries

    started = time.monotonic()
    with servers.running("persist") as running:
        running.workers.wait(has_begun, "the worker persist has stored a batch")
        began = time.monotonic() if left else started
        running.wait_until_stored()
        return (left or entries) / (time.monotonic() - began)


def _read(chat: Chat, gid: str) -> Rows:
    """Return all rows of a group, in the order of their keys."""
    with chat.system.database.connection() as connection:
        rows: Rows = {}
        for table in _TABLES:
            query = text(f"SELECT * FROM {table} WHERE gid = :gid ORDER BY 1, 2")  # noqa: S608 (our own names)
            result = connection.execute(query, {"gid": gid})
            rows[table] = (list(result.keys()), list(map(tuple, result)))
    return rows


def _executemany(url: str, rows: Rows) -> float:
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        began = time.perf_counter()
        for table, (columns, values) in rows.items():
            marks = ", ".join("?" for _ in columns)
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608
            for part in batches(values, ROWS_PER_TRANSACTION):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(statement, part)
                connection.execute("COMMIT")
        return time.perf_counter() - began


def _copy(url: str, rows: Rows) -> float:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        began = time.perf_counter()
        for table, (columns, values) in rows.items():
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)
            for part in batches(values, ROWS_PER_TRANSACTION):
                with cursor.copy(statement) as copy:
                    for value in part:
                        copy.write_row(value)
                connection.commit()
        return time.perf_counter() - began
