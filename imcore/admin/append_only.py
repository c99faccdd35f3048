"""Recalled texts in Redis' append-only files: they stay there until a file is rewritten.

A text is in the file from the send on; and in the stream, from which each rewrite copies it, until `trim` drops its
entry. So the worker `persist` notes every recalled message, and the note goes once a rewrite has succeeded that began
after the message had left its stream.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from imcore.errors import DatabaseNotReady, DatabaseUnavailable
from imcore.streams import wire
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.keys import SEPARATOR, WITHDRAWN
from imcore.streams.redis_errors import driver_errors
from imcore.system import System
from imcore.util.batches import batches

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Gets how many servers are done, and of how many."""

LONGEST_S = 30 * 60
"""For how long rewrites are waited for: one may wait for a save, and that may never end. The next trim tries again."""

_PAUSE_S = 0.1
_UNDER_WAY = "already in progress"
_BY_HAND = "the append-only file at %s may still hold recalled texts: %s; let an administrator run BGREWRITEAOF there"


def note_recalled(client: RedisClient, messages: Iterable[tuple[str, int]]) -> None:
    """Note recalled messages: gid and packed msgid of each. Again: nothing."""
    for some in batches(messages, CHUNK):
        pairs = (word for gid, msgid in some for word in (msgid, f"{gid}{SEPARATOR}{msgid}"))
        client.execute_once("ZADD", WITHDRAWN, *pairs)


def forget_withdrawn(system: System, *, always: bool = False, on_progress: Progress | None = None) -> int:
    """Take recalled texts out of SQLite's log, and out of the append-only files of Redis, if one may hold any.

    A file may hold those that no stream has any more: a trim comes first. With `always` each file is rewritten. Return
    at how many servers that was done; it takes as long as they take, but LONGEST_S at most. What a server or a role
    does not allow, what takes longer, and who is in the way, is logged as a warning. Raise RedisUnavailable.
    """
    with suppress(DatabaseUnavailable, DatabaseNotReady):
        if not system.database.empty_log(always=True):
            log.warning(
                "the log of %s may still hold recalled texts, as somebody reads from it: the worker persist empties it "
                "once they have ended",
                system.database.address,
            )
    gone = [note for note, is_gone in _notes(system) if is_gone]
    if not gone and not always:
        return 0
    rewriting = _Rewriting(system.client)
    rewriting.run(on_progress)
    if not rewriting.has_failed:
        for some in batches(gone, CHUNK):
            system.client.execute_once("ZREM", WITHDRAWN, *some)
    return rewriting.done


def count_kept(system: System) -> int:
    """Return how many recalled texts are still in their streams, and so in each file that is written anew.

    An entry is never deleted from the middle of a stream: `trim` drops it with all that come before it.
    """
    return sum(not is_gone for _, is_gone in _notes(system))


def _notes(system: System) -> Iterator[tuple[bytes, bool]]:
    """Yield the notes of recalled messages, each with whether no stream has the message any more."""
    client = system.client
    for some in batches(client.query("ZRANGE", WITHDRAWN, 0, -1), CHUNK):
        notes = [wire.text(note).rpartition(SEPARATOR) for note in some]
        metas = [client.space.group(gid).meta for gid, _, _ in notes]
        trimmed = client.query_many([("HGET", meta, "trimmed") for meta in metas])
        there = client.query_many([("EXISTS", meta) for meta in metas])
        for note, (_, _, msgid), bound, exists in zip(some, notes, trimmed, there, strict=True):
            yield note, not exists or int(msgid) <= int(bound or 0)


class _Rewriting:
    """The rewrites of all primaries. They go on at the same time."""

    def __init__(self, client: RedisClient) -> None:
        self._redis_client = client
        self._client: Any = client.driver
        self._asked: set[int] = set()
        self._waiting: set[int] = set()
        """Servers whose rewrite has not begun yet."""
        self.done = 0
        self.has_failed = False

    def run(self, on_progress: Progress | None) -> None:
        """Begin a rewrite at each, and wait until all have ended, but not for ever."""
        give_up = time.monotonic() + LONGEST_S
        left = [(number, node) for number, node in enumerate(self._nodes())]
        of = len(left)
        while left:
            left = [(number, node) for number, node in left if not self._is_over(number, node)]
            if on_progress:
                on_progress(of - len(left), of)
            if time.monotonic() > give_up:
                for number, node in left:
                    self._fail(node, f"{self._why_not(number)} after {LONGEST_S // 60} minutes")
                return
            if left:
                time.sleep(_PAUSE_S)

    def _why_not(self, number: int) -> str:
        if number in self._waiting:
            return "its rewrite still waits for a save to end"
        return "its rewrite has not ended"

    def _nodes(self) -> Sequence[dict[str, Any]]:
        """Return where a command is to run, as options of the driver."""
        if isinstance(self._client, RedisCluster):
            return [{"target_nodes": node} for node in self._client.get_primaries()]
        return [{}]

    def _is_over(self, number: int, node: dict[str, Any]) -> bool:
        """Look after the rewrite of one server; return whether there is nothing more to do."""
        try:
            return self._look_after(number, node)
        except NoPermissionError:
            return self._fail(node, "this role may not have it rewritten (`im acl` prints the rights that are needed)")
        except ResponseError as error:
            return self._fail(node, f"it cannot be rewritten ({error})")

    def _look_after(self, number: int, node: dict[str, Any]) -> bool:
        info = self._call(node, "INFO", "persistence")
        if not info.get("aof_enabled"):
            return True
        is_waiting = bool(info.get("aof_rewrite_scheduled"))
        self._waiting = self._waiting | {number} if is_waiting else self._waiting - {number}
        if info.get("aof_rewrite_in_progress") or is_waiting:
            return False  # perhaps one that began before: then another one has to follow
        if number not in self._asked:
            self._begin(number, node)
            return False
        if info.get("aof_last_bgrewrite_status") != "ok":
            return self._fail(node, "the rewrite failed (see the server's log)")
        self.done += 1
        return True

    def _begin(self, number: int, node: dict[str, Any]) -> None:
        try:
            self._call(node, "BGREWRITEAOF")
        except ResponseError as error:
            if _UNDER_WAY not in str(error):
                raise
        else:
            self._asked.add(number)

    def _call(self, node: dict[str, Any], *command: str) -> Any:
        try:
            return self._client.execute_command(*command, **node)
        except ResponseError:
            raise
        except (RedisError, OSError):
            with driver_errors(self._redis_client.address):
                raise

    def _fail(self, node: dict[str, Any], why: str) -> bool:
        self.has_failed = True
        at = node.get("target_nodes")
        log.warning(_BY_HAND, f"{at.host}:{at.port}" if at else self._redis_client.address, why)
        return True
