"""Makes the lists of own messages anew, in steps: no call holds the server for long, however long a stream is.

    the stream is read in pages -> the list of each member is replaced in one step, with what was sent since

Members send, ack, recall and leave between the steps. The last step looks at offsets, marks and recalls as they are
then. If something was trimmed meanwhile, or somebody has joined, or marked older messages unread, it changes nothing
for them, and they are read anew. So does the next repair if this process dies.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imcore.errors import TryAgain
from imcore.repair.window import metas_of
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.streams.calls import repair_calls
from imcore.streams.calls.repair_calls import OwnList, OwnPage
from imcore.streams.client import CHUNK
from imcore.streams.keys import GroupKeys
from imcore.system import System
from imcore.util.batches import batches

UIDS = 200
"""The users for whom a stream is read once."""

ENTRIES = 250
"""The entries of a page. The server does nothing else meanwhile."""

MOST_LISTED = 1000
"""The most messages in the lists that one call replaces, unless one list alone has more."""

_CALLS = 50
"""The most of them in one round trip."""

_MOST_TIMES = 20

Trimmed = Callable[[int], Mapping[str, Sequence[int]]]
"""Returns the own messages (packed) up to a trim point that are past the offsets or marks of SQL, by uid."""


@dataclass(slots=True)
class OwnMessages:
    """The lists of some members of one group that are to be made anew."""

    k: GroupKeys
    uids: Sequence[str]
    trimmed_own: Trimmed
    trimmed: int = 0
    upto: int | None = None
    more: bool = True
    floors: dict[str, int | None] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    found: dict[str, list[int]] = field(default_factory=dict)
    """Those in the stream."""

    def begin(self, uids: Sequence[str], trimmed: int) -> None:
        """Begin anew for these users; Redis has trimmed the group up to there."""
        self.uids, self.trimmed, self.upto, self.more = uids, trimmed, None, True
        self.found = {uid: [] for uid in uids}

    def add(self, page: OwnPage) -> None:
        if self.upto is None:
            self.floors, self.marks = page.floors, page.marks
        self.upto, self.more = page.upto, page.more
        for uid, msgid in page.messages:
            self.found[uid].append(msgid)

    def lists(self, database: Database) -> Iterator[OwnList]:
        """Yield the list of each user."""
        stored = self.trimmed_own(self.trimmed) if self.trimmed else {}
        for uid in self.uids:
            own, floor = stored.get(uid, ()), self.floors[uid]
            if floor is not None and floor < self.trimmed and self.marks[uid]:  # SQL may not have the mark yet
                own = queries.own_after(database, self.k.gid, uid, after=floor, until=self.trimmed)
            yield OwnList(uid, floor, [*own, *self.found[uid]])


def restore(system: System, wanted: Iterable[tuple[GroupKeys, Sequence[str], Trimmed]]) -> None:
    """Make the lists of these members anew, those of many groups in the same round trips. Raise TryAgain."""
    jobs = (OwnMessages(k, uids, own) for k, all_uids, own in wanted for uids in batches(all_uids, UIDS))
    for batch in batches(jobs, CHUNK):
        _restore(system, batch)


class KnownLists(NamedTuple):
    """The lists of some members of one group, as far as SQL has them: up to a message (packed)."""

    k: GroupKeys
    lists: Sequence[OwnList]
    trimmed: int
    upto: int


def restore_known(system: System, known: Iterable[KnownLists]) -> dict[str, list[str]]:
    """Make lists anew without reading the streams; return by gid the users for whom that is not enough."""
    left: dict[str, list[str]] = {}
    calls = (
        repair_calls.restore_own_unacked(each.k, part, trimmed=each.trimmed, upto=each.upto)
        for each in known
        for part in _parts(each.lists)
    )
    for batch in batches(calls, _CALLS):
        for call, uids in zip(batch, system.client.call_many(batch), strict=True):
            if uids:
                left.setdefault(call.gid, []).extend(uids)
    return left


def _restore(system: System, jobs: Sequence[OwnMessages]) -> None:
    waiting = [(job, list(job.uids)) for job in jobs]
    for _ in range(_MOST_TIMES):
        metas = metas_of(system.client, list({job.k.gid for job, _ in waiting}))
        for job, uids in waiting:
            job.begin(uids, metas[job.k.gid].trimmed)
        _read(system, [job for job, _ in waiting])
        waiting = [(job, again) for job, _ in waiting if (again := _replace(system, job))]
        if not waiting:
            return
    raise TryAgain(f"group {waiting[0][0].k.gid!r} changes all the time")


def _read(system: System, jobs: Sequence[OwnMessages]) -> None:
    """Read the streams, a page of each in a round trip."""
    while jobs := [job for job in jobs if job.more]:
        calls = [repair_calls.find_own(job.k, job.uids, after=job.upto, most=ENTRIES) for job in jobs]
        for job, page in zip(jobs, system.client.call_many(calls), strict=True):
            job.add(page)


def _replace(system: System, job: OwnMessages) -> list[str]:
    """Replace the lists; return the users whose lists could not be."""
    left: list[str] = []
    for part in _parts(job.lists(system.database)):
        call = repair_calls.restore_own_unacked(job.k, part, trimmed=job.trimmed, upto=job.upto or 0)
        left += system.client.call(call)
    return left


def _parts(lists: Iterable[OwnList]) -> Iterator[list[OwnList]]:
    """Yield the lists of each call."""
    part: list[OwnList] = []
    count = 0
    for own in lists:
        if part and count + len(own.messages) > MOST_LISTED:
            yield part
            part, count = [], 0
        part.append(own)
        count += len(own.messages)
    if part:
        yield part
