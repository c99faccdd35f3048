"""Sends commands to a server: many of them at once, each exactly once. Performs the steps of `rounds` in turn.

The driver's own pipelines take three times as long per command. On a cluster they also repeat by themselves commands
without an answer, which may have run.
"""

import time
from collections.abc import Sequence
from typing import Any

from redis import exceptions as driver

from imcore.streams.packing import pack
from imcore.streams.redis_errors import LOST
from imcore.streams.rounds import Answered, Command, Pause, Run, Send
from imcore.util.batches import batches

PIECE = 50
"""The commands that are sent at once: the server runs them while the next ones are packed."""


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
                self._connection.send_packed_command([b"".join(map(pack, piece))], check_health=number == 0)
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


def perform_step(step: Send | Pause | Run) -> Any:
    match step:
        case Send(flights):
            return _send(flights)
        case Pause(seconds):
            return time.sleep(seconds)
        case Run(function):
            return function()


def _send(flights: Sequence[tuple[Any, Sequence[Command]]]) -> list[Answered]:
    """Send to all servers first, then read the answers."""
    if len(flights) == 1:
        begun_now = _begun(*flights[0])
        return [begun_now if isinstance(begun_now, Exception) else _answered(begun_now)]
    begun: list[InFlight | Exception] = []
    try:
        for server, commands in flights:
            begun.append(_begun(server, commands))
        return [each if isinstance(each, Exception) else _answered(each) for each in begun]
    except BaseException:
        for each in begun:
            if isinstance(each, InFlight):
                each.drop()
        raise


def _begun(server: Any, commands: Sequence[Command]) -> InFlight | Exception:
    try:
        return InFlight(server, commands)
    except LOST as error:
        return error


def _answered(flight: InFlight) -> Answered:
    try:
        return flight.answers()
    except LOST as error:
        return error


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except driver.ResponseError as error:
        return error
