"""Round trips to the nodes of a cluster, as steps: where a key is, where a redirection leads. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from redis import exceptions as driver

from imcore.errors import ImError
from imcore.streams.cluster import Cluster, key_of
from imcore.streams.redis_errors import LOST, LostNodeError
from imcore.streams.rounds import ANY_TIME, Command, Limits, Pause, Run, Send, Steps, exchange, repeated

_REDIRECTED = (driver.AskError, driver.TryAgainError)
"""Answers of a node that does not have the keys of a command (a MovedError is an AskError), and did nothing."""
_FEW_HOPS = 4
_MOST_WAITS = 16
_WAIT_S = 0.05

VERSION_COMMAND: Command = ("FCALL_RO", "im_version", 0)

Prepare = Callable[[str, redis.Redis, Any], None]
"""Makes sure that a node has the functions; gets its name, its client, and its answer to VERSION_COMMAND. Raises an
ImError."""


def exchange_with_cluster(
    client: Cluster,
    commands: Sequence[Command],
    *,
    repeatable: bool,
    limits: Limits = ANY_TIME,
    prepare: Prepare | None = None,
) -> Steps[list[Any]]:
    """Send commands to the nodes that have their keys; return the answers, each error in its place.

    With `prepare` a node is asked for its functions before the first commands that it gets. What a silent node was
    asked has the error of a lost connection in its place, and so has nothing else.
    """
    answers: list[Any] = [None] * len(commands)
    left = list(range(len(commands)))

    def attempt() -> Steps[None]:
        again = yield from _call(client, [commands[number] for number in left], limits.others_s, prepare)
        for number, answer in zip(left, again, strict=True):
            answers[number] = answer
        left[:] = [number for number in left if isinstance(answers[number], LOST)]
        if left and (limits.others_s is None or len(left) == len(commands)):
            raise answers[left[0]]

    with suppress(*LOST):
        yield from repeated(client, attempt, repeatable=repeatable, limits=limits)
    return answers


def _call(
    client: Cluster, commands: Sequence[Command], others_s: float | None, prepare: Prepare | None
) -> Steps[list[Any]]:
    """Send commands once; follow redirections.

    A command whose keys have moved is sent to their new node. While nodes are moving keys, all commands together wait a
    limited time; those that are still redirected then have a TryAgainError. A command without an answer is not
    repeated; the client then refreshes its slots.
    """
    answers = yield from _at_their_nodes(client, commands, others_s, prepare)
    waits = _MOST_WAITS if others_s is None else int(others_s / _WAIT_S)
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
        yield Run(client.refresh)
    return answers


def _at_their_nodes(
    client: Cluster, commands: Sequence[Command], others_s: float | None, prepare: Prepare | None
) -> Steps[list[Any]]:
    """Send to all nodes first, then read the answers."""
    answers: list[Any] = [None] * len(commands)
    groups = list(_by_node(client, commands, answers))
    if prepare and not client.prepared.issuperset(node.name for node, _ in groups):
        groups = yield from _prepared(client, groups, answers, others_s, prepare)
    flights = [
        (client.get_redis_connection(node), [commands[number] for number in numbers]) for node, numbers in groups
    ]
    for (node, numbers), answered in zip(groups, (yield Send(flights, others_s)), strict=True):
        if isinstance(answered, Exception):
            _put(LostNodeError(node.name, answered), answers, numbers)
        else:
            for number, answer in zip(numbers, answered, strict=True):
                answers[number] = answer
    return answers


def _prepared(
    client: Cluster, groups: list[Any], answers: list[Any], others_s: float | None, prepare: Prepare
) -> Steps[list[Any]]:
    """Prepare the nodes that are not; return the groups of those that are. The others have the error in its place."""
    # All nodes are asked: alone, a silent one would be waited for as if nobody else had answered.
    flights = [(client.get_redis_connection(node), [VERSION_COMMAND]) for node, _ in groups]
    failed = set()
    for (node, numbers), answered in zip(groups, (yield Send(flights, others_s)), strict=True):
        if node.name in client.prepared:
            continue
        try:
            if isinstance(answered, Exception):
                raise LostNodeError(node.name, answered)
            yield Run(partial(prepare, node.name, client.get_redis_connection(node), answered[0]))
        except (*LOST, ImError, driver.RedisError) as error:
            failed.add(node.name)
            _put(error, answers, numbers)
    return [(node, numbers) for node, numbers in groups if node.name not in failed]


def ask_primaries(client: Cluster, command: Command, others_s: float | None) -> Steps[dict[str, Any]]:
    """Send a command to each primary; return the answers by name of the node, each error in its place."""
    nodes = client.get_primaries()
    flights = [(client.get_redis_connection(node), [command]) for node in nodes]
    answered = yield Send(flights, others_s)
    return {
        node.name: LostNodeError(node.name, each) if isinstance(each, Exception) else each[0]
        for node, each in zip(nodes, answered, strict=True)
    }


def _put(error: Exception, answers: list[Any], numbers: Iterable[int]) -> None:
    for number in numbers:
        answers[number] = error


def _by_node(client: Cluster, commands: Sequence[Command], answers: list[Any]) -> Iterable[tuple[Any, list[int]]]:
    """Return each node with the numbers of its commands; without a node the answer is the error."""
    nodes: dict[str, tuple[Any, list[int]]] = {}
    for number, command in enumerate(commands):
        try:
            node = client.get_node_from_key(key_of(command))
        except driver.SlotNotCoveredError as error:
            answers[number] = error
        else:
            nodes.setdefault(node.name, (node, []))[1].append(number)
    return nodes.values()


def _redirect(client: Cluster, command: Command, redirection: driver.ResponseError) -> Steps[Any]:
    """Send a command to the node that a redirection names; return the answer, or the error."""
    commands, node = [command], None
    try:
        if isinstance(redirection, driver.MovedError):
            node = yield from _node_of_moved(client, redirection)
        elif isinstance(redirection, driver.AskError):
            commands, node = [("ASKING",), command], client.get_node(redirection.host, redirection.port)
        node = node or client.get_node_from_key(key_of(command))
        return (yield from exchange(client.get_redis_connection(node), commands, repeatable=False))[-1]
    except (*LOST, driver.RedisClusterException) as error:
        return error


def _node_of_moved(client: Cluster, moved: driver.MovedError) -> Steps[Any]:
    """Update the slots after a slot has moved; return its node, None if it is unknown."""
    node = client.get_node(moved.host, moved.port)
    if node is None or node not in client.nodes_manager.slots_cache.get(moved.slot_id, ()):
        yield Run(client.refresh)
        node = client.get_node(moved.host, moved.port)
        if node is not None:
            # The node that was asked for the slots may not know it yet.
            client.nodes_manager.slots_cache[moved.slot_id] = [node]
    return node
