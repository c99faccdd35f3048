"""The SQL database: one class for SQLite and PostgreSQL alike.

Errors of drivers become errors of `imcore.errors` here and nowhere else. An error that trying again can mend is
DatabaseUnavailable; a row that will never be accepted is DatabaseRejected; both leave nothing of the batch behind.
What breaks a call off, as Ctrl-C does, is no error, and none of the driver's clean-up can take its place.
"""

import json
import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Select, and_, column, exists, func, inspect, select, table, text, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from imcore import msgid as msgids
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    DatabaseRejected,
    DatabaseReplaced,
    DatabaseUnavailable,
    ImError,
)
from imcore.model.rows import Batch, MessageRow
from imcore.sql.backend import Backend
from imcore.sql.cells import MessageReader, has_msgid, message_columns, text_of
from imcore.sql.migrations import HEAD, VERSION_TABLE
from imcore.sql.tables import GROUP_MSGS, META, OFFSET_MOVES, REACHES, longest
from imcore.sql.urls import backend_of

log = logging.getLogger(__name__)

_AT_ONCE = 1000
"""How many msgids one statement names."""


class Database:
    """The rows behind Redis. Threads may share one; a forked process opens its own.

    When it is first used, and after each DatabaseUnavailable, it is looked at: it is refused (ConfigurationError) if it
    cannot hold our data, or if a newer program has made it; DatabaseUnavailable, for one who writes, if it takes no
    writes now.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._is_known = False
        self._is_writable = False
        self.changes = 0
        """Grows whenever the database may have become another one."""
        self.reader = MessageReader(backend.address)
        """Makes rows of what is selected of messages."""

    @classmethod
    def connect(cls, url: str, *, data_dir: Path | None = None) -> Self:
        """Return the database at `sqlite:///path` or `postgresql://...`, without any I/O yet.

        A SQLite file in `data_dir` gets its folder made with it. Raise ConfigurationError for a URL of another kind.
        """
        return cls(backend_of(url, data_dir))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self.address}>"

    @property
    def address(self) -> str:
        """The URL as people may see it: without a password."""
        return self._backend.address

    def close(self) -> None:
        """Close every connection."""
        self._backend.engine.dispose()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection of SQLAlchemy, to read from in one transaction; its errors are ImErrors."""
        self._know()
        with self._translated(), self._backend.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection whose one transaction is committed at the end: all of it, or nothing."""
        self._know(writes=True)
        with self._translated(), self._backend.engine.connect() as connection:
            with connection.begin():
                self._backend.begin_writing(connection)
                yield connection
            self._backend.committed(connection)

    def refuse_newer(self) -> None:
        """Raise ConfigurationError as the first use does, as far as that can be seen now."""
        with suppress(DatabaseUnavailable, DatabaseNotReady):
            self._know()

    def upgrade(self) -> None:
        """Bring the schema up to date; make what is not there. Several processes may do so at once.

        Raise ConfigurationError if the place cannot be written, or a newer program has made the database.
        """
        with self._translated():
            self._backend.create()
        with self.writing() as connection:
            self._backend.migrating(connection)
            revision = _revision(connection)
            _refuse_newer(self.address, revision)  # it may have become so while others had the lock
            if revision != HEAD:
                _migrate(connection)
            for remark in self._backend.remarks(connection):
                log.warning(remark)
        self.empty_log()

    def check_version(self) -> None:
        """Raise ConfigurationError unless the schema is the one that this program knows."""
        with self.connection() as connection:
            revision = _revision(connection)
        _refuse_newer(self.address, revision)
        if revision != HEAD:
            state = f"is at version {revision}, this program needs {HEAD}" if revision else "has no tables yet"
            raise ConfigurationError(f"the database {self.address} {state}: run im db upgrade")

    def write(self, batch: Batch) -> None:
        """Write all of the batch in one transaction, or nothing.

        Batches may overlap, come again, come in any order and from several writers at once: the tables end up the same.
        Raise DatabaseRejected if a row cannot be stored, whenever it is tried; DatabaseUnavailable if it may pass.
        """
        if not len(batch):
            return
        self._know(writes=True)
        try:
            with self._translated():
                self._backend.write(batch.folded())
        except (ValueError, OverflowError, TypeError) as error:
            raise DatabaseRejected(f"a row cannot be stored: {error}") from error

    def note_withdrawn(self) -> None:
        """Know that a text was taken away: `empty_log` has to take it out of the database's log."""
        self._backend.note_withdrawn()

    def empty_log(self, *, always: bool = False) -> bool:
        """Take texts that were taken away out of SQLite's log; return False if somebody who reads was in the way.

        With `always` it is emptied in any case. Call it again, as often as is wished: it knows when there is nothing to
        do, and waits a moment between two attempts.
        """
        with self._translated():
            return self._backend.empty_log(always=always)

    def message(self, gid: str, msgid: int) -> MessageRow | None:
        """Return one message."""
        return self._first(_messages(gid).where(GROUP_MSGS.c.msgid == msgid))

    def messages(self, gid: str, msgids: Collection[int]) -> dict[int, MessageRow]:
        """Return those of a group's messages that are here, by msgid, with one SELECT for a thousand of them."""
        wanted = list(msgids)
        return {
            row.msgid: row
            for start in range(0, len(wanted), _AT_ONCE)
            for row in self._all(_messages(gid).where(GROUP_MSGS.c.msgid.in_(wanted[start : start + _AT_ONCE])))
        }

    def message_by_client_msgid(
        self, gid: str, client_msgid: str, *, sender_uid: str | None = None
    ) -> MessageRow | None:
        """Return the message of the group that carries this client_msgid, of that sender if one is given.

        The first one if there are more.
        """
        query = _messages(gid).where(GROUP_MSGS.c.client_msgid == client_msgid)
        if sender_uid is not None:
            query = query.where(GROUP_MSGS.c.sender_uid == sender_uid)
        if self._backend.engine.dialect.name == "postgresql":
            # The index holds this hash; the columns themselves tell a collision.
            stored = func.hashtextextended(GROUP_MSGS.c.gid.concat(GROUP_MSGS.c.client_msgid), text("0"))
            query = query.where(stored == func.hashtextextended(gid + client_msgid, text("0")))
        # Not ordered in SQL: SQLite would then read the whole group in that order, to find the first one soon.
        return min(self._all(query), key=attrgetter("msgid"), default=None)

    def messages_after(
        self, gid: str, after: int, *, until: int | None = None, limit: int | None = None
    ) -> list[MessageRow]:
        """Return the messages with after < msgid <= until, oldest first, the oldest `limit` of them."""
        query = _messages(gid).where(GROUP_MSGS.c.msgid > after, has_msgid()).order_by(GROUP_MSGS.c.msgid).limit(limit)
        return self._all(query if until is None else query.where(GROUP_MSGS.c.msgid <= until))

    def messages_before(self, gid: str, before: int, *, limit: int) -> list[MessageRow]:
        """Return the newest `limit` messages with msgid < before, oldest first."""
        query = _messages(gid).where(GROUP_MSGS.c.msgid < before, has_msgid()).order_by(GROUP_MSGS.c.msgid.desc())
        return self._all(query.limit(limit))[::-1]

    def count_from(self, gid: str, uid: str, *, after: int, until: int) -> int:
        """Return how many messages with after < msgid <= until the user has sent."""
        sent = and_(GROUP_MSGS.c.gid == gid, GROUP_MSGS.c.sender_uid == uid)
        span = and_(GROUP_MSGS.c.msgid > after, GROUP_MSGS.c.msgid <= until)
        with self.connection() as connection:
            return connection.scalars(select(func.count()).select_from(GROUP_MSGS).where(sent, span)).one()

    def read_times(self, gid: str, msgid: int) -> dict[str, int]:
        """Return when each member of that time read the message: when their offset moved over it.

        Milliseconds since 1970 by uid. A move lies within one span: it tells of no message outside.
        """
        c = OFFSET_MOVES.c
        covering = union_all(
            *(
                select(c.entry, c.uids).where(
                    c.gid == gid, c.reach == reach, c.msgid >= msgid, c.msgid < msgid + longest(reach), c.start < msgid
                )
                for reach in REACHES
            )
        )
        found: dict[str, int] = {}
        with self.connection() as connection:
            for entry, uids in connection.execute(covering):
                for uid in _uids(uids):
                    found[uid] = min(entry, found.get(uid, entry))
        return {uid: msgids.time_ms(entry) for uid, entry in found.items()}

    def meta(self, name: str) -> str | None:
        """Return a fact about the data as a whole, None if it is not known."""
        with self.connection() as connection:
            return connection.scalar(select(META.c.value).where(META.c.name == name))

    def partitions(self) -> int | None:
        """Return how many partitions the data has, None if that is not known, or cannot be seen now."""
        with suppress(DatabaseUnavailable, DatabaseNotReady):
            known = text_of(self.meta("partitions") or "")
            return int(known) or None if known.isascii() and known.isdigit() else None
        return None

    def set_meta(self, name: str, value: str) -> None:
        """Set a fact about the data as a whole."""
        statement = text(
            """INSERT INTO imcore_meta (name, value) VALUES (:name, :value)
            ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
        )
        with self.writing() as connection:
            connection.execute(statement, {"name": name, "value": value})

    def bind(self, partitions: int, dataset: str) -> None:
        """Note whose data this holds from now on, and in how many partitions."""
        self.set_meta("partitions", str(partitions))
        self.set_meta("dataset", dataset)

    def _know(self, *, writes: bool = False) -> None:
        if self._is_writable or (self._is_known and not writes):
            return
        with self._translated(), self._backend.engine.connect() as connection:
            self._backend.examine(connection, writes=writes)
            _refuse_newer(self.address, _revision(connection))
        self._is_known, self._is_writable = True, writes

    def _first(self, query: Select[Any]) -> MessageRow | None:
        return next(iter(self._all(query.limit(1))), None)

    def _all(self, query: Select[Any]) -> list[MessageRow]:
        with self.connection() as connection:
            return list(self.reader.rows(connection.execute(query)))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        before = sys.exception()
        try:
            yield
        except Exception as error:
            if stop := _broken_off(error, before):
                raise stop from None
            meaning = self._meaning(error)
            self._doubt(meaning or error)
            if meaning:
                raise meaning from error
            raise

    def _doubt(self, error: Exception) -> None:
        """Look at the database again before it is used next: it may be another one by then."""
        if isinstance(error, DatabaseUnavailable):
            self._is_known = self._is_writable = False
            self.changes += 1
        if isinstance(error, DatabaseReplaced):
            self.close()  # every connection has the file open that is lost

    def _meaning(self, error: Exception) -> ImError | None:
        if isinstance(error, PoolTimeout):
            return DatabaseUnavailable(f"no connection to {self.address} is free: close what is not needed")
        if isinstance(error, DBAPIError):
            return self._backend.translate(error.orig if isinstance(error.orig, Exception) else error)
        return self._backend.translate(error) if isinstance(error, self._backend.driver_error) else None


def _broken_off(error: BaseException | None, before: BaseException | None) -> BaseException | None:
    """Return what has broken off that which ended in an error, if anything has since `before` was handled."""
    while error is not None and error is not before:
        if not isinstance(error, Exception):
            return error
        error = error.__cause__ or error.__context__
    return None


def _messages(gid: str) -> Select[Any]:
    c = GROUP_MSGS.c
    tombstone = GROUP_MSGS.alias()
    recalled = exists().where(tombstone.c.gid == c.gid, tombstone.c.recalls == c.msgid)
    return select(*message_columns(recalled=recalled)).where(c.gid == gid)


def _uids(written: object) -> list[str]:
    """Return the uids that a move of offsets names; by hand, anything may stand there."""
    try:
        uids = json.loads(written) if isinstance(written, str) else None
    except ValueError:
        uids = None
    return [uid for uid in uids if isinstance(uid, str)] if isinstance(uids, list) else []


def _migrate(connection: Connection) -> None:
    from imcore.sql.migrations import run  # noqa: PLC0415 (Alembic takes long to load, and is hardly ever needed)

    run.upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return revision


def _refuse_newer(address: str, revision: str | None) -> None:
    if revision is not None and revision > HEAD:
        raise ConfigurationError(
            f"the database {address} is at version {revision}, newer than this program ({HEAD}): install a newer imcore"
        )
