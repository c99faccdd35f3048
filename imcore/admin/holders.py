"""Processes that hold pending entries of the journals, and are silent. Only reads.

A worker claims the pending entries of a dead process as soon as its lease has ended. This module finds entries that
nobody claims: no worker runs, or the server's clock was put back and the lease ends days from now.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from imcore.admin.lag import begun_journals, groups_of
from imcore.settings import Settings
from imcore.streams import keys
from imcore.streams.client import RedisClient

_IS_GONE = -2
"""The answer of PTTL for a missing key: a lease may end between the two commands."""


@dataclass(frozen=True, slots=True)
class SilentHolder:
    """A silent worker process with pending entries.

    `silent_ms` is None if its lease ends later than any lease can: then nobody knows how long it has been silent.
    """

    worker: str
    process: str
    entries: int
    silent_ms: int | None


def silent_holders(client: RedisClient, settings: Settings) -> tuple[SilentHolder, ...]:
    """Return the processes with pending entries that have been silent for more than two leases (IM_LEASE_MS)."""
    pending = _pending(client)
    leases = dict(zip(pending, _leases(client, map(_lease_of, pending)), strict=True))
    holders = []
    for name, (entries, idle_ms) in sorted(pending.items()):
        lives, is_too_long = leases[name]
        if is_too_long or (not lives and idle_ms > 2 * settings.lease_ms):
            kind = name.rpartition("-")[0]
            holders.append(SilentHolder(kind, name, entries, None if is_too_long else idle_ms))
    return tuple(holders)


def lives(client: RedisClient, kind: str, slots: Iterable[int]) -> bool:
    """Return whether a process of a kind holds one of these leases, and may have renewed it."""
    return any(alive for alive, _ in _leases(client, [keys.lease(kind, slot) for slot in slots]))


def _pending(client: RedisClient) -> dict[str, tuple[int, int]]:
    """Return by consumer the number of its pending entries, and the time since its last command in ms."""
    pending: dict[str, tuple[int, int]] = {}
    for journal in begun_journals(client):
        for group in groups_of(client, journal):
            consumers = client.query("XINFO CONSUMERS", journal, group["name"].decode()) if group["pending"] else ()
            for consumer in consumers:
                name, idle_ms = consumer["name"].decode(), consumer["idle"]
                if consumer["pending"]:
                    entries, shortest_ms = pending.get(name, (0, idle_ms))
                    pending[name] = entries + consumer["pending"], min(idle_ms, shortest_ms)
    return pending


def _lease_of(consumer: str) -> str:
    kind, _, slot = consumer.rpartition("-")
    return keys.lease(kind, int(slot) if slot.isdecimal() else 0)


def _leases(client: RedisClient, leases: Iterable[str]) -> list[tuple[bool, bool]]:
    """Return for each lease whether its holder may live, and whether it ends later than a new lease would."""
    answers = client.query_many([(command, lease) for lease in leases for command in ("GET", "PTTL")])
    return [_lease(value, left_ms) for value, left_ms in zip(answers[::2], answers[1::2], strict=True)]


def _lease(value: bytes | None, left_ms: int) -> tuple[bool, bool]:
    length = (value or b"").rpartition(b" ")[2]
    if not length.isdigit() or left_ms == _IS_GONE:
        return False, False
    is_too_long = not 0 <= left_ms <= int(length)
    return not is_too_long, is_too_long
