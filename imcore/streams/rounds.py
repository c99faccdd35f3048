"""Round trips to Redis, as steps: what is sent where, what is repeated, where a redirection leads. No I/O.

A client performs the steps: `RedisClient` one after the other, `AsyncRedisClient` awaiting. So both decide alike.
"""

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from redis import Redis
from redis.backoff import ExponentialBackoff

from imcore.streams.cluster import Cluster
from imcore.streams.redis_errors import LOST, with_node

T = TypeVar("T")
Client = Redis | Cluster
Command = tuple[Any, ...]
Answered = list[Any] | Exception
"""The answers of commands, each error of the server in its place; or the error of a lost connection."""

CALL_TIMEOUT_S = 10.0
"""How long a call may take, unless the settings say so (IM_CALL_TIMEOUT_MS): it is not repeated later."""

OTHERS_S = 0.2
"""How long to wait for silent nodes of a cluster where the answers of the others are worth something."""

_MOST_REPEATS = 3
_BACKOFF = ExponentialBackoff(cap=0.5, base=0.02)


class Limits(NamedTuple):
    """How long a call may take, in seconds."""

    call_s: float = CALL_TIMEOUT_S
    """It ends later by the answer of one attempt at most."""
    others_s: float | None = None
    """Once one server has answered, the others are waited for so much longer; those that are silent then have the
    error of a lost connection, and the call is not repeated. None: as long as it takes."""


ANY_TIME = Limits()


class Send(NamedTuple):
    """Send commands to all servers, and wait for their answers. The answer has an `Answered` for each server.

    An error that is none of LOST is raised.
    """

    flights: Sequence[tuple[Redis, Sequence[Command]]]
    others_s: float | None = None
    """See `Limits`."""


class Pause(NamedTuple):
    seconds: float


class Run(NamedTuple):
    """Run a function that may wait for the driver. Answered by its result."""

    function: Callable[[], Any]


Steps = Generator[Send | Pause | Run, Any, T]
"""Round trips that return a T. An error of a step is raised at its `yield`."""


def run(function: Callable[[], T]) -> Steps[T]:
    result: T = yield Run(function)
    return result


def repeated(
    client: Client, attempt: Callable[[], Steps[T]], *, repeatable: bool, limits: Limits = ANY_TIME
) -> Steps[T]:
    """Repeat a `repeatable` attempt a few times after a lost connection, each time later, while the call may take."""
    begun, failures = time.monotonic(), 0
    while True:
        try:
            return (yield from attempt())
        except LOST as error:
            if repeatable and isinstance(client, Cluster):
                yield Run(client.refresh)
            failures += 1
            pause = _pause(error, failures, begun + limits.call_s, repeatable)
        yield pause


def _pause(lost: Exception, failures: int, until: float, repeatable: bool) -> Pause:
    """Return how long to wait before the next attempt. Raise the error of the last one if that was enough."""
    if not repeatable or failures > _MOST_REPEATS or time.monotonic() >= until:
        raise lost
    return Pause(_BACKOFF.compute(failures))


def exchange(
    server: Redis, commands: Sequence[Command], *, repeatable: bool, limits: Limits = ANY_TIME
) -> Steps[list[Any]]:
    """Send commands to one server; return the answers, each error of the server in its place.

    Raise the error of a lost connection.
    """
    # Written out, and not by `repeated`: the most frequent steps by far.
    begun, failures = time.monotonic(), 0
    while True:
        [answered] = yield Send(((server, commands),))
        if not isinstance(answered, Exception):
            answers: list[Any] = answered
            return answers
        failures += 1
        yield _pause(with_node(server, answered), failures, begun + limits.call_s, repeatable)
