"""Round trips to Redis, as steps: what is sent where, what is repeated, where a redirection leads. No I/O.

A client performs the steps: `RedisClient` one after the other, `AsyncRedisClient` awaiting. So both decide alike.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from redis import Redis
from redis import exceptions as driver
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster

from imcore.streams.redis_errors import LOST

T = TypeVar("T")
Client = Redis | RedisCluster
Command = tuple[Any, ...]
Answered = list[Any] | Exception
"""The answers of commands, each error of the server in its place; or the error of a lost connection."""

PATIENCE_S = 15.0
"""A call is not repeated later: a silent server would cost the full timeout each time."""

_MOST_REPEATS = 3
_BACKOFF = ExponentialBackoff(cap=0.5, base=0.02)

_REDIRECTED = (driver.AskError, driver.TryAgainError)
"""Answers of a node that does not have the keys of a command (a MovedError is an AskError), and did nothing."""
_KEY_AT = {"FCALL": 3, "FCALL_RO": 3, "MEMORY": 2, "XINFO": 2, "XREADGROUP": 9}
"""The index of the first key of a command, if it does not follow the name."""
_FEW_HOPS = 4
_MOST_WAITS = 16
_WAIT_S = 0.05


class Send(NamedTuple):
    """Send commands to all servers before any answer is read. The answer has an `Answered` for each server.

    An error that is none of LOST is raised.
    """

    flights: Sequence[tuple[Redis, Sequence[Command]]]


class Pause(NamedTuple):
    seconds: float


class Run(NamedTuple):
    """Run a function that may wait for the driver. Answered by its result."""

    function: Callable[[], Any]


Steps = Generator[Send | Pause | Run, Any, T]
"""Round trips that return a T. An error of a step is raised at its `yield`."""


def refresh_slots(client: Client) -> None:
    """Ask a cluster which node has which slots, if any node answers. Else the driver may go on asking a dead one."""
    if isinstance(client, RedisCluster):
        with suppress(*LOST, driver.RedisError, driver.RedisClusterException):
            client.nodes_manager.initialize()


def run(function: Callable[[], T]) -> Steps[T]:
    result: T = yield Run(function)
    return result


def repeated(client: Client, attempt: Callable[[], Steps[T]], *, repeatable: bool) -> Steps[T]:
    """Repeat a `repeatable` attempt a few times after a lost connection, each time later, within PATIENCE_S."""
    begun, failures = time.monotonic(), 0
    while True:
        try:
            return (yield from attempt())
        except LOST as error:
            if repeatable and isinstance(client, RedisCluster):
                yield Run(partial(refresh_slots, client))
            failures += 1
            pause = _pause(error, failures, begun, repeatable)
        yield pause


def _pause(lost: Exception, failures: int, begun: float, repeatable: bool) -> Pause:
    """Return how long to wait before the next attempt. Raise the error of the last one if that was enough."""
    if not repeatable or failures > _MOST_REPEATS or time.monotonic() > begun + PATIENCE_S:
        raise lost
    return Pause(_BACKOFF.compute(failures))


def exchange(client: Client, commands: Sequence[Command], *, repeatable: bool) -> Steps[list[Any]]:
    """Send commands; return the answers, each error of a server in its place. Raise the error of a lost connection.

    On a cluster, where some nodes may have answered, that error is in its place, too.
    """
    if isinstance(client, RedisCluster):
        return (yield from _exchange_with_cluster(client, commands, repeatable))
    # Written out, and not by `repeated`: the most frequent steps by far.
    begun, failures = time.monotonic(), 0
    while True:
        [answered] = yield Send(((client, commands),))
        if not isinstance(answered, Exception):
            answers: list[Any] = answered
            return answers
        failures += 1
        yield _pause(answered, failures, begun, repeatable)


def _exchange_with_cluster(client: RedisCluster, commands: Sequence[Command], repeatable: bool) -> Steps[list[Any]]:
    answers: list[Any] = [None] * len(commands)
    left = list(range(len(commands)))

    def attempt() -> Steps[None]:
        again = yield from call_cluster(client, [commands[number] for number in left])
        for number, answer in zip(left, again, strict=True):
            answers[number] = answer
        left[:] = [number for number in left if isinstance(answers[number], LOST)]
        if left:
            raise answers[left[0]]

    with suppress(*LOST):
        yield from repeated(client, attempt, repeatable=repeatable)
    return answers


def call_cluster(client: RedisCluster, commands: Sequence[Command]) -> Steps[list[Any]]:
    """Send commands to the nodes that have their keys; return the answers, each error in its place.

    A command whose keys have moved is sent to their new node. While nodes are moving keys, all commands together wait a
    limited time; those that are still redirected then have a TryAgainError. A command without an answer is not
    repeated; the client then refreshes its slots.
    """
    answers = yield from _at_their_nodes(client, commands)
    waits = _MOST_WAITS
    for number, command in enumerate(commands):
        hops = 0
        while isinstance(answers[number], _REDIRECTED):
            if isinstance(answers[number], driver.TryAgainError) or hops >= _FEW_HOPS:  # two nodes may name each other
                if not waits:
                    break
                waits -= 1
                yield Pause(_WAIT_S)
            answers[number] = yield from _redirect(client, command, answers[number])
            hops += 1
        if isinstance(answers[number], driver.AskError):
            answers[number] = driver.TryAgainError(str(answers[number]))
    if any(isinstance(answer, LOST) for answer in answers):
        yield Run(partial(refresh_slots, client))
    return answers


def _at_their_nodes(client: RedisCluster, commands: Sequence[Command]) -> Steps[list[Any]]:
    """Send to all nodes first, then read the answers."""
    answers: list[Any] = [None] * len(commands)
    flights: list[tuple[Redis, Sequence[Command]]] = []
    numbers_of: list[list[int]] = []
    for node, numbers in _by_node(client, commands, answers):
        with _errors_put(answers, numbers):
            flights.append((client.get_redis_connection(node), [commands[number] for number in numbers]))
            numbers_of.append(numbers)
    for numbers, answered in zip(numbers_of, (yield Send(flights)), strict=True):
        each = [answered] * len(numbers) if isinstance(answered, Exception) else answered
        for number, answer in zip(numbers, each, strict=True):
            answers[number] = answer
    return answers


@contextmanager
def _errors_put(answers: list[Any], numbers: Sequence[int]) -> Iterator[None]:
    """Put the error of a lost connection in the place of all its answers."""
    try:
        yield
    except LOST as error:
        for number in numbers:
            answers[number] = error


def _by_node(client: RedisCluster, commands: Sequence[Command], answers: list[Any]) -> Iterable[tuple[Any, list[int]]]:
    """Return each node with the numbers of its commands; without a node the answer is the error."""
    nodes: dict[str, tuple[Any, list[int]]] = {}
    for number, command in enumerate(commands):
        try:
            node = client.get_node_from_key(_key_of(command))
        except driver.SlotNotCoveredError as error:
            answers[number] = error
        else:
            nodes.setdefault(node.name, (node, []))[1].append(number)
    return nodes.values()


def _key_of(command: Command) -> Any:
    """Return a key of a command. All of its keys are in one slot."""
    return command[_KEY_AT.get(command[0], 1)]


def _redirect(client: RedisCluster, command: Command, redirection: driver.ResponseError) -> Steps[Any]:
    """Send a command to the node that a redirection names; return the answer, or the error."""
    commands, node = [command], None
    try:
        if isinstance(redirection, driver.MovedError):
            node = yield from _node_of_moved(client, redirection)
        elif isinstance(redirection, driver.AskError):
            commands, node = [("ASKING",), command], client.get_node(redirection.host, redirection.port)
        node = node or client.get_node_from_key(_key_of(command))
        return (yield from exchange(client.get_redis_connection(node), commands, repeatable=False))[-1]
    except (*LOST, driver.RedisClusterException) as error:
        return error


def _node_of_moved(client: RedisCluster, moved: driver.MovedError) -> Steps[Any]:
    """Update the slots after a slot has moved; return its node, None if it is unknown."""
    node = client.get_node(moved.host, moved.port)
    if node is None or node not in client.nodes_manager.slots_cache.get(moved.slot_id, ()):
        yield Run(partial(refresh_slots, client))
        node = client.get_node(moved.host, moved.port)
        if node is not None:
            # The node that was asked for the slots may not know it yet.
            client.nodes_manager.slots_cache[moved.slot_id] = [node]
    return node
