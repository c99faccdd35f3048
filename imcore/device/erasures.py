"""Removes names and texts of erased users from a local database, at the beginning of a session.

A group names the latest erasure in it. If this device knows another one, it asks who has sent the messages that it has,
and replaces what has changed. A one-to-one chat with an erased user has another gid: the local one goes, and comes back
under that gid like one that was just joined. A deleted group goes, too: nobody can say any more who of it was erased.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import suppress

from imcore.chat import Chat
from imcore.device.local_database import LocalDatabase
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, RedisRefuses, RedisUnavailable
from imcore.operations.effects import raised
from imcore.operations.erased import erased_among, latest_erasures
from imcore.streams.keys import REBUILDING
from imcore.streams.rounds import OTHERS_S
from imcore.util.batches import batches

PAGE = 500
"""The messages, and the groups, that one round trip asks for."""

_GIDS = "SELECT gid FROM messages UNION SELECT gid FROM resume_points UNION SELECT gid FROM peers"
_MESSAGES = "SELECT msgid FROM messages WHERE gid = ? AND msgid > ? ORDER BY msgid LIMIT ?"
_REPLACE = """
UPDATE messages SET sender_uid = ?, content = '', client_msgid = NULL, meta = NULL
WHERE gid = ? AND msgid = ? AND sender_uid <> ?
"""
_NOTE = "INSERT INTO erasures VALUES (?, ?) ON CONFLICT (gid) DO UPDATE SET erasure = excluded.erasure"
_TABLES = ("messages", "tallies", "resume_points", "peers", "erasures")


def follow_erasures(chat: Chat, local: LocalDatabase) -> None:
    """Remove names and texts of erased users. Where that needs SQL, and it is away, a later session does it."""
    client = chat.system.client
    facts, *_ = client.query_each(
        [("HMGET", place, "dataset", REBUILDING) for place in client.space.configurations()], others_s=OTHERS_S
    )
    if isinstance(facts, RedisUnavailable | RedisRefuses):
        return  # a node is silent: a later session does it
    dataset, rebuilding = raised(facts)
    if rebuilding or not dataset:
        return  # groups that are missing may come back
    gids = [gid for (gid,) in local.rows(_GIDS, (str,))]
    known = dict(local.rows("SELECT gid, erasure FROM erasures", (str, str)))
    for batch in batches(gids, PAGE):
        for gid, erasure in chat.performer.perform(latest_erasures(batch)).items():
            if erasure is None:
                _forget(local, gid)
            elif erasure != known.get(gid, ""):
                with suppress(DatabaseUnavailable, DatabaseNotReady):
                    _replace_all(chat, local, gid)
                    with local.transaction() as connection:
                        connection.execute(_NOTE, (gid, erasure))
    local.empty_log()


def _forget(local: LocalDatabase, gid: str) -> None:
    """Remove a group that does not exist any more: it was deleted, or is a one-to-one chat that has another gid now."""
    with local.transaction() as connection:
        for table in _TABLES:
            connection.execute(f"DELETE FROM {table} WHERE gid = ?", (gid,))  # noqa: S608 (our own names)
    local.recalled_texts.note()


def _replace_all(chat: Chat, local: LocalDatabase, gid: str) -> None:
    after = 0
    while page := [msgid for (msgid,) in local.rows(_MESSAGES, (int,), (gid, after, PAGE))]:
        after = page[-1]
        if erased := chat.performer.perform(erased_among(gid, page)):
            with local.transaction() as connection:
                _replace(connection, gid, erased)
            local.recalled_texts.note()


def _replace(connection: sqlite3.Connection, gid: str, erased: Mapping[int, str]) -> None:
    connection.executemany(_REPLACE, [(alias, gid, msgid, alias) for msgid, alias in erased.items()])
