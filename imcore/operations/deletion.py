"""Deletes a group: its messages, members and receipts, in Redis and in SQL. No I/O.

The first step hides the group from everybody, and the last one frees its gid. Between them the rows in SQL go, then the
data in Redis, some at a time. A deletion that is killed anywhere is resumed by the same call, or by a worker.
"""

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imcore.errors import DatabaseNotReady, GroupUnderWay, ImError, TryAgain
from imcore.model.limits import check_name
from imcore.model.values import DeletedGroup
from imcore.operations.effects import Effects, GetKeyspace, Sleep, SqlQuery, call, call_many
from imcore.streams.calls import deletion_calls, group_calls, repair_calls
from imcore.streams.calls.deletion_calls import BegunDeletion, ReceiptsCursor
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.keys import uid_of
from imcore.util.backoff import pauses

if TYPE_CHECKING:
    from imcore.sql.database import Database

ROWS = 2000
"""The rows that one transaction deletes: others who write wait for it."""
SPANS = 100
"""The spans that one call removes: that costs the server some milliseconds."""

_PATIENCE_S = 7.0
"""The longest wait for a process that repairs or deletes the group. Its lock ends 5 s after its death."""

OnProgress = Callable[[int], None]
"""Gets the number of rows and members that are gone so far."""


@dataclass(frozen=True, slots=True)
class CheckWritable(SqlQuery[None]):
    """See whether the database can be written, and has what this program needs."""

    def run(self, database: "Database") -> None:
        database.check_version()
        with database.writing():
            pass


@dataclass(frozen=True, slots=True)
class CheckTables(CheckWritable):
    """See the same of a database that need not have the data."""

    needs_data: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class BindDatabase(SqlQuery[None]):
    """Let a database with tables and no data be the one of this data, as the first worker does."""

    partitions: int
    dataset: str

    needs_data: ClassVar[bool] = False

    def run(self, database: "Database") -> None:
        if database.meta("dataset") is None:
            database.bind(self.partitions, self.dataset)


@dataclass(frozen=True, slots=True)
class BeginDeletion(SqlQuery[None]):
    """Note in SQL that a group is deleted, up to a journal entry (packed id)."""

    gid: str
    entry: int

    def run(self, database: "Database") -> None:
        from imcore.sql import deletion  # noqa: PLC0415 (SQL's libraries take long to load)

        deletion.begin(database, self.gid, self.entry)


@dataclass(frozen=True, slots=True)
class DeleteRows(SqlQuery[int]):
    """Delete some rows of a deleted group; 0: none is left."""

    gid: str
    entry: int
    limit: int

    def run(self, database: "Database") -> int:
        from imcore.sql import deletion  # noqa: PLC0415 (SQL's libraries take long to load)

        return deletion.step(database, self.gid, self.entry, self.limit)


def new_token() -> str:
    return deletion_calls.DELETE + uuid.uuid4().hex


def delete_group(gid: str, *, on_progress: OnProgress = lambda _: None) -> Effects[DeletedGroup]:
    """Delete a group, or resume that."""
    check_name(gid, "gid")
    binding = yield from _check_database()
    if (yield from call(group_calls.rebuilding())):
        raise TryAgain("Redis is being rebuilt from SQL: delete the group once that has ended")
    space = yield from GetKeyspace()
    lock = GroupLock(space.group(gid), new_token())
    begun = yield from _begin(lock)
    if binding:
        yield from binding
    return (yield from _delete(lock, begun, on_progress))


def _check_database() -> Effects[BindDatabase | None]:
    """See whether the database can be written, and has the data of Redis.

    It may have none, if no worker has stored any: return what binds it then.
    """
    try:
        yield from CheckWritable()
    except DatabaseNotReady:
        space = yield from GetKeyspace()
        dataset = yield from call(group_calls.dataset())
        stored = yield from call_many(deletion_calls.have_stored(space))
        if dataset is None or any(stored):
            raise
        yield from CheckTables()
        return BindDatabase(space.partitions, dataset)
    return None


def resume(gid: str, *, born_before: int, token: str, on_progress: OnProgress) -> Effects[DeletedGroup]:
    """End the deletion of a group, or that of a group from before an entry (packed). Raise UnknownGroup without one."""
    space = yield from GetKeyspace()
    lock = GroupLock(space.group(gid), token)
    begun = yield from call(deletion_calls.begin(lock, born_before))
    return (yield from _delete(lock, begun, on_progress))


def _delete(lock: GroupLock, begun: BegunDeletion, on_progress: OnProgress) -> Effects[DeletedGroup]:
    try:
        return (yield from _delete_all(lock, begun, on_progress))
    except Exception:
        with suppress(ImError):  # then the lock ends by itself
            yield from call(repair_calls.release(lock, done=True))
        raise


def _delete_all(lock: GroupLock, begun: BegunDeletion, on_progress: OnProgress) -> Effects[DeletedGroup]:
    rows = yield from _delete_rows(lock, begun, on_progress)
    yield from _delete_members(lock, rows, on_progress)
    yield from call(deletion_calls.note_texts(lock.k, begun.entry))
    yield from call(deletion_calls.end(lock))
    return DeletedGroup(lock.k.gid, begun.messages)


def _begin(lock: GroupLock) -> Effects[BegunDeletion]:
    waited_s, pause = 0.0, pauses()
    while True:
        try:
            return (yield from call(deletion_calls.begin(lock)))
        except TryAgain as error:
            if waited_s > _PATIENCE_S or not _is_locked(error):
                raise
            seconds = next(pause)
            waited_s += seconds
            yield from Sleep(seconds)


def _is_locked(error: ImError) -> bool:
    return type(error) in {TryAgain, GroupUnderWay}


def _delete_rows(lock: GroupLock, begun: BegunDeletion, on_progress: OnProgress) -> Effects[int]:
    yield from BeginDeletion(lock.k.gid, begun.entry)
    done, rows = 0, 1
    while rows:
        rows = yield from DeleteRows(lock.k.gid, begun.entry, ROWS)
        yield from call(deletion_calls.begin(lock))  # keeps the lock
        done += rows
        if rows:
            on_progress(done)
    return done


def _delete_members(lock: GroupLock, done: int, on_progress: OnProgress) -> Effects[None]:
    while spans := (yield from call(deletion_calls.spans(lock.k, SPANS))):
        uids = list(dict.fromkeys(map(uid_of, spans)))
        start: ReceiptsCursor | None = ReceiptsCursor()
        while start:
            start = yield from call(deletion_calls.receipts(lock, uids, start))
        yield from call(deletion_calls.members(lock, spans))
        done += len(spans)
        on_progress(done)
