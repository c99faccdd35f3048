"""Who mends what: a hold on a partition keeps the workers from storing, a claim on a group keeps other menders off.

Both end by themselves where their owner has died. Who has lost one while it stalled is told so at its next step, and
stops: it has done nothing since that another one could not do again.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from imcore.errors import ImError, TryAgain
from imcore.operations import creation
from imcore.operations.performer import perform_in_redis
from imcore.streams import wire
from imcore.streams.calls import group_calls, repair_calls
from imcore.streams.calls.repair_calls import GroupLock
from imcore.system import System
from imcore.util.backoff import pauses

HOLD_MS = 15_000
"""For how long at most nobody stores anything after the process that mends has died."""

CLAIM_S = 6.0
"""For how long to wait for somebody else's claim: it ends 5 s after its owner has died (`lua/repair_streams.lua`)."""


class PartitionLock:
    """Keeps every worker from storing anything of a partition, while it is used in a `with`."""

    def __init__(self, system: System, partition: int, *, wait_s: float = 0.0) -> None:
        """Wait so long where somebody else holds it."""
        self._system = system
        self._partition = partition
        self._token = uuid.uuid4().hex
        self._wait_s = wait_s
        self._renew_at = 0.0

    def __enter__(self) -> Self:
        """Raise TryAgain if somebody else holds it."""
        give_up, pause = time.monotonic() + self._wait_s, pauses()
        while not self._renew(HOLD_MS):
            if time.monotonic() > give_up:
                raise TryAgain(f"another process mends partition {self._partition}")
            time.sleep(next(pause))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(ImError):  # then it ends by itself
            self._renew(0)

    def keep(self) -> None:
        """Go on holding it; call this now and then. Raise TryAgain if it is lost."""
        if time.monotonic() >= self._renew_at and not self._renew(HOLD_MS):
            raise TryAgain(f"another process has gone on with the mending of partition {self._partition}")

    def _renew(self, for_ms: int) -> bool:
        self._renew_at = time.monotonic() + HOLD_MS / 3000
        call = repair_calls.lock_partition(self._system.client.space, self._partition, self._token, for_ms)
        return self._system.client.call(call)


def take(system: System, gids: Sequence[str]) -> list[GroupLock]:
    """Claim groups, to mend them; wait for others who do. Raise TryAgain if they take too long."""
    token = uuid.uuid4().hex
    wanted = [GroupLock(system.client.space.group(gid), token) for gid in gids]
    missing = wanted
    give_up, pause = time.monotonic() + CLAIM_S, pauses()
    while missing := _missing(system, missing):
        if time.monotonic() > give_up:
            give_back(system, wanted, done=False)
            raise TryAgain(f"another process mends {missing[0].k.gid!r}")
        time.sleep(next(pause))
    _give_up_creations(system, gids)
    return wanted


def _give_up_creations(system: System, gids: Sequence[str]) -> None:
    """Undo creations of these groups that go on: the groups come back with the members that they had.

    Who is in the middle of it begins again, and finds the group.
    """
    under_way = {
        gid for some in system.client.call_many(group_calls.being_created(system.client.space)) for gid in some
    }
    for gid in under_way.intersection(gids):
        perform_in_redis(system.client, creation.undo(gid, mends=True))


def give_back(system: System, claims: Sequence[GroupLock], *, done: bool) -> None:
    """Give claims up; `done`: the groups are mended to the end, else the next one begins again, at once."""
    with suppress(ImError):  # then they end by themselves
        system.client.call_many([repair_calls.release(claim, done=done) for claim in claims])


def _missing(system: System, claims: Sequence[GroupLock]) -> list[GroupLock]:
    answers = system.client.call_many([repair_calls.lock(claim) for claim in claims])
    return [claim for claim, is_mine in zip(claims, answers, strict=True) if not is_mine]


def unfinished(system: System, partition: int) -> set[str]:
    """Return the groups of a partition whose mending has begun and not ended: they may not be as they should."""
    return {wire.text(gid) for gid in system.client.query("HKEYS", system.client.space.group_locks(partition))}
