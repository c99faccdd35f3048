"""Recalled texts in Redis' append-only files: they stay there until a file is rewritten.

The send writes a text to the file, and each rewrite copies it from the stream, until a worker has freed the stream of
it (`imcore.repair.rewriting`) or a trim has dropped its entry. So the worker `persist` notes every recalled message.
The note is deleted after a rewrite that began later.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, DatabaseUnavailable
from imcore.streams import wire
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.keys import SEPARATOR
from imcore.streams.redis_errors import driver_errors
from imcore.streams.server_info import primaries_of, servers_of
from imcore.system import System
from imcore.util.batches import batches, grouped
from imcore.util.deadlines import attempts

log = logging.getLogger(__name__)

_Note = tuple[str, bytes]
"""A note of a recalled message, after the key that holds it."""

Progress = Callable[[int, int], None]
"""Gets the number of servers that are done, and of all servers."""

LONGEST_S = 30 * 60
"""The longest wait for rewrites: a rewrite may wait for a save that never ends. The next trim tries again."""

SYNC_S = 3.0
"""The longest time that a server waits with its disk by default (`appendfsync everysec`: 2 s), and some more."""

_PAUSE_S = 0.1
_UNDER_WAY = "already in progress"
_BY_HAND = "the append-only file at %s may still hold recalled texts: %s; let an administrator run BGREWRITEAOF there"


def note_recalled(client: RedisClient, messages: Iterable[tuple[str, int]]) -> None:
    """Note recalled messages, by gid and packed msgid, each in the partition of its group. It may be repeated."""
    for gid, msgids_of in grouped(messages).items():
        for batch in batches(msgids_of, CHUNK):
            pairs = (word for msgid in batch for word in (msgid, f"{gid}{SEPARATOR}{msgid}"))
            client.execute_once("ZADD", client.space.group(gid).withdrawn, *pairs)


def noted(client: RedisClient) -> list[_Note]:
    """Return the notes of recalled messages, each with the key that holds it."""
    held = [client.space.withdrawn(partition) for partition in range(client.space.partitions)]
    answers = client.query_many([("ZRANGE", key, 0, -1) for key in held])
    return [(key, note) for key, notes in zip(held, answers, strict=True) for note in notes]


def wait_until_synced(client: RedisClient) -> None:
    """Wait until what was written is on the disks of servers that have append-only files. Raise RedisUnavailable.

    WAITAOF would say so, but Redis has it since 7.2 only, and speaks of the writes of one connection.
    """
    with driver_errors(client.address):
        has_files = any(server.appendonly for server in servers_of(client.driver, asks_config=False))
    if has_files:
        time.sleep(SYNC_S)


def forget_withdrawn(system: System, *, always: bool = False, on_progress: Progress | None = None) -> int:
    """Remove recalled texts from SQLite's log and Redis' append-only files; return the number of rewrites.

    Only texts that no stream holds any more are removed. With `always` files that hold none are
    rewritten, too. A refusal, a rewrite longer than LONGEST_S and a reader of SQLite's log are logged as warnings.
    Raise RedisUnavailable.
    """
    with suppress(DatabaseUnavailable, DatabaseNotReady):
        if not system.database.empty_log(always=True):
            log.warning(
                "the log of %s may still hold recalled texts, as somebody reads from it: the worker persist empties it "
                "once they have ended",
                system.database.address,
            )
    gone = [note for note, is_gone in _notes(system) if is_gone]
    return _rewrite_all(system.client, gone, on_progress) if gone or always else 0


def count_kept(system: System) -> int:
    """Return the number of recalled texts in streams, from where each rewrite copies them."""
    return sum(not is_gone for _, is_gone in _notes(system))


def _notes(system: System) -> Iterator[tuple[_Note, bool]]:
    """Yield the note of each recalled message, and whether its text has left the stream."""
    client = system.client
    for batch in batches(noted(client), CHUNK):
        notes = [wire.text(note).rpartition(SEPARATOR) for _, note in batch]
        messages = [(client.space.group(gid).stream, msgids.unpack(int(msgid))) for gid, _, msgid in notes]
        pages = client.query_many([("XRANGE", stream, msgid, msgid) for stream, msgid in messages])
        for note, page in zip(batch, pages, strict=True):
            yield note, not any(wire.has_text(wire.values_of(fields)) for _, fields in page)


def _rewrite_all(client: RedisClient, notes: Sequence[_Note], on_progress: Progress | None) -> int:
    """Rewrite the file of each primary; then delete the notes, if no rewrite failed. Return the number of rewrites."""
    rewrites = [_Rewrite(server, name or client.address) for name, server in primaries_of(client.driver)]
    _run(client, rewrites, on_progress)
    if not any(rewrite.has_failed for rewrite in rewrites):
        for key, own in grouped(notes).items():
            for batch in batches(own, CHUNK):
                client.execute_once("ZREM", key, *batch)
    return sum(rewrite.is_done for rewrite in rewrites)


def _run(client: RedisClient, rewrites: Sequence["_Rewrite"], on_progress: Progress | None) -> None:
    left = list(rewrites)
    for _ in attempts(LONGEST_S, longest_pause_s=_PAUSE_S):
        with driver_errors(client.address):
            left = [rewrite for rewrite in left if not rewrite.step()]
        if on_progress:
            on_progress(len(rewrites) - len(left), len(rewrites))
        if not left:
            return
    for rewrite in left:
        rewrite.fail(f"{rewrite.state} after {LONGEST_S // 60} minutes")


class _Rewrite:
    """The rewrite of one server's append-only file. Call `step` until it returns True."""

    def __init__(self, server: Any, name: str) -> None:
        self._server = server
        self._name = name
        self._has_begun = False
        self.state = ""
        self.is_done = False
        """Whether a rewrite that began here has succeeded."""
        self.has_failed = False

    def step(self) -> bool:
        """Begin the rewrite, or look whether it has ended; return whether there is nothing more to do."""
        try:
            return self._step()
        except NoPermissionError:
            return self.fail("this role may not have it rewritten (`im acl` prints the rights that are needed)")
        except ResponseError as error:
            return _UNDER_WAY not in str(error) and self.fail(f"it cannot be rewritten ({error})")

    def fail(self, reason: str) -> bool:
        self.has_failed = True
        log.warning(_BY_HAND, self._name, reason)
        return True

    def _step(self) -> bool:
        info = self._server.info("persistence")
        if not info.get("aof_enabled"):
            return True
        is_waiting = bool(info.get("aof_rewrite_scheduled"))
        self.state = "its rewrite still waits for a save to end" if is_waiting else "its rewrite has not ended"
        if info.get("aof_rewrite_in_progress") or is_waiting:
            return False  # if it began before this call, another one has to follow
        if not self._has_begun:
            self._server.bgrewriteaof()
            self._has_begun = True
            return False
        if info.get("aof_last_bgrewrite_status") != "ok":
            return self.fail("the rewrite failed (see the server's log)")
        self.is_done = True
        return True
