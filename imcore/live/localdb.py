"""A client's own SQLite database: what was received and sent, how far each group is known, and what waits to be sent.

Each message is kept once, by (gid, msgid). A commit is on the disk (synchronous=FULL) before a session acks what it
received, so an ack never covers a message that a power cut takes back.
"""

import fcntl
import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from imcore import msgid as msgids
from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.limits import check_msgid, check_name, check_places, check_time
from imcore.values import LogLine, Message, Receipt

PAGE = 500
"""How many messages are taken in one step."""

SCHEMA_VERSION = 2

_APPLICATION_ID = 0x696D6372
_SCHEMA = """
CREATE TABLE owner (uid TEXT NOT NULL, begun INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE messages (
    gid TEXT NOT NULL, msgid INTEGER NOT NULL, seq INTEGER NOT NULL, sender_uid TEXT NOT NULL, content TEXT NOT NULL,
    client_msgid TEXT, sent_at_ms INTEGER, recalls INTEGER, PRIMARY KEY (gid, msgid)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstones ON messages (gid, recalls) WHERE recalls IS NOT NULL;
CREATE TABLE tallies (
    gid TEXT NOT NULL, msgid INTEGER NOT NULL, read INTEGER NOT NULL, unread INTEGER NOT NULL, PRIMARY KEY (gid, msgid)
) STRICT, WITHOUT ROWID;
CREATE TABLE places (gid TEXT PRIMARY KEY, msgid INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, gid TEXT NOT NULL, to_uid TEXT, content TEXT NOT NULL,
    client_msgid TEXT NOT NULL UNIQUE, written_ms INTEGER NOT NULL, refused TEXT
) STRICT;
"""

# What a user has sent may be kept after the tombstone has come.
_INSERT = """
INSERT INTO messages VALUES (?1, ?2, ?3, ?4,
    CASE WHEN EXISTS (SELECT 1 FROM messages WHERE gid = ?1 AND recalls = ?2) THEN '' ELSE ?5 END, ?6, ?7, ?8)
ON CONFLICT DO NOTHING
"""
_TELL = """
INSERT INTO tallies VALUES (?, ?, ?, ?) ON CONFLICT (gid, msgid)
DO UPDATE SET read = excluded.read, unread = excluded.unread WHERE excluded.read >= read
"""
_ADVANCE = """
INSERT INTO places VALUES (?, ?) ON CONFLICT (gid) DO UPDATE SET msgid = excluded.msgid WHERE excluded.msgid > msgid
"""
_LOG = """
SELECT m.gid, m.msgid, m.sender_uid, m.content, m.client_msgid, t.read, t.unread
FROM messages m LEFT JOIN tallies t USING (gid, msgid)
WHERE m.recalls IS NULL AND (:gid IS NULL OR m.gid = :gid) ORDER BY m.gid, m.msgid
"""
_OUTBOX = """
SELECT gid, content, client_msgid, written_ms, refused FROM outbox WHERE :gid IS NULL OR gid = :gid ORDER BY id
"""


class Outgoing(NamedTuple):
    """A message that waits to be sent: to a group, or one-to-one where `to_uid` is given."""

    number: int
    gid: str
    to_uid: str | None
    content: str
    client_msgid: str


def path_of(data_dir: Path, uid: str) -> Path:
    """Return where a user's local database is; its name is a digest, since a uid may hold what no file name may.

    Raise InvalidInput for a uid that cannot be one.
    """
    check_name(uid, "uid")
    return data_dir / "clients" / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.db"


