"""Calls of the workers: read the journals, confirm entries, bury dead letters. No I/O; see `lua/journals.lua`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from imcore.streams import keys as names
from imcore.streams import wire
from imcore.streams.calls.call import Call, EntryPage
from imcore.streams.keys import Keyspace
from imcore.util.batches import batches

RawEntry = tuple[bytes, dict[bytes, bytes] | None]
"""An entry of a journal: its id and fields. No fields: it was deleted by hand after it was read."""

NEW = ">"
FIRST = "0"

NO_LETTER = "NONE"
NO_ENTRY = "EMPTY"

MOST_IDS = 1000
"""The most ids of one call: Lua's stack ends at some thousands."""


class CoalescingCounts(NamedTuple):
    """How the receipts of some journal entries were coalesced.

    These `acks` (moves of an offset) confirmed `receipts` (one recipient, one message), which were published in
    `digests`. `seconds` has the messages and the acks of each second (since 1970).
    """

    acks: int
    receipts: int
    digests: int
    seconds: Mapping[int, tuple[int, int]]


class CoalescingTotals(NamedTuple):
    """All counts of a partition, and the messages and acks of the last seconds."""

    acks: int
    receipts: int
    digests: int
    messages_lately: int
    acks_lately: int


def create_group(space: Keyspace, partition: int, kind: str) -> Call[bool]:
    """Let a kind of worker read a journal from its first entry on; answers whether the consumer group is new."""
    return Call("im_create_consumer_group", (space.journal(partition),), (kind,), bool, writes=True)


def read(
    space: Keyspace, partition: int, kind: str, consumer: str, *, count: int, start: str = NEW, block_ms: int = 0
) -> Call[list[RawEntry]]:
    """Read entries: NEW ones, waiting up to `block_ms` for the first; or open ones after an id (FIRST: all).

    As a plain command, since a function takes the server twice the time, and as a call, since the driver of a cluster
    would ask any node which word of this command is a key.
    """
    block = ("BLOCK", block_ms) if block_ms else ()
    options = ("COUNT", count, *block, "STREAMS", space.journal(partition), start)
    return Call("", (), ("XREADGROUP", "GROUP", kind, consumer, *options), _of_one_stream, writes=True)


def entries(space: Keyspace, partition: int, first: str, count: int) -> Call[EntryPage[RawEntry]]:
    """Ask for a page of a journal from `first` on (an XRANGE id), without assigning its entries to a consumer."""
    return Call("im_range", (space.journal(partition),), (first, "+", count), _page)


def dead_letters(space: Keyspace, partition: int, first: str, last: str, count: int) -> Call[EntryPage[RawEntry]]:
    """Ask for a page of the dead letters from `first` to `last` (XRANGE ids)."""
    return Call("im_range", (space.dead_letters(partition),), (first, last, count), _page)


def done(
    space: Keyspace, partition: int, kind: str, ids: Sequence[str], counts: CoalescingCounts | None = None
) -> list[Call[int]]:
    """Confirm entries, and add the counts of their receipts; answers how many were still open."""
    keys = (space.journal(partition), space.failures(partition), space.coalescing(partition))
    added: tuple[int, ...] = ()
    if counts:
        seconds = ((second, *pair) for second, pair in counts.seconds.items())
        added = (*counts[:3], *(number for numbers in seconds for number in numbers))
    return [
        Call("im_done", keys, (kind, len(chunk), *chunk, *(added if number == 0 else ())), int, writes=True)
        for number, chunk in enumerate(batches(ids, MOST_IDS))
    ]


def coalescing(space: Keyspace, partition: int, *, seconds: int) -> Call[CoalescingTotals]:
    """Ask for the totals, and for the counts of the last `seconds`."""
    return Call("im_coalescing", (space.coalescing(partition),), (seconds,), lambda answer: CoalescingTotals(*answer))


def consumers(space: Keyspace, partition: int, kind: str) -> Call[list[str]]:
    """Ask which consumers have open entries."""
    command = ("XPENDING", space.journal(partition), kind)
    return Call("", (), command, lambda answer: [wire.text(name) for name, _ in answer[3] or ()])


def claim(space: Keyspace, partition: int, kind: str, consumer: str, dead: str) -> Call[int]:
    """Assign open entries of a dead consumer to another one; answers how many, at most MOST_IDS."""
    return Call("im_claim", (space.journal(partition),), (kind, consumer, dead, MOST_IDS), int, writes=True)


def fail(
    space: Keyspace, partition: int, kind: str, entry_id: str, *, reason: str, max_failures: int
) -> Call[tuple[int, str]]:
    """Count a failure of an entry; after `max_failures` it is a dead letter.

    Answers how often it has failed (0: another process has done it meanwhile), and the id of the dead letter or ''.
    """
    keys = (space.journal(partition), space.dead_letters(partition), space.failures(partition))
    args = (kind, entry_id, reason, max_failures)
    return Call("im_fail", keys, args, lambda answer: (answer[0], answer[1].decode()), writes=True)


def requeue(space: Keyspace, partition: int, dead_id: str) -> Call[str]:
    """Put a dead letter back, for the kind of worker that failed; answers the new id, NO_LETTER or NO_ENTRY."""
    keys = (space.dead_letters(partition), space.journal(partition))
    return Call("im_requeue", keys, (dead_id,), bytes.decode, writes=True)


def drop(space: Keyspace, partition: int, dead_id: str) -> Call[bool]:
    return Call("", (), ("XDEL", space.dead_letters(partition), dead_id), bool, writes=True)


def lease(kind: str, slot: int, token: str, lease_ms: int, partition: int | None = None) -> Call[bool]:
    """Take, renew or release (0 ms) a lease; answers whether it is this process's own."""
    return Call("im_lease", (names.lease(kind, slot, partition),), (token, lease_ms), bool, writes=True)


def is_held(kind: str, slot: int, partition: int | None = None) -> Call[bool]:
    """Ask whether a process holds a lease; an end that a wrong clock has set is corrected."""
    return Call("im_is_held", (names.lease(kind, slot, partition),), (), bool, writes=True)


def undone(space: Keyspace, partition: int, kinds: Sequence[str], *, only: bool) -> Call[str | None]:
    """Ask from which id on entries are not done by some kind of worker: any kind, or `only` one of these.

    None if one of these has not begun.
    """
    keys = (space.journal(partition),)
    return Call("im_undone", keys, (int(only), *kinds), lambda answer: answer.decode() or None)


def trim_journal(space: Keyspace, partition: int, kinds: Sequence[str]) -> Call[int]:
    """Drop some entries that every kind of worker has done, if these kinds have begun.

    Answers how many entries were dropped; 0 if there is nothing left to drop.
    """
    keys = (space.journal(partition), space.failures(partition))
    return Call("im_trim_journal", keys, tuple(kinds), int, writes=True)


def _page(answer: list[Any]) -> EntryPage[RawEntry]:
    return EntryPage(_raw_entries(answer[0]), answer[1] == 1)


def _of_one_stream(answer: Any) -> list[RawEntry]:
    streams = answer.items() if isinstance(answer, dict) else answer or ()
    return [entry for _, found in streams for entry in _raw_entries(found)]


def _raw_entries(answer: list[Any]) -> list[RawEntry]:
    return [
        (entry_id, None if values is None else dict(zip(values[::2], values[1::2], strict=True)))
        for entry_id, values in answer
    ]
