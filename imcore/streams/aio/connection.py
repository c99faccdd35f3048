"""A connection to Redis on an event loop.

The driver's synchronous connection opens it, in a thread: so TLS, passwords, options and refusals are those of the
synchronous client. Then the loop reads and writes its socket: no asyncio transport takes over a socket that speaks TLS.
"""

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import redis
from hiredis import PushNotification
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from imcore.streams.packing import pack
from imcore.streams.rounds import Answered, Command
from imcore.util.threads import in_thread

MOST_BYTES_IN_FLIGHT = 4 << 20
"""Commands beyond it wait here until the server has answered earlier ones."""

_AT_ONCE = 64 << 10
"""A connection sends its commands once so many bytes wait. The server runs them while the next ones are packed."""

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_READ_BYTES = 64 << 10


async def opened(server: redis.Redis) -> Any:
    """Return a connection of the driver to a server, not one of its pool. Raise what the driver raises."""
    pool: Any = server.connection_pool

    def connect() -> Any:
        connection = pool.connection_class(**pool.connection_kwargs)
        connection.connect()
        return connection

    return await in_thread(connect, discard=lambda connection: connection.disconnect())


class LoopConnection(ABC):
    """Reads answers and writes bytes as the loop finds its socket ready. `heard` and `lost` are called in the loop."""

    def __init__(self, connection: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self._connection = connection
        self._socket = connection._sock
        self._descriptor = self._socket.fileno()
        self._gets, self._feed = connection._parser._reader.gets, connection._parser._reader.feed
        self._buffer = bytearray(_READ_BYTES)
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._flushes = self._waits_to_write = False
        self.error: Exception | None = None
        """Why the connection is lost, or closed."""
        self._moved_at = self.loop.time()
        """When bytes came last, or the first of some commands was sent."""
        self._socket.setblocking(False)
        self.loop.add_reader(self._descriptor, self.read)
        self.loop.call_soon(self.read)  # what TLS has decrypted already does not make the socket readable

    @abstractmethod
    def heard(self, answer: Any) -> None:
        """Handle an answer."""

    @abstractmethod
    def lost(self, error: Exception) -> None:
        """Handle the end of the connection."""

    def write(self, data: bytes) -> None:
        """Send bytes, together with what else is written in this iteration of the loop."""
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= _AT_ONCE and not self._waits_to_write:
            self._flush()
        elif not self._flushes:
            self._flushes = True
            self.loop.call_soon(self._flush)

    def close(self, error: Exception) -> None:
        """Close the connection; `error` says why to those who wait for answers."""
        if self.error is None:
            self.error = error
            self.loop.remove_reader(self._descriptor)
            self.loop.remove_writer(self._descriptor)
            self._connection.disconnect()
            self.lost(error)

    def read(self) -> None:
        """Read and handle what has arrived."""
        if self.error:
            return
        try:
            count = self._socket.recv_into(self._buffer)
        except _NOT_NOW:
            return
        except OSError as error:
            self.close(_lost(f"Error while reading from socket: {error.args}", error))
            return
        if not count:
            self.close(RedisConnectionError("Connection closed by server."))
            return
        self._moved_at = self.loop.time()
        self._feed(self._buffer, 0, count)
        self._parse()

    def _parse(self) -> None:
        gets, heard = self._gets, self.heard
        try:
            while self.error is None and (answer := gets()) is not NOT_ENOUGH_DATA:
                heard(answer)
        except RedisError as error:  # these bytes are no answer of Redis
            self.close(error)

    def _flush(self) -> None:
        self._flushes = False
        if self.error or not self._unsent:
            return
        data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
        try:
            sent = self._socket.send(data)
        except _NOT_NOW:
            sent = 0
        except OSError as error:
            self.read()  # a server that hung up may have said why
            self.close(_lost(f"Error while writing to socket: {error.args}", error))
            return
        left = data[sent:]
        self._unsent, self._unsent_bytes = [left] if left else [], len(left)
        if bool(left) != self._waits_to_write:
            self._waits_to_write = bool(left)
            if left:
                self.loop.add_writer(self._descriptor, self._flush)
            else:
                self.loop.remove_writer(self._descriptor)


class _Flight:
    """Commands whose answers have not all come."""

    __slots__ = ("answers", "count", "data", "future", "size")

    def __init__(self, future: "asyncio.Future[Answered]", count: int, data: bytes) -> None:
        self.future = future
        self.count = count
        self.data = data
        self.size = len(data)
        self.answers: list[Any] = []


class Pipeline(LoopConnection):
    """Sends the commands of many tasks over one connection, whose answers come in order.

    The answers for a task that was cancelled are read and dropped. If no answer comes for the timeout of the driver's
    connection, the connection is lost.
    """

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._in_flight: deque[_Flight] = deque()
        self._held: deque[_Flight] = deque()
        self._bytes_in_flight = 0
        self._timeout_s: float | None = connection.socket_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._is_retired = False

    @property
    def is_usable(self) -> bool:
        return self.error is None and not self._is_retired

    def send(self, commands: Sequence[Command]) -> "asyncio.Future[Answered]":
        """Send commands; return the future of their answers, or of the error of a lost connection."""
        data = pack(commands[0]) if len(commands) == 1 else b"".join(map(pack, commands))
        flight = _Flight(self.loop.create_future(), len(commands), data)
        if self.error:
            flight.future.set_result(self.error)
        elif self._held or self._bytes_in_flight > MOST_BYTES_IN_FLIGHT:
            self._held.append(flight)
        else:
            self._depart(flight)
        return flight.future

    def retire(self) -> None:
        """Take no more commands, and close once those in flight are answered."""
        self._is_retired = True
        self._close_if_done()

    def heard(self, answer: Any) -> None:
        if type(answer) is PushNotification:
            return
        if not self._in_flight:
            self.close(RedisConnectionError("an answer came without a command"))
            return
        flight = self._in_flight[0]
        flight.answers.append(answer)
        if len(flight.answers) == flight.count:
            self._in_flight.popleft()
            self._answered(flight)

    def lost(self, error: Exception) -> None:
        if self._timer:
            self._timer.cancel()
        for flight in (*self._in_flight, *self._held):
            if not flight.future.done():
                flight.future.set_result(error)
        self._in_flight.clear()
        self._held.clear()

    def _depart(self, flight: _Flight) -> None:
        if not self._in_flight:
            self._moved_at = self.loop.time()
        self._in_flight.append(flight)
        self._bytes_in_flight += flight.size
        self.write(flight.data)
        flight.data = b""
        if self._timer is None and self._timeout_s is not None:
            self._timer = self.loop.call_later(self._timeout_s, self._look_for_silence)

    def _answered(self, flight: _Flight) -> None:
        self._bytes_in_flight -= flight.size
        if not flight.future.done():
            # The driver makes errors of connections of some answers: that the server is loading its data, for one.
            lost = (answer for answer in flight.answers if isinstance(answer, RedisConnectionError))
            flight.future.set_result(next(lost, flight.answers))
        while self._held and self._bytes_in_flight <= MOST_BYTES_IN_FLIGHT:
            held = self._held.popleft()
            if not held.future.done():
                self._depart(held)
        if self._is_retired:
            self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._in_flight and not self._held:
            self.close(RedisConnectionError("the connection is closed"))

    def _look_for_silence(self) -> None:
        self._timer = None
        if not self._in_flight or self._timeout_s is None:
            return
        left_s = self._moved_at + self._timeout_s - self.loop.time()
        if left_s <= 0 and not self._has_more():
            self.close(RedisTimeoutError("Timeout reading from socket"))
        else:
            self._timer = self.loop.call_later(max(left_s, 0.0), self._look_for_silence)

    def _has_more(self) -> bool:
        """Read what came while the loop was kept from reading; return whether there was something."""
        before = self._moved_at
        self.read()
        return self.error is not None or self._moved_at != before


def _lost(text: str, cause: OSError) -> RedisConnectionError:
    error = RedisConnectionError(text)
    error.__cause__ = cause
    return error
