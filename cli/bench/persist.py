"""The worker `persist`: how fast it brings the journal into SQL, beside the driver's own bulk path.

The yardstick writes exactly the rows that the worker wrote, into tables and indexes of the same schema, with nothing
else to do: executemany into SQLite, COPY into PostgreSQL, in transactions of as many rows.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.figures import Aim, Figure, Yardstick
from imcore.cli.bench.processes import backlog, running_workers
from imcore.cli.bench.sql import SQLITE, BenchDatabase
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Measured, Progress, RoundPlan, interleave
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.sql.database import Database
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget

ROWS_PER_TRANSACTION = 5000
"""As many as the worker writes in one."""

MEMBERS = 200
READERS = 40
_TEXT = "x" * 100
_BURST = 10
_TABLES = ("chat_groups", "group_msgs", "group_spans", "offset_moves")
_WAIT_S = 0.002
_LONGEST_S = 120
_AIM = Aim(">=", 0.7)

Rows = dict[str, tuple[list[str], list[tuple[Any, ...]]]]
"""Of each table the names of its columns, and its rows."""


def run_persist(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure journal entries a second, with every kind of database that there is."""
    contestants: dict[str, Callable[[], Measured]] = {}
    for place in stack.places:
        progress(f"the tables in {place.kind}")
        pair = _Pair(stack.using(stack.tables(place)), place, stack.tables(place))
        contestants[place.kind] = partial(_turn, pair, plan.size(400, 60))
    found = interleave(contestants, plan, progress)
    figures = []
    for kind, measured in found.items():
        path = "executemany" if kind == SQLITE else "COPY"
        for what, unit in (("journal entries", "entries/s"), ("rows", "rows/s")):
            figures.append(
                Figure(
                    bench="persist",
                    what=f"{what} into {kind}",
                    charted=what == "rows",
                    unit=unit,
                    rounds=measured[f"{what} worker"],
                    yardstick=Yardstick(path, measured[f"{what} driver"]),
                    aim=_AIM,
                )
            )
    return figures


@dataclass(frozen=True, slots=True)
class _Pair:
    """A database that the worker writes to, the one of `stack`, and one for the driver alone. Both grow alike."""

    stack: Stack
    place: BenchDatabase
    other_url: str


def _turn(pair: _Pair, bursts: int) -> Measured:
    """Fill the journals, let a worker empty them, and write the same rows with the driver alone."""
    with pair.stack.chat() as chat:
        gid = f"{pair.stack.name}-persist-{time.monotonic_ns()}"
        entries = _fill(chat, gid, bursts)
        per_second = _watch(pair.stack, chat, entries)
    rows = _read(pair, gid)
    count = sum(len(values) for _, values in rows.values())
    driver_s = (_executemany if pair.place.kind == SQLITE else _copy)(pair.other_url, rows)
    return {
        "journal entries worker": per_second,
        "rows worker": per_second * count / entries,
        "journal entries driver": entries / driver_s,
        "rows driver": count / driver_s,
    }


def _fill(chat: Chat, gid: str, bursts: int) -> int:
    """Send bursts of messages, each acked by 40 members who have had one each; return how many entries that makes."""
    uids = [f"{gid}-{number}" for number in range(MEMBERS)]
    chat.create_group(gid, uids)
    space, client = chat.system.client.space, chat.system.client
    call = message_calls.send(space, gid, [Draft(uids[0], _TEXT)], 1)
    for _ in range(bursts):
        sent = [raised(answer[0]) for answer in client.call_many([call] * _BURST, repeatable=False)]
        # As a gateway sends them: those of the 40 for one message in one call.
        acks = [AckTarget(msgids.pack(one.msgid), uids[1 : READERS + 1], one.seq) for one in sent]
        client.call_many([message_calls.ack(space, gid, [each]) for each in acks])
    # Before the first worker ever, all that is there is open.
    return backlog(chat, "persist") or sum(client.query("XLEN", key) for key in space.journals())


def _watch(stack: Stack, chat: Chat, entries: int) -> float:
    """Run the worker until nothing is left; return its entries per second, from the end of its first batch on."""
    started = time.monotonic()
    with running_workers(stack, "persist") as workers:
        began, rest = started, entries
        while left := backlog(chat, "persist"):
            now = time.monotonic()
            if began == started and left < entries:
                began, rest = now, left
            workers.look_after()
            if now - started > _LONGEST_S:
                raise ImError(f"the worker persist has {left} entries left after {_LONGEST_S} s")
            time.sleep(_WAIT_S)
        return rest / (time.monotonic() - began)


def _read(pair: _Pair, gid: str) -> Rows:
    """Return everything that the worker wrote about a group, in the order of the keys."""
    with Database.connect(pair.stack.settings.database_url) as database, database.connection() as connection:
        driver: Any = connection.connection.driver_connection
        found: Rows = {}
        for table in _TABLES:
            cursor = driver.execute(f"SELECT * FROM {table} WHERE gid = '{gid}' ORDER BY 1, 2")  # noqa: S608 (our own names)
            found[table] = ([column[0] for column in cursor.description], cursor.fetchall())
    return found


def _executemany(url: str, rows: Rows) -> float:
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        began = time.perf_counter()
        for table, (columns, values) in rows.items():
            marks = ", ".join("?" for _ in columns)
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608
            for part in _parts(values):
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
            for part in _parts(values):
                with cursor.copy(statement) as copy:
                    for value in part:
                        copy.write_row(value)
                connection.commit()
        return time.perf_counter() - began


def _parts(values: Sequence[tuple[Any, ...]]) -> list[Sequence[tuple[Any, ...]]]:
    return [values[i : i + ROWS_PER_TRANSACTION] for i in range(0, len(values), ROWS_PER_TRANSACTION)]
