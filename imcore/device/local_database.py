"""A client's own SQLite database: what was received and sent, how far each group is known, and what waits to be sent.

Each message is kept once, by (gid, msgid). A commit is on the disk (synchronous=FULL) before a session acks what it
received, so an ack never covers a message that a power cut takes back.
"""

import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import MappingProxyType, NoneType, TracebackType
from typing import NamedTuple, Self

from imcore import msgid as msgids
from imcore.device.local_file import LocalFile, Schema, check_room
from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.model.direct import is_direct, peer_of
from imcore.model.limits import check_handed_over, check_mapping, check_msgid, check_name, check_place, check_time
from imcore.model.values import LogLine, Message, Receipt, Tally
from imcore.util.backoff import ThrottledLog

PAGE = 500
"""How many messages are taken in one step."""

_ROOM_BYTES = 1 << 16
"""For the pages besides the text that a new message changes."""

# Every message of the owner has a row in `tallies`: `unread` is NULL until anybody has asked, and 0 at the end.
SCHEMA = Schema(
    3,
    """
CREATE TABLE owner (uid TEXT NOT NULL, dataset TEXT, begun INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE messages (
    gid TEXT NOT NULL, msgid INTEGER NOT NULL, seq INTEGER NOT NULL, sender_uid TEXT NOT NULL, content TEXT NOT NULL,
    client_msgid TEXT, sent_at_ms INTEGER, recalls INTEGER, PRIMARY KEY (gid, msgid)
) STRICT, WITHOUT ROWID;
CREATE INDEX chat ON messages (msgid, gid) WHERE recalls IS NULL;
CREATE INDEX tombstones ON messages (gid, recalls) WHERE recalls IS NOT NULL;
CREATE TABLE tallies (
    gid TEXT NOT NULL, msgid INTEGER NOT NULL, read INTEGER NOT NULL, unread INTEGER, PRIMARY KEY (gid, msgid)
) STRICT, WITHOUT ROWID;
CREATE INDEX unsettled ON tallies (msgid, gid) WHERE unread IS NOT 0;
CREATE TABLE places (gid TEXT PRIMARY KEY, msgid INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE peers (gid TEXT PRIMARY KEY, uid TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, gid TEXT NOT NULL, to_uid TEXT, content TEXT NOT NULL,
    client_msgid TEXT NOT NULL UNIQUE, written_ms INTEGER NOT NULL, tried INTEGER NOT NULL DEFAULT 0, refused TEXT
) STRICT;
""",
)

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
# Each order is that of an index: nothing is sorted, and the first lines are there at once.
_LOG = """
SELECT m.gid, m.msgid, m.sender_uid, m.content, m.client_msgid, t.read, t.unread
FROM messages m LEFT JOIN tallies t USING (gid, msgid) WHERE m.recalls IS NULL ORDER BY m.msgid, m.gid
"""
_LOG_OF_GROUP = """
SELECT m.gid, m.msgid, m.sender_uid, m.content, m.client_msgid, t.read, t.unread
FROM messages m LEFT JOIN tallies t USING (gid, msgid) WHERE m.recalls IS NULL AND m.gid = :gid ORDER BY m.msgid
"""
_OUTBOX = """
SELECT gid, content, client_msgid, written_ms, refused FROM outbox WHERE :gid IS NULL OR gid = :gid ORDER BY id
"""
_UNSETTLED = f"""
SELECT gid, msgid, read, unread FROM tallies WHERE unread IS NOT 0 AND (msgid, gid) < (?, ?)
ORDER BY msgid DESC, gid DESC LIMIT {PAGE}
"""  # noqa: S608 (the number is ours)

_TEXT_OR_NONE, _NUMBER_OR_NONE = (str, NoneType), (int, NoneType)
_LINE = (str, int, str, str, _TEXT_OR_NONE, _NUMBER_OR_NONE, _NUMBER_OR_NONE)
_UNSENT = (str, str, str, int, _TEXT_OR_NONE)


