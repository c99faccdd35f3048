"""Shows that a worker lives while its own thread may be busy with a job for hours."""

from contextlib import suppress
from threading import Event, Thread
from typing import Self

from redis.exceptions import RedisError

from imcore.process import signals_blocked
from imcore.streams.job_queue import JobsLease

_END_S = 1.0


class Presence:
    """Renews a lease in a thread of its own while this is entered; at the end the lease is free at once.

    While Redis is away nothing is renewed: as soon as it is back, the lease is.
    """

    def __init__(self, lease: JobsLease, lease_ms: int) -> None:
        self._lease = lease
        self._every_s = lease_ms / 3000
        self._stopping = Event()
        self._thread = Thread(target=self._renew_until_stopped, name="presence", daemon=True)

    def __enter__(self) -> Self:
        with signals_blocked():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_END_S)  # one that hangs holds up nobody: the lease ends by itself

    def _renew_until_stopped(self) -> None:
        while not self._stopping.is_set():
            with suppress(RedisError, OSError):
                self._lease.renew()
            self._stopping.wait(self._every_s)
        with suppress(RedisError, OSError):
            self._lease.release()
