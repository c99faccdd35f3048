"""The faults of the cluster soak: what befalls processes, servers and slots, by chance."""

import random
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from tests.helpers.cluster_soak.shards import NODE_TIMEOUT_MS, ShardNode
from tests.helpers.cluster_soak.stack import LEASE_MS, ClusterSoak
from tests.helpers.deadline import wait_until

BEHIND = "primary replaced by one behind"
"""The only fault in which README's table lets acks be lost, and repair has work to do."""
_PROCESSES = ("persist", "receipts", "gateway", "storm")
_MOST_S = 120.0
_BRIEF_S = NODE_TIMEOUT_MS / 1000 / 2
"""A server that is silent for so long is not replaced."""


class Faults:
    """Strikes a soak. One fault of servers at a time: two could lose what README's guarantees do not cover."""

    def __init__(self, soak: ClusterSoak, chance: random.Random) -> None:
        self._soak, self._shards, self._chance = soak, soak.shards, chance

    def strike(self, count: int, only: str = "", without: Collection[str] = ()) -> None:
        """Let so many things happen, of each kind one at least if they are enough; or `only` those of a kind."""
        known = [kind for kind in FAULTS if only in kind and kind not in without]
        kinds = self._chance.sample(known, len(known))
        kinds += self._chance.choices(known, k=max(0, count - len(kinds)))
        for kind in kinds[:count]:
            self._pass(self._chance.uniform(0.1, 1.0))
            FAULTS[kind](self)
            self._soak.struck[kind] += 1

    def _until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; what was struck comes back meanwhile."""

        def is_so() -> object:
            self._soak.look_after()
            return condition()

        wait_until(is_so, timeout_s=_MOST_S)

    def _pass(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= until)

    # Processes: they come back while others are struck.

    def kill_process(self, kind: str) -> None:
        if member := self._soak.pick(self._chance, kind):
            self._soak.kill(member, self._chance.uniform(0, 1.5))

    def stop_process(self, kind: str) -> None:
        """Stop a process, for less than its lease or for longer."""
        if member := self._soak.pick(self._chance, kind):
            self._soak.stop(member, self._chance.uniform(0.2, 3 * LEASE_MS / 1000))

    # Servers: a shard is struck only while it is whole.

    def _shard(self) -> tuple[ShardNode, ShardNode]:
        """Return the primary and the replica of some shard, once all shards are whole."""
        self._until(self._shards.is_whole)
        primary = self._chance.choice(self._shards.primaries())
        return primary, self._shards.replica_of(primary)

    def kill_replica(self) -> None:
        _, replica = self._shard()
        replica.kill()
        self._pass(self._chance.uniform(0, 2.0))
        replica.start()

    def kill_primary(self) -> None:
        """Kill a primary that comes back at once, with all that it had written."""
        primary, _ = self._shard()
        primary.kill()
        primary.start()

    def replace_killed(self) -> None:
        """Kill a primary, and let its replica take over."""
        primary, replica = self._shard()
        primary.kill()
        self._until(lambda: self._shards.has_taken_over(replica))
        self._pass(self._chance.uniform(0, 1.0))
        primary.start()

    def stop_replica(self) -> None:
        self._stop(self._shard()[1], self._chance.uniform(0.2, 2.5))

    def stop_primary(self) -> None:
        """Stop a primary for less than it takes to be replaced."""
        self._stop(self._shard()[0], self._chance.uniform(0.2, _BRIEF_S))

    def _stop(self, node: ShardNode, seconds: float) -> None:
        node.halt()
        self._pass(seconds)
        node.wake()

    def replace_stopped(self) -> None:
        """Stop a primary until its replica has taken over, and let it go on then."""
        primary, replica = self._shard()
        primary.halt()
        self._until(lambda: self._shards.has_taken_over(replica))
        self._pass(self._chance.uniform(0, 2.0))
        primary.wake()

    def replace_behind(self) -> None:
        """Kill a primary, or stop it for a while, whose replica lags behind, and lacks what was written lately."""
        primary, replica = self._shard()
        self._shards.cut_off(primary, replica)
        self._pass(self._chance.uniform(0.1, _BRIEF_S))
        if comes_back := self._chance.random() < 0.5:
            primary.halt()
        else:
            primary.kill()
        replica.wake()
        self._until(lambda: self._shards.has_taken_over(replica))
        self._pass(self._chance.uniform(0, 1.0))
        if comes_back:
            primary.wake()
        else:
            primary.start()

    def fail_over(self) -> None:
        """Let a replica take over in order."""
        _, replica = self._shard()
        self._shards.hand_over(replica)
        self._until(lambda: self._shards.has_taken_over(replica))

    # Slots.

    def migrate(self) -> None:
        """Move a slot with data, key by key."""
        self._until(self._shards.is_whole)
        slot = self._chance.choice(self._soak.slots)
        target = self._shards.another(self._shards.primary_of(slot), self._chance)
        self._shards.migrate(slot, target, pause=lambda: self._pass(self._chance.uniform(0, 0.05)))

    def migrate_slots(self) -> None:
        """Move slots with data at once."""
        self._until(self._shards.is_whole)
        source = self._shards.primary_of(self._chance.choice(self._soak.slots))
        own = [slot for slot in self._soak.slots if source.has(slot)]
        slots = self._chance.sample(own, self._chance.randint(1, len(own)))
        target = self._shards.another(source, self._chance)
        self._shards.migrate_slots(slots, target)
        self._until(lambda: all(target.has(slot) for slot in slots))


FAULTS: Mapping[str, Callable[[Faults], None]] = {
    **{f"{kind} killed": partial(Faults.kill_process, kind=kind) for kind in _PROCESSES},
    **{f"{kind} stopped": partial(Faults.stop_process, kind=kind) for kind in ("persist", "receipts", "gateway")},
    "replica killed": Faults.kill_replica,
    "primary killed": Faults.kill_primary,
    "primary killed and replaced": Faults.replace_killed,
    "replica stopped": Faults.stop_replica,
    "primary stopped": Faults.stop_primary,
    "primary stopped and replaced": Faults.replace_stopped,
    BEHIND: Faults.replace_behind,
    "failover": Faults.fail_over,
    "slot migrated": Faults.migrate,
    "slots moved at once": Faults.migrate_slots,
}
