"""Dead letters: journal entries that a worker failed to handle again and again.

A dead letter keeps the entry's fields, so it can return to the journal once the cause is mended.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from imcore import msgid as msgids
from imcore.errors import InvalidInput, UnknownDeadLetter
from imcore.streams import wire
from imcore.streams.calls import journal_calls
from imcore.streams.calls.call import EntryPage, all_entries
from imcore.streams.calls.journal_calls import RawEntry
from imcore.streams.client import RedisClient

PAGE = 500
_ID = re.compile(r"([0-9]+):([0-9]+)-([0-9]+)", re.ASCII)
_HIGHEST_HALF = 2**64 - 1
"""The highest number in an entry id of Redis."""
_OURS = "dead_"
CHECK = "check"
"""The worker of dead letters that repair has put aside: entries of a stream that are no messages."""


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


def list_dead(client: RedisClient) -> Iterator[DeadLetter]:
    """Yield all dead letters, partition by partition, oldest first."""
    for partition in range(client.space.partitions):
        yield from (_letter(partition, raw) for raw in all_entries(partial(_page, client, partition)))


def _page(client: RedisClient, partition: int, first: str) -> EntryPage[RawEntry]:
    return client.call(journal_calls.dead_letters(client.space, partition, first, "+", PAGE))


def show(client: RedisClient, dead_id: str) -> DeadLetter:
    """Return one dead letter. Raise InvalidInput for a malformed id, UnknownDeadLetter."""
    partition, entry_id = _split(client, dead_id)
    call = journal_calls.dead_letters(client.space, partition, entry_id, entry_id, 1)
    for raw in client.call(call).entries:
        return _letter(partition, raw)
    raise _unknown(dead_id)


def requeue(client: RedisClient, dead_id: str) -> None:
    """Move a dead letter back into the journal, atomically, for the kind of worker that failed.

    It keeps its time and order. Raise InvalidInput, also for a letter of `im check`; UnknownDeadLetter; RedisRefuses.
    """
    client.require_writes()
    if show(client, dead_id).worker == CHECK:
        raise InvalidInput(f"dead letter {dead_id} is of no worker, but of im check: it can only be dropped")
    partition, entry_id = _split(client, dead_id)
    # Not repeatable: after a lost answer, a repetition would not find it.
    answer = client.call(journal_calls.requeue(client.space, partition, entry_id), repeatable=False)
    if answer == journal_calls.NO_LETTER:
        raise _unknown(dead_id)
    if answer == journal_calls.NO_ENTRY:
        raise InvalidInput(f"nothing is left of the entry of dead letter {dead_id}: it can only be dropped")


def drop(client: RedisClient, dead_id: str) -> None:
    """Delete a dead letter for good. Raise InvalidInput, UnknownDeadLetter."""
    partition, entry_id = _split(client, dead_id)
    if not client.call(journal_calls.drop(client.space, partition, entry_id), repeatable=False):
        raise _unknown(dead_id)


def _split(client: RedisClient, dead_id: str) -> tuple[int, str]:
    match = _ID.fullmatch(dead_id) if isinstance(dead_id, str) else None
    if match is None:
        raise InvalidInput(f"{reprlib.repr(dead_id)} is not the id of a dead letter: it looks like 3:1767225600000-0")
    partition, *halves = (int(number) if len(number) <= 20 else _HIGHEST_HALF + 1 for number in match.groups())
    shown = reprlib.repr(dead_id)[1:-1]
    if partition >= client.space.partitions:
        highest = client.space.partitions - 1
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
