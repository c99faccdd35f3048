"""The tables and statements of the literal design, for both databases."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import psycopg

_PG_TABLES = """
CREATE TABLE group_msgs (
    msgid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gid text NOT NULL, sender_uid text NOT NULL, time timestamptz NOT NULL, content text NOT NULL);
CREATE TABLE group_users (
    gid text, uid text, last_ack_msgid bigint NOT NULL, PRIMARY KEY (gid, uid)) WITH (fillfactor = 50);
CREATE TABLE msg_acks (
    gid text, recv_uid text, msgid bigint, sender_uid text NOT NULL, if_ack boolean NOT NULL,
    PRIMARY KEY (gid, recv_uid, msgid)) WITH (fillfactor = 90);
CREATE INDEX ON msg_acks (gid, msgid);
"""
_PG_SEND = """
WITH message AS (
    INSERT INTO group_msgs (gid, sender_uid, time, content) VALUES (%(gid)s, %(uid)s, now(), %(text)s) RETURNING msgid
), receipts AS (
    INSERT INTO msg_acks (gid, recv_uid, msgid, sender_uid, if_ack)
    SELECT u.gid, u.uid, message.msgid, %(uid)s, false FROM group_users u, message
    WHERE u.gid = %(gid)s AND u.uid <> %(uid)s
)
SELECT msgid FROM message"""
_PG_ACK = """
WITH moved AS (
    UPDATE group_users u SET last_ack_msgid = %(msgid)s
    FROM (SELECT last_ack_msgid FROM group_users WHERE gid = %(gid)s AND uid = %(uid)s FOR UPDATE) before
    WHERE u.gid = %(gid)s AND u.uid = %(uid)s AND before.last_ack_msgid < %(msgid)s
    RETURNING before.last_ack_msgid AS start
)
UPDATE msg_acks SET if_ack = true FROM moved
WHERE gid = %(gid)s AND recv_uid = %(uid)s AND msgid > moved.start AND msgid <= %(msgid)s"""

_LITE_TABLES = """
CREATE TABLE group_msgs (
    msgid INTEGER PRIMARY KEY, gid TEXT NOT NULL, sender_uid TEXT NOT NULL, time TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE group_users (gid TEXT, uid TEXT, last_ack_msgid INTEGER NOT NULL, PRIMARY KEY (gid, uid)) WITHOUT ROWID;
CREATE TABLE msg_acks (
    gid TEXT, recv_uid TEXT, msgid INTEGER, sender_uid TEXT NOT NULL, if_ack INTEGER NOT NULL,
    PRIMARY KEY (gid, recv_uid, msgid)) WITHOUT ROWID;
CREATE INDEX ix_msg_acks ON msg_acks (gid, msgid);
"""
_COUNT = "SELECT (SELECT count(*) FROM group_msgs), (SELECT count(*) FROM msg_acks)"


class Store(Protocol):
    """One connection to the tables."""

    def create(self, uids: Sequence[str]) -> None:
        """Make the tables and the members."""

    def send(self, sender: str, text: str) -> int:
        """Store a message and the unread receipt of every other member; return its msgid."""

    def ack(self, uid: str, msgid: int) -> None:
        """Move `last_ack_msgid` and flip the receipts that it passed."""

    def count_rows(self) -> tuple[int, int]:
        """Return how many messages and how many receipts are stored."""

    def close(self) -> None:
        """Close the connection."""


def open_store(url: str, gid: str) -> Store:
    """Return a new connection."""
    path = url.removeprefix("sqlite:///")
    return PostgresStore(url, gid) if path == url else SqliteStore(Path(path), gid)


class PostgresStore:
    """One statement for a message, one for an ack, each its own transaction."""

    def __init__(self, url: str, gid: str) -> None:
        self._gid = gid
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("SET synchronous_commit = off")
        self._cursor = self._connection.cursor()

    def create(self, uids: Sequence[str]) -> None:
        """Make the tables and the members."""
        self._connection.execute(_PG_TABLES)
        self._cursor.executemany("INSERT INTO group_users VALUES (%s, %s, 0)", [(self._gid, uid) for uid in uids])
        self._connection.execute("ANALYZE group_users")

    def send(self, sender: str, text: str) -> int:
        """Store a message and the unread receipt of every other member; return its msgid."""
        self._cursor.execute(_PG_SEND, {"gid": self._gid, "uid": sender, "text": text}, prepare=True)
        row = self._cursor.fetchone()
        return int(row[0]) if row else 0

    def ack(self, uid: str, msgid: int) -> None:
        """Move `last_ack_msgid` and flip the receipts that it passed."""
        self._cursor.execute(_PG_ACK, {"gid": self._gid, "uid": uid, "msgid": msgid}, prepare=True)

    def count_rows(self) -> tuple[int, int]:
        """Return how many messages and how many receipts are stored."""
        row = self._cursor.execute(_COUNT).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class SqliteStore:
    """The same with SQLite in WAL mode; sqlite3 keeps its statements prepared."""

    def __init__(self, path: Path, gid: str) -> None:
        self._gid = gid
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def create(self, uids: Sequence[str]) -> None:
        """Make the tables and the members."""
        self._connection.executescript(_LITE_TABLES)
        with self._transaction():
            self._connection.executemany("INSERT INTO group_users VALUES (?, ?, 0)", [(self._gid, uid) for uid in uids])

    def send(self, sender: str, text: str) -> int:
        """Store a message and the unread receipt of every other member; return its msgid."""
        with self._transaction():
            message = (self._gid, sender, datetime.now(UTC).isoformat(), text)
            stored = self._connection.execute(
                "INSERT INTO group_msgs (gid, sender_uid, time, content) VALUES (?, ?, ?, ?)", message
            )
            self._connection.execute(
                "INSERT INTO msg_acks SELECT gid, uid, ?, ?, 0 FROM group_users WHERE gid = ? AND uid <> ?",
                (stored.lastrowid, sender, self._gid, sender),
            )
        return stored.lastrowid or 0

    def ack(self, uid: str, msgid: int) -> None:
        """Move `last_ack_msgid` and flip the receipts that it passed."""
        key = (self._gid, uid)
        with self._transaction():
            found = self._connection.execute("SELECT last_ack_msgid FROM group_users WHERE gid = ? AND uid = ?", key)
            start = found.fetchone()[0]
            if start < msgid:
                self._connection.execute(
                    "UPDATE group_users SET last_ack_msgid = ? WHERE gid = ? AND uid = ?", (msgid, *key)
                )
                self._connection.execute(
                    "UPDATE msg_acks SET if_ack = 1 WHERE gid = ? AND recv_uid = ? AND msgid > ? AND msgid <= ?",
                    (*key, start, msgid),
                )

    def count_rows(self) -> tuple[int, int]:
        """Return how many messages and how many receipts are stored."""
        messages, receipts = self._connection.execute(_COUNT).fetchone()
        return messages, receipts

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _transaction(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection
