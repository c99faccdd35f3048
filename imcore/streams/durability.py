"""What a sender may ask for beyond a stored message: that a replica has it, or that the server's disk has it.

WAIT and WAITAOF speak of the writes of their own connection, and hold up whatever comes after them on it. So the
message is sent as usual, and a barrier follows on a connection that is kept for waits: the function `im_barrier` writes
after the message, and the wait follows on the same connection. A replica or a file that has the barrier has all that
was written before it.

The barrier looks for the message in the same step. So a server that took over meanwhile, without the message, confirms
nothing.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, NamedTuple

import redis
from redis.exceptions import ResponseError

from imcore.errors import ConfigurationError, ImError, RedisRefuses, TryAgain
from imcore.model.durable import FSYNCED, REPLICATED, Durable
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call, command_of
from imcore.streams.client import RedisClient
from imcore.streams.cluster import Cluster
from imcore.streams.packing import pack
from imcore.streams.redis_errors import DRIVER_ERRORS, driver_errors
from imcore.streams.rounds import Command
from imcore.streams.server_info import ServerInfo, info_of, is_older
from imcore.util.batches import batches

SETTLED_S = 1.2
"""Under `appendfsync everysec` the server begins to sync what it has written within 1 s, and looks ten times a second.

Redis 7.4 and Valkey up to 9 confirm a WAITAOF earlier, once the file has the bytes (github.com/redis/redis/pull/13793).
A second barrier after this time is right: while the server syncs its file, it writes nothing to it for up to 2 s; INFO
says whether it still syncs.
"""

_CHECKED_S = 1.0
"""For how long a server counts as able to confirm: settings change, and replicas go."""
_GRACE_S = 1.0
"""How much later than the end of the server's own wait its answer may come."""
_PAUSE_S = 0.05
_MOST_KEPT = 16
"""The most connections that wait for the next barrier of a place."""
_MESSAGES_PER_CALL = 100
_WAITAOF_SINCE = (7, 2)
_IS_SYNCED = (re.compile(rb"aof_pending_bio_fsync:0\b"), re.compile(rb"aof_last_write_status:ok\b"))
_REPLACED = "another server has taken over, and does not have it"


class SentMessages(NamedTuple):
    """Stored messages of one group (packed msgids)."""

    gid: str
    msgids: Sequence[int]


Outcome = list[str]
"""For each message the reason why it is not confirmed; an empty text if it is."""


