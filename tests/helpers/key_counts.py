"""Counts of everything in Redis: how many keys there are of each kind, and how much memory they take."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imcore.chat import Chat
from imcore.cli.bench.harness.traffic import data_memory
from imcore.streams.keys import SEPARATOR

KINDS = frozenset(
    (
        *("meta", "stream", "acked", "joined", "left", "recalled", "shadow", "idempotency_newer", "idempotency_older"),
        *("journal", "groups", "group_locks", "creating", "unnotified", "rewrites", "deleting", "version"),
        *("online", "online_ms", "dead", "failures", "coalescing", "watermarks", "rebuilt"),
        *("receipts_off", "last_seen"),
        *("ahead", "ahead_acked", "bookmarks"),
        *("own_unacked", "groups_of", "dirty", "sessions", "config", "lease", "withdrawn"),
        *("ahead", "ahead_acked", "bookmarks", "receipts_off"),
    )
)
"""The kinds of all keys: the word after the partition, or after `im:` without one."""

_KIND = re.compile(r"im:(?:\{[0-9]+\}:)?([a-z_]+)")

UNKNOWN = "unknown"
"""The kind of a key that is of no kind."""

_COUNTS = {
    "journal": "XLEN",
    "stream": "XLEN",
    "dirty": "ZCARD",
    "recalled": "ZCARD",
    "left": "ZCARD",
    "ahead": "ZCARD",
    "ahead_acked": "ZCARD",
    "bookmarks": "HLEN",
    "own_unacked": "LLEN",
}


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """What Redis had at one moment.

    `bytes` is what the server has allocated, `key_bytes` what the keys take of it. `members` counts what is in the keys
    of a kind, all together: entries of streams and journals, marks of receipts that wait (dirty), closed spans (left).
    `consumers` are those of the workers, by kind of worker.
    """

    bytes: int
    key_bytes: int
    keys: Mapping[str, int]
    members: Mapping[str, int]
    sessions: Mapping[str, int]
    consumers: Mapping[str, int]
    foreign_consumers: int


def kind_of(key: str) -> str | None:
    """Return which of the KINDS a key is; None for a name of another program."""
    match = _KIND.match(key)
    return match[1] if match and match[1] in KINDS else None


def count_keys(chat: Chat) -> KeyCounts:
    """Count every key."""
    names = all_keys(chat)
    by_kind: dict[str, list[str]] = {}
    for key in names:
        by_kind.setdefault(kind_of(key) or UNKNOWN, []).append(key)
    return KeyCounts(
        bytes=data_memory(chat),
        key_bytes=bytes_of(chat, names),
        keys={kind: len(keys) for kind, keys in sorted(by_kind.items())},
        members={kind: _total(chat, command, by_kind.get(kind, ())) for kind, command in _COUNTS.items()},
        sessions=_sessions(chat, by_kind.get("sessions", ())),
        consumers=_consumers(chat, by_kind.get("journal", ())),
        foreign_consumers=sum(_consumers(chat, by_kind.get("stream", ())).values()),
    )


def all_keys(chat: Chat) -> list[str]:
    """Return the names of all keys of ours."""
    cursor, names = 0, set[bytes]()
    while True:
        cursor, page = chat.system.client.query("SCAN", cursor, "MATCH", "im:*", "COUNT", 1000)
        names.update(page)
        if int(cursor) == 0:
            return [key.decode() for key in names]


def bytes_of(chat: Chat, keys: Sequence[str]) -> int:
    """Return the bytes of the keys alone: for little data steadier than what the server has allocated."""
    sizes = chat.system.client.query_many([("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys])
    return sum(size or 0 for size in sizes)  # None: the key has gone meanwhile


def _total(chat: Chat, command: str, keys: Sequence[str]) -> int:
    return sum(chat.system.client.query_many([(command, key) for key in keys]))


def _sessions(chat: Chat, keys: Sequence[str]) -> dict[str, int]:
    """How many sessions each user has, ended ones that have not expired yet included."""
    counts = chat.system.client.query_many([("ZCOUNT", key, 0, "+inf") for key in keys])
    return {key.split("sessions:", 1)[1]: count for key, count in zip(keys, counts, strict=True) if count}


def _consumers(chat: Chat, streams: Sequence[str]) -> dict[str, int]:
    """The most consumers that a consumer group of each name has on one of these streams."""
    most: Counter[str] = Counter()
    for stream in streams:
        infos: list[dict[str, Any]] = chat.system.client.query("XINFO GROUPS", stream)
        for info in infos:
            most[info["name"].decode()] |= 0
            most[info["name"].decode()] = max(most[info["name"].decode()], info["consumers"])
    return {name.partition(SEPARATOR)[0]: count for name, count in most.items()}
