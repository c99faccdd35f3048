"""The journals as one kind of worker sees them: take entries, confirm them, put aside what cannot be handled.

The kind's name is that of its consumer group on every partition's journal. What has been taken and not confirmed stays
open in Redis, under the name of the process that took it, whatever becomes of that process:

    new --take--> open --done--> gone from sight
                   |  |`--failed--> open, and taken again after a while
                   |  `---failed too often--> dead letter
                   `--its worker's lease ends--> claimed by another worker of the kind

So each entry is handled at least once, by somebody; what is done with it must be safe to do again.
"""

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

from imcore.errors import ImError, RedisUnavailable, UnknownGroup
from imcore.settings import Settings
from imcore.streams import events
from imcore.streams.calls import journal_calls as calls
from imcore.streams.client import RedisClient
from imcore.streams.events import Entry
from imcore.streams.url_options import LONGEST_BLOCK_MS

log = logging.getLogger(__name__)

CLUSTER_BLOCK_MS = 50
"""In a cluster one command waits for one partition only; the others are looked at when it ends."""
LONGEST_REASON = 300


class Lease:
    """A process's sign of life, and with it the lowest free name of its kind: `persist-1`, `persist-2`, ...

    Names are few and stable, so that consumers do not pile up in Redis. A process that did not renew its lease in time
    counts as dead; if it lives after all and its name has gone to another one, it takes another name.
    """

    def __init__(self, client: RedisClient, kind: str, lease_ms: int) -> None:
        self._client = client
        self._kind = kind
        self._lease_ms = lease_ms
        self._token = uuid.uuid4().hex
        self._slot = 0
        self._renew_at = 0.0

    @property
    def name(self) -> str:
        """The name that goes with the lease, as long as it is held."""
        return f"{self._kind}-{self._slot}"

    @property
    def process(self) -> str:
        """What tells this process from others that had the name before, or will have it after."""
        return f"{self.name}.{self._token[:12]}"

    @property
    def is_taken(self) -> bool:
        """Whether this process has a name."""
        return bool(self._slot)

    def hold(self) -> bool:
        """Take the lease, or renew it when a third of it is over; return whether the name is a new one."""
        if self._slot and (time.monotonic() < self._renew_at or self._hold(self._slot)):
            return False
        if self._slot:
            log.warning("%s was not heard of for too long, and its name has gone to another process", self.name)
        self._slot = next(slot for slot in count(1) if self._hold(slot))
        return True

    def give_back(self) -> None:
        """Let others have the name, and what is still open under it, at once."""
        if self._slot:
            self._client.call(calls.lease(self._kind, self._slot, self._token, 0))
            self._slot = 0

    def _hold(self, slot: int) -> bool:
        self._renew_at = time.monotonic() + self._lease_ms / 3000
        return self._client.call(calls.lease(self._kind, slot, self._token, self._lease_ms))


class _Failed(NamedTuple):
    """An entry that could not be handled, and when to try again (of the monotonic clock).

    None: Redis is to be asked first whether it still has it.
    """

    entry: Entry | None
    again_at: float