class Durability:
    """Barriers on connections of their own, for any number of threads; and what the servers can confirm."""

    def __init__(self, client: RedisClient, wait_ms: int) -> None:
        """`wait_ms` is the longest wait of one barrier."""
        self._client = client
        self._wait_ms = wait_ms
        self._lock = Lock()
        self._kept: defaultdict[str, list[Any]] = defaultdict(list)
        self._is_closed = False
        self._checked: dict[tuple[str, Durable], float] = {}
        self._asks_config = True

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            kept = [connection for each in self._kept.values() for connection in each]
            self._kept.clear()
        for connection in kept:
            connection.disconnect()

    def place_of(self, gid: str) -> str:
        """Return the host and port of the cluster's node that has a group, "" for a single server."""
        return self._server_of(gid)[0]

    def is_checked(self, kind: Durable, gid: str) -> bool:
        """Return whether `check` needs no I/O."""
        with suppress(*DRIVER_ERRORS):
            return self._checked.get((self.place_of(gid), kind), 0.0) > time.monotonic()
        return False

    def check(self, kind: Durable, gid: str) -> None:
        """Raise ConfigurationError, RedisRefuses if the server of a group cannot confirm that; RedisUnavailable.

        On a cluster another node may have the group by now: who has it is asked before anything is refused.
        """
        if self.is_checked(kind, gid):
            return
        refused = self._refusal(kind, gid)
        driver = self._client.driver
        if refused and isinstance(driver, Cluster):
            driver.refresh()
            refused = self._refusal(kind, gid)
        if refused:
            raise refused

    def _refusal(self, kind: Durable, gid: str) -> ImError | None:
        """Ask the server of a group; return why it cannot confirm that, None if it can."""
        try:
            with driver_errors(self._client.address):
                place, server = self._server_of(gid)
                asks_config = self._asks_config and kind == FSYNCED
                info = info_of(server, place, asks_config=asks_config)
        except ImError as error:
            return error
        if asks_config and info.appendfsync is None:
            self._asks_config = False  # the server logs each refusal
        refused = refusal(kind, info, place or self._client.address)
        if refused is None:
            self._checked[place, kind] = time.monotonic() + _CHECKED_S
        return refused

    def confirm(self, kind: Durable, sends: Sequence[SentMessages]) -> list[Outcome]:
        """Wait until messages of one place are confirmed. Raise nothing: an error is the reason of all messages."""
        deadline = time.monotonic() + self._wait_ms / 1000
        try:
            with driver_errors(self._client.address):
                place, server = self._server_of(sends[0].gid)
                with self._connection(place, server) as connection:
                    return self._confirmed(connection, kind, sends, deadline)
        except (ImError, ValueError) as error:  # a ValueError if another thread has closed the connection
            self._checked.clear()  # a server or its replicas may be others now
            return [[str(error)] * len(sent.msgids) for sent in sends]

    def _confirmed(
        self, connection: Any, kind: Durable, sends: Sequence[SentMessages], deadline: float
    ) -> list[Outcome]:
        if kind == REPLICATED:
            return self._barrier(connection, kind, sends, deadline)[0]
        outcomes, config = self._barrier(connection, kind, sends, deadline, ("CONFIG", "GET", "appendfsync"))
        if b"always" in (config.values() if isinstance(config, dict) else config or ()):
            return outcomes
        pause_s = SETTLED_S
        while time.monotonic() + pause_s < deadline:
            time.sleep(pause_s)
            outcomes, info = self._barrier(connection, kind, sends, deadline, ("INFO", "persistence"))
            if info is None or all(pattern.search(info) for pattern in _IS_SYNCED):
                return outcomes
            pause_s = _PAUSE_S
        raise self._too_late(kind)

    def _barrier(
        self, connection: Any, kind: Durable, sends: Sequence[SentMessages], deadline: float, question: Command = ()
    ) -> tuple[list[Outcome], Any]:
        """Write and wait in one round trip. Return the outcomes, and the answer to a question, None if it is refused.

        Raise TryAgain, and what the driver raises.
        """
        calls = list(self._calls(sends))
        questions = [question] if question and (question[0] != "CONFIG" or self._asks_config) else []
        commands = [*(command_of(call) for _, call in calls), self._wait(kind, deadline), *questions]
        answers = _exchanged(connection, commands)
        if not _is_confirmed(_raised(answers[len(calls)])):
            raise self._too_late(kind)
        asked = answers[-1] if questions else None
        return _outcomes(calls, answers, len(sends)), None if isinstance(asked, Exception) else asked

    def _wait(self, kind: Durable, deadline: float) -> Command:
        wait_ms = max(1, int((deadline - time.monotonic()) * 1000))
        return ("WAIT", 1, wait_ms) if kind == REPLICATED else ("WAITAOF", 1, 0, wait_ms)

    def _calls(self, sends: Sequence[SentMessages]) -> Iterator[tuple[int, Call[list[bool]]]]:
        """Yield the calls for each of the sends, by its number."""
        for number, sent in enumerate(sends):
            for part in batches(sent.msgids, _MESSAGES_PER_CALL):
                yield number, message_calls.barrier(self._client.space, sent.gid, part)

    def _too_late(self, kind: Durable) -> TryAgain:
        where = "no replica" if kind == REPLICATED else "the server's disk"
        says = "has confirmed it" if kind == REPLICATED else "has not confirmed it"
        return TryAgain(f"{where} {says} within {self._wait_ms} ms (IM_DURABLE_MS)")

    def _server_of(self, gid: str) -> tuple[str, redis.Redis]:
        driver = self._client.driver
        if not isinstance(driver, Cluster):
            return "", driver
        node = driver.get_node_from_key(self._client.space.group(gid).meta)
        return str(node.name), driver.get_redis_connection(node)

    @contextmanager
    def _connection(self, place: str, server: redis.Redis) -> Iterator[Any]:
        """Yield a kept connection, or a new one. It is kept unless an error is raised."""
        connection = self._take(place) or self._opened(server)
        try:
            yield connection
        except BaseException:
            connection.disconnect()
            raise
        with self._lock:
            keeps = not self._is_closed and len(self._kept[place]) < _MOST_KEPT
            if keeps:
                self._kept[place].append(connection)
        if not keeps:
            connection.disconnect()

    def _take(self, place: str) -> Any:
        """Return a kept connection that its server has not closed, None without one."""
        while True:
            with self._lock:
                if not self._kept[place]:
                    return None
                connection = self._kept[place].pop()
            with suppress(*DRIVER_ERRORS):
                if not connection.can_read(timeout=0):
                    return connection
            connection.disconnect()

    def _opened(self, server: redis.Redis) -> Any:
        pool: Any = server.connection_pool
        connection = pool.connection_class(
            **{**pool.connection_kwargs, "socket_timeout": self._wait_ms / 1000 + _GRACE_S}
        )
        connection.connect()
        return connection


def refusal(kind: Durable, info: ServerInfo, where: str) -> ImError | None:
    """Return the error if a server is known not to be able to confirm messages in this way."""
    if kind == REPLICATED:
        return None if info.replicas != 0 else RedisRefuses(f"{where} has no replica that could confirm a message")
    if is_older(info, _WAITAOF_SINCE):
        return ConfigurationError(
            f"{where} is {info.server} {info.version}, which cannot say what its disk has: durable={FSYNCED} needs "
            "Redis or Valkey 7.2, or newer"
        )
    wrong = {
        "appendonly": ("no", "yes") if info.appendonly is False else None,
        "appendfsync": ("no", "everysec or always") if info.appendfsync == "no" else None,
        "no-appendfsync-on-rewrite": ("yes", "no") if info.no_appendfsync_on_rewrite else None,
    }
    for name, values in wrong.items():
        if values:
            return ConfigurationError(
                f"{where} cannot confirm that its disk has a message (durable={FSYNCED}): {name} is {values[0]}; "
                f"set {values[1]}"
            )
    return None


def _exchanged(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands together; return the answers, each error of the server in its place."""
    connection.send_packed_command([b"".join(map(pack, commands))])
    return [_answer(connection) for _ in commands]


def _outcomes(calls: Sequence[tuple[int, Call[list[bool]]]], answers: Sequence[Any], count: int) -> list[Outcome]:
    """Return the outcome of each of the sends from the answers to their calls, which come first."""
    outcomes: list[Outcome] = [[] for _ in range(count)]
    for (number, call), answer in zip(calls, answers, strict=False):
        outcomes[number] += ["" if has else _REPLACED for has in call.decode(_raised(answer))]
    return outcomes


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _is_confirmed(answer: Any) -> bool:
    """Return whether one replica, or the server's own file, is among what WAIT or WAITAOF answers."""
    return bool(answer[0] if isinstance(answer, list) else answer)


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