class Outgoing(NamedTuple):
    """A message that waits to be sent: to a group, or one-to-one where `to_uid` is given."""

    number: int
    gid: str
    to_uid: str | None
    content: str
    client_msgid: str


class UnreadOwnMessage(NamedTuple):
    """An own message that is not known to be read by all, and its tally as far as it is known."""

    gid: str
    msgid: str
    read: int
    unread: int | None


def path_of(data_dir: Path, uid: str) -> Path:
    """Return where a user's local database is; its name is a digest, since a uid may hold what no file name may.

    Raise InvalidInput for a uid that cannot be one.
    """
    check_name(uid, "uid")
    return data_dir / "clients" / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.db"


def try_out(path: Path, uid: str, content_bytes: int) -> None:
    """Make sure that a message of so many bytes could be kept at a path. Raise LocalDatabaseError.

    There must be room for it; and where there is no file yet, SQLite must be able to make one: another one is made in
    its stead. One that is there is not looked at: whoever sends opens it before. Nothing is left of the trial, and it
    makes and removes no folder: another first send may be about to use it.
    """
    folder = next(each for each in (path.parent, *path.parent.parents) if os.path.lexists(each))
    check_room(_ROOM_BYTES + 2 * content_bytes, folder, called=path)  # in the log, and then in the file
    if os.path.lexists(path):
        return
    scratch = folder / f"{path.stem}.{uuid.uuid4().hex}.try"
    try:
        with closing(LocalFile(scratch, uid, SCHEMA, called=path)) as file, file.transaction() as connection:
            connection.execute(_INSERT, ("", 0, 0, uid, "x" * content_bytes, None, None, None))
    finally:
        with suppress(OSError):
            for ending in ("-shm", "-wal", ""):
                scratch.with_name(scratch.name + ending).unlink(missing_ok=True)


