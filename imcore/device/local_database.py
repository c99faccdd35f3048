"""A device's own SQLite database: messages and tallies, how far each group is known, and an outbox.

Each message is kept once, by (gid, msgid). A commit is on the disk (synchronous=FULL) before a session acks what it
received, so an ack never covers a message that a power cut takes back.
"""

import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.device.local_file import LocalFile, check_room
from imcore.errors import InvalidInput, LocalDatabaseError
from imcore.model.direct import is_direct, peer_of
from imcore.model.erased import is_alias
from imcore.model.limits import (
    check_handed_over,
    check_mapping,
    check_msgid,
    check_name,
    check_resume_point,
    check_time,
)
from imcore.model.meta import Meta, copy_of, from_text, to_text
from imcore.model.values import LogLine, Message, Receipt, Tally

PAGE = 500
"""The most messages, or tallies of own ones, that one step reads."""

_ROOM_BYTES = 1 << 16
"""For the pages that a new message changes besides its text."""

# An own message may be kept after its tombstone has come.
_INSERT = """
INSERT INTO messages SELECT ?1, ?2, ?3, ?4, iif(recalled, '', ?5), ?6, ?7, ?8, iif(recalled, NULL, ?9)
FROM (SELECT EXISTS (SELECT 1 FROM messages WHERE gid = ?1 AND recalls = ?2) AS recalled) WHERE true
ON CONFLICT DO NOTHING
"""
_SET_TALLY = """
INSERT INTO tallies VALUES (?, ?, ?, ?) ON CONFLICT (gid, msgid)
DO UPDATE SET read = excluded.read, unread = excluded.unread WHERE excluded.read >= read
"""
_ADVANCE = """
INSERT INTO resume_points VALUES (?, ?)
ON CONFLICT (gid) DO UPDATE SET msgid = excluded.msgid WHERE excluded.msgid > msgid
"""
# Each order is that of an index: SQLite sorts nothing, and the first lines come at once.
_LINES = """
SELECT m.gid, m.msgid, m.sender_uid, m.content, m.client_msgid, m.meta, t.read, t.unread
FROM messages m LEFT JOIN tallies t USING (gid, msgid) WHERE m.recalls IS NULL
"""
_LOG, _LOG_OF_GROUP = f"{_LINES} ORDER BY m.msgid, m.gid", f"{_LINES} AND m.gid = :gid ORDER BY m.msgid"
_OUTBOX = """
SELECT gid, content, client_msgid, meta, written_ms, refused FROM outbox WHERE :gid IS NULL OR gid = :gid ORDER BY id
"""
_UNREAD_OWN = f"""
SELECT gid, msgid, read, unread FROM tallies WHERE unread IS NOT 0 AND (msgid, gid) < (?, ?)
ORDER BY msgid DESC, gid DESC LIMIT {PAGE}
"""  # noqa: S608 (the number is ours)

_TEXT_OR_NONE, _NUMBER_OR_NONE = (str, NoneType), (int, NoneType)
_LINE = (str, int, str, str, _TEXT_OR_NONE, _TEXT_OR_NONE, _NUMBER_OR_NONE, _NUMBER_OR_NONE)
_UNSENT = (str, str, str, _TEXT_OR_NONE, int, _TEXT_OR_NONE)


class Outgoing(NamedTuple):
    """A message of the outbox: to a group, or one-to-one if `to_uid` is given."""

    number: int
    gid: str
    to_uid: str | None
    content: str
    client_msgid: str
    meta: Meta | None = None


def path_of(data_dir: Path, uid: str) -> Path:
    """Return where a user's local database is, by a digest: not every uid can be a file name. Raise InvalidInput."""
    check_name(uid, "uid")
    return data_dir / "clients" / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.db"


