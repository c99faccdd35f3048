"""Carries commands to a server, or to the nodes of a cluster: many of them at once, each exactly once.

The driver's own pipelines take three times as long for each command, and over a cluster they send again by themselves
what got no answer, which may have happened.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from hiredis import pack_command
from redis.cluster import RedisCluster
from redis.exceptions import (
    AskError,
    MovedError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)

from imcore.streams.redis_errors import LOST

Command = tuple[Any, ...]

PIECE = 50
"""How many commands are sent at once: the server is at work on them while the next ones are packed."""

_NOT_TAKEN = (AskError, TryAgainError)
"""Answers of a node that has not the keys of a command (a MovedError is an AskError), and did nothing."""
_KEY_AT = {"FCALL": 3, "FCALL_RO": 3, "MEMORY": 2}
"""Where the first key of a command stands; of others it follows the name."""
_FEW_HOPS = 4
_MOST_WAITS = 16
_WAIT_S = 0.05


class InFlight:
    """Commands that are sent, over a connection of their own, and whose answers have not been read yet.

    Read them, or drop them: until then nobody else gets the connection.
    """

    def __init__(self, client: Any, commands: Sequence[Command]) -> None:
        """Send the commands. Raise what the driver raises: then nothing is under way."""
        self._count = len(commands)
        self._pool = client.connection_pool
        self._connection = self._pool.get_connection()
        try:
            for start in range(0, len(commands), PIECE):
                packed = b"".join(map(pack_command, commands[start : start + PIECE]))
                # No PING among them: its answer would come after theirs.
                self._connection.send_packed_command([packed], check_health=start == 0)
        except BaseException:
            self.drop()
            raise

    def answers(self) -> list[Any]:
        """Return the answers, each error of the server in its place; raise if the connection is lost."""
        try:
            found = [_answer(self._connection) for _ in range(self._count)]
        except BaseException:  # Ctrl-C: answers that are still to come would be taken for those of the next commands
            self.drop()
            raise
        self._release()
        return found

    def drop(self) -> None:
        """Give up on the answers."""
        if self._connection is not None:
            self._connection.disconnect()
            self._release()

    def _release(self) -> None:
        self._pool.release(self._connection)
        self._connection = None


def call_cluster(client: RedisCluster, commands: Sequence[Command]) -> list[Any]:
    """Carry commands to the nodes that have their keys; return the answers, each error in its place.

    What a node has not taken, since its keys are elsewhere by now, goes there; where the nodes need time for that, all
    commands together wait a moment at most, and those that are not taken then have a TryAgainError. What got no answer
    is not sent again; the client then asks anew where which keys are.
    """
    answers = _at_their_nodes(client, commands)
    waits = _MOST_WAITS
    for number, command in enumerate(commands):
        hops = 0
        while isinstance(answers[number], _NOT_TAKEN):
            if isinstance(answers[number], TryAgainError) or hops >= _FEW_HOPS:  # each of two nodes names the other
                if not waits:
                    break
                waits -= 1
                time.sleep(_WAIT_S)
            answers[number] = _elsewhere(client, command, answers[number])
            hops += 1
        if isinstance(answers[number], AskError):
            answers[number] = TryAgainError(str(answers[number]))
    if any(isinstance(answer, LOST) for answer in answers):
        refresh_slots(client)
    return answers


def refresh_slots(client: RedisCluster) -> None:
    """Ask the cluster which node has what, if any of them answers. Else the driver may go on asking a dead one."""
    with suppress(*LOST, RedisError, RedisClusterException):
        client.nodes_manager.initialize()


def _at_their_nodes(client: RedisCluster, commands: Sequence[Command]) -> list[Any]:
    """Send to all nodes what is for them, then read the answers."""
    answers: list[Any] = [None] * len(commands)
    with ExitStack() as stack:
        flights = []
        for node, numbers in _by_node(client, commands, answers):
            try:
                flight = InFlight(client.get_redis_connection(node), [commands[number] for number in numbers])
            except LOST as error:
                _put(answers, numbers, [error] * len(numbers))
            else:
                stack.callback(flight.drop)
                flights.append((flight, numbers))
        for flight, numbers in flights:
            try:
                _put(answers, numbers, flight.answers())
            except LOST as error:
                _put(answers, numbers, [error] * len(numbers))
    return answers


def _by_node(client: RedisCluster, commands: Sequence[Command], answers: list[Any]) -> Iterable[tuple[Any, list[int]]]:
    """Return each node with the numbers of its commands; where no node is known, the answer is the error."""
    found: dict[str, tuple[Any, list[int]]] = {}
    for number, command in enumerate(commands):
        try:
            node = client.get_node_from_key(_key_of(command))
        except SlotNotCoveredError as error:
            answers[number] = error
        else:
            found.setdefault(node.name, (node, []))[1].append(number)
    return found.values()


def _key_of(command: Command) -> str:
    """Return a key of a command. All of its keys are in one slot."""
    key: str = command[_KEY_AT.get(command[0], 1)]
    return key


def _put(answers: list[Any], numbers: Sequence[int], found: Sequence[Any]) -> None:
    for number, answer in zip(numbers, found, strict=True):
        answers[number] = answer


def _elsewhere(client: RedisCluster, command: Command, refusal: ResponseError) -> Any:
    """Carry a command to where a node's refusal says; return the answer, or the error."""
    commands, node = [command], None
    try:
        if isinstance(refusal, MovedError):
            node = _learn(client, refusal)
        elif isinstance(refusal, AskError):
            commands, node = [("ASKING",), command], client.get_node(refusal.host, refusal.port)
        node = node or client.get_node_from_key(_key_of(command))
        return InFlight(client.get_redis_connection(node), commands).answers()[-1]
    except (*LOST, RedisClusterException) as error:
        return error


def _learn(client: RedisCluster, moved: MovedError) -> Any:
    """Take in that a slot has moved; return the node that has it, None if that is none we know."""
    slots = client.nodes_manager.slots_cache
    node = client.get_node(moved.host, moved.port)
    if node is None or node not in slots.get(moved.slot_id, ()):
        refresh_slots(client)
        node = client.get_node(moved.host, moved.port)
        if node is not None:
            slots[moved.slot_id] = [node]  # whom we asked may not have heard of it
    return node


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
