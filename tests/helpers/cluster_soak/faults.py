"""The faults of the cluster soak: what befalls processes, servers and slots, by chance."""

import random
import time
from collections.abc import Callable, Mapping
from functools import partial

from tests.helpers.cluster_soak.stack import LEASE_MS, ClusterSoak
from tests.helpers.deadline import wait_until

_PROCESSES = ("persist", "receipts", "gateway", "storm")


class Faults:
    """Strikes a soak. One fault of servers at a time: two could lose what README's guarantees do not cover."""

    def __init__(self, soak: ClusterSoak, chance: random.Random) -> None:
        self._soak, self._chance = soak, chance

    def strike(self, count: int) -> None:
        """Let so many things happen, of each kind one at least if they are enough."""
        kinds = self._chance.sample(list(FAULTS), len(FAULTS))
        kinds += self._chance.choices(list(FAULTS), k=max(0, count - len(kinds)))
        for kind in kinds[:count]:
            self._pass(self._chance.uniform(0.1, 1.0))
            FAULTS[kind](self)
            self._soak.struck[kind] += 1

    def _pass(self, seconds: float) -> None:
        """Let these seconds pass; what was struck comes back meanwhile."""
        until = time.monotonic() + seconds

        def is_over() -> bool:
            self._soak.look_after()
            return time.monotonic() >= until

        wait_until(is_over, timeout_s=seconds + 60)

    def kill_process(self, kind: str) -> None:
        """Kill a process."""
        if member := self._soak.pick(self._chance, kind):
            self._soak.kill(member, self._chance.uniform(0, 1.5))

    def stop_process(self, kind: str) -> None:
        """Stop a process, for less than its lease or for longer."""
        if member := self._soak.pick(self._chance, kind):
            self._soak.stop(member, self._chance.uniform(0.2, 3 * LEASE_MS / 1000))


FAULTS: Mapping[str, Callable[[Faults], None]] = {
    **{f"{kind} killed": partial(Faults.kill_process, kind=kind) for kind in _PROCESSES},
    **{f"{kind} stopped": partial(Faults.stop_process, kind=kind) for kind in ("persist", "receipts", "gateway")},
}
