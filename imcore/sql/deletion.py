"""Deletes groups, in transactions that keep nobody waiting for long.

    begin  notes the deletion: from then on no writer adds a row of the deleted group
    step   deletes some rows, until the deletion is done

A writer reads the deletions of its groups before it decides what to write, and again in the transaction that writes
(`Batch.known_deletions`). On PostgreSQL `begin` waits for the transactions that have read them before.
"""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Table, delete, select, text, tuple_, update

from imcore.sql.database import PAGE, Database
from imcore.sql.tables import CHAT_GROUPS, DELETED_GROUPS, ERASURES, Stored
from imcore.util.batches import batches

_BEGIN = text(
    """INSERT INTO deleted_groups (gid, entry, is_done) VALUES (:gid, :entry, FALSE)
    ON CONFLICT (gid) DO UPDATE SET entry = excluded.entry, is_done = FALSE
    WHERE excluded.entry > deleted_groups.entry"""
)
_WAIT_FOR_WRITERS = (text("SET LOCAL lock_timeout = 2000"), text("LOCK TABLE deleted_groups IN ACCESS EXCLUSIVE MODE"))
"""Others who write wait meanwhile: not for long, if one of them is halted in its transaction."""

_TABLES: list[Table] = [
    table
    for table in Stored.metadata.sorted_tables
    if "gid" in table.c and table.name not in {CHAT_GROUPS.name, DELETED_GROUPS.name, ERASURES.name}
]
"""The tables with rows of groups. The list of groups comes last: what is not listed belongs to no group."""


class Deletion(NamedTuple):
    """A deleted group. `entry` is the last journal entry (packed id) that may be about it."""

    gid: str
    entry: int
    is_done: bool


def known(database: Database, gids: Collection[str]) -> dict[str, Deletion]:
    """Return the last deletions of groups, by gid."""
    c = DELETED_GROUPS.c
    queries = (select(c.gid, c.entry, c.is_done).where(c.gid.in_(batch)) for batch in batches(gids, PAGE))
    return {gid: Deletion(gid, entry, is_done) for query in queries for gid, entry, is_done in database.fetch(query)}


def unfinished(database: Database) -> list[Deletion]:
    c = DELETED_GROUPS.c
    rows = database.fetch(select(c.gid, c.entry, c.is_done).where(~c.is_done).order_by(c.gid))
    return [Deletion(*row) for row in rows]


def since(database: Database, entry: int) -> list[Deletion]:
    """Return the deletions after a journal entry (packed id)."""
    c = DELETED_GROUPS.c
    rows = database.fetch(select(c.gid, c.entry, c.is_done).where(c.entry > entry).order_by(c.gid))
    return [Deletion(*row) for row in rows]


def newest(database: Database) -> int:
    """Return the newest journal entry (packed id) of a deletion, 0 without one."""
    c = DELETED_GROUPS.c
    return max((entry for (entry,) in database.fetch(select(c.entry).order_by(c.entry.desc()).limit(1))), default=0)


def begin(database: Database, gid: str, entry: int) -> None:
    """Note that a group is deleted; the same again changes nothing. Raise DatabaseUnavailable."""
    with database.writing() as connection:
        for statement in _WAIT_FOR_WRITERS if database.dialect == "postgresql" else ():
            connection.execute(statement)
        connection.execute(_BEGIN, {"gid": gid, "entry": entry})


def step(database: Database, gid: str, entry: int, limit: int) -> int:
    """Delete at most `limit` rows of a deleted group; return how many. After 0 the deletion is done."""
    c = DELETED_GROUPS.c
    with database.writing() as connection:
        own = select(c.is_done).where(c.gid == gid, c.entry == entry).with_for_update()
        if connection.scalar(own) is not False:
            return 0  # it is done: what there is by now is of a new group
        for table in _TABLES:
            key = tuple(table.primary_key)
            some = select(*key).where(table.c.gid == gid).limit(limit)
            if count := connection.execute(delete(table).where(tuple_(*key).in_(some))).rowcount:
                return count
        connection.execute(delete(CHAT_GROUPS).where(CHAT_GROUPS.c.gid == gid))
        connection.execute(update(DELETED_GROUPS).where(c.gid == gid).values(is_done=True))
    database.empty_log(always=True)
    return 0
