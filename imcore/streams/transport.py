"""Sends commands to a server: many of them at once, each exactly once. Performs the steps of `rounds` in turn.

The driver's own pipelines take three times as long per command. On a cluster they also repeat by themselves commands
without an answer, which may have run.
"""

import select
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

from redis import exceptions as driver

from imcore.streams.connections import begun_within
from imcore.streams.packing import pack
from imcore.streams.redis_errors import LOST
from imcore.streams.rounds import Answered, Command, Pause, Run, Send
from imcore.util.batches import batches

PIECE = 50
"""The commands that are sent at once: the server runs them while the next ones are packed."""


_LOOK_S = 0.001


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

    @property
    def socket(self) -> Any:
        """Readable when answers have come."""
        return self._connection._sock

    def answers(self, until: float | None = None) -> list[Any]:
        """Return the answers, each error of the server in its place; raise if the connection is lost.

        `until`: when it is lost if no answer has come (monotonic clock). None: after the timeout of the connection.
        """
        try:
            if until is None:
                answers = [_answer(self._connection) for _ in range(self._count)]
            else:
                answers = [_answer_by(self._connection, until) for _ in range(self._count)]
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
        case Send(flights, others_s):
            return _send(flights, others_s)
        case Pause(seconds):
            return time.sleep(seconds)
        case Run(function):
            return function()


def _send(flights: Sequence[tuple[Any, Sequence[Command]]], others_s: float | None) -> list[Answered]:
    """Send to all servers first, then read the answers."""
    if len(flights) == 1:
        begun_now = _begun(*flights[0])
        return [begun_now if isinstance(begun_now, Exception) else _answered(begun_now)]
    with ExitStack() as stack:
        begun = []
        for server, commands in flights:
            begun.append(_begun(server, commands, others_s))
            stack.callback(_drop, begun[-1])
        until = None if others_s is None else _wait_for_one(begun) + others_s
        answered = [each if isinstance(each, Exception) else _answered(each, until) for each in begun]
        stack.pop_all()
    return answered


def _drop(begun: InFlight | Exception) -> None:
    if isinstance(begun, InFlight):
        begun.drop()


def _wait_for_one(begun: Sequence[InFlight | Exception]) -> float:
    """Wait until one flight has an answer, for as long as all connections may; return the time (monotonic clock)."""
    sockets = [each.socket for each in begun if isinstance(each, InFlight)]
    timeouts = [each.gettimeout() for each in sockets]
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    if sockets:
        poll.poll(None if None in timeouts else 1000 * max(timeouts))
    return time.monotonic()


def _begun(server: Any, commands: Sequence[Command], within_s: float | None = None) -> InFlight | Exception:
    try:
        with nullcontext() if within_s is None else begun_within(within_s):
            return InFlight(server, commands)
    except LOST as error:
        return error


def _answered(flight: InFlight, until: float | None = None) -> Answered:
    try:
        return flight.answers(until)
    except LOST as error:
        return error


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except driver.ResponseError as error:
        return error


def _answer_by(connection: Any, until: float) -> Any:
    # What has come is read, however late it is looked for.
    timeout_s = max(until - time.monotonic(), _LOOK_S)
    try:
        return connection.read_response(timeout=timeout_s)
    except driver.ResponseError as error:
        return error
