"""Deletions that have begun: which groups they concern, and how they are ended.

A repair leaves such a group alone: what is left of it on either side may not bring it back.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from imcore import msgid as msgids
from imcore.errors import DatabaseUnavailable, GroupUnderWay, ImError, UnknownGroup
from imcore.operations import deletion as operations
from imcore.operations.deletion import OnProgress
from imcore.operations.performer import Performer
from imcore.sql import deletion
from imcore.sql.deletion import Deletion
from imcore.streams.calls import deletion_calls
from imcore.system import System
from imcore.util.backoff import ThrottledLog

log = logging.getLogger(__name__)

_LONGEST_LOOK_S = 2.0
_RECENT_MS = 24 * 60 * 60 * 1000
"""A Redis that has come back is looked through for groups that were deleted within this time."""


def begun(system: System, gids: Sequence[str]) -> set[str]:
    """Return the groups that are being deleted, by a process that lives or not."""
    in_redis = _marked(system, gids)
    return in_redis | {each.gid for each in deletion.known(system.database, gids).values() if not each.is_done}


def unfinished(system: System) -> list[str]:
    """Return all groups that are being deleted, by a process that lives or not."""
    marked = system.client.call_many(deletion_calls.being_deleted(system.client.space))
    in_sql = [each.gid for each in deletion.unfinished(system.database)]
    return sorted({*in_sql, *(gid for gids in marked for gid in gids)})


def begun_since(system: System, gids: Sequence[str], before: Mapping[str, Deletion]) -> set[str]:
    """Return the groups that are being deleted, or were since SQL had these deletions."""
    now = deletion.known(system.database, gids)
    return begun(system, gids) | {gid for gid, known in now.items() if known != before.get(gid)}


def _marked(system: System, gids: Sequence[str]) -> set[str]:
    marks = system.client.call_many(deletion_calls.deleting(system.client.space, gids))
    return {gid for gid, is_marked in zip(gids, marks, strict=True) if is_marked}


def remains(system: System, deletions: Sequence[Deletion]) -> list[str]:
    """Return the groups that Redis has, though they were deleted: it came back in a state from before that."""
    calls = [deletion_calls.born(system.client.space.group(each.gid)) for each in deletions]
    born = zip(deletions, system.client.call_many(calls), strict=True)
    return [each.gid for each, entry in born if entry is not None and entry < each.entry]


def end(system: System, gid: str) -> bool:
    """Delete what is left of a deleted group; return whether Redis had anything.

    Raise TryAgain while another process does so, DatabaseUnavailable.
    """
    known = deletion.known(system.database, [gid])
    if not known.keys() | _marked(system, [gid]):
        return False
    return _end(system, gid, known.get(gid), operations.new_token(), lambda _: None)


def _end(system: System, gid: str, known: Deletion | None, token: str, on_progress: OnProgress) -> bool:
    entry = known.entry if known else 0
    resumed = operations.resume(gid, born_before=entry, token=token, on_progress=on_progress)
    has_ended = False
    with suppress(UnknownGroup):  # Redis has nothing of it any more
        Performer(system).perform(resumed)
        has_ended = True
    while known and deletion.step(system.database, gid, entry, operations.ROWS):
        on_progress(0)
    return has_ended


class _EnoughError(Exception):
    """The time for deletions is over: the next look resumes."""


class Deletions:
    """Ends the deletions whose processes have died, for a worker; with a partition, those of its groups."""

    def __init__(self, system: System, trouble: ThrottledLog, partition: int | None = None) -> None:
        self._system = system
        self._partition = partition
        self._trouble = trouble
        self._token = operations.new_token()
        self._until = 0.0

    def look(self, *, is_new: bool) -> bool:
        """End deletions for some seconds at most; return whether some are left.

        `is_new`: Redis may have come back in an older state. Raise DatabaseUnavailable; other errors are logged, and
        what failed is tried again.
        """
        self._until = time.monotonic() + _LONGEST_LOOK_S
        try:
            for gid, known in self._wanted(is_new=is_new).items():
                self._end(gid, known)
        except _EnoughError:
            return True
        return False

    def _wanted(self, *, is_new: bool) -> dict[str, Deletion | None]:
        """Return the groups of which something may be left, with their deletions in SQL."""
        client, database = self._system.client, self._system.database
        partitions = None if self._partition is None else [self._partition]
        marks = client.call_many(deletion_calls.being_deleted(client.space, partitions))
        marked = [gid for gids in marks for gid in gids]
        wanted: dict[str, Deletion | None] = {each.gid: each for each in self._own(deletion.unfinished(database))}
        if is_new:
            recent = deletion.since(database, msgids.first_at(time.time_ns() // 1_000_000 - _RECENT_MS))
            deletions = self._own(recent)
            remaining = set(remains(self._system, deletions))
            wanted |= {each.gid: each for each in deletions if each.gid in remaining}
        known = deletion.known(database, marked)
        return wanted | {gid: known.get(gid) for gid in marked}

    def _own(self, deletions: Iterable[Deletion]) -> list[Deletion]:
        space = self._system.client.space
        return [each for each in deletions if self._partition in {None, space.partition_of(each.gid)}]

    def _end(self, gid: str, known: Deletion | None) -> None:
        try:
            if _end(self._system, gid, known, self._token, self._check_time):
                log.warning("group %r: its deletion had begun, and is ended", gid)
        except DatabaseUnavailable:
            raise
        except GroupUnderWay:
            pass  # its process lives
        except ImError as error:
            self._trouble.note(error, "groups are not deleted yet: %s")

    def _check_time(self, _: int) -> None:
        if time.monotonic() > self._until:
            raise _EnoughError
