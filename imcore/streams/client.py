"""The client of Redis: makes calls, repeats those that may be repeated, and loads the functions."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Self, TypeVar

from redis import Redis
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from imcore.errors import ConfigurationError, ImError
from imcore.settings import Settings
from imcore.streams import configuration, urls
from imcore.streams.answers import raised, result_of
from imcore.streams.calls.call import Call, command_of
from imcore.streams.cluster import Cluster, server_of
from imcore.streams.cluster_rounds import exchange_with_cluster
from imcore.streams.keys import DEFAULT_PARTITIONS, Keyspace
from imcore.streams.library import Library, is_missing
from imcore.streams.redis_errors import DRIVER_ERRORS, LOST, address, driver_errors, translated
from imcore.streams.rounds import CALL_TIMEOUT_S, Client, Command, Limits, Run, Steps, exchange, repeated, run
from imcore.streams.transport import InFlight, perform_step
from imcore.util.batches import batches
from imcore.util.steps import perform

T = TypeVar("T")
Answers = Callable[[], list[T | ImError]]
"""Waits for the answers of calls in flight; a call that failed has its error in its place."""

Query = tuple[str | int, ...]
"""A plain command that only reads."""

CHUNK = 500
"""The most calls of one round trip."""

open_client = urls.open_client


class RedisClient:
    """Calls Redis functions through a driver, for data with its own partition count.

    It never loads functions for a call that only reads; see `imcore.streams.library`. Not for use by several threads at
    once until the first call has returned; thread-safe afterwards.
    """

    def __init__(
        self,
        client: Client | Callable[[], Cluster],
        *,
        partitions: int | None = None,
        url: str = "",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        """`client` is a driver's client, or what opens one for a cluster when it is first needed.

        `timeout_s`: a call is not repeated later.
        """
        self._client = client
        self.address = address(url) if url else "Redis"
        self.is_cluster = not isinstance(client, Redis)
        self.departures = 0
        """How often a server was no primary any more. Connections from before may lead to a replica."""
        self._limits = Limits(timeout_s)
        self._has_functions = False
        """Whether the server has the functions; of a cluster: whether nodes are asked for them before their first
        call."""
        self._wanted_partitions = partitions
        self.new_partitions = DEFAULT_PARTITIONS
        """The partition count of new data, unless `partitions` is given."""
        self._fixed = False

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Raise ConfigurationError for a wrong URL or option. Nothing is sent yet."""
        timeout_s = settings.call_timeout_ms / 1000
        opener: Any = urls.client_opener(settings.redis_url, timeout_s=timeout_s, block_ms=settings.block_ms)
        client = opener if urls.is_cluster(settings.redis_url) else opener()
        return cls(client, partitions=settings.partitions, url=settings.redis_url, timeout_s=timeout_s)

    @cached_property
    def driver(self) -> Client:
        """The driver's client. Raise RedisUnavailable if it is for a cluster of which no node answers."""
        return self._client() if callable(self._client) else self._client

    @cached_property
    def _execute_command(self) -> Callable[..., Any]:
        return self.driver.execute_command

    @cached_property
    def _library(self) -> Library:
        return Library(self.driver, self.address)

    def close(self) -> None:
        if callable(self._client) and "driver" not in vars(self):
            return
        self.driver.close()

    def upgrade(self) -> None:
        """Load the functions of this program where they are missing or older, now and whenever they are lost.

        For workers and operators: other programs may use the older ones. Raise ConfigurationError, RedisUnavailable.
        """
        self._library.upgrades = True
        self._has_functions = False
        self.require_functions(writes=True)
        self.require_writes(of_all=False)

    def require_functions(self, *, writes: bool) -> None:
        """Make sure that the functions are loaded, as every call does; a caller that `writes` may load missing ones."""
        if not self._has_functions:
            with driver_errors(self.address):
                self._attempt(lambda: self._library.require(writes=writes), repeatable=True)
            self._has_functions = True

    def require_writes(self, *, of_all: bool = True) -> None:
        """Make sure that the server takes writes, every primary of a cluster; or, not `of_all`, those that answer.

        Nothing is changed. A command that writes begins with this: else it would succeed on a replica if there is
        nothing to write. Raise RedisRefuses with the reason why the server takes no writes, RedisUnavailable.
        """
        with driver_errors(self.address):
            try:
                self._attempt(partial(self._library.check_writes, of_all=of_all), repeatable=True)
            except ResponseError as error:
                if isinstance(error, ReadOnlyError):
                    self._drop_connections()
                if not is_missing(error):
                    raise

    @cached_property
    def space(self) -> Keyspace:
        """The names of the data in Redis. Before the first write: those that it will use.

        Raise ConfigurationError if the partition count asked for is not the one that the data was created with.
        """
        stored = configuration.stored_partitions(self)
        self._fixed = stored is not None
        partitions = int(stored or self._wanted_partitions or self.new_partitions)
        if self._wanted_partitions not in {None, partitions}:
            raise ConfigurationError(
                f"the data was created with {partitions} partitions, not {self._wanted_partitions}: "
                f"set IM_PARTITIONS={partitions}, or unset it"
            )
        driver = self.driver  # of a cluster there is one database only
        number = 0 if isinstance(driver, Cluster) else driver.connection_pool.connection_kwargs.get("db")
        return Keyspace(partitions, database=int(number or 0))

    def call(self, call: Call[T], *, repeatable: bool = True) -> T:
        """Make one call and return its answer.

        `repeatable`: a second run does no harm if the first answer got lost. After a lost connection the call is then
        repeated a few times, within the time that a call may take. Raise the ImError that the answer means, or
        RedisUnavailable, RedisFull.
        """
        [answer] = self.call_many([call], repeatable=repeatable)
        return answer

    def call_many(self, batch: Sequence[Call[T]], *, repeatable: bool = True) -> list[T]:
        """Make calls in as few round trips as possible and return their answers in order; raise the first error."""
        return [raised(result) for result in self.call_each(batch, repeatable=repeatable)]

    def call_each(
        self, batch: Sequence[Call[T]], *, repeatable: bool = True, others_s: float | None = None
    ) -> list[T | ImError]:
        """Make calls in as few round trips as possible; a call that fails has its error in its place.

        `others_s`: how long to wait for the other nodes of a cluster once one has answered; None: as long as a call may
        take. What a silent one was asked has RedisUnavailable in its place.
        """
        return perform(self.each(batch, repeatable=repeatable, others_s=others_s), perform_step)

    def each(
        self, batch: Sequence[Call[T]], *, repeatable: bool = True, others_s: float | None = None
    ) -> Steps[list[T | ImError]]:
        """Return the steps of `call_each`."""
        if not self.is_prepared_for(batch):
            yield Run(partial(self.prepare, batch))
        results: list[T | ImError] = []
        for part in batches(batch, CHUNK):
            try:
                commands = list(map(command_of, part))
                answers = yield from self._exchange(commands, self._writes(part), repeatable, others_s)
            except DRIVER_ERRORS as error:
                raise translated(error, self.address) from error
            failed = [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]
            if failed:
                yield from self._handle(failed, part, answers, repeatable)
            results += [result_of(call, answer, self.address) for call, answer in zip(part, answers, strict=True)]
        return results

    def _handle(
        self, failed: Sequence[int], part: Sequence[Call[Any]], answers: list[Any], repeatable: bool
    ) -> Steps[None]:
        """Make calls again where functions are missing; put an ImError in the place of each error that is left."""
        missing = [number for number in failed if is_missing(answers[number])]
        if missing:  # on one node of a cluster, or until another process loaded them: the other calls are done
            yield Run(partial(self._load_again, part))
            commands = [command_of(part[number]) for number in missing]
            with driver_errors(self.address):
                again = yield from self._exchange(commands, self._writes(part), repeatable)
            for number, answer in zip(missing, again, strict=True):
                answers[number] = answer
        yield Run(partial(self._translate, answers, [call.gid for call in part]))

    def _exchange(
        self, commands: Sequence[Command], writes: bool | None, repeatable: bool, others_s: float | None = None
    ) -> Steps[list[Any]]:
        """Return the steps of a round trip. `writes`: whether any of these do; None: no function is needed."""
        driver = self.driver
        if not isinstance(driver, Cluster):
            return exchange(driver, commands, repeatable=repeatable, limits=self._limits)
        limits = self._limits if others_s is None else self._limits._replace(others_s=others_s)
        prepare = None if writes is None else partial(self._library.prepare, writes)
        return exchange_with_cluster(driver, commands, repeatable=repeatable, limits=limits, prepare=prepare)

    def start(self, batch: Sequence[Call[T]]) -> Answers[T]:
        """Send repeatable calls and return a function that waits for the answers that `call_each` returns.

        Call that function exactly once, for it holds a connection. On a cluster the calls are made at once. Raise
        RedisUnavailable if they could not be sent; errors in answers are not raised.
        """
        if not self.is_prepared_for(batch):
            self.prepare(batch)
        if self.is_cluster or not 0 < len(batch) <= CHUNK:
            answers = self.call_each(batch)
            return lambda: answers
        with driver_errors(self.address):
            in_flight = InFlight(self.driver, list(map(command_of, batch)))
        return lambda: self._finish(batch, in_flight)

    def _finish(self, batch: Sequence[Call[T]], in_flight: InFlight) -> list[T | ImError]:
        answers: list[Any]
        try:
            answers = in_flight.answers()
        except (RedisError, OSError) as error:
            answers = [error] * len(batch)
        return perform(self.finish(batch, answers), perform_step)

    def finish(self, batch: Sequence[Call[T]], answers: list[Any]) -> Steps[list[T | ImError]]:
        """Return the steps from the answers of calls that were started to their results."""
        failed = [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]
        if failed:
            yield from self._handle(failed, batch, answers, repeatable=True)
        return [result_of(call, answer, self.address) for call, answer in zip(batch, answers, strict=True)]

    def query(self, *command: str | int) -> Any:
        """Return the answer of a plain command that only reads, as the driver decodes it."""
        if not self._has_functions:
            self.require_functions(writes=False)
        with driver_errors(self.address):
            return self._attempt(lambda: self._execute_command(*command), repeatable=True)

    def query_many(self, commands: Sequence[Query], *, any_library: bool = False) -> list[Any]:
        """Return the raw answers of plain commands that only read, made in one round trip; raise the first error.

        With `any_library` they are made whatever functions are loaded.
        """
        return [raised(answer) for answer in self.query_each(commands, any_library=any_library)]

    def query_each(
        self, commands: Sequence[Query], *, any_library: bool = False, others_s: float | None = None
    ) -> list[Any]:
        """Do as `query_many` does; a command that fails has its ImError in its place. `others_s`: see `call_each`."""
        return perform(self.queries(commands, any_library=any_library, others_s=others_s), perform_step)

    def queries(
        self, commands: Sequence[Query], *, any_library: bool = False, others_s: float | None = None
    ) -> Steps[list[Any]]:
        """Return the steps of `query_each`."""
        if not commands:
            return []
        if not any_library and not self._has_functions:
            yield Run(partial(self.require_functions, writes=False))
        with driver_errors(self.address):
            answers = yield from self._exchange(commands, None if any_library else False, True, others_s)
        if any(isinstance(answer, Exception) for answer in answers):
            yield Run(partial(self._translate, answers, [""] * len(answers)))
        return answers

    def execute_once(self, *command: str | bytes | int) -> Any:
        """Run a plain command that must not run twice unseen: after RedisUnavailable it is unknown whether it ran."""
        with driver_errors(self.address):
            try:
                return self._execute_command(*command)
            except LOST:
                if isinstance(self.driver, Cluster):
                    self.driver.refresh()
                raise

    def time_ms(self, key: str) -> int:
        """Return the clock of the server that has a key, in ms since 1970."""

        with driver_errors(self.address):
            seconds, micros = self._attempt(lambda: server_of(self.driver, key).time(), repeatable=True)
        return seconds * 1000 + micros // 1000

    def _attempt(self, attempt: Callable[[], T], repeatable: bool) -> T:
        steps = repeated(self.driver, partial(run, attempt), repeatable=repeatable, limits=self._limits)
        return perform(steps, perform_step)

    def _translate(self, answers: list[Any], gids: Sequence[str]) -> None:
        """Put ImErrors in the places of the driver's errors. This may ask the server what it is."""
        for number, (answer, gid) in enumerate(zip(answers, gids, strict=True)):
            if isinstance(answer, Exception) and not isinstance(answer, ImError):
                answers[number] = self._error(answer, gid)

    def _error(self, answer: Exception, gid: str) -> ImError:
        if isinstance(answer, ReadOnlyError):
            self._drop_connections()
        with driver_errors(self.address):
            error = self._library.stranger(answer) or translated(answer, self.address, gid)
        error.__cause__ = answer
        return error

    def _drop_connections(self) -> None:
        """Disconnect from a former primary: its host name may lead to the new one by now."""
        self.departures += 1
        if not isinstance(self.driver, Cluster):
            self.driver.connection_pool.disconnect(inuse_connections=False)

    def is_prepared_for(self, batch: Sequence[Call[Any]]) -> bool:
        return self._has_functions and (self._fixed or not any(call.writes for call in batch))

    def prepare(self, batch: Sequence[Call[Any]]) -> None:
        """Require the functions and, before the first write, fix the partition count: two writers might differ."""
        writes = self._writes(batch)
        self.require_functions(writes=writes)
        if self._fixed or not writes:
            return
        partitions = self.space.partitions
        if not self._fixed:
            self._fixed = True
            stored = configuration.fix(self, partitions)
            if stored != partitions:
                self._fixed = False
                del self.space
                raise ConfigurationError(f"the data has just been created with {stored} partitions: try again")

    def _load_again(self, batch: Sequence[Call[Any]]) -> None:
        self._has_functions = False
        if isinstance(self.driver, Cluster):
            self.driver.prepared.clear()
        self.require_functions(writes=self._writes(batch))

    @staticmethod
    def _writes(batch: Sequence[Call[Any]]) -> bool:
        return any(call.writes for call in batch)
