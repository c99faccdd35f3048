"""What bounds one client: the calls that it has in hand, how often it calls, and what waits for its socket."""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Protocol

from imcore.web.pings import MessageKey

Job = Callable[[], Awaitable[None]]

_SHORT, _MEDIUM = 126, 65_536
_TEXT = b"\x81"


class Frame:
    """A text for a socket. An event has one frame for all sockets, and each form is made once."""

    def __init__(self, text: bytes, message: MessageKey | None = None) -> None:
        """`message` is the message that it hands over, if it does."""
        self.text = text
        self.message = message

    @cached_property
    def websocket(self) -> bytes:
        """The whole WebSocket frame of a server, header and payload (RFC 6455, 5.2)."""
        size = len(self.text)
        if size < _SHORT:
            return _TEXT + bytes((size,)) + self.text
        if size < _MEDIUM:
            return _TEXT + b"\x7e" + size.to_bytes(2, "big") + self.text
        return _TEXT + b"\x7f" + size.to_bytes(8, "big") + self.text

    @cached_property
    def string(self) -> str:
        return self.text.decode()


class Socket(Protocol):
    """What a kind of socket offers to its client. It is used by the loop's thread only."""

    @property
    def can_ping(self) -> bool:
        """Whether it sends pings, and says what pongs come."""

    @property
    def remote(self) -> str:
        """The other side's address, for the log."""

    @property
    def buffered(self) -> int:
        """The bytes that were sent and not yet given to the operating system."""

    def send(self, frame: Frame) -> None:
        """Send a frame, after those before it. Never wait and never raise: after `close` it is dropped."""

    def ping(self, payload: bytes) -> None:
        """Send a ping, after what was sent. A kind of socket that cannot does nothing."""

    def close(self, code: int, reason: str) -> None:
        """Close with this code after what was sent. If the other side does not read, give up after some seconds."""


class Nobody:
    """What a session is for whose client does not know of it."""

    def push(self, frame: Frame) -> None:
        """Drop what still comes."""

    def close(self, code: int, reason: str) -> None:
        """There is nothing to close."""

    def confirmed(self, gid: str, msgid: str) -> None:
        """Nothing waits for it."""