class LocalDatabase:
    """One user's messages on one device.

    A session holds it alone (`exclusive`); besides, short commands may read it, and add what was sent. Every method
    raises LocalDatabaseError if it cannot be used, InvalidInput for what cannot be kept; then nothing has changed.
    """

    def __init__(self, path: Path, uid: str, *, exclusive: bool = False, read_only: bool = False) -> None:
        """Open it, and make it if there is none and it may be written.

        Raise LocalDatabaseError if another session holds it, or if it is damaged, of another version, of another user,
        or in a place that cannot be written.
        """
        self.path = path
        self.uid = uid
        self._lock: int | None = None
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if exclusive:
                self._hold()
            self._connection = self._open_to_read() if read_only else self._open()
        except OSError as error:
            self._release()
            raise LocalDatabaseError(f"the local database {path} cannot be used: {error.strerror}") from error
        except LocalDatabaseError:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and let another session have it."""
        self._connection.close()
        self._release()

    @property
    def begun(self) -> bool:
        """Whether `begin` was called: a group that has no place here was joined since."""
        return self._rows("SELECT begun FROM owner") == [(1,)]

    def begin(self, places: Mapping[str, str]) -> None:
        """Note where each of the user's groups begins here. Once is enough: afterwards this does nothing."""
        rows = check_places(places).items()
        with self._transaction() as connection:
            if connection.execute("UPDATE owner SET begun = 1 WHERE begun = 0").rowcount:
                connection.executemany(_ADVANCE, rows)

    def places(self) -> dict[str, str]:
        """Return up to which message (its msgid) each group is here without holes."""
        return {gid: msgids.unpack(msgid) for gid, msgid in self._rows("SELECT gid, msgid FROM places")}

    def keep(self, items: Iterable[Message | Receipt], places: Mapping[str, str] = MappingProxyType({})) -> None:
        """Keep messages, and tallies of own ones, in one step; and up to where groups are here without holes now.

        What is here already stays as it is; how many have read a message never goes down, nor does a place.
        """
        messages: list[Message] = []
        tallies: list[tuple[str, int, int, int]] = []
        for item in items:
            if isinstance(item, Message):
                messages.append(item)
            else:
                tallies.append((item.gid, check_msgid(item.msgid), item.read, item.unread))
        rows = check_places(places).items()
        if messages or tallies or rows:
            with self._transaction() as connection:
                for message in messages:
                    self._insert(connection, message)
                connection.executemany(_TELL, tallies)
                connection.executemany(_ADVANCE, rows)

    def queue(self, gid: str, content: str, *, to_uid: str | None = None) -> Outgoing:
        """Put a message into the outbox, behind those that wait there."""
        client_msgid = uuid.uuid4().hex
        with self._transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO outbox (gid, to_uid, content, client_msgid, written_ms) VALUES (?, ?, ?, ?, ?)",
                (gid, to_uid, content, client_msgid, time.time_ns() // 1_000_000),
            )
            return Outgoing(cursor.lastrowid or 0, gid, to_uid, content, client_msgid)

    def waiting(self) -> list[Outgoing]:
        """Return what waits to be sent, in order."""
        sql = "SELECT id, gid, to_uid, content, client_msgid FROM outbox WHERE refused IS NULL ORDER BY id"
        return [Outgoing(*row) for row in self._rows(sql)]

    def refuse(self, outgoing: Outgoing, reason: str) -> None:
        """Note that the server will never take a message, so that those behind it can go out."""
        with self._transaction() as connection:
            connection.execute("UPDATE outbox SET refused = ? WHERE id = ?", (reason, outgoing.number))

    def log(self, gid: str | None = None) -> Iterator[LogLine]:
        """Yield the chat as this client knows it: by group, oldest first, then what waits in the outbox."""
        yield from (self._line(*row) for row in self._rows(_LOG, {"gid": gid}))
        yield from (self._unsent(*row) for row in self._rows(_OUTBOX, {"gid": gid}))

    def _line(
        self, gid: str, msgid: int, sender_uid: str, content: str, client_msgid: str | None, *tally: int
    ) -> LogLine:
        text = msgids.unpack(msgid)
        return LogLine(
            gid=gid,
            msgid=text,
            time=msgids.time_of(text),
            sender_uid=sender_uid,
            content=content,
            client_msgid=client_msgid,
            state=_state(*tally) if sender_uid == self.uid else None,
            recalled=not content,  # which else is never empty
        )

    def _unsent(self, gid: str, content: str, client_msgid: str, written_ms: int, refused: str | None) -> LogLine:
        state = "waiting" if refused is None else f"refused: {refused}"
        return LogLine(gid, None, msgids.from_ms(written_ms), self.uid, content, client_msgid, state)

    def _insert(self, connection: sqlite3.Connection, message: Message) -> None:
        msgid = check_msgid(message.msgid)
        sent_at_ms = None if message.sent_at is None else check_time(message.sent_at)
        recalls = None if message.recalls is None else check_msgid(message.recalls)
        key, said = (message.gid, msgid), (message.seq, message.sender_uid, message.content, message.client_msgid)
        connection.execute(_INSERT, (*key, *said, sent_at_ms, recalls))
        if recalls is not None or message.recalled:
            withdrawn = (message.gid, msgid if recalls is None else recalls)
            connection.execute("UPDATE messages SET content = '' WHERE gid = ? AND msgid = ?", withdrawn)
        if message.sender_uid == self.uid and recalls is None:
            sent = (message.gid, message.client_msgid)
            connection.execute("DELETE FROM outbox WHERE gid = ? AND client_msgid = ?", sent)

    def _rows(self, sql: str, values: Mapping[str, object] | tuple[()] = ()) -> list[Any]:
        with self._readable():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._readable():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
            raise InvalidInput(f"the local database cannot keep this: {error}") from error
        except sqlite3.OperationalError as error:
            raise LocalDatabaseError(f"the local database {self.path} cannot be used now: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged() from error

    def _missing(self) -> LocalDatabaseError:
        return LocalDatabaseError(f"{self.uid!r} has no local database here: `im listen` or `im pull` makes it")

    def _damaged(self) -> LocalDatabaseError:
        return LocalDatabaseError(
            f"the local database {self.path} is damaged: move it away, and what is not acked will be pulled again"
        )

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._readable():
            connection = sqlite3.connect(self.path, timeout=10.0, isolation_level=None)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise self._missing()
        with self._readable():
            connection = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True, isolation_level=None)
            try:
                self._check(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            self._create(connection)
        self._check(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # not before the check: a file that is not ours stays as it was
        connection.execute("PRAGMA synchronous = FULL")

    def _check(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise self._missing()
        if version > SCHEMA_VERSION:
            raise LocalDatabaseError(f"the local database {self.path} is of a newer imcore: upgrade imcore")
        (uid,) = connection.execute("SELECT uid FROM owner").fetchone()
        if uid != self.uid:
            raise LocalDatabaseError(f"the local database {self.path} belongs to {uid!r}, not to {self.uid!r}")

    def _create(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise LocalDatabaseError(f"{self.path} is a database of something else: give another path")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO owner (uid) VALUES (?)", (self.uid,))
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _hold(self) -> None:
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalDatabaseError(
                f"another session of {self.uid!r} holds the local database {self.path}: end it, or give another path"
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _state(read: int | None, unread: int | None) -> str:
    if not read:
        return "stored"
    return "read by all" if not unread else f"read {read}/{read + unread}"
