"""The tables and statements of the naive design, for both databases, on the drivers themselves.

It is written as well as that design allows. A message and the receipts of all its recipients are made of `group_users`
by the database itself; an ack moves `last_ack_msgid` and flips the receipts that it passed; each is one transaction.
The statements are prepared, the primary keys are those that the statements need, and an update changes no index. A
commit does not wait for the disk, since an ack in Redis does not either.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import psycopg


class _Statements(NamedTuple):
    """The statements for one kind of database. On PostgreSQL a send returns the msgid."""

    tables: str
    member: str
    send: Sequence[str]
    ack: Sequence[str]


_TABLES = """
CREATE TABLE group_msgs (
    msgid %s PRIMARY KEY, gid text NOT NULL, sender_uid text NOT NULL, time %s NOT NULL, content text NOT NULL);
CREATE TABLE group_users (gid text, uid text, last_ack_msgid bigint NOT NULL, PRIMARY KEY (gid, uid)) %s;
CREATE TABLE msg_acks (
    gid text, recv_uid text, msgid bigint, sender_uid text NOT NULL, if_ack boolean NOT NULL,
    PRIMARY KEY (gid, recv_uid, msgid)) %s;
CREATE INDEX ix_msg_acks ON msg_acks (gid, msgid)
"""
_POSTGRES_TYPES = (
    "bigint GENERATED ALWAYS AS IDENTITY",
    "timestamptz",
    "WITH (fillfactor = 50)",
    "WITH (fillfactor = 90)",
)
_SQLITE_TYPES = ("integer", "text", "WITHOUT ROWID", "WITHOUT ROWID")

_POSTGRES = _Statements(
    _TABLES % _POSTGRES_TYPES,
    "INSERT INTO group_users VALUES (%s, %s, 0)",
    [
        """
WITH message AS (
    INSERT INTO group_msgs (gid, sender_uid, time, content) VALUES (%(gid)s, %(uid)s, now(), %(text)s) RETURNING msgid
), receipts AS (
    INSERT INTO msg_acks (gid, recv_uid, msgid, sender_uid, if_ack)
    SELECT u.gid, u.uid, message.msgid, %(uid)s, false FROM group_users u, message
    WHERE u.gid = %(gid)s AND u.uid <> %(uid)s
)
SELECT msgid FROM message"""
    ],
    [
        """
WITH moved AS (
    UPDATE group_users u SET last_ack_msgid = %(msgid)s
    FROM (SELECT last_ack_msgid FROM group_users WHERE gid = %(gid)s AND uid = %(uid)s FOR UPDATE) before
    WHERE u.gid = %(gid)s AND u.uid = %(uid)s AND before.last_ack_msgid < %(msgid)s
    RETURNING before.last_ack_msgid AS start
)
UPDATE msg_acks SET if_ack = true FROM moved
WHERE gid = %(gid)s AND recv_uid = %(uid)s AND msgid > moved.start AND msgid <= %(msgid)s"""
    ],
)
_SQLITE = _Statements(
    _TABLES % _SQLITE_TYPES,
    "INSERT INTO group_users VALUES (?, ?, 0)",
    [
        "BEGIN IMMEDIATE",
        """INSERT INTO group_msgs (gid, sender_uid, time, content)
        VALUES (:gid, :uid, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), :text)""",
        """INSERT INTO msg_acks SELECT gid, uid, last_insert_rowid(), :uid, 0
        FROM group_users WHERE gid = :gid AND uid <> :uid""",
        "COMMIT",
    ],
    [
        "BEGIN IMMEDIATE",
        """UPDATE msg_acks SET if_ack = 1 WHERE gid = :gid AND recv_uid = :uid AND msgid <= :msgid
        AND msgid > (SELECT last_ack_msgid FROM group_users WHERE gid = :gid AND uid = :uid)""",
        "UPDATE group_users SET last_ack_msgid = :msgid WHERE gid = :gid AND uid = :uid AND last_ack_msgid < :msgid",
        "COMMIT",
    ],
)


class NaiveStore:
    """One connection to the tables of one group."""

    def __init__(self, url: str, gid: str) -> None:
        self._gid = gid
        self._connection: Any
        path = url.removeprefix("sqlite:///")
        self._is_sqlite = path != url
        if self._is_sqlite:
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)  # keeps statements prepared
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        else:
            self._connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
            self._connection.execute("SET synchronous_commit = off")
        self._statements = _SQLITE if self._is_sqlite else _POSTGRES
        self._cursor = self._connection.cursor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def create(self, uids: Sequence[str]) -> None:
        """Make the tables and the members."""
        for statement in self._statements.tables.split(";"):
            self._cursor.execute(statement)
        self._cursor.executemany(self._statements.member, [(self._gid, uid) for uid in uids])
        self._cursor.execute("ANALYZE group_users")

    def send(self, sender: str, text: str) -> int:
        """Store a message and the unread receipt of every other member; return its msgid."""
        self._run(self._statements.send, {"gid": self._gid, "uid": sender, "text": text})
        return int(self._cursor.lastrowid if self._is_sqlite else self._cursor.fetchone()[0])

    def ack(self, uid: str, msgid: int) -> None:
        """Move `last_ack_msgid` and flip the receipts that it passed."""
        self._run(self._statements.ack, {"gid": self._gid, "uid": uid, "msgid": msgid})

    def count_rows(self) -> tuple[int, int]:
        """Return how many messages and how many receipts are stored."""
        counts = "SELECT (SELECT count(*) FROM group_msgs), (SELECT count(*) FROM msg_acks)"
        messages, receipts = self._cursor.execute(counts).fetchone()
        return int(messages), int(receipts)

    def _run(self, statements: Sequence[str], parameters: Mapping[str, object]) -> None:
        for statement in statements:
            self._cursor.execute(statement, parameters)
