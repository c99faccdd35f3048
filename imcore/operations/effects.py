"""What the parts that decide ask for, as values; who does the I/O answers them. No I/O.

Such a part is a generator: it yields a question and is sent the answer, or is thrown the ImError that says why there is
none. Whoever drives it may wait for an answer as it likes: `answered` does so in turn, an asyncio front awaits it.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from imcore.errors import ImError
from imcore.streams.calls.call import Call

if TYPE_CHECKING:
    from imcore.sql.database import Database

T = TypeVar("T")


class RedisCalls(NamedTuple):
    """Carry calls of Redis, which may be repeated. The answer is a list, with an error in the place of what failed."""

    calls: Sequence[Call[Any]]


class SqlQuery(NamedTuple):
    """Ask the database something. The answer is what the query returns."""

    query: "Callable[[Database], Any]"


class StartCalls(NamedTuple):
    """Send calls as `Ask` does, without waiting for the answers. The answer is what to Collect, once, and in time."""

    calls: Sequence[Call[Any]]


class FinishCalls(NamedTuple):
    """Wait for the answers of what was posted."""

    posted: Any


class OpenSubscription(NamedTuple):
    """Begin to listen on new connections, to no channel yet; end those there were."""


class ChangeChannels(NamedTuple):
    """Stop to listen to channels, and begin to listen to others, in this order. What comes of it is heard."""

    drop: Sequence[str]
    add: Sequence[str]


class Ping(NamedTuple):
    """Send a PING on each connection that listens. Once all have answered, that is heard."""


Effect = RedisCalls | SqlQuery | StartCalls | FinishCalls | OpenSubscription | ChangeChannels | Ping
Effects = Generator[Effect, Any, T]
"""A part that decides, and in the end returns a T."""


def call_each(calls: Sequence[Call[T]]) -> Effects[list[T | ImError]]:
    """Ask Redis; a call that failed has its error in its place."""
    if not calls:
        return []
    answers: list[T | ImError] = yield RedisCalls(calls)
    return answers


def call_many(calls: Sequence[Call[T]]) -> Effects[list[T]]:
    """Ask Redis; raise the first error of all calls."""
    answers = yield from call_each(calls)
    for answer in answers:
        if isinstance(answer, ImError):
            raise answer
    return cast(list[T], answers)


def query_sql(query: "Callable[[Database], T]") -> Effects[T]:
    """Ask the database."""
    answer: T = yield SqlQuery(query)
    return answer


def perform(asking: Effects[T], answer: Callable[[Effect], Any]) -> T:
    """Answer one question after the other; return what comes of it."""
    try:
        question = next(asking)
        while True:
            try:
                found = answer(question)
            except BaseException as error:  # what decides puts itself in order, also after Ctrl-C
                question = asking.throw(error)
            else:
                question = asking.send(found)
    except StopIteration as end:
        return cast(T, end.value)
