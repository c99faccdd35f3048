"""Rewrites: texts of recalled messages leave the streams within a minute, not only with the next trim.

A stream's entries cannot be changed. So a group with recalled texts gets a new stream without them, as in a repair:
entries and members are copied into a shadow in small steps, and the shadow replaces the stream in one step. One rewrite
serves all texts of a group that wait. A rewrite that is killed has changed nothing, and the next one begins again.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain

from imcore.errors import ImError, TryAgain
from imcore.streams.calls import repair_calls, rewrite_calls
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.calls.rewrite_calls import CHANGED, BegunRewrite
from imcore.streams.client import RedisClient
from imcore.util.backoff import ThrottledLog

log = logging.getLogger(__name__)

WAIT_MS = 30_000
"""For how long a recalled text waits for others of its group: no group is rewritten more often."""
LOOK_EVERY_S = 10.0
"""The time between two looks for groups. WAIT_MS and this leave 20 s of a minute to the rewrites."""

PAGE = 200
"""The entries or members that one step copies: the server does nothing else meanwhile."""
GROUPS, MOST_GROUPS = 100, 10_000
"""The groups of a partition that a worker, and an operator, rewrites after one look."""
_LONGEST_LOOK_S = 1.0
_FAILED = "recalled texts stay in Redis for now: %s"

OnStep = Callable[[], None]
"""Is called between the steps of a rewrite, which may take seconds."""


class Rewriting:
    """The rewrites of one worker. Several workers may rewrite at the same time."""

    def __init__(self, client: RedisClient, partition: int | None = None) -> None:
        """Rewrite the groups of one partition, or all."""
        self._client = client
        self._partitions = None if partition is None else [partition]
        self._look_at = 0.0
        self._trouble = ThrottledLog(time.monotonic)

    def look(self, on_step: OnStep = lambda: None) -> int:
        """Rewrite groups whose texts have waited, if it is time to look for them; return how many.

        After a second the rest is left to the next call. Raise nothing but what `on_step` raises: what fails is logged,
        and tried again.
        """
        if time.monotonic() < self._look_at:
            return 0
        self._look_at = time.monotonic() + LOOK_EVERY_S
        ends, done = time.monotonic() + _LONGEST_LOOK_S, 0
        try:
            for gid in due(self._client, WAIT_MS, GROUPS, self._partitions):
                done += self._rewrite(gid, on_step)
                if time.monotonic() > ends or done >= GROUPS:
                    self._look_at = 0.0
                    break
        except ImError as error:
            self._trouble.note(error, _FAILED)
        return done

    def _rewrite(self, gid: str, on_step: OnStep) -> bool:
        on_step()
        try:
            return rewrite(self._client, gid, on_step=on_step)
        except ImError as error:
            self._trouble.note(error, _FAILED)
            return False


def rewrite_all(client: RedisClient) -> int:
    """Rewrite the groups with recalled texts, also those that have just begun to wait; return how many.

    What fails is left to a worker, which logs why. Raise RedisUnavailable.
    """
    done = 0
    for gid in due(client, 0, MOST_GROUPS):
        with suppress(ImError):
            done += rewrite(client, gid)
    return done


def due(client: RedisClient, wait_ms: int, count: int, partitions: Iterable[int] | None = None) -> list[str]:
    """Return groups whose recalled texts have waited for a time, about `count` of each partition, or of some."""
    space = client.space
    asked = range(space.partitions) if partitions is None else partitions
    calls = [rewrite_calls.due(space, partition, wait_ms, count) for partition in asked]
    return list(chain.from_iterable(client.call_many(calls)))


def rewrite(client: RedisClient, gid: str, *, on_step: OnStep = lambda: None) -> bool:
    """Free the stream of a group of all recalled texts; return False if another process has its lock.

    Raise TryAgain if it could not be finished, UnknownGroup, RedisFull: nothing has changed then.
    """
    lock = rewrite_calls.new_lock(client.space.group(gid))
    begun = client.call(rewrite_calls.begin(lock))
    if begun is None:
        return False
    try:
        for _ in _steps(client, lock, begun):
            on_step()
    except BaseException:
        with suppress(ImError):  # then it ends by itself
            client.call(repair_calls.release(lock, done=True))  # the group is as it was
        raise
    return True


def _steps(client: RedisClient, lock: GroupLock, begun: BegunRewrite) -> Iterator[None]:
    """Take the steps of a rewrite, one after the other."""
    before, entries = -1, 0
    while before != entries:
        before, entries = entries, client.call(repair_calls.copy(lock, last=begun.last_id, count=PAGE))
        yield
    cursor = ""
    while cursor != "0":
        cursor = client.call(rewrite_calls.follow(lock, cursor or "0", PAGE))
        yield
    followed = begun.journal_end
    while followed:
        followed = client.call(rewrite_calls.swap(lock, begun, followed))
        if followed == CHANGED:
            raise TryAgain(f"the journal was trimmed while the stream of {lock.k.gid!r} was rewritten")
        yield
