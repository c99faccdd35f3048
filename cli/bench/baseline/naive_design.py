"""The literal design of the mission, as a yardstick: a row and a push for every receipt, a transaction for every ack.

The work is shared by connections to the database, each with a thread. A thread sends messages, and stores the acks of
the same members every time. Messages and receipts are pushed over the same Redis, in one pipeline a thread.

It is written as well as that design allows, on the drivers themselves. A message and the receipts of all its recipients
are made of `group_users` by the database itself; an ack moves `last_ack_msgid` and flips the receipts that it passed;
each is one transaction. The statements are prepared, the primary keys are those that the statements need, and an update
changes no index. A commit does not wait for the disk, since an ack in Redis does not either.
"""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, Self

import psycopg
import redis

from imcore.chat import Chat
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.sessions import DEADLINE_S, IN_FLIGHT, MEMBERS, ONLINE, SessionCounts
from imcore.cli.bench.harness.traffic import TEXT
from imcore.errors import ImError
from imcore.streams.cluster import server_of


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


@dataclass(frozen=True, slots=True)
class NaiveDesign:
    """The tables at `url`, a client of Redis, and a group. Its first member sends, and the next 40 are online."""

    chat: Chat
    url: str
    gid: str
    uids: list[str]

    @property
    def sender(self) -> str:
        return self.uids[0]

    @property
    def online(self) -> list[str]:
        return self.uids[1 : ONLINE + 1]

    @property
    def server(self) -> redis.Redis:
        """The server that publishes everything. On a cluster it is one node."""
        return server_of(self.chat.system.client.driver, self.gid)

    def store(self) -> NaiveStore:
        """Return a connection of its own to the tables."""
        return NaiveStore(self.url, self.gid)

    def publish(self, channels: list[str], text: str) -> None:
        with self.server.pipeline(transaction=False) as pipe:
            for channel in channels:
                pipe.publish(channel, text)
            pipe.execute()


@contextmanager
def open_naive(servers: BenchServers) -> Iterator[NaiveDesign]:
    """Make the tables and the group, in a database of its own."""
    uids = [f"{servers.name}-{number}" for number in range(MEMBERS)]
    with servers.chat() as chat:
        naive = NaiveDesign(chat, servers.maker.new(), f"{servers.name}-literal", uids)
        with naive.store() as store:
            store.create(uids)
        yield naive


def play(naive: NaiveDesign, connections: int, messages: int) -> SessionCounts:
    """Send messages, have each acked by all online members, and wait until the sender has every receipt."""
    with ExitStack() as things:
        listener = things.enter_context(closing(_Listener(naive)))
        seen = listener.seen
        threads = [things.enter_context(_Connection(naive.store)) for _ in range(connections)]
        shares = [naive.online[number::connections] for number in range(connections)]
        sent = 0
        while len(seen.known) < messages:
            while sent < messages and sent - len(seen.known) < IN_FLIGHT:
                threads[sent % connections].tasks.put(partial(_send, naive, seen))
                sent += 1
            msgid = listener.next_arrived()
            for thread, uids in zip(threads, shares, strict=True):
                thread.check()
                if msgid is not None:
                    thread.tasks.put(partial(_ack, naive, uids, msgid))
            if time.perf_counter() - seen.began > 4 * DEADLINE_S:
                raise ImError(f"the literal design did not get there: its sender knows of {len(seen.known)} messages")
        return seen


class _Listener:
    """Receives the pushes: each online member has a channel, and the sender has one for receipts."""

    def __init__(self, naive: NaiveDesign) -> None:
        self._receipts: Counter[int] = Counter()
        self._receipts_channel = naive.sender.encode()
        open_pubsub: Callable[..., Any] = naive.server.pubsub
        self._pubsub = open_pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*naive.online, naive.sender)
        self._pubsub.get_message(timeout=0.2)
        self.seen = SessionCounts()

    def close(self) -> None:
        self._pubsub.close()

    def next_arrived(self) -> int | None:
        """Wait for a push. Return its message if the last of the online members just received it."""
        item = self._pubsub.get_message(timeout=DEADLINE_S)
        if item is None:
            return None
        msgid, now = int(item["data"].split(b" ", 1)[0]), time.perf_counter()
        if item["channel"] == self._receipts_channel:
            self.seen.digests += 1
            self._receipts[msgid] += 1
            if self._receipts[msgid] == ONLINE:
                self.seen.known[msgid] = now
            return None
        return msgid if self.seen.note_arrival(msgid, 1, now) else None


class _Connection(threading.Thread):
    """A thread with a connection to the tables, which does its tasks in their order."""

    def __init__(self, open_store: Callable[[], NaiveStore]) -> None:
        super().__init__(daemon=True)
        self.tasks: SimpleQueue[Callable[[NaiveStore], None] | None] = SimpleQueue()
        self._open_store = open_store
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tasks.put(None)
        self.join(DEADLINE_S)

    def check(self) -> None:
        """Raise ImError if the thread has failed."""
        if self._error:
            raise ImError(f"the literal design failed: {self._error}") from self._error

    def run(self) -> None:
        try:
            with self._open_store() as store:
                while task := self.tasks.get():
                    task(store)
        except Exception as error:
            self._error = error


def _send(naive: NaiveDesign, seen: SessionCounts, store: NaiveStore) -> None:
    began = time.perf_counter()
    msgid = store.send(naive.sender, TEXT)
    seen.sent[msgid] = began
    naive.publish(naive.online, f"{msgid} {naive.gid} {naive.sender} {TEXT}")


def _ack(naive: NaiveDesign, uids: list[str], msgid: int, store: NaiveStore) -> None:
    for uid in uids:
        store.ack(uid, msgid)
    naive.publish([naive.sender] * len(uids), f"{msgid} {naive.gid}")
