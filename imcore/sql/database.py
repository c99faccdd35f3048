"""The SQL database: one class for SQLite and PostgreSQL.

Only this module turns errors of drivers into errors of `imcore.errors`. After DatabaseUnavailable a repetition can
succeed; DatabaseRejected names a row that is never accepted. Both leave nothing of the batch in the database. An
interruption, as by Ctrl-C, is no error: errors of the driver's clean-up never replace it.
"""

import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    CompoundSelect,
    Connection,
    Executable,
    Select,
    column,
    func,
    inspect,
    select,
    table,
    text,
    union_all,
)
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
from imcore.model.rows import Batch, Erasures, MessageRow
from imcore.sql.backend import Backend
from imcore.sql.backends import backend_of
from imcore.sql.bulk import ERASURES_QUERY, erasures_of
from imcore.sql.cells import MessageReader, is_recalled, text_of
from imcore.sql.history import HistoryQueries
from imcore.sql.migrations import HEAD, VERSION_TABLE
from imcore.sql.moves import movers_of
from imcore.sql.tables import GROUP_MSGS, META, OFFSET_MOVES, REACHES, longest
from imcore.util.batches import batches

log = logging.getLogger(__name__)

PAGE = 1000
"""The rows of a stream that are in memory, and the ids that one statement names."""

_ERASURES = text(ERASURES_QUERY)

PUT_META = text(
    "INSERT INTO imcore_meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
)


