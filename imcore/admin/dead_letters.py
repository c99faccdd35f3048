"""Dead letters: journal entries that a worker failed to handle again and again.

A dead letter keeps the entry's fields, so it can return to the journal once the cause is mended.
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
"""The highest number in an entry id of Redis."""
_OURS = "dead_"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that a kind of worker has put aside after its last failure, which was delivery number `deliveries`.

    `id` is unique over all partitions. `entry` and `fields` are the entry's id and fields in the journal.
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
    """Return one dead letter. Raise InvalidInput for a malformed id, UnknownDeadLetter."""
    partition, entry_id = _split(system, dead_id)
    call = journal_calls.dead_letters(system.client.space, partition, entry_id, entry_id, 1)
    for raw in system.client.call(call).entries:
        return _letter(partition, raw)
    raise _unknown(dead_id)


def requeue(system: System, dead_id: str) -> None:
    """Move a dead letter back into the journal, atomically, for the kind of worker that failed; other kinds skip it.

    It keeps its time and its order. Raise InvalidInput, also for a letter of `im check`; UnknownDeadLetter;
    RedisRefuses.
    """
    system.client.require_writes()
    if show(system, dead_id).worker == CHECK:
        raise InvalidInput(f"dead letter {dead_id} is of no worker, but of im check: it can only be dropped")
    partition, entry_id = _split(system, dead_id)
    # Not repeatable: after a lost answer, a repetition would not find it.
    answer = system.client.call(journal_calls.requeue(system.client.space, partition, entry_id), repeatable=False)
    if answer == journal_calls.NO_LETTER:
        raise _unknown(dead_id)
    if answer == journal_calls.NO_ENTRY:
        raise InvalidInput(f"nothing is left of the entry of dead letter {dead_id}: it can only be dropped")


def drop(system: System, dead_id: str) -> None:
    """Delete a dead letter, which is never handled then. Raise InvalidInput, UnknownDeadLetter."""
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
        deliveries=wire.number(texts.get(f"{_OURS}deliveries", "").encode()) or 0,  # 0 if written by hand
        time=msgids.time_of(entry_id),
        fields={name: value for name, value in texts.items() if not name.startswith(_OURS)},
    )
