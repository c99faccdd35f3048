"""The link to Redis: carries calls, and sees to it that the functions are there."""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Self, TypeVar, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from imcore.errors import ConfigurationError, ImError, UnknownGroup
from imcore.settings import Settings
from imcore.streams import urls
from imcore.streams.answers import plain
from imcore.streams.calls import group_calls
from imcore.streams.calls.call import Call, command_of
from imcore.streams.keys import CONFIG, DEFAULT_PARTITIONS, Keyspace
from imcore.streams.library import NOT_LOADED, Library
from imcore.streams.probe import writes_of_nothing
from imcore.streams.redis_errors import LOST, address, driver_errors, translated
from imcore.streams.transport import Command, InFlight, call_cluster, refresh_slots

T = TypeVar("T")
Client = redis.Redis | RedisCluster
Answers = Callable[[], list[T | ImError]]
"""Waits for the answers of calls that are under way; a call that failed has its error in its place."""

CHUNK = 500
"""How many calls travel in one round trip."""

PATIENCE_S = 15.0
"""What has failed after so long is not tried again: once more is enough where the server itself is silent."""


_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What decoding an answer raises that has not the form of its function's answers."""


def open_client(url: str, *, timeout_s: float | None = 10.0, block_ms: int = 1000) -> Client:
    """Return a client for a Redis URL; nothing is sent yet, but for a cluster, whose nodes are asked for.

    The client itself repeats nothing: only `Link` knows which calls may be repeated. `timeout_s` is for a URL that does
    not say how long to wait for an answer; one that does is checked against `block_ms`, the setting IM_BLOCK_MS.
    Raise ConfigurationError for a URL that is none, RedisUnavailable if no node of a cluster answers.
    """
    return urls.client_of(url, timeout_s, block_ms)


