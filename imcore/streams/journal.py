"""The journals as one kind of worker reads them: read entries, confirm them, bury those that keep failing.

The kind's name is its consumer group on every partition's journal. An entry that was read and not confirmed stays open
in Redis, under the name of the process that read it, whatever becomes of that process:

    new --read--> open --done--> gone from sight
                   |  |`--failed--> open, and read again after a while
                   |  `---failed too often--> dead letter
                   `--its worker's lease ends--> claimed by another worker of the kind

So each entry is handled at least once; handling it must be idempotent.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from imcore.errors import ImError, RedisUnavailable, UnknownGroup
from imcore.metrics import WorkerMetrics
from imcore.settings import LONGEST_BLOCK_MS, Settings
from imcore.streams import events, wire
from imcore.streams.calls import journal_calls as calls
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient
from imcore.streams.events import Entry
from imcore.streams.keys import Keyspace
from imcore.streams.leases import Lease
from imcore.util.batches import grouped

log = logging.getLogger(__name__)
T = TypeVar("T")

_PAUSE_S = 0.05
"""On a cluster no command waits for several partitions. A journal of several looks at them after this time again."""
LONGEST_REASON = 300


class _Failed(NamedTuple):
    """An entry that could not be handled, and when to retry it (monotonic clock).

    None: it must be read again first, since Redis may have lost it.
    """

    entry: Entry | None
    retry_at: float


class Journal:
    """The journals of some partitions, for one process of a kind of worker."""

    def __init__(
        self,
        client: RedisClient,
        kind: str,
        settings: Settings,
        metrics: WorkerMetrics | None = None,
        partition: int | None = None,
    ) -> None:
        """Serve one partition, with a lease for that one; or all partitions, with one lease for all."""
        self._client = client
        self._kind = kind
        self._settings = settings
        self._metrics = metrics or WorkerMetrics(kind)
        self._partition = partition
        self.lease = Lease(client, kind, settings.lease_ms, partition)
        self._has_groups = False  # whether the journals have the kind's consumer group
        self._open: dict[int, str] | None = None
        """The last open entry of this process that was read, by partition. None: all were read."""
        self._in_hand = 0  # how many entries the caller has read and not confirmed
        self._failed: dict[tuple[int, str], _Failed] = {}
        """Open entries of this process that have failed and will be retried, by partition and id."""
        self._claim_at = 0.0
        self._ends: list[str] | None = None

    def read(self, *, block_ms: int | None = None) -> list[Entry]:
        """Return entries to handle: open ones and those of dead workers first; then failed ones and new ones.

        Wait up to `block_ms` for new ones (0: not at all; None: as the settings say); the answer may be empty. At most
        `batch_size` new ones per partition. May be called again before they are done.
        """
        with self._recovery():
            self._renew()
            if not self._has_groups:
                self._in_each_partition(lambda space, p: calls.create_group(space, p, self._kind))
                self._has_groups = True
            if time.monotonic() >= self._claim_at:
                self._claim()
                self._claim_at = time.monotonic() + self._settings.lease_ms / 2000
            wait_ms = self._settings.block_ms if block_ms is None else block_ms
            # Read again before the lease ends: a worker that waits is not dead.
            wait_ms = min(wait_ms, max(1, self._settings.lease_ms // 3))
            entries = self._read_open() or self._read_next(wait_ms)
            if not entries:
                self._claim_at = 0.0  # nothing else to do: look for dead workers next
            self._in_hand += len(entries)
            return entries

    def done(self, entries: Sequence[Entry], counts: Mapping[int, calls.CoalescingCounts] | None = None) -> None:
        """Confirm entries: no worker of this kind will read them again. `counts`: their receipts, by partition."""
        with self._recovery():
            self._confirm(entries, counts or {})
            self._metrics.handled(events.KIND_NAMES[type(entry.event)] for entry in entries)
            self._in_hand -= len(entries)
            self._renew()

    def fail(self, entry: Entry, reason: str) -> bool:
        """Count a failure of an entry. It is read again in a while; after too many failures it is a dead letter.

        Return whether it is out of the way. Counting, burying and confirming are one step in Redis, where the count
        outlives this process; the wait does not.
        """
        reason = one_line(reason)
        most = self._settings.max_deliveries
        call = calls.fail(self._client.space, entry.partition, self._kind, entry.id, reason=reason, max_failures=most)
        with self._recovery():
            failures, dead_id = self._client.call(call, repeatable=False)  # or one failure might count twice
        self._in_hand -= 1
        if failures:
            self._metrics.failed(buried=bool(dead_id))
        if dead_id:
            log.error("dead letter %d:%s of entry %s: %s", entry.partition, dead_id, entry.id, reason)
        elif failures:
            wait_s = self._settings.retry_ms * 2 ** (failures - 1) / 1000
            self._failed[entry.partition, entry.id] = _Failed(entry, time.monotonic() + wait_s)
            log.warning("entry %d:%s failed %d times: %s", entry.partition, entry.id, failures, reason)
            return False
        return True

    def postpone(self, entry: Entry, wait_s: float) -> None:
        """Leave an entry open that cannot be ended yet, through no fault of its own; it is read again in a while."""
        self._in_hand -= 1
        self._failed[entry.partition, entry.id] = _Failed(entry, time.monotonic() + wait_s)

    def reread_open(self) -> None:
        """Read this process's open entries again: the caller has dropped those that it had in hand."""
        self._open = {}
        self._in_hand = 0
        self._failed = {key: failed._replace(entry=None) for key, failed in self._failed.items()}

    def renew(self) -> None:
        """Renew the lease. `read` and `done` do so too."""
        with self._recovery():
            self._renew()

    def drained(self) -> bool:
        """Return whether the kind's workers have done all entries that existed at the first call of this."""
        if self._ends is None:
            space = self._client.space
            commands = [("XREVRANGE", space.journal(p), "+", "-", "COUNT", 1) for p in self._partitions()]
            newest = self._client.query_many(commands)
            self._ends = [entries[0][0].decode() if entries else "" for entries in newest]
        begins = self._in_each_partition(lambda space, p: calls.undone(space, p, [self._kind], only=True))
        return all(_order(begin or "") > _order(end) for begin, end in zip(begins, self._ends, strict=True) if end)

    def close(self) -> None:
        """Release the name: other processes may claim its open entries at once."""
        self.lease.release()

    def _renew(self) -> None:
        if self.lease.renew():
            log.info("%sworking as %s", self._about(), self.lease.name)
            self._failed.clear()  # another process has the open entries of the former name
            self.reread_open()  # a former process of this name may have left entries open

    def _about(self) -> str:
        """Return how a line of the log begins."""
        return "" if self._partition is None else f"partition {self._partition}: "

    def _partitions(self) -> Sequence[int]:
        return range(self._client.space.partitions) if self._partition is None else [self._partition]

    def _in_each_partition(self, build: Callable[[Keyspace, int], Call[T]], *, repeatable: bool = True) -> list[T]:
        space = self._client.space
        batch = [build(space, partition) for partition in self._partitions()]
        return self._client.call_many(batch, repeatable=repeatable)

    def _read_open(self) -> list[Entry]:
        while self._open is not None:
            entries = self._read(self._open)
            self._open.update((entry.partition, entry.id) for entry in entries)
            if not entries:
                self._open = None
                self._failed = {key: failed for key, failed in self._failed.items() if failed.entry}
            if ours := self._ours([entry for entry in entries if not self._is_waiting(entry)]):
                return ours
        return []

    def _is_waiting(self, entry: Entry) -> bool:
        """Return whether an open entry has failed and is to be retried; if so, Redis still has it."""
        key = entry.partition, entry.id
        if key not in self._failed:
            return False
        self._failed[key] = self._failed[key]._replace(entry=entry)
        return True

    def _read_next(self, block_ms: int) -> list[Entry]:
        """Return failed entries that are due, and new entries; wait for the first of both."""
        now = time.monotonic()
        due = [key for key, failed in self._failed.items() if failed.retry_at <= now]
        retries = [entry for key in due if (entry := self._failed.pop(key).entry)]
        next_ms = min((1 + int((failed.retry_at - now) * 1000) for failed in self._failed.values()), default=block_ms)
        return retries + self._ours(self._read_new(0 if retries else min(block_ms, next_ms)))

    def _read_new(self, block_ms: int) -> list[Entry]:
        """Return new entries of all partitions; wait for the first one."""
        partitions = self._partitions()
        if block_ms and not self._client.is_cluster:
            return self._block(partitions, block_ms)
        if block_ms and len(partitions) == 1:
            return self._wait(partitions[0], block_ms)
        entries = self._read(None)
        if not entries and block_ms:
            time.sleep(min(_PAUSE_S, block_ms / 1000))
            entries = self._read(None)
        return entries

    def _ours(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries for this kind of worker; confirm requeued ones for other kinds."""
        kinds = {"", self._kind}
        others = [entry for entry in entries if entry.kind not in kinds]
        if others:
            self._confirm(others, {})
        return [entry for entry in entries if entry.kind in kinds] if others else entries

    def _confirm(self, entries: Sequence[Entry], counts: Mapping[int, calls.CoalescingCounts]) -> None:
        ids = grouped((entry.partition, entry.id) for entry in entries)
        space = self._client.space
        self._client.call_many(
            [call for p, each in ids.items() for call in calls.done(space, p, self._kind, each, counts.get(p))]
        )

    def _wait(self, partition: int, block_ms: int) -> list[Entry]:
        space, longest, count = self._client.space, min(block_ms, LONGEST_BLOCK_MS), self._settings.batch_size
        call = calls.read(space, partition, self._kind, self.lease.name, count=count, block_ms=longest)
        return [events.read(partition, *raw) for raw in self._client.call(call, repeatable=False)]

    def _block(self, partitions: Sequence[int], block_ms: int) -> list[Entry]:
        journals = {self._client.space.journal(p): p for p in partitions}
        options = ("COUNT", self._settings.batch_size, "BLOCK", min(block_ms, LONGEST_BLOCK_MS))
        streams = (*journals, *(calls.NEW for _ in journals))
        answer = self._client.execute_once(
            "XREADGROUP", "GROUP", self._kind, self.lease.name, *options, "STREAMS", *streams
        )
        return [events.read(journals[key.decode()], *raw) for key, raws in wire.streams(answer) for raw in raws]

    def _read(self, opened: dict[int, str] | None) -> list[Entry]:
        """Return new entries or, if given the last ids of a former answer, the open ones after these."""

        def read(space: Keyspace, p: int) -> Call[list[calls.RawEntry]]:
            start = calls.NEW if opened is None else opened.get(p, calls.FIRST)
            return calls.read(space, p, self._kind, self.lease.name, start=start, count=self._settings.batch_size)

        pages = self._in_each_partition(read, repeatable=opened is not None)
        return [events.read(p, *raw) for p, page in zip(self._partitions(), pages, strict=True) for raw in page]

    def _claim(self) -> None:
        """Claim the open entries of dead workers of this kind; and find entries that are open again under our own name.

        These were done, and Redis has lost that in a crash that this process has not noticed.
        """
        space, holders = self._client.space, self._holders()
        others = [(p, name) for p, name in holders if name != self.lease.name]
        if self._in_hand <= 0 and not self._failed and len(others) < len(holders):
            self.reread_open()
        dead = self._without_lease({name for _, name in others})
        claimed = self._client.call_many(
            [calls.claim(space, p, self._kind, self.lease.name, name) for p, name in others if name in dead]
        )
        if sum(claimed):
            names = " and ".join(sorted(dead))
            log.info("%s%s claims %d open entries of %s", self._about(), self.lease.name, sum(claimed), names)
            self.reread_open()

    def _holders(self) -> list[tuple[int, str]]:
        """Return the consumers that have open entries, by partition."""
        consumers = self._in_each_partition(lambda space, p: calls.consumers(space, p, self._kind))
        return [(p, name) for p, names in zip(self._partitions(), consumers, strict=True) for name in names]

    def _without_lease(self, names: set[str]) -> set[str]:
        leases = re.compile(re.escape(self._kind) + "-([0-9]+)")
        slots = {name: int(match[1]) for name in names if (match := leases.fullmatch(name))}
        held = self._client.call_many([calls.is_held(self._kind, slot, self._partition) for slot in slots.values()])
        return names - {name for name, is_held in zip(slots, held, strict=True) if is_held}

    @contextmanager
    def _recovery(self) -> Iterator[None]:
        """After an error, read the open entries again; after a loss of data, create the consumer groups again."""
        try:
            yield
        except ImError as error:
            self._has_groups = False
            self.reread_open()
            if isinstance(error, UnknownGroup):  # NOGROUP is Redis's code for a missing consumer group, too
                self._failed.clear()
                raise RedisUnavailable("Redis has lost the journals: they begin again") from error
            raise


def one_line(text: str) -> str:
    """Return a reason for logs and terminals: one line of at most LONGEST_REASON, without control characters."""
    line = text.strip().partition("\n")[0]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[:LONGEST_REASON]


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, n = entry_id.partition("-")
    return int(ms or 0), int(n or 0)