class Database:
    """The stored messages, memberships and reads. Threads may share one; a forked process opens its own.

    The first use, and the first one after DatabaseUnavailable, examines the database. It raises ConfigurationError if
    the database cannot hold our data or was made by a newer program; a write raises DatabaseUnavailable if the database
    accepts no writes now.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._is_known = False
        self._is_writable = False
        self.changes = 0
        """Grows whenever the address may lead to another database."""
        self.history = HistoryQueries(self)
        self.reader = MessageReader(backend.address, self.dialect)

    @classmethod
    def connect(cls, url: str, *, data_dir: Path | None = None) -> Self:
        """Return the database at `sqlite:///path` or `postgresql://...`, without I/O. Raise ConfigurationError."""
        return cls(backend_of(url, data_dir))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self.address}>"

    @property
    def address(self) -> str:
        return self._backend.address

    def close(self) -> None:
        self._backend.engine.dispose()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._backend.engine.dialect.name

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection of SQLAlchemy for reads in one transaction. Its errors are ImErrors."""
        self._know()
        with self._translated(), self._backend.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection for one transaction, which is committed at the end."""
        self._know(writes=True)
        with self._translated(), self._backend.engine.connect() as connection:
            with connection.begin():
                self._backend.begin_writing(connection)
                yield connection
            self._backend.check_commit(connection)

    def fetch(self, query: Executable) -> list[Sequence[Any]]:
        with self.connection() as connection:
            return list(connection.execute(query))

    def stream(self, query: Executable) -> Iterator[Sequence[Any]]:
        """Yield the rows of a query in one transaction, with a page of them in memory."""
        with self.connection() as connection, connection.execute(query, execution_options={"yield_per": PAGE}) as rows:
            yield from rows

    def refuse_newer(self) -> None:
        """Raise ConfigurationError as the first use does. Return if the database cannot be examined now."""
        with suppress(DatabaseUnavailable, DatabaseNotReady):
            self._know()

    def upgrade(self) -> None:
        """Make the database, or bring its schema up to date. Several processes may do so at once.

        Raise ConfigurationError if the address cannot be written, or if a newer program made the database.
        """
        with self._translated():
            self._backend.create()
        with self.writing() as connection:
            self._backend.lock_migrations(connection)
            revision = _revision(connection)
            _refuse_newer(self.address, revision)  # a newer program may have had the lock
            if revision != HEAD:
                _migrate(connection)
            for remark in self._backend.remarks(connection):
                log.warning(remark)
        self.empty_log()

    def check_version(self) -> None:
        """Raise ConfigurationError unless the schema is that of this program."""
        with self.connection() as connection:
            revision = _revision(connection)
        _refuse_newer(self.address, revision)
        if revision != HEAD:
            state = f"is at version {revision}, this program needs {HEAD}" if revision else "has no tables yet"
            raise ConfigurationError(f"the database {self.address} {state}: run im db upgrade")

    def write(self, batch: Batch) -> None:
        """Write the batch in one transaction. Batches may overlap and repeat, in any order, from several writers.

        Raise DatabaseRejected for a row that is never accepted, DatabaseUnavailable if a repetition can succeed.
        """
        if not len(batch):
            return
        self._know(writes=True)
        try:
            with self._translated():
                self._backend.write(batch.merged())
        except (ValueError, OverflowError, TypeError) as error:
            raise DatabaseRejected(f"a row cannot be stored: {error}") from error

    def empty_log(self, *, always: bool = False) -> bool:
        """Remove recalled texts from SQLite's log; return False if a reader prevents it.

        Repeated calls cost little: without `always` they do nothing if there is no recalled text, or just after a
        failure.
        """
        with self._translated():
            return self._backend.empty_log(always=always)

    def message(self, gid: str, msgid: int) -> MessageRow | None:
        return self.messages(gid, [msgid]).get(msgid)

    def messages(self, gid: str, msgids: Collection[int]) -> dict[int, MessageRow]:
        """Return the stored ones of these messages, by msgid, with one SELECT for a thousand of them."""
        queries = (self._messages(gid).where(GROUP_MSGS.c.msgid.in_(batch)) for batch in batches(msgids, PAGE))
        return {row.msgid: row for query in queries for row in self._rows(query)}

    def message_by_client_msgid(
        self, gid: str, client_msgid: str, *, sender_uid: str | None = None
    ) -> MessageRow | None:
        """Return the first message of the group with this client_msgid; of one sender, if that is given."""
        query = self._messages(gid).where(GROUP_MSGS.c.client_msgid == client_msgid)
        if sender_uid is not None:
            query = query.where(GROUP_MSGS.c.sender_uid == sender_uid)
        if self.dialect == "postgresql":
            # The index holds this hash. The other conditions exclude collisions.
            stored = func.hashtextextended(GROUP_MSGS.c.gid.concat(GROUP_MSGS.c.client_msgid), text("0"))
            query = query.where(stored == func.hashtextextended(gid + client_msgid, text("0")))
        # With ORDER BY, SQLite would read the whole group in that order instead of the index.
        return min(self._rows(query), key=attrgetter("msgid"), default=None)

    def messages_after(
        self, gid: str, after: int, *, until: int | None = None, limit: int | None = None
    ) -> list[MessageRow]:
        """Return the messages with after < msgid <= until, oldest first, the oldest `limit` of them."""
        c, last = GROUP_MSGS.c, msgids.HIGHEST if until is None else min(until, msgids.HIGHEST)
        query = select(c.msgid).where(c.gid == gid, c.msgid >= max(after + 1, 1), c.msgid <= last)
        return self.rows_at(gid, query.order_by(c.msgid).limit(limit))

    def messages_before(self, gid: str, before: int, *, limit: int, skip: int = 0) -> list[MessageRow]:
        """Return the newest `limit` messages with msgid < before, without the newest `skip`, oldest first."""
        c, last = GROUP_MSGS.c, min(before - 1, msgids.HIGHEST)
        query = select(c.msgid).where(c.gid == gid, c.msgid >= 1, c.msgid <= last)
        return self.rows_at(gid, query.order_by(c.msgid.desc()).limit(limit).offset(skip))

    def rows_at(self, gid: str, wanted: Select[Any] | CompoundSelect[Any]) -> list[MessageRow]:
        """Return the messages with the msgids that a query selects, oldest first.

        That query selects a range of the primary key, with one bound at each end: of two bounds SQLite may take the
        wider one, and read all between. It selects nothing else: of rows between two bounds PostgreSQL would collect
        the tombstones of all groups.
        """
        return sorted(self._rows(self._messages(gid).where(GROUP_MSGS.c.msgid.in_(wanted))), key=attrgetter("msgid"))

    def read_times(self, gid: str, msgid: int) -> dict[str, int]:
        """Return when the members read the message, in milliseconds since 1970 by uid: when their offset passed it."""
        c = OFFSET_MOVES.c
        covering = union_all(
            *(
                select(c.entry, c.uids).where(
                    c.gid == gid, c.reach == reach, c.msgid >= msgid, c.msgid < msgid + longest(reach), c.start < msgid
                )
                for reach in REACHES
            )
        )
        times: dict[str, int] = {}
        with self.connection() as connection:
            for entry, cell in connection.execute(covering):
                began = msgids.time_ms(entry)
                for uid, delay in movers_of(cell):
                    times[uid] = min(began + delay, times.get(uid, began + delay))
        return times

    def meta(self, name: str) -> str | None:
        """Return a fact about the data as a whole, None if it is unknown."""
        return next((value for (value,) in self.fetch(select(META.c.value).where(META.c.name == name))), None)

    def partitions(self) -> int | None:
        """Return the number of partitions of the data, None if it is unknown or cannot be read now."""
        with suppress(DatabaseUnavailable, DatabaseNotReady):
            known = text_of(self.meta("partitions") or "")
            return int(known) or None if known.isascii() and known.isdigit() else None
        return None

    def set_meta(self, name: str, value: str) -> None:
        with self.writing() as connection:
            connection.execute(PUT_META, {"name": name, "value": value})

    def bind(self, partitions: int, dataset: str) -> None:
        """Store the identity of the data that this database holds, and its number of partitions."""
        self.set_meta("partitions", str(partitions))
        self.set_meta("dataset", dataset)

    def erasures(self) -> Erasures:
        """Return the erasures of users that are under way."""
        return erasures_of(self.fetch(_ERASURES))

    def _know(self, *, writes: bool = False) -> None:
        if self._is_writable or (self._is_known and not writes):
            return
        with self._translated(), self._backend.engine.connect() as connection:
            self._backend.examine(connection, writes=writes)
            _refuse_newer(self.address, _revision(connection))
        self._is_known, self._is_writable = True, writes

    def _messages(self, gid: str) -> Select[Any]:
        return select(*self.reader.columns(recalled=is_recalled())).where(GROUP_MSGS.c.gid == gid)

    def _rows(self, query: Select[Any]) -> list[MessageRow]:
        with self.connection() as connection:
            return list(self.reader.rows(connection.execute(query)))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        before = sys.exception()
        try:
            yield
        except Exception as error:
            if interruption := _interruption(error, before):
                raise interruption from None
            translated = self._translate(error)
            self._forget(translated or error)
            if translated:
                raise translated from error
            raise

    def _forget(self, error: Exception) -> None:
        """Examine the database again before its next use: the address may lead to another one by then."""
        if isinstance(error, DatabaseUnavailable):
            self._is_known = self._is_writable = False
            self.changes += 1
        if isinstance(error, DatabaseReplaced):
            self.close()  # every connection has the lost file open

    def _translate(self, error: Exception) -> ImError | None:
        if isinstance(error, PoolTimeout):
            return DatabaseUnavailable(f"no connection to {self.address} is free: close what is not needed")
        if isinstance(error, DBAPIError):
            return self._backend.translate(error.orig if isinstance(error.orig, Exception) else error)
        return self._backend.translate(error) if isinstance(error, self._backend.driver_error) else None


def _interruption(error: BaseException | None, before: BaseException | None) -> BaseException | None:
    """Return the interruption that caused an error, if there is one. The search ends at `before`, which is older."""
    while error is not None and error is not before:
        if not isinstance(error, Exception):
            return error
        error = error.__cause__ or error.__context__
    return None


def _migrate(connection: Connection) -> None:
    from imcore.sql.migrations import run  # noqa: PLC0415 (Alembic takes long to load, and is rarely needed)

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
