"""Effects: requests that code without I/O yields, and a driver performs. No I/O.

An operation is a generator: it yields effects, is sent their answers, and returns its result. A driver performs them as
it likes: one after the other, or awaiting (`imcore.util.steps`). An effect that fails raises its ImError at the
`yield`. The model is psycopg's `generators.py`.

An effect in a `yield from` has the type of its answer:

    answers = yield from RedisCalls(calls)    # list[T | ImError] for a Sequence[Call[T]]
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from imcore.errors import ImError, RedisRefuses, RedisUnavailable, raise_what_stops_all
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace

if TYPE_CHECKING:
    from imcore.sql.database import Database

T = TypeVar("T")


class Effect(Generic[T]):
    """A request whose answer is a T."""

    __slots__ = ()

    def __iter__(self) -> "Generator[Effect[Any], Any, T]":
        answer: T = yield self
        return answer


Effects = Generator[Effect[Any], Any, T]
"""An operation that yields effects and returns a T."""

Answers = Callable[[], list[T | ImError]]
"""Waits for the answers of calls that were started; a call that failed has its error in its place."""


@dataclass(frozen=True, slots=True)
class GetKeyspace(Effect[Keyspace]):
    """Get the names of the data in Redis."""


@dataclass(frozen=True, slots=True)
class RedisCalls(Effect[list[T | ImError]]):
    """Call Redis functions; a failed call has its error in its place. `repeatable`: a second run does no harm.

    `waits_for_all`: also for nodes of a cluster that are silent while others answer, as long as a call may take.
    """

    calls: Sequence[Call[T]]
    repeatable: bool = True
    waits_for_all: bool = True


@dataclass(frozen=True, slots=True)
class StartCalls(Effect[Answers[T]]):
    """Send repeatable calls without waiting for their answers. Answered by what FinishCalls takes, once and soon."""

    calls: Sequence[Call[T]]


@dataclass(frozen=True, slots=True)
class FinishCalls(Effect[list[T | ImError]]):
    """Wait for the answers of calls that were started."""

    started: Answers[T]


@dataclass(frozen=True, slots=True)
class Warn(Effect[None]):
    """Log a warning about an error, unless one of its kind was logged within the last minute."""

    error: ImError
    text: str


class SqlQuery(Effect[T], ABC):
    """A query of the database: a frozen dataclass of its parameters, so that tests can compare queries."""

    __slots__ = ()

    needs_data: ClassVar[bool] = True
    """Whether the database must have the data that Redis has."""

    @abstractmethod
    def run(self, database: "Database") -> T: ...


@dataclass(frozen=True, slots=True)
class Sleep(Effect[None]):
    seconds: float


Pages = Generator[Effect[Any] | list[T], Any, None]
"""An operation that yields its results in lists, between its effects."""


@dataclass(frozen=True, slots=True)
class OpenSubscription(Effect[None]):
    """Open new connections that listen to no channel yet; close those that were open."""


@dataclass(frozen=True, slots=True)
class ChangeChannels(Effect[None]):
    """Unsubscribe from channels, then subscribe to others, in this order."""

    drop: Sequence[str]
    add: Sequence[str]


@dataclass(frozen=True, slots=True)
class PingSubscription(Effect[None]):
    """Send a PING on each connection that listens. The subscription hears a PONG once all have answered."""


def call_each(
    calls: Sequence[Call[T]], *, repeatable: bool = True, waits_for_all: bool = True
) -> Effects[list[T | ImError]]:
    """Call Redis; a call that failed has its error in its place. See RedisCalls."""
    if not calls:
        return []
    return (yield from RedisCalls(calls, repeatable, waits_for_all))


def answered(calls: Sequence[Call[T]]) -> Effects[list[T | None]]:
    """Call Redis; what a silent node of a cluster was asked has None in its place, unless all are silent."""
    answers = yield from call_each(calls, waits_for_all=False)
    if all(isinstance(answer, RedisUnavailable | RedisRefuses) for answer in answers):
        return [raised(answer) for answer in answers]
    return [None if isinstance(answer, RedisUnavailable | RedisRefuses) else raised(answer) for answer in answers]


def call_apart(calls: Sequence[Call[T]]) -> Effects[list[T | ImError]]:
    """Call Redis; a call that failed has its error in its place. Raise an error that concerns all calls."""
    answers = yield from call_each(calls)
    raise_what_stops_all(answers)
    return answers


def call_many(calls: Sequence[Call[T]], *, repeatable: bool = True) -> Effects[list[T]]:
    answers = yield from call_each(calls, repeatable=repeatable)
    return [raised(answer) for answer in answers]


def call(one: Call[T], *, repeatable: bool = True) -> Effects[T]:
    [answer] = yield from RedisCalls([one], repeatable)
    return raised(answer)


def raised(answer: T | ImError) -> T:
    if isinstance(answer, ImError):
        raise answer
    return answer
