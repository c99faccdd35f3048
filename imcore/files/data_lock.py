"""The lock on a data directory. At most one embedded server runs on its files.

It consists of two kernel locks. The owner and its server lock the directory itself: a lock file can be removed and made
again, and then two processes could each hold a lock of that name. The owner alone locks `redis.lock`, so others know
whether the owner lives. A process id would prove nothing: the number may be reused.
"""

import fcntl
import os
from pathlib import Path

from imcore.errors import ConfigurationError, EmbeddedServerError
from imcore.util.deadlines import attempts

_PAUSE_S = 0.01
_LOWEST_DESCRIPTOR = 10
"""The shell that becomes the server uses lower numbers."""


class DataLock:
    """The lock, from `take` to `release`. The server inherits `for_server`, and with it the lock, while it lives."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._owner = _open(data_dir / "redis.lock", os.O_RDWR | os.O_CREAT)
        self._directory = _open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
        self._locks_directory = True

    @classmethod
    def take(cls, data_dir: Path, *, patience_s: float) -> "DataLock":
        """Make and lock the directory. Raise ConfigurationError, or EmbeddedServerError if it stays in use."""
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(data_dir, os.W_OK | os.X_OK):
                raise PermissionError(None, "it is not writable")
            lock = cls(data_dir)
            try:
                lock._wait(patience_s)
            except BaseException:
                lock._close()
                raise
        except OSError as error:
            raise ConfigurationError(f"the data directory {data_dir} cannot be used: {error.strerror}") from error
        return lock

    @property
    def for_server(self) -> int:
        return self._directory if self._locks_directory else self._owner

    @property
    def is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._data_dir.stat(), os.fstat(self._directory))
        except OSError:
            return False

    def release(self) -> None:
        """Unlock the directory. Closing alone would leave it locked while any copy of a descriptor is open."""
        fcntl.flock(self.for_server, fcntl.LOCK_UN)
        fcntl.flock(self._owner, fcntl.LOCK_UN)
        self._close()

    def _wait(self, patience_s: float) -> None:
        if not _try_lock(self._owner):
            raise _in_use(self._data_dir, os.pread(self._owner, 20, 0))
        os.ftruncate(self._owner, 0)
        os.pwrite(self._owner, b"%d\n" % os.getpid(), 0)
        # The owner is gone, or somebody removed its `redis.lock`. A server without an owner ends in a moment.
        if not any(self._try_lock_directory() for _ in attempts(patience_s, longest_pause_s=_PAUSE_S)):
            raise _in_use(self._data_dir)

    def _try_lock_directory(self) -> bool:
        try:
            return _try_lock(self._directory)
        except OSError:  # some network file systems lock only files
            self._locks_directory = False
            return True

    def _close(self) -> None:
        os.close(self._directory)
        os.close(self._owner)


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LOWEST_DESCRIPTOR)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(data_dir: Path, owner: bytes = b"") -> EmbeddedServerError:
    pid = owner.decode(errors="replace").strip()
    who = f"process {pid}" if pid.isdigit() else "another process"
    return EmbeddedServerError(f"the data directory {data_dir} is in use by {who}: end it first, or use another")