class SendQueue:
    """Frames for a socket. Those that the socket has no room for wait here.

    Call `on_slow(True)` when a quarter of `most_bytes` waits, `on_slow(False)` once nothing waits any more, and
    `on_stuck()` if more than `most_bytes` wait, or if the socket has taken nothing for `patience_s`. Answers are not
    counted: whoever calls bounds them, and a client that reads may ask for a large one.
    """

    def __init__(
        self,
        socket: Socket,
        most_bytes: int,
        patience_s: float,
        on_slow: Callable[[bool], None],
        on_stuck: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._most_bytes = most_bytes
        self._patience_s = patience_s
        self._on_slow = on_slow
        self._on_stuck = on_stuck
        self._waiting: deque[tuple[Frame, int]] = deque()
        """Frames, and how many bytes each counts as."""
        self._waiting_bytes = 0
        self._is_slow = False
        self._given_bytes = 0
        """Of all frames, to the socket."""
        self.has_room = True
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the socket has everything."""
        return self.has_room and not self._waiting

    def send(self, frame: Frame, *, is_answer: bool = False) -> None:
        if self.has_room and not self._waiting:
            self._give(frame)
            return
        if self._waiting_bytes > self._most_bytes:
            self._on_stuck()
            return
        size = 0 if is_answer else len(frame.text)
        self._waiting.append((frame, size))
        self._waiting_bytes += size
        if self._waiting_bytes > self._most_bytes // 4 and not self._is_slow:
            self._is_slow = True
            self._on_slow(True)

    def writable(self, has_room: bool) -> None:
        """Note whether the socket has room again."""
        if has_room == self.has_room:
            return
        self.has_room = has_room
        while self.has_room and self._waiting:
            frame, size = self._waiting.popleft()
            self._waiting_bytes -= size
            self._give(frame)  # the socket may say at once that there is no room any more
        if not self.has_room:
            if self._timer is None:
                self._watch()
            return
        self._stop_timer()
        if self._is_slow:
            self._is_slow = False
            self._on_slow(False)

    def stop(self) -> None:
        """Drop what waits."""
        self._stop_timer()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _give(self, frame: Frame) -> None:
        self._given_bytes += len(frame.text)
        self._socket.send(frame)

    @property
    def _taken_bytes(self) -> int:
        """What the socket has given to the system. It counts the heads of frames that wait there as not taken."""
        return self._given_bytes - self._socket.buffered

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._patience_s, self._look, self._taken_bytes)

    def _look(self, taken_before: int) -> None:
        if self._taken_bytes > taken_before:
            self._watch()
        else:
            self._on_stuck()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class Lane:
    """Calls of one client, `width` side by side; up to `most_waiting` wait for them, in their order."""

    def __init__(self, width: int, most_waiting: int) -> None:
        self._width = width
        self._most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._is_held = False

    @property
    def is_idle(self) -> bool:
        return not self._running

    def add(self, job: Job) -> bool:
        """Run a job, which raises nothing, as soon as others before it have ended. Return False if too many wait."""
        if len(self._running) < self._width and not self._is_held:
            self._start(job)
        elif len(self._waiting) < self._most_waiting:
            self._waiting.append(job)
        else:
            return False
        return True

    def hold(self, is_held: bool) -> None:
        """Let no further job begin; with False, let those that wait begin again."""
        self._is_held = is_held
        while self._waiting and not is_held and len(self._running) < self._width:
            self._start(self._waiting.popleft())

    def stop(self) -> None:
        """Cancel all jobs."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()

    async def ended(self) -> None:
        """Wait until all jobs have ended."""
        while self._running:
            await asyncio.wait(self._running)

    def _start(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, job: Job) -> None:
        await job()
        while self._waiting and not self._is_held:
            await self._waiting.popleft()()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting and not self._is_held:  # added after the task had ended, and before the loop called this
            self._start(self._waiting.popleft())


class RateLimit:
    """A token bucket: `per_s` calls a second, and `burst` at once."""

    def __init__(
        self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic, *, least: float = -math.inf
    ) -> None:
        """Refused calls count, too, as long as more than `least` is left."""
        self._per_s = per_s
        self._burst = burst
        self._least = least
        self._clock = clock
        self._left = burst
        self._at = clock()

    def take(self, cost: float = 1.0) -> bool:
        """Count a call; return whether it is within the limit."""
        now = self._clock()
        left = min(self._burst, self._left + (now - self._at) * self._per_s) - cost
        self._left = max(self._least, left)
        self._at = now
        return self._left >= 0

    @property
    def is_flooded(self) -> bool:
        """Whether the refused calls are as many as the burst: the client does not listen to refusals."""
        return self._left < -self._burst


class RateLimits:
    """A rate limit for each of many callers: the last MOST of them."""

    MOST = 10_000

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._limits: OrderedDict[str, RateLimit] = OrderedDict()

    def take(self, caller: str) -> bool:
        """Count a call; return whether it is within the limit of its caller."""
        limit = self._limits.pop(caller, None) or RateLimit(self._per_s, self._burst, self._clock, least=-1.0)
        self._limits[caller] = limit
        if len(self._limits) > self.MOST:
            self._limits.popitem(last=False)
        return limit.take()


class Expiry:
    """The end of a token: `on_notice(seconds_left)` some time before, `on_expired()` at the end."""

    NOTICE_S = 60.0
    """The notice comes this long before the end, or after half of the time if that is shorter."""

    def __init__(self, on_notice: Callable[[float], None], on_expired: Callable[[], None]) -> None:
        self._on_notice = on_notice
        self._on_expired = on_expired
        self._timer: asyncio.TimerHandle | None = None

    def set(self, expires_at: float | None) -> None:
        """Watch over another token, which ends at this time (s since 1970); None: it does not end."""
        self.stop()
        if expires_at is not None:
            left = expires_at - time.time()
            self._wait(left - min(self.NOTICE_S, left / 2), expires_at, self._notice)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _wait(self, seconds: float, expires_at: float, then: Callable[[float], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.0, min(seconds, _LONGEST_WAIT_S)), then, expires_at)

    def _notice(self, expires_at: float) -> None:
        left = expires_at - time.time()
        if left > _LONGEST_WAIT_S / 2:  # the timer was cut short
            self._wait(left - self.NOTICE_S, expires_at, self._notice)
            return
        self._wait(left, expires_at, self._end)
        self._on_notice(max(0.0, left))

    def _end(self, expires_at: float) -> None:
        if time.time() < expires_at:  # the clock was set back
            self._wait(expires_at - time.time(), expires_at, self._end)
        else:
            self._on_expired()


_LONGEST_WAIT_S = 86_400.0
"""Timers of some event loops end within weeks."""