class Journal:
    """All journals, for one process of a kind of worker."""

    def __init__(self, client: RedisClient, kind: str, settings: Settings) -> None:
        self._client = client
        self._kind = kind
        self._settings = settings
        self._lease = Lease(client, kind, settings.lease_ms)
        self._follows = False
        self._open: dict[int, str] | None = None
        """Up to where the entries open under our name have been taken, by partition; None: they are all taken."""
        self._out = 0  # how many entries the caller has, and has not done
        self._failed: dict[tuple[int, str], _Failed] = {}
        """What has failed, is open under our name, and is to be taken again; by partition and id."""
        self._look_at = 0.0  # when to look for entries of dead workers
        self._turn = 0
        self._ends: list[str] | None = None

    @property
    def consumer(self) -> str:
        """The name of this process among its kind."""
        return self._lease.name

    @property
    def process(self) -> str:
        """The same, and what tells this process from others that had the name before, or will have it after."""
        return self._lease.process

    @property
    def is_working(self) -> bool:
        """Whether this process has a name: from the first `take` on."""
        return self._lease.is_taken

    def take(self, *, block_ms: int | None = None) -> list[Entry]:
        """Return entries to handle: the open ones and those of dead workers; then those that failed, and new ones.

        Wait up to `block_ms` for new ones (0: not at all; None: as the settings say); no entry at all is a possible
        answer. At most `batch_size` new ones of each partition. May be called again before they are done.
        """
        with self._doubts():
            self._hold()
            if not self._follows:
                self._follow()
            if time.monotonic() >= self._look_at:
                self._claim()
                self._look_at = time.monotonic() + self._settings.lease_ms / 2000
            wait_ms = self._settings.block_ms if block_ms is None else block_ms
            entries = self._take_open() or self._take_next(wait_ms)
            if not entries:
                self._look_at = 0.0  # nothing else to do: look after the dead next
            self._out += len(entries)
            return entries

    def done(self, entries: Sequence[Entry], storms: Mapping[int, calls.CoalescingCounts] | None = None) -> None:
        """Confirm entries: no worker of this kind will see them again. `storms`: what that came to, by partition."""
        with self._doubts():
            self._confirm(entries, storms or {})
            self._out -= len(entries)
            self._hold()

    def fail(self, entry: Entry, reason: str) -> bool:
        """Say that an entry could not be handled. It is taken again in a while; too often, and it is a dead letter.

        Return whether it is out of the way. Counting, burying and confirming are one step in Redis, where the count
        outlives this process; the wait does not.
        """
        reason = one_line(reason)
        failure = self._count_failure(entry, reason)
        self._out -= 1
        if failure.dead_id:
            log.error("dead letter %d:%s of entry %s: %s", entry.partition, failure.dead_id, entry.id, reason)
        elif failure.failures:
            wait_s = self._settings.retry_ms * 2 ** (failure.failures - 1) / 1000
            self._failed[entry.partition, entry.id] = _Failed(entry, time.monotonic() + wait_s)
            log.warning("entry %d:%s failed %d times: %s", entry.partition, entry.id, failure.failures, reason)
            return False
        return True

    def _count_failure(self, entry: Entry, reason: str) -> calls.Failure:
        most = self._settings.max_deliveries
        call = calls.fail(self._client.space, entry.partition, self._kind, entry.id, reason=reason, max_failures=most)
        with self._doubts():
            return self._client.call(call, repeatable=False)  # or one failure might count twice

    def look_again(self) -> None:
        """Take again what is open under our name: the caller has given up what it had in hand."""
        self._open = {}
        self._out = 0
        self._failed = {key: failed._replace(entry=None) for key, failed in self._failed.items()}

    def hold_on(self) -> None:
        """Show a sign of life. `take` and `done` do so too."""
        with self._doubts():
            self._hold()

    def drained(self) -> bool:
        """Return whether all is done that was there when this was asked first, by whichever process of the kind."""
        if self._ends is None:
            self._ends = self._newest()
        space = self._client.space
        asked = [calls.undone(space, p, [self._kind], only=True) for p in range(space.partitions)]
        begins = self._client.call_many(asked)
        return all(_order(begin or "") > _order(end) for begin, end in zip(begins, self._ends, strict=True) if end)

    def close(self) -> None:
        """Give the name back: what is still open under it is for others to claim, at once."""
        self._lease.give_back()

    def _newest(self) -> list[str]:
        found = self._client.query_many(
            [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in self._client.space.journals()]
        )
        return [entries[0][0].decode() if entries else "" for entries in found]

    def _hold(self) -> None:
        if self._lease.hold():
            log.info("working as %s", self.consumer)
            self._failed.clear()  # others have what was open under a former name
            self.look_again()  # a former process of that name may have left entries open

    def _follow(self) -> None:
        space = self._client.space
        self._client.call_many([calls.follow(space, p, self._kind) for p in range(space.partitions)])
        self._follows = True

    def _take_open(self) -> list[Entry]:
        while self._open is not None:
            entries = self._take(self._open)
            self._open.update((entry.partition, entry.id) for entry in entries)
            if not entries:
                self._open = None
                self._failed = {key: failed for key, failed in self._failed.items() if failed.entry}
            if found := self._for_us([entry for entry in entries if not self._waits(entry)]):
                return found
        return []

    def _waits(self, entry: Entry) -> bool:
        """Return whether an entry that is open has failed, and waits; if so, Redis still has it."""
        key = entry.partition, entry.id
        if key not in self._failed:
            return False
        self._failed[key] = self._failed[key]._replace(entry=entry)
        return True

    def _take_next(self, block_ms: int) -> list[Entry]:
        """Return what has waited long enough since it failed, and new entries, waiting for the first of both."""
        now = time.monotonic()
        due = [key for key, failed in self._failed.items() if failed.again_at <= now]
        again = [entry for key in due if (entry := self._failed.pop(key).entry)]
        next_ms = min((1 + int((failed.again_at - now) * 1000) for failed in self._failed.values()), default=block_ms)
        return again + self._for_us(self._take_new(0 if again else min(block_ms, next_ms)))

    def _take_new(self, block_ms: int) -> list[Entry]:
        """Return new entries of all partitions, waiting for the first one."""
        partitions = range(self._client.space.partitions)
        if block_ms and not self._client.is_cluster:
            return self._block(partitions, block_ms)
        entries = self._take(None)
        if entries or not block_ms:
            return entries
        self._turn = (self._turn + 1) % len(partitions)
        return self._block([self._turn], min(CLUSTER_BLOCK_MS, block_ms))

    def _for_us(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries that are for this kind of worker; the others it has done, or they are dead letters."""
        others = [entry for entry in entries if entry.kind not in {"", self._kind}]
        if others:
            self._confirm(others, {})
        return [entry for entry in entries if entry.kind in {"", self._kind}]

    def _confirm(self, entries: Sequence[Entry], storms: Mapping[int, calls.CoalescingCounts]) -> None:
        ids: dict[int, list[str]] = {}
        for entry in entries:
            ids.setdefault(entry.partition, []).append(entry.id)
        space = self._client.space
        self._client.call_many(
            [call for p, each in ids.items() for call in calls.done(space, p, self._kind, each, storms.get(p))]
        )

    def _block(self, partitions: Sequence[int], block_ms: int) -> list[Entry]:
        journals = {self._client.space.journal(p): p for p in partitions}
        how = ("COUNT", self._settings.batch_size, "BLOCK", min(block_ms, LONGEST_BLOCK_MS))
        streams = (*journals, *(calls.NEW for _ in journals))
        found: list[tuple[bytes, list[calls.RawEntry]]] | None = self._client.execute_once(
            "XREADGROUP", "GROUP", self._kind, self.consumer, *how, "STREAMS", *streams
        )
        return [events.read(journals[key.decode()], *each) for key, raw in found or () for each in raw]

    def _take(self, opened: dict[int, str] | None) -> list[Entry]:
        """Return new entries, or, with the last ids of a former answer, the open ones after these."""
        space, size = self._client.space, self._settings.batch_size
        starts = [calls.NEW if opened is None else opened.get(p, calls.FIRST) for p in range(space.partitions)]
        found = self._client.call_many(
            [
                calls.take(space, p, self._kind, self.consumer, start=start, count=size)
                for p, start in enumerate(starts)
            ],
            repeatable=opened is not None,
        )
        return [events.read(p, *each) for p, raw in enumerate(found) for each in raw]

    def _claim(self) -> None:
        """Take over what dead workers of this kind have left open; and what is open again under our own name.

        That was done, and Redis has lost it in a crash that this process has not noticed.
        """
        held = self._held()
        left = [(p, name) for p, name in held if name != self.consumer]
        if self._out <= 0 and not self._failed and len(left) < len(held):
            self.look_again()
        dead = self._without_lease({name for _, name in left})
        space = self._client.space
        claimed = self._client.call_many(
            [calls.claim(space, p, self._kind, self.consumer, name) for p, name in left if name in dead]
        )
        if sum(claimed):
            log.info("%s takes over %d entries left by %s", self.consumer, sum(claimed), " and ".join(sorted(dead)))
            self.look_again()

    def _held(self) -> list[tuple[int, str]]:
        space = self._client.space
        found = self._client.call_many([calls.holders(space, p, self._kind) for p in range(space.partitions)])
        return [(p, name) for p, names in enumerate(found) for name in names]

    def _without_lease(self, names: set[str]) -> set[str]:
        slots = {name: slot for name in names if (slot := self._slot_of(name))}
        lives = self._client.call_many([calls.is_held(self._kind, slot) for slot in slots.values()])
        return names - {name for name, alive in zip(slots, lives, strict=True) if alive}

    def _slot_of(self, name: str) -> int | None:
        kind, _, slot = name.rpartition("-")
        return int(slot) if kind == self._kind and slot.isdecimal() else None

    @contextmanager
    def _doubts(self) -> Iterator[None]:
        """After an error, ask Redis what is open; after Redis lost its data, begin again."""
        try:
            yield
        except ImError as error:
            self._follows = False
            self.look_again()
            if isinstance(error, UnknownGroup):  # so the link calls a missing consumer group, too
                self._failed.clear()
                raise RedisUnavailable("Redis has lost the journals: they begin again") from error
            raise


def one_line(text: str) -> str:
    """Return a reason as it may stand in a log and on a terminal: one line, no control characters, not too long."""
    line = text.strip().partition("\n")[0]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[:LONGEST_REASON]


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, n = entry_id.partition("-")
    return int(ms or 0), int(n or 0)
