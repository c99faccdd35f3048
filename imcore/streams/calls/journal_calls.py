"""Calls of the workers: what they take from the journals and do with it. No I/O; see `imcore.streams.calls`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from imcore.streams import keys as names
from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace

RawEntry = tuple[bytes, dict[bytes, bytes] | None]
"""An entry of a journal: its id and fields. No fields: somebody has deleted it after it was taken."""

NEW = ">"
FIRST = "0"

NO_LETTER = "NONE"
NO_ENTRY = "EMPTY"

MOST_IDS = 1000
"""How many ids one call takes: Lua's stack ends at some thousands."""


class Failure(NamedTuple):
    """How often an entry could not be handled; 0: somebody has done it meanwhile."""

    failures: int
    dead_id: str | None


class JournalPage(NamedTuple):
    """Entries of a journal, or dead letters; with `more`, others may come after these."""

    entries: list[RawEntry]
    more: bool


class CoalescingCounts(NamedTuple):
    """What telling senders of some entries came to.

    So many `acks` (moves of an offset) stood for so many `receipts` (one recipient, one message), and were told in so
    many `digests`. `seconds` has the messages and the acks of each second (since 1970).
    """

    acks: int
    receipts: int
    digests: int
    seconds: Mapping[int, tuple[int, int]]


class Counted(NamedTuple):
    """What was counted of all storms of a partition; and how many messages and acks there were lately."""

    acks: int
    receipts: int
    digests: int
    messages_lately: int
    acks_lately: int


def follow(space: Keyspace, partition: int, kind: str) -> Call[bool]:
    """Let a kind of worker see a journal from its first entry on; answers whether it is new there."""
    return Call("im_follow", (space.journal(partition),), (kind,), bool, writes=True)


def take(space: Keyspace, partition: int, kind: str, consumer: str, *, start: str, count: int) -> Call[list[RawEntry]]:
    """Take entries without waiting: NEW ones, or those after an id (FIRST: all) that the consumer has open."""
    return Call("im_take", (space.journal(partition),), (kind, consumer, start, count), _raw_entries, writes=True)


def entries(space: Keyspace, partition: int, first: str, count: int) -> Call[JournalPage]:
    """Ask for a page of a journal from `first` on (an id as XRANGE takes it), without taking its entries.

    At most so many, and about 1 MiB, but one in any case.
    """
    return Call("im_entries", (space.journal(partition),), (first, "+", count), _page)


def dead_letters(space: Keyspace, partition: int, first: str, last: str, count: int) -> Call[JournalPage]:
    """Ask for a page of the dead letters from `first` to `last` (ids as XRANGE takes them), as of a journal."""
    return Call("im_entries", (space.dead_letters(partition),), (first, last, count), _page)


def done(
    space: Keyspace, partition: int, kind: str, ids: Sequence[str], storm: CoalescingCounts | None = None
) -> list[Call[int]]:
    """Confirm that entries are handled, and what that came to; answers how many were still open."""
    keys = (space.journal(partition), space.failures(partition), space.storm(partition))
    counted = () if storm is None else (*storm[:3], *_flat(storm.seconds))
    chunks = [ids[i : i + MOST_IDS] for i in range(0, len(ids), MOST_IDS)]
    return [
        Call("im_done", keys, (kind, len(chunk), *chunk, *(counted if number == 0 else ())), int, writes=True)
        for number, chunk in enumerate(chunks)
    ]


def coalescing(space: Keyspace, partition: int, *, seconds: int) -> Call[Counted]:
    """Ask what was counted of storms, and in the last so many seconds."""
    return Call("im_storm", (space.storm(partition),), (seconds,), lambda answer: Counted(*answer))


def holders(space: Keyspace, partition: int, kind: str) -> Call[list[str]]:
    """Ask which consumers have entries open."""
    return Call("im_holders", (space.journal(partition),), (kind,), lambda answer: list(map(wire.text, answer)))


def claim(space: Keyspace, partition: int, kind: str, consumer: str, dead: str) -> Call[int]:
    """Give a consumer what a dead one has taken and not done; answers how many it got, MOST_IDS at most."""
    return Call("im_claim", (space.journal(partition),), (kind, consumer, dead, MOST_IDS), int, writes=True)


def fail(space: Keyspace, partition: int, kind: str, entry_id: str, *, reason: str, max_failures: int) -> Call[Failure]:
    """Say that an entry could not be handled; the last of so many times makes it a dead letter."""

    def decode(answer: list[Any]) -> Failure:
        return Failure(answer[0], answer[1].decode() or None)

    keys = (space.journal(partition), space.dead_letters(partition), space.failures(partition))
    return Call("im_fail", keys, (kind, entry_id, reason, max_failures), decode, writes=True)


def requeue(space: Keyspace, partition: int, dead_id: str) -> Call[str]:
    """Put a dead letter back, for the kind of worker that failed; answers the new id, NO_LETTER or NO_ENTRY."""
    both = (space.dead_letters(partition), space.journal(partition))
    return Call("im_requeue", both, (dead_id,), bytes.decode, writes=True)


def drop(space: Keyspace, partition: int, dead_id: str) -> Call[bool]:
    """Forget a dead letter; answers whether it was there."""
    return Call("im_drop", (space.dead_letters(partition),), (dead_id,), bool, writes=True)


def lease(kind: str, slot: int, token: str, lease_ms: int) -> Call[bool]:
    """Take or renew a sign of life, or give it back (0 ms); answers whether it is this process's own."""
    return Call("im_lease", (names.lease(kind, slot),), (token, lease_ms), bool, writes=True)


def is_held(kind: str, slot: int) -> Call[bool]:
    """Ask whether some process holds a lease; an end that is further ahead than its length is cut back."""
    return Call("im_is_held", (names.lease(kind, slot),), (), bool, writes=True)


def undone(space: Keyspace, partition: int, kinds: Sequence[str], *, only: bool) -> Call[str | None]:
    """Ask where the entries begin that some kind of worker has not done: any kind, or `only` one of these.

    None if one of these never began.
    """
    args: tuple[str | int, ...] = (int(only), *kinds)
    return Call("im_undone", (space.journal(partition),), args, lambda answer: answer.decode() or None)


def trim_journal(space: Keyspace, partition: int, kinds: Sequence[str]) -> Call[int]:
    """Drop what every kind of worker has done, if these kinds have begun: some of it; answers how many entries.

    0 if there is nothing left to drop.
    """
    both = (space.journal(partition), space.failures(partition))
    return Call("im_trim_journal", both, tuple(kinds), int, writes=True)


def _flat(seconds: Mapping[int, tuple[int, int]]) -> Iterator[int]:
    return (value for second, (messages, acks) in seconds.items() for value in (second, messages, acks))


def _page(answer: list[Any]) -> JournalPage:
    return JournalPage(_raw_entries(answer[0]), answer[1] == 1)


def _raw_entries(answer: list[Any]) -> list[RawEntry]:
    return [(entry_id, _fields(values)) for entry_id, values in answer]


def _fields(values: list[bytes] | None) -> dict[bytes, bytes] | None:
    return None if values is None else dict(zip(values[::2], values[1::2], strict=True))