class LocalDatabase:
    """One user's messages on one device.

    A session holds it alone (`exclusive`); besides, short commands may read it, and add what was sent. Every method
    raises LocalDatabaseError if it cannot be used, InvalidInput for what cannot be kept; then nothing has changed.
    `keep` and `begin` take what the server handed over: they pass over what cannot be kept, and warn of each.
    """

    def __init__(self, path: Path, uid: str, *, exclusive: bool = False, read_only: bool = False) -> None:
        """Open it, and make it if there is none and it may be written.

        Raise LocalDatabaseError if another session holds it, or if it is damaged, of another version, of another user,
        or in a place that cannot be written.
        """
        self.path = path
        self.uid = uid
        self._file = LocalFile(path, uid, SCHEMA, exclusive=exclusive, read_only=read_only)
        self._warnings = ThrottledLog(time.monotonic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and let another session have it."""
        self._file.close()

    def bind(self, dataset: str | None, server: str) -> None:
        """Make sure that this server has the data that is kept here; the first that has any data binds it.

        Raise LocalDatabaseError if it has other data, or none any more: the msgids here mean nothing there.
        """
        sql = "SELECT dataset FROM owner"
        [bound] = self._column(sql, _TEXT_OR_NONE)
        if bound is None and dataset is not None:
            with self._file.transaction() as connection:
                connection.execute("UPDATE owner SET dataset = ? WHERE dataset IS NULL", (dataset,))
            [bound] = self._column(sql, _TEXT_OR_NONE)
        if bound != dataset:
            raise LocalDatabaseError(
                f"the local database {self.path} was made with other data than {server} has: set IM_REDIS_URL to where "
                "that is (or bring it back with `im rebuild`), set IM_DATA_DIR to another folder, or use --no-local"
            )

    @property
    def begun(self) -> bool:
        """Whether `begin` was called: a group that has no place here was joined since."""
        return self._column("SELECT begun FROM owner", int) == [1]

    def begin(self, places: Mapping[str, str]) -> None:
        """Note where each of the user's groups begins here. Once is enough: afterwards this does nothing."""
        rows = self._places(places)
        with self._file.transaction() as connection:
            if connection.execute("UPDATE owner SET begun = 1 WHERE begun = 0").rowcount:
                connection.executemany(_ADVANCE, rows)

    def places(self) -> dict[str, str]:
        """Return up to which message (its msgid) each group is here without holes."""
        rows = list(self._file.rows("SELECT gid, msgid FROM places", (str, int)))
        return {gid: self._unpacked(msgid, lowest=msgids.NONE) for gid, msgid in rows}

    def keep(
        self, items: Iterable[Message | Receipt | Tally], places: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Keep messages, and tallies of own ones, in one step; and up to where groups are here without holes now.

        What is here already stays as it is; how many have read a message never goes down, nor does a place. If one of
        them cannot be kept, each is kept by itself.
        """
        given, rows = list(items), self._places(places)
        try:
            self._keep(given, rows)
        except InvalidInput:
            for item in given:
                self._keep_if_possible(item)
            self._keep((), rows)

    def _keep_if_possible(self, item: Message | Receipt | Tally) -> None:
        try:
            self._keep([item], ())
        except InvalidInput as error:
            self._warnings.warn(f"{item.msgid} of {item.gid!r} is not kept in the local database: {error}")

    def _keep(self, items: Sequence[Message | Receipt | Tally], places: Sequence[tuple[str, int]]) -> None:
        messages = [item for item in items if isinstance(item, Message)]
        tallies = [
            (check_handed_over(item.gid, "gid"), check_msgid(item.msgid), item.read, item.unread)
            for item in items
            if not isinstance(item, Message)
        ]
        if messages or tallies or places:
            with self._file.transaction() as connection:
                for message in messages:
                    self._insert(connection, message)
                connection.executemany(_TELL, tallies)
                connection.executemany(_ADVANCE, places)
        self._file.empty_log()

    def _places(self, places: Mapping[str, str]) -> list[tuple[str, int]]:
        """Return places with their msgids packed; what cannot be one is passed over."""
        rows: list[tuple[str, int]] = []
        for gid, msgid in check_mapping(places, "places").items():
            try:
                rows.append(check_place(gid, msgid))
            except InvalidInput as error:
                self._warnings.warn(f"the place of {gid!r} is not kept in the local database: {error}")
        return rows

    def unsettled(self, before: UnreadOwnMessage | None = None) -> list[UnreadOwnMessage]:
        """Return a page of the own messages that are not known to be read by all, newest first, after one of them."""
        start = (msgids.HIGHEST + 1, "") if before is None else (check_msgid(before.msgid), before.gid)
        rows = self._file.rows(_UNSETTLED, (str, int, int, _NUMBER_OR_NONE), start)
        return [UnreadOwnMessage(gid, self._unpacked(msgid), *tally) for gid, msgid, *tally in rows]

    def queue(self, gid: str, content: str, *, to_uid: str | None = None) -> Outgoing:
        """Put a message into the outbox, behind those that wait there."""
        client_msgid = uuid.uuid4().hex
        with self._file.transaction() as connection:
            if to_uid is not None:
                self._note_peer(connection, gid, to_uid)
            cursor = connection.execute(
                "INSERT INTO outbox (gid, to_uid, content, client_msgid, written_ms) VALUES (?, ?, ?, ?, ?)",
                (gid, to_uid, content, client_msgid, time.time_ns() // 1_000_000),
            )
            return Outgoing(cursor.lastrowid or 0, gid, to_uid, content, client_msgid)

    def waiting(self) -> list[Outgoing]:
        """Return what waits to be sent, in order."""
        sql = "SELECT id, gid, to_uid, content, client_msgid FROM outbox WHERE refused IS NULL ORDER BY id"
        return [Outgoing(*row) for row in self._file.rows(sql, (int, str, _TEXT_OR_NONE, str, str))]

    def attempt(self) -> set[str]:
        """Note that what waits is about to be sent; return the groups of what may have been sent before, unheard of."""
        rows = list(self._file.rows("SELECT DISTINCT gid, tried FROM outbox WHERE refused IS NULL", (str, int)))
        if not all(tried for _, tried in rows):
            with self._file.transaction() as connection:
                connection.execute("UPDATE outbox SET tried = 1 WHERE refused IS NULL")
        return {gid for gid, tried in rows if tried}

    def refuse(self, outgoing: Outgoing, reason: str) -> None:
        """Note that the server will never take a message, so that those behind it can go out."""
        with self._file.transaction() as connection:
            connection.execute("UPDATE outbox SET refused = ? WHERE id = ?", (reason, outgoing.number))

    def peers(self) -> dict[str, str]:
        """Return who the other is in each one-to-one chat whose gid does not say it, as far as that is known here."""
        return dict(self._file.rows("SELECT gid, uid FROM peers", (str, str)))

    def note_peer(self, gid: str, uid: str) -> None:
        """Note who the other is in a one-to-one chat. Where the gid says that itself, this does nothing."""
        with self._file.transaction() as connection:
            self._note_peer(connection, gid, uid)

    def log(self, gid: str | None = None) -> Iterator[LogLine]:
        """Yield the chat as this client knows it: of all groups, oldest first, then `unsent`."""
        query = _LOG if gid is None else _LOG_OF_GROUP
        yield from (self._line(*row) for row in self._file.rows(query, _LINE, {"gid": gid}))
        yield from self.unsent(gid)

    def unsent(self, gid: str | None = None) -> Iterator[LogLine]:
        """Yield what is in the outbox, in order: what waits, and what the server will never take."""
        yield from (self._unsent(*row) for row in self._file.rows(_OUTBOX, _UNSENT, {"gid": gid}))

    def _line(
        self, gid: str, msgid: int, sender_uid: str, content: str, client_msgid: str | None, *tally: int
    ) -> LogLine:
        text = self._unpacked(msgid)
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
        try:
            written = msgids.from_ms(written_ms)
        except (OverflowError, ValueError) as error:
            raise self._file.damaged() from error
        return LogLine(gid, None, written, self.uid, content, client_msgid, state)

    def _unpacked(self, msgid: int, lowest: int = 1) -> str:
        if not lowest <= msgid <= msgids.HIGHEST:
            raise self._file.damaged()
        return msgids.unpack(msgid)

    def _column(self, sql: str, kind: type | tuple[type, ...]) -> list[str | int | None]:
        return [value for (value,) in self._file.rows(sql, (kind,))]

    def _insert(self, connection: sqlite3.Connection, message: Message) -> None:
        msgid = check_msgid(message.msgid)
        sent_at_ms = None if message.sent_at is None else check_time(message.sent_at)
        recalls = None if message.recalls is None else check_msgid(message.recalls)
        key, said = (message.gid, msgid), (message.seq, message.sender_uid, message.content, message.client_msgid)
        connection.execute(_INSERT, (*key, *said, sent_at_ms, recalls))
        if recalls is not None or message.recalled:
            withdrawn = (message.gid, msgid if recalls is None else recalls)
            connection.execute("UPDATE messages SET content = '' WHERE gid = ? AND msgid = ?", withdrawn)
            self._file.note_withdrawn()
        if message.sender_uid != self.uid:
            self._note_peer(connection, message.gid, message.sender_uid)
        elif recalls is None:
            connection.execute("INSERT INTO tallies VALUES (?, ?, 0, NULL) ON CONFLICT DO NOTHING", key)
            sent = (message.gid, message.client_msgid)
            connection.execute("DELETE FROM outbox WHERE gid = ? AND client_msgid = ?", sent)

    def _note_peer(self, connection: sqlite3.Connection, gid: str, uid: str) -> None:
        hidden = is_direct(check_handed_over(gid, "gid")) and peer_of(gid, self.uid) is None
        if hidden and peer_of(gid, self.uid, [uid]) is not None:
            connection.execute("INSERT INTO peers VALUES (?, ?) ON CONFLICT DO NOTHING", (gid, uid))


def _state(read: int | None, unread: int | None) -> str:
    if not read:
        return "stored"
    return "read by all" if not unread else f"read {read}/{read + unread}"
