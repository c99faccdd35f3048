"""Locks of repairs: a partition's lock keeps the workers from storing, a group's lock keeps other repairs off.

Both end by themselves after their owner has died. An owner that stalled and lost its lock learns that at its next step,
and stops: it has done nothing since that another one could not do again.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from imcore.errors import ImError, TryAgain
from imcore.operations import creation
from imcore.operations.performer import perform_in_redis
from imcore.streams.calls import group_calls, repair_calls
from imcore.streams.calls.repair_calls import GroupLock
from imcore.system import System
from imcore.util.deadlines import attempts

LOCK_MS = 15_000
"""For how long at most nobody stores anything after a process has died over a repair."""

PATIENCE_S = 6.5
"""For how long to wait for a group's lock: it ends 5 s after its owner has died (`lua/repair_streams.lua`)."""


class PartitionLock:
    """Keeps every worker from storing anything of a partition, while it is used in a `with`."""

    def __init__(self, system: System, partition: int, *, wait_s: float = 0.0) -> None:
        self._system = system
        self._partition = partition
        self._token = uuid.uuid4().hex
        self._wait_s = wait_s
        self._renew_at = 0.0

    def __enter__(self) -> Self:
        """Wait up to `wait_s` while another process has it, then raise TryAgain."""
        if not any(self._extend(LOCK_MS) for _ in attempts(self._wait_s)):
            raise TryAgain(f"another process mends partition {self._partition}")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ImError):  # then it ends by itself
            self._extend(0)

    def renew(self) -> None:
        """Keep it; call this now and then. Raise TryAgain if it is lost."""
        if time.monotonic() >= self._renew_at and not self._extend(LOCK_MS):
            raise TryAgain(f"another process has gone on with the mending of partition {self._partition}")

    def _extend(self, for_ms: int) -> bool:
        self._renew_at = time.monotonic() + LOCK_MS / 3000
        call = repair_calls.lock_partition(self._system.client.space, self._partition, self._token, for_ms)
        return self._system.client.call(call)


def take(system: System, gids: Sequence[str], *, kind: str = "") -> list[GroupLock]:
    """Lock groups; wait while others have them, then raise TryAgain. Creations of these groups are undone.

    Such a group comes back with the members that it had. Its creator begins again, and finds the group. `kind` begins
    the token: that of a rewrite says nothing about the state of a group if its process dies.
    """
    token = kind + uuid.uuid4().hex
    wanted = [GroupLock(system.client.space.group(gid), token) for gid in gids]
    missing = wanted
    for _ in attempts(PATIENCE_S):
        if not (missing := _missing(system, missing)):
            break
    else:
        give_back(system, wanted, done=False)
        raise TryAgain(f"another process mends {missing[0].k.gid!r}")
    for under_way in system.client.call_many(group_calls.being_created(system.client.space)):
        for gid in set(under_way).intersection(gids):
            perform_in_redis(system.client, creation.undo(gid, mends=True))
    return wanted


def give_back(system: System, locks: Sequence[GroupLock], *, done: bool) -> None:
    """Release locks. `done`: the groups are as desired, else the next process begins again at once."""
    with suppress(ImError):  # then they end by themselves
        system.client.call_many([repair_calls.release(lock, done=done) for lock in locks])


def _missing(system: System, locks: Sequence[GroupLock]) -> list[GroupLock]:
    answers = system.client.call_many([repair_calls.lock(lock) for lock in locks])
    return [lock for lock, is_mine in zip(locks, answers, strict=True) if not is_mine]