def try_out(path: Path, uid: str, content_bytes: int) -> None:
    """Raise LocalDatabaseError unless SQLite can make a file at a path, with room for a message of this length.

    Nothing is left of the trial. It makes and removes no folder: another first send may be about to use it.
    """
    folder = next(each for each in (path.parent, *path.parent.parents) if os.path.lexists(each))
    check_room(_ROOM_BYTES + 2 * content_bytes, folder, called=path)  # in the log, and then in the file
    if os.path.lexists(path):
        return
    scratch = folder / f"{path.stem}.{uuid.uuid4().hex}.try"
    try:
        with LocalFile(scratch, uid, called=path) as file, file.transaction() as connection:
            connection.execute(_INSERT, ("", 0, 0, uid, "x" * content_bytes, None, None, None, None))
    finally:
        with suppress(OSError):
            for ending in ("-shm", "-wal", ""):
                scratch.with_name(scratch.name + ending).unlink(missing_ok=True)


class LocalDatabase(LocalFile):
    """One user's messages on one device. For the thread that has opened it.

    One session holds it (`exclusive`). Short commands may read it meanwhile, and add what they have sent. Every method
    raises LocalDatabaseError if the database cannot be used, InvalidInput for values that it cannot keep; then nothing
    has changed. `keep` and `begin` get values from the server: they leave out those that cannot be kept, and warn.
    """

    def bind(self, dataset: str | None, server: str) -> None:
        """Bind this database to a server's data, once. Raise LocalDatabaseError if it is bound to other data."""
        sql = "SELECT dataset FROM owner"
        [bound] = self._column(sql, _TEXT_OR_NONE)
        if bound is None and dataset is not None:
            with self.transaction() as connection:
                connection.execute("UPDATE owner SET dataset = ? WHERE dataset IS NULL", (dataset,))
            [bound] = self._column(sql, _TEXT_OR_NONE)
        if bound != dataset:
            raise LocalDatabaseError(
                f"the local database {self.path} was made with other data than {server} has: set IM_REDIS_URL to where "
                "that is (or bring it back with `im rebuild`), set IM_DATA_DIR to another folder, or use --no-local"
            )

    @property
    def begun(self) -> bool:
        """Whether `begin` was called: then a group without a resume point was joined since."""
        return self._column("SELECT begun FROM owner", int) == [1]

    def begin(self, resume_points: Mapping[str, str]) -> None:
        """Set where each of the user's groups begins here. After the first time this does nothing."""
        rows = self._packed(resume_points)
        with self.transaction() as connection:
            if connection.execute("UPDATE owner SET begun = 1 WHERE begun = 0").rowcount:
                connection.executemany(_ADVANCE, rows)

    def resume_points(self) -> dict[str, str]:
        """Return by gid the msgid up to which each group is here without holes."""
        rows = list(self.rows("SELECT gid, msgid FROM resume_points", (str, int)))
        return {gid: self._unpacked(msgid, lowest=msgids.NONE) for gid, msgid in rows}

    def keep(
        self, items: Iterable[Message | Receipt | Tally], resume_points: Mapping[str, str] = MappingProxyType({})
    ) -> set[str]:
        """Keep messages, tallies of own ones, and how far groups are here without holes, in one step.

        A message that is here stays as it is. Readers and resume points never go down. If one item cannot be kept, each
        is kept by itself. Return the gids of what is kept.
        """
        given, rows = list(items), self._packed(resume_points)
        try:
            self._keep(given, rows)
        except InvalidInput:
            kept = [item for item in given if self._keep_one(item)]
            self._keep((), rows)
            return {item.gid for item in kept}
        return {item.gid for item in given}

    def _keep_one(self, item: Message | Receipt | Tally) -> bool:
        try:
            self._keep([item], ())
        except InvalidInput as error:
            self.warnings.warn(f"{item.msgid} of {item.gid!r} is not kept in the local database: {error}")
            return False
        return True

    def _keep(self, items: Sequence[Message | Receipt | Tally], resume_points: Sequence[tuple[str, int]]) -> None:
        messages = [item for item in items if isinstance(item, Message)]
        tallies = [
            (check_handed_over(item.gid, "gid"), check_msgid(item.msgid), item.read, item.unread)
            for item in items
            if not isinstance(item, Message)
        ]
        if messages or tallies or resume_points:
            with self.transaction() as connection:
                for message in messages:
                    self._insert(connection, message)
                connection.executemany(_SET_TALLY, tallies)
                connection.executemany(_ADVANCE, resume_points)
        self.empty_log()

    def _packed(self, resume_points: Mapping[str, str]) -> list[tuple[str, int]]:
        rows: list[tuple[str, int]] = []
        for gid, msgid in check_mapping(resume_points, "resume points").items():
            try:
                rows.append(check_resume_point(gid, msgid))
            except InvalidInput as error:
                self.warnings.warn(f"the resume point of {gid!r} is not kept in the local database: {error}")
        return rows

    def unread_own_messages(
        self, before: tuple[str, str] | None = None
    ) -> dict[tuple[str, str], tuple[int, int | None]]:
        """Return a page of own messages that may be unread: read and unread as known here, by gid and msgid.

        They are the newest ones before one of them, newest first. `unread` is None before this device has asked.
        """
        start = (msgids.HIGHEST + 1, "") if before is None else (check_msgid(before[1]), before[0])
        rows = self.rows(_UNREAD_OWN, (str, int, int, _NUMBER_OR_NONE), start)
        return {(gid, self._unpacked(msgid)): (read, unread) for gid, msgid, read, unread in rows}

    def queue(self, gid: str, content: str, *, to_uid: str | None = None, meta: Meta | None = None) -> Outgoing:
        """Put a message into the outbox. Raise InvalidInput for a meta that is no JSON object."""
        client_msgid = uuid.uuid4().hex
        with self.transaction() as connection:
            if to_uid is not None:
                self._note_peer(connection, gid, to_uid)
            cursor = connection.execute(
                "INSERT INTO outbox (gid, to_uid, content, client_msgid, written_ms, meta) VALUES (?, ?, ?, ?, ?, ?)",
                (gid, to_uid, content, client_msgid, time.time_ns() // 1_000_000, _meta_text(meta)),
            )
            return Outgoing(cursor.lastrowid or 0, gid, to_uid, content, client_msgid, meta)

    def waiting(self) -> list[Outgoing]:
        sql = "SELECT id, gid, to_uid, content, client_msgid, meta FROM outbox WHERE refused IS NULL ORDER BY id"
        rows = self.rows(sql, (int, str, _TEXT_OR_NONE, str, str, _TEXT_OR_NONE))
        return [Outgoing(*row)._replace(meta=self._meta(row[-1])) for row in rows]

    def mark_tried(self) -> set[str]:
        """Note that the waiting messages are about to be sent; return the groups of those that may have been before."""
        rows = list(self.rows("SELECT DISTINCT gid, tried FROM outbox WHERE refused IS NULL", (str, int)))
        if not all(tried for _, tried in rows):
            with self.transaction() as connection:
                connection.execute("UPDATE outbox SET tried = 1 WHERE refused IS NULL")
        return {gid for gid, tried in rows if tried}

    def refuse(self, outgoing: Outgoing, reason: str) -> None:
        with self.transaction() as connection:
            connection.execute("UPDATE outbox SET refused = ? WHERE id = ?", (reason, outgoing.number))

    def peers(self) -> dict[str, str]:
        """Return the other user of each one-to-one chat whose gid does not say it, as far as they are known here."""
        return dict(self.rows("SELECT gid, uid FROM peers", (str, str)))

    def note_peer(self, gid: str, uid: str) -> None:
        """Note the other user of a one-to-one chat, unless the gid says it."""
        with self.transaction() as connection:
            self._note_peer(connection, gid, uid)

    def log(self, gid: str | None = None) -> Iterator[LogLine]:
        """Yield the messages of all groups or of one, oldest first, then `unsent`."""
        rows = self.rows(_LOG if gid is None else _LOG_OF_GROUP, _LINE, {"gid": gid})
        yield from (self._line(*row) for row in rows)
        yield from self.unsent(gid)

    def unsent(self, gid: str | None = None) -> Iterator[LogLine]:
        """Yield the outbox in order: messages that wait, and those that the server will never take."""
        yield from (self._unsent(*row) for row in self.rows(_OUTBOX, _UNSENT, {"gid": gid}))

    def _line(
        self, gid: str, msgid: int, sender_uid: str, content: str, client_msgid: str | None, *rest: Any
    ) -> LogLine:
        text, (meta, *tally) = self._unpacked(msgid), rest
        state = _state(*tally) if sender_uid == self.uid else None
        is_recalled = not content and not is_alias(sender_uid)  # no other message is empty
        time = msgids.time_of(text)
        return LogLine(gid, text, time, sender_uid, content, client_msgid, state, is_recalled, self._meta(meta))

    def _unsent(
        self, gid: str, content: str, client_msgid: str, meta: str | None, written_ms: int, refused: str | None
    ) -> LogLine:
        state = "waiting" if refused is None else f"refused: {refused}"
        try:
            written = msgids.from_ms(written_ms)
        except (OverflowError, ValueError) as error:
            raise self.damaged() from error
        return LogLine(gid, None, written, self.uid, content, client_msgid, state, meta=self._meta(meta))

    def _meta(self, text: str | None) -> Meta | None:
        try:
            return None if text is None else from_text(text)
        except InvalidInput as error:
            raise self.damaged() from error

    def _unpacked(self, msgid: int, lowest: int = 1) -> str:
        if not lowest <= msgid <= msgids.HIGHEST:
            raise self.damaged()
        return msgids.unpack(msgid)

    def _column(self, sql: str, kind: type | tuple[type, ...]) -> list[str | int | None]:
        return [value for (value,) in self.rows(sql, (kind,))]

    def _insert(self, connection: sqlite3.Connection, message: Message) -> None:
        msgid = check_msgid(message.msgid)
        sent_at_ms = None if message.sent_at is None else check_time(message.sent_at)
        recalls = None if message.recalls is None else check_msgid(message.recalls)
        key, values = (message.gid, msgid), (message.seq, message.sender_uid, message.content, message.client_msgid)
        connection.execute(_INSERT, (*key, *values, sent_at_ms, recalls, _meta_text(message.meta)))
        if recalls is not None or message.recalled:
            recalled = (message.gid, msgid if recalls is None else recalls)
            connection.execute("UPDATE messages SET content = '', meta = NULL WHERE gid = ? AND msgid = ?", recalled)
            self.recalled_texts.note()
        if message.sender_uid != self.uid:
            self._note_peer(connection, message.gid, message.sender_uid)
        elif recalls is None:
            connection.execute("INSERT INTO tallies VALUES (?, ?, 0, NULL) ON CONFLICT DO NOTHING", key)
            sent = (message.gid, message.client_msgid)
            connection.execute("DELETE FROM outbox WHERE gid = ? AND client_msgid = ?", sent)

    def _note_peer(self, connection: sqlite3.Connection, gid: str, uid: str) -> None:
        check_handed_over(uid, "uid")
        hidden = is_direct(check_handed_over(gid, "gid")) and peer_of(gid, self.uid) is None
        if hidden and peer_of(gid, self.uid, [uid]) is not None:
            connection.execute("INSERT INTO peers VALUES (?, ?) ON CONFLICT DO NOTHING", (gid, uid))


def _meta_text(meta: Meta | None) -> str | None:
    return None if meta is None else to_text(copy_of(meta))


def _state(read: int | None, unread: int | None) -> str:
    if not read:
        return "stored"
    return "read by all" if not unread else f"read {read}/{read + unread}"
