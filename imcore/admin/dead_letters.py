"""Dead letters: journal entries that a worker could not handle, however often it tried.

Each keeps the entry's own fields, so it can go back into the journal once the cause is mended.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from imcore import msgid as msgids
from imcore.errors import InvalidInput, UnknownDeadLetter
from imcore.repair.state import CHECK
from imcore.streams import wire
from imcore.streams.calls import journal_calls
from imcore.system import System

PAGE = 500
_ID = re.compile(r"([0-9]+):([0-9]+)-([0-9]+)", re.ASCII)
_HIGHEST_HALF = 2**64 - 1
"""Of an entry id: Redis takes no higher number."""
_OURS = "dead_"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that a kind of worker has put aside, after it failed so often (`deliveries`), for this reason.

    `id` is unique over all partitions. `entry` is the id the entry had in the journal; `fields` is what it said.
    """

    id: str
    worker: str
    reason: str
    entry: str
    deliveries: int
    time: datetime
    fields: Mapping[str, str]


def list_dead(system: System) -> Iterator[DeadLetter]:
    """Yield all dead letters, partition by partition, oldest first."""
    client, space = system.client, system.client.space
    for partition in range(space.partitions):
        start = "-"
        while page := client.call(journal_calls.dead_letters(space, partition, start, "+", PAGE)).entries:
            yield from (_letter(partition, raw) for raw in page)
            start = f"({page[-1][0].decode()}"


def show(system: System, dead_id: str) -> DeadLetter:
    """Return one dead letter. Raise InvalidInput for what is no id of one, UnknownDeadLetter."""
    partition, entry_id = _split(system, dead_id)
    found = system.client.call(
        journal_calls.dead_letters(system.client.space, partition, entry_id, entry_id, 1)
    ).entries
    if not found:
        raise _unknown(dead_id)
    return _letter(partition, found[0])


def requeue(system: System, dead_id: str) -> None:
    """Put a dead letter back into the journal, in one step, for the kind of worker that failed.

    When it happened, and before what, stays as it was; the other kinds pass over it. Raise InvalidInput, also for what
    never was in the journal; UnknownDeadLetter; RedisRefuses.
    """
    system.client.require_writes()
    if show(system, dead_id).worker == CHECK:
        raise InvalidInput(f"dead letter {dead_id} is of no worker, but of im check: it can only be dropped")
    partition, entry_id = _split(system, dead_id)
    # Not repeatable: after a lost answer, the second try would not find it any more.
    answer = system.client.call(journal_calls.requeue(system.client.space, partition, entry_id), repeatable=False)
    if answer == journal_calls.NO_LETTER:
        raise _unknown(dead_id)
    if answer == journal_calls.NO_ENTRY:
        raise InvalidInput(f"nothing is left of the entry of dead letter {dead_id}: it can only be dropped")


def drop(system: System, dead_id: str) -> None:
    """Forget a dead letter: what it tells of is never handled. Raise InvalidInput, UnknownDeadLetter."""
    partition, entry_id = _split(system, dead_id)
    if not system.client.call(journal_calls.drop(system.client.space, partition, entry_id), repeatable=False):
        raise _unknown(dead_id)


def _split(system: System, dead_id: str) -> tuple[int, str]:
    match = _ID.fullmatch(dead_id) if isinstance(dead_id, str) else None
    if match is None:
        raise InvalidInput(f"{reprlib.repr(dead_id)} is not the id of a dead letter: it looks like 3:1767225600000-0")
    partition, *halves = (int(number) if len(number) <= 20 else _HIGHEST_HALF + 1 for number in match.groups())
    shown = reprlib.repr(dead_id)[1:-1]
    if partition >= system.client.space.partitions:
        highest = system.client.space.partitions - 1
        raise UnknownDeadLetter(f"there is no dead letter {shown}: the first number, the partition, is 0 to {highest}")
    if max(halves) > _HIGHEST_HALF:
        raise UnknownDeadLetter(f"there is no dead letter {shown}: no entry has a number over {_HIGHEST_HALF}")
    return partition, "{}-{}".format(*halves)


def _unknown(dead_id: str) -> UnknownDeadLetter:
    return UnknownDeadLetter(f"there is no dead letter {dead_id}: `im dead list` shows them all")


def _letter(partition: int, raw: journal_calls.RawEntry) -> DeadLetter:
    entry_id = raw[0].decode()
    texts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in (raw[1] or {}).items()}
    return DeadLetter(
        id=f"{partition}:{entry_id}",
        worker=texts.get(f"{_OURS}worker", ""),
        reason=texts.get(f"{_OURS}reason", ""),
        entry=texts.get(f"{_OURS}entry", ""),
        deliveries=_deliveries(texts.get(f"{_OURS}deliveries", "")),
        time=msgids.time_of(entry_id),
        fields={name: value for name, value in texts.items() if not name.startswith(_OURS)},
    )


def _deliveries(text: str) -> int:
    """Return how often an entry was delivered; 0 for what somebody has written by hand."""
    return wire.number(text.encode()) or 0
