"""Leases: which processes of a kind of worker live, and under which names."""

import logging
import time
import uuid
from itertools import count

from imcore.streams.calls import journal_calls as calls
from imcore.streams.client import RedisClient

log = logging.getLogger(__name__)


class Lease:
    """A process's lease on the lowest free name of its kind: `persist-1`, `persist-2`, ...

    Names are few and stable, so that consumers do not pile up in Redis. A process that has not renewed its lease in
    time counts as dead; if it is alive and another process has its name, it gets another name.

    With a partition, the lease is for that one alone, and is kept where its data is.
    """

    def __init__(self, client: RedisClient, kind: str, lease_ms: int, partition: int | None = None) -> None:
        self._client = client
        self._kind = kind
        self._lease_ms = lease_ms
        self._partition = partition
        self._token = uuid.uuid4().hex
        self._slot = 0
        self._renew_at = 0.0

    @property
    def name(self) -> str:
        """The leased name; meaningless before `renew` and after `release`."""
        return f"{self._kind}-{self._slot}"

    @property
    def process(self) -> str:
        """The name, and part of a token that no other process with this name ever has."""
        return f"{self.name}.{self._token[:12]}"

    @property
    def is_held(self) -> bool:
        """Whether this process has a name."""
        return bool(self._slot)

    def renew(self) -> bool:
        """Take the lease, or renew it when a third of it is over; return whether the name is new."""
        if self._slot and (time.monotonic() < self._renew_at or self._try(self._slot)):
            return False
        if self._slot:
            log.warning("%s did not renew its lease in time, and another process has its name", self.name)
        self._slot = next(slot for slot in count(1) if self._try(slot))
        return True

    def release(self) -> None:
        """Free the name: other processes may claim its open entries at once."""
        if self._slot:
            self._client.call(calls.lease(self._kind, self._slot, self._token, 0, self._partition))
            self._slot = 0

    def _try(self, slot: int) -> bool:
        self._renew_at = time.monotonic() + self._lease_ms / 3000
        return self._client.call(calls.lease(self._kind, slot, self._token, self._lease_ms, self._partition))
