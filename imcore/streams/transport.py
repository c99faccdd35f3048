"""Sends commands to a server, or to the nodes of a cluster: many of them at once, each exactly once.

The driver's own pipelines take three times as long per command. On a cluster they also repeat by themselves commands
without an answer, which may have run.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from hiredis import pack_command
from redis import Redis
from redis import exceptions as driver
from redis.cluster import RedisCluster

from imcore.streams.redis_errors import LOST
from imcore.util.batches import batches

Command = tuple[Any, ...]

PIECE = 50
"""The commands that are sent at once: the server runs them while the next ones are packed."""

_REDIRECTED = (driver.AskError, driver.TryAgainError)
"""Answers of a node that does not have the keys of a command (a MovedError is an AskError), and did nothing."""
_KEY_AT = {"FCALL": 3, "FCALL_RO": 3, "MEMORY": 2, "XINFO": 2}
"""The index of the first key of a command, if it does not follow the name."""
_FEW_HOPS = 4
_MOST_WAITS = 16
_WAIT_S = 0.05


class InFlight:
    """Commands that were sent over a connection of their own, and whose answers have not been read yet.

    Read or drop the answers: until then nobody else gets the connection.
    """

    def __init__(self, client: Any, commands: Sequence[Command]) -> None:
        """Send the commands. Raise what the driver raises: then nothing is in flight."""
        self._count = len(commands)
        self._pool = client.connection_pool
        self._connection = self._pool.get_connection()
        try:
            for number, piece in enumerate(batches(commands, PIECE)):
                # No PING among them: its answer would come after theirs.
                self._connection.send_packed_command([b"".join(map(pack_command, piece))], check_health=number == 0)
        except BaseException:
            self.drop()
            raise

    def answers(self) -> list[Any]:
        """Return the answers, each error of the server in its place; raise if the connection is lost."""
        try:
            answers = [_answer(self._connection) for _ in range(self._count)]
        except BaseException:  # Ctrl-C: unread answers would be taken for those of the next commands
            self.drop()
            raise
        self._release()
        return answers

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._release()

    def _release(self) -> None:
        self._pool.release(self._connection)
        self._connection = None


def call_cluster(client: RedisCluster, commands: Sequence[Command]) -> list[Any]:
    """Send commands to the nodes that have their keys; return the answers, each error in its place.

    A command whose keys have moved is sent to their new node. While nodes are moving keys, all commands together wait a
    limited time; those that are still redirected then have a TryAgainError. A command without an answer is not
    repeated; the client then refreshes its slots.
    """
    answers = _at_their_nodes(client, commands)
    waits = _MOST_WAITS
    for number, command in enumerate(commands):
        hops = 0
        while isinstance(answers[number], _REDIRECTED):
            if isinstance(answers[number], driver.TryAgainError) or hops >= _FEW_HOPS:  # two nodes may name each other
                if not waits:
                    break
                waits -= 1
                time.sleep(_WAIT_S)
            answers[number] = _redirect(client, command, answers[number])
            hops += 1
        if isinstance(answers[number], driver.AskError):
            answers[number] = driver.TryAgainError(str(answers[number]))
    if any(isinstance(answer, LOST) for answer in answers):
        refresh_slots(client)
    return answers


def refresh_slots(client: Redis | RedisCluster) -> None:
    """Ask a cluster which node has which slots, if any node answers. Else the driver may go on asking a dead one."""
    if isinstance(client, RedisCluster):
        with suppress(*LOST, driver.RedisError, driver.RedisClusterException):
            client.nodes_manager.initialize()


def _at_their_nodes(client: RedisCluster, commands: Sequence[Command]) -> list[Any]:
    """Send to all nodes first, then read the answers."""
    answers: list[Any] = [None] * len(commands)
    with ExitStack() as stack:
        flights = []
        for node, numbers in _by_node(client, commands, answers):
            with _errors_put(answers, numbers):
                flight = InFlight(client.get_redis_connection(node), [commands[number] for number in numbers])
                stack.callback(flight.drop)
                flights.append((flight, numbers))
        for flight, numbers in flights:
            with _errors_put(answers, numbers):
                for number, answer in zip(numbers, flight.answers(), strict=True):
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


def _redirect(client: RedisCluster, command: Command, redirection: driver.ResponseError) -> Any:
    """Send a command to the node that a redirection names; return the answer, or the error."""
    commands, node = [command], None
    try:
        if isinstance(redirection, driver.MovedError):
            node = _node_of_moved(client, redirection)
        elif isinstance(redirection, driver.AskError):
            commands, node = [("ASKING",), command], client.get_node(redirection.host, redirection.port)
        node = node or client.get_node_from_key(_key_of(command))
        return InFlight(client.get_redis_connection(node), commands).answers()[-1]
    except (*LOST, driver.RedisClusterException) as error:
        return error


def _node_of_moved(client: RedisCluster, moved: driver.MovedError) -> Any:
    """Update the slots after a slot has moved; return its node, None if it is unknown."""
    slots = client.nodes_manager.slots_cache
    node = client.get_node(moved.host, moved.port)
    if node is None or node not in slots.get(moved.slot_id, ()):
        refresh_slots(client)
        node = client.get_node(moved.host, moved.port)
        if node is not None:
            slots[moved.slot_id] = [node]  # the node that was asked for the slots may not know it yet
    return node


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except driver.ResponseError as error:
        return error
