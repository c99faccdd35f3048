"""Which processes have entries of the journals in hand, and which of these have long been silent. Only reads.

A worker takes over what a dead one has in hand as soon as that one's lease has ended. Where no worker does, or the
server's clock was put back and the lease ends days from now, nobody would learn of it: here it is seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from imcore.settings import Settings
from imcore.streams import keys
from imcore.streams.client import RedisClient

_IS_GONE = -2
"""What PTTL answers for a key that is not there: a lease may end between the two questions."""


@dataclass(frozen=True, slots=True)
class SilentHolder:
    """A process of a kind of worker that has so many entries in hand, and is heard of no more.

    `silent_ms`: for how long; None if that cannot be known, since its lease ends later than any that it can have taken.
    """

    worker: str
    process: str
    entries: int
    silent_ms: int | None


def silent_holders(client: RedisClient, settings: Settings) -> tuple[SilentHolder, ...]:
    """Return who has entries in hand and has been silent for more than two leases (IM_LEASE_MS)."""
    held = _held(client)
    leases = {name: _lease_of(name) for name in held}
    ends = dict(zip(held, _ends(client, leases.values()), strict=True))
    found = []
    for name, (entries, idle_ms) in sorted(held.items()):
        lives, is_too_long = ends[name]
        if is_too_long or (not lives and idle_ms > 2 * settings.lease_ms):
            kind = name.rpartition("-")[0]
            found.append(SilentHolder(kind, name, entries, None if is_too_long else idle_ms))
    return tuple(found)


def lives(client: RedisClient, kind: str, slots: Iterable[int]) -> bool:
    """Return whether some process of a kind holds one of these leases, and may have renewed it."""
    return any(alive for alive, _ in _ends(client, [keys.lease(kind, slot) for slot in slots]))


def _held(client: RedisClient) -> dict[str, tuple[int, int]]:
    """Return how many entries each consumer has in hand, and how long ago it was heard of last, in ms."""
    journals = client.space.journals()
    there = client.query_many([("EXISTS", journal) for journal in journals])
    held: dict[str, tuple[int, int]] = {}
    for journal in (journal for journal, exists in zip(journals, there, strict=True) if exists):
        for group in client.query("XINFO GROUPS", journal):
            if group["pending"]:
                _add_consumers(held, client.query("XINFO CONSUMERS", journal, group["name"].decode()))
    return held


def _add_consumers(held: dict[str, tuple[int, int]], consumers: Sequence[dict[str, Any]]) -> None:
    for consumer in consumers:
        name, entries, idle_ms = consumer["name"].decode(), consumer["pending"], consumer["idle"]
        if entries:
            before, idle_before = held.get(name, (0, idle_ms))
            held[name] = before + entries, min(idle_ms, idle_before)


def _lease_of(consumer: str) -> str:
    kind, _, slot = consumer.rpartition("-")
    return keys.lease(kind, int(slot) if slot.isdecimal() else 0)


def _ends(client: RedisClient, leases: Iterable[str]) -> list[tuple[bool, bool]]:
    """Return of each lease whether its holder may live, and whether it ends later than any that was taken just now."""
    asked = [(command, lease) for lease in leases for command in ("GET", "PTTL")]
    found = client.query_many(asked)
    return [_end(value, left_ms) for value, left_ms in zip(found[::2], found[1::2], strict=True)]


def _end(value: bytes | None, left_ms: int) -> tuple[bool, bool]:
    length = (value or b"").rpartition(b" ")[2]
    if not length.isdigit() or left_ms == _IS_GONE:
        return False, False
    is_too_long = not 0 <= left_ms <= int(length)
    return not is_too_long, is_too_long