class RedisClient:
    """Calls Redis functions through a client, for data with its own partition count.

    It never loads functions for a call that only reads; see `imcore.streams.library`. Not for use by several threads at
    once while the first call is under way; safe afterwards.
    """

    def __init__(self, client: Client, *, partitions: int | None = None, url: str = "") -> None:
        self.driver = client
        self._execute_command: Callable[..., Any] = client.execute_command
        self.address = address(url) if url else "Redis"
        self.is_cluster = isinstance(client, RedisCluster)
        self._library = Library(client, self.address)
        self._has_functions = False
        self._wanted_partitions = partitions
        self.new_partitions = DEFAULT_PARTITIONS
        """How many partitions data gets that is not there yet, if nobody wants another number."""
        self._fixed = False
        self._retry = Retry(ExponentialBackoff(cap=0.5, base=0.02), 3, supported_errors=LOST)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Return a link to the Redis of the settings. Raise what `open_client` raises."""
        client = open_client(settings.redis_url, block_ms=settings.block_ms)
        return cls(client, partitions=settings.partitions, url=settings.redis_url)

    def close(self) -> None:
        """Close the connections."""
        self.driver.close()
        if isinstance(self.driver, RedisCluster):  # which leaves those to its nodes open
            for node in self.driver.get_nodes():
                if node.redis_connection:
                    node.redis_connection.connection_pool.disconnect()

    def upgrade(self) -> None:
        """Load the functions of this program where there are none or older ones, now and whenever they are missing.

        For workers, and for operators who mean it: others may use the older ones. Raise ConfigurationError for newer
        ones, RedisUnavailable.
        """
        self._library.upgrades = True
        self._has_functions = False
        self.require_functions(writes=True)
        self.require_writes()

    def require_writes(self) -> None:
        """Make sure that the server takes writes, every primary of a cluster: whatever is to write begins with this.

        Else it would succeed where nothing has to be written, having looked at a replica only. The calls change
        nothing. Raise RedisRefuses with what keeps the server from taking writes, RedisUnavailable.
        """
        [partitions] = self.query_unversioned([("HGET", CONFIG, "partitions")])
        nothing = writes_of_nothing(self.driver, int(partitions or 1))
        for call, answer in zip(nothing, self._pipeline(nothing, repeatable=True), strict=True):
            error = None if _is_missing(answer) else self._result(call, answer)
            if isinstance(error, ImError) and not isinstance(error, UnknownGroup):
                raise error

    @cached_property
    def space(self) -> Keyspace:
        """The names of the data that is there, or of the data that the first write will begin.

        Raise ConfigurationError if the partition count asked for is not the one that the data was created with.
        """
        [partitions] = self.query_unversioned([("HGET", CONFIG, "partitions")])
        self._fixed = partitions is not None
        return self._keyspace(int(partitions or self._wanted_partitions or self.new_partitions))

    def call(self, call: Call[T], *, repeatable: bool = True) -> T:
        """Carry one call and return its answer.

        `repeatable` says that a second run of a call whose answer got lost does no harm; then a lost connection is
        tried again a few times, as long as there is PATIENCE_S. Raise the ImError that the answer stands for, or
        RedisUnavailable, RedisFull.
        """
        self._begin([call])

        def attempt() -> Any:
            return self._carry(command_of(call))

        with driver_errors(self.address, call.gid):
            try:
                answer = self._attempt(attempt, repeatable)
            except ReadOnlyError:
                self._connect_anew()
                raise
            except ResponseError as error:
                if not _is_missing(error):
                    raise
                self._load_again([call])
                answer = self._attempt(attempt, repeatable)
        try:
            return call.decode(answer)
        except _UNREADABLE as error:
            raise self._unreadable(call, error) from error

    def call_many(self, batch: Sequence[Call[T]], *, repeatable: bool = True) -> list[T]:
        """Carry calls in as few round trips as possible and return their answers in order; raise the first error."""
        results = self.call_each(batch, repeatable=repeatable)
        for result in results:
            if isinstance(result, ImError):
                raise result
        return cast(list[T], results)

    def call_each(self, batch: Sequence[Call[T]], *, repeatable: bool = True) -> list[T | ImError]:
        """Carry calls in as few round trips as possible; a call that fails has its error in its place."""
        self._begin(batch)
        results: list[T | ImError] = []
        for start in range(0, len(batch), CHUNK):
            part = batch[start : start + CHUNK]
            answers = self._pipeline(part, repeatable)
            missing = [number for number, answer in enumerate(answers) if _is_missing(answer)]
            if missing:  # at one node of a cluster, or until somebody else loaded them: the other calls are done
                self._load_again(part)
                again = self._pipeline([part[number] for number in missing], repeatable)
                for number, answer in zip(missing, again, strict=True):
                    answers[number] = answer
            results += [self._result(call, answer) for call, answer in zip(part, answers, strict=True)]
        return results

    def start(self, batch: Sequence[Call[T]]) -> Answers[T]:
        """Send calls that may be repeated, and return what waits for their answers: they are carried out meanwhile.

        Call what is returned, once, for it holds a connection: it returns what `gather` does. Over a cluster it is
        `gather` that waits. Raise RedisUnavailable if they could not be sent; of errors in answers raise nothing.
        """
        self._begin(batch)
        if self.is_cluster or not 0 < len(batch) <= CHUNK:
            answers = self.call_each(batch)
            return lambda: answers
        with driver_errors(self.address):
            under_way = InFlight(self.driver, list(map(command_of, batch)))
        return lambda: self._posted(batch, under_way)

    def _posted(self, batch: Sequence[Call[T]], under_way: InFlight) -> list[T | ImError]:
        answers: list[Any]
        try:
            answers = under_way.answers()
        except (RedisError, OSError) as error:
            answers = [error] * len(batch)
        if any(map(_is_missing, answers)):
            return self.call_each(batch)
        return [self._result(call, answer) for call, answer in zip(batch, answers, strict=True)]

    def query(self, *command: str | int) -> Any:
        """Run a plain command that only reads."""
        self.require_functions(writes=False)
        with driver_errors(self.address):
            answer = self._attempt(lambda: self._execute_command(*command), repeatable=True)
        return plain(str(command[0]), answer)

    def execute_once(self, *command: str | bytes | int) -> Any:
        """Run a plain command that must not run twice unseen: after RedisUnavailable it is unknown whether it ran."""
        with driver_errors(self.address):
            try:
                return plain(str(command[0]), self._execute_command(*command))
            except LOST as error:
                self._look_around(error)
                raise

    def query_many(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Run plain commands that only read, in one round trip."""
        if not commands:
            return []
        self.require_functions(writes=False)
        return self.query_unversioned(commands)

    def query_each(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Do as `query_many` does; a command that fails has its ImError in its place."""
        if not commands:
            return []
        self.require_functions(writes=False)
        with driver_errors(self.address):
            answers = self._execute(commands, repeatable=True)
        return [translated(answer, self.address) if isinstance(answer, Exception) else answer for answer in answers]

    def query_unversioned(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Do as `query_many` does, whatever functions are there: to see what there is before they are loaded."""
        with driver_errors(self.address):
            answers = self._execute(commands, repeatable=True)
            for answer in answers:
                if isinstance(answer, Exception):
                    self._library.refuse_stranger(answer)
                    raise answer
        return answers

    def time_ms(self, key: str) -> int:
        """Return the clock of the server that has a key, in ms since 1970."""

        def ask() -> tuple[int, int]:
            if isinstance(self.driver, RedisCluster):
                node = self.driver.get_node_from_key(key)
                return self.driver.get_redis_connection(node).time()
            return self.driver.time()

        with driver_errors(self.address):
            seconds, micros = self._attempt(ask, repeatable=True)
        return seconds * 1000 + micros // 1000

    def _attempt(self, attempt: Callable[[], T], repeatable: bool) -> T:
        if not repeatable:
            return attempt()
        give_up = time.monotonic() + PATIENCE_S

        def failed(lost: Exception) -> None:
            self._look_around(lost)
            if time.monotonic() > give_up:
                raise lost

        return self._retry.call_with_retry(attempt, failed)

    def _look_around(self, _lost: Exception) -> None:
        if isinstance(self.driver, RedisCluster):
            refresh_slots(self.driver)

    def _carry(self, command: Command) -> Any:
        if not isinstance(self.driver, RedisCluster):
            return self._execute_command(*command)
        [answer] = call_cluster(self.driver, [command])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _pipeline(self, part: Sequence[Call[Any]], repeatable: bool) -> list[Any]:
        with driver_errors(self.address):
            return self._execute(list(map(command_of, part)), repeatable=repeatable)

    def _execute(self, commands: Sequence[Command], *, repeatable: bool) -> list[Any]:
        """Return the answers, each error of a server in its place. Raise what the driver raises for a lost connection.

        Over a cluster, where some nodes may have answered, that stands in its place, too.
        """
        if isinstance(self.driver, RedisCluster):
            return self._over_cluster(self.driver, commands, repeatable)
        return self._attempt(lambda: InFlight(self.driver, commands).answers(), repeatable)

    def _over_cluster(self, client: RedisCluster, commands: Sequence[Command], repeatable: bool) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))

        def attempt() -> None:
            for number, answer in zip(left, call_cluster(client, [commands[n] for n in left]), strict=True):
                answers[number] = answer
            left[:] = [number for number in left if isinstance(answers[number], LOST)]
            if left:
                raise answers[left[0]]

        with suppress(*LOST):
            self._attempt(attempt, repeatable)
        return answers

    def _result(self, call: Call[T], answer: Any) -> T | ImError:
        if isinstance(answer, ReadOnlyError):
            self._connect_anew()
        if isinstance(answer, Exception):
            error = translated(answer, self.address, call.gid)
            error.__cause__ = answer
            return error
        try:
            return call.decode(answer)
        except ImError as error:
            return error
        except _UNREADABLE as error:
            return self._unreadable(call, error)

    def _unreadable(self, call: Call[Any], cause: Exception) -> ImError:
        """Return the error for an answer that cannot be: somebody has written by hand what it comes from."""
        about = f" about {call.gid!r}" if call.gid else ""
        error = ImError(f"{self.address} holds what cannot be read{about} ({call.function}): {cause!r}")
        error.__cause__ = cause
        return error

    def _connect_anew(self) -> None:
        """Drop the connections to a primary that is one no more: its name may lead to the new one by now."""
        if not isinstance(self.driver, RedisCluster):
            self.driver.connection_pool.disconnect(inuse_connections=False)

    def _begin(self, batch: Sequence[Call[Any]]) -> None:
        """Before the first write of all, fix the partition count, so that two first writers cannot differ."""
        if self._fixed and self._has_functions:
            return
        writes = any(call.writes for call in batch)
        self.require_functions(writes=writes)
        if self._fixed or not writes:
            return
        partitions = self.space.partitions
        if not self._fixed:
            self._fixed = True
            stands, _ = self.call(group_calls.init(partitions, uuid.uuid4().hex))
            if stands != partitions:
                self._fixed = False
                del self.space
                raise ConfigurationError(f"the data has just been created with {stands} partitions: try again")

    def _keyspace(self, stands: int) -> Keyspace:
        if self._wanted_partitions not in {None, stands}:
            raise ConfigurationError(
                f"the data was created with {stands} partitions, not {self._wanted_partitions}: "
                f"set IM_PARTITIONS={stands}, or unset it"
            )
        return Keyspace(stands, database=_database_of(self.driver))

    def require_functions(self, *, writes: bool) -> None:
        """Make sure that the functions are there, as every call does; who `writes` loads them where there are none.

        Raise RedisUnavailable, ConfigurationError.
        """
        if not self._has_functions:
            with driver_errors(self.address):
                self._attempt(lambda: self._library.require(writes=writes), repeatable=True)
            self._has_functions = True

    def _load_again(self, batch: Sequence[Call[Any]]) -> None:
        """The server has lost the functions."""
        self._has_functions = False
        self.require_functions(writes=any(call.writes for call in batch))


def _database_of(client: Client) -> int:
    """Return the number of the database that a client works on: a cluster has one only."""
    return 0 if isinstance(client, RedisCluster) else int(client.connection_pool.connection_kwargs.get("db") or 0)


def _is_missing(answer: Any) -> bool:
    """Whether it is the error of a server that has not the functions."""
    return isinstance(answer, ResponseError) and NOT_LOADED in str(answer)
