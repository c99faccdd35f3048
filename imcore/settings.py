"""Settings: one frozen value, read from the environment once; each option has its unit in its name."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from imcore.errors import ConfigurationError
from imcore.files.folders import socket_folder
from imcore.model.durable import Durable

_DAY_MS = 24 * 60 * 60 * 1000
_LONGEST_SOCKET_PATH = 100
"""Unix socket paths end at 104 bytes on macOS and 108 on Linux; the server adds a few while it starts."""

CHAT_URL, JOBS_URL = "IM_REDIS_URL", "IM_JOBS_REDIS_URL"
"""The variables that name the server of the chat, and that of the jobs if it is another one."""

LONGEST_BLOCK_MS = 5000
"""A worker waits for journal entries no longer, whatever IM_BLOCK_MS says."""
BLOCK_SLACK_MS = 1000
"""How late a busy server may answer at the end of a wait."""

_CHOICES = {
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
    "durable": get_args(Durable),
}
_MAY_BE_ZERO = {"receipt_window_ms", "keep_messages", "keep_ms", "keep_read_times_ms", "trim_every_ms", "retry_ms"}
MOST_DAYS_KEPT = 100_000
"""273 years. `im trim --keep-days` takes as many."""
_HIGHEST = {
    "partitions": 16_384,  # the slots of a cluster
    "max_content_bytes": 256 * 1024 * 1024,  # half of what Redis takes in one piece
    "max_meta_bytes": 1024 * 1024,
    "keep_ms": MOST_DAYS_KEPT * _DAY_MS,
    "keep_read_times_ms": MOST_DAYS_KEPT * _DAY_MS,
    "metrics_port": 65_535,
}
_HIGHEST_OF_ALL = 10**12
"""31 years in milliseconds: a time added to now still is one."""
MOST_MESSAGES_KEPT = _HIGHEST_OF_ALL
"""`im trim --keep-messages` takes as many."""
_MOST_DIGITS = len(str(max(_HIGHEST.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Addresses, limits and intervals. Make it with `Settings.from_env`. It never changes: any thread may use it."""

    data_dir: Path
    redis_url: str = field(repr=False)  # these three may hold passwords
    database_url: str = field(repr=False)
    jobs_redis_url: str = field(repr=False)
    partitions: int | None = None
    """The partition count of new data; None: that of the data in Redis, or 8."""
    max_content_bytes: int = 65_536
    max_meta_bytes: int = 4096
    """The longest meta of a message, as compact JSON."""
    idempotency_ms: int = _DAY_MS
    """The least time in which a repeated client_msgid is recognised."""
    durable: Durable = "none"
    """Each send waits until its message is that safe."""
    durable_ms: int = 5000
    """The longest wait for that."""
    batch_size: int = 500
    call_timeout_ms: int = 10_000
    """The longest time of a call to Redis. A call that took longer is not repeated."""
    block_ms: int = 1000
    lease_ms: int = 10_000
    """A worker that does not renew its lease for this long is dead, and its entries are claimed."""
    max_deliveries: int = 5
    """An entry that has failed this often becomes a dead letter."""
    retry_ms: int = 200
    """The wait of a failed entry before it is retried; twice as long after each further failure."""
    receipt_window_ms: int = 200
    heartbeat_ms: int = 20_000
    online_ms: int = 60_000
    keep_messages: int = 10_000
    """The newest messages of a group that `trim` leaves in Redis."""
    keep_ms: int = 30 * _DAY_MS
    """The age up to which `trim` leaves a message in Redis."""
    keep_read_times_ms: int = 0
    """The age up to which SQL keeps the times of acks; 0: for ever. Counts and names stay exact without them."""
    trim_every_ms: int = 60 * 60 * 1000
    """The pause between two trims of the worker `jobs`; 0: never by itself."""
    allow_eviction: bool = False
    """Whether to work on a Redis that drops groups and messages when its memory is full."""
    metrics_port: int | None = None
    """The first port that a worker tries for `GET /metrics`; None: it serves none."""
    metrics_host: str = field(default="127.0.0.1", repr=False)  # any text: somebody may have taken it for a URL
    log_format: str = "text"
    log_level: str = "info"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: str | None) -> "Settings":
        """Read `IM_*` of the environment; overrides that are not None win. An empty text means the default.

        Raise ConfigurationError for a value that is not what its setting takes, and for two that contradict each other.
        """
        given = _given(os.environ if environ is None else environ, [f.name for f in fields(cls)], overrides)
        data_dir = _data_dir(given.pop("data_dir", None))
        redis_url = given.pop("redis_url", "") or socket_url(socket_path(data_dir))
        settings = cls(
            data_dir=data_dir,
            redis_url=redis_url,
            database_url=given.pop("database_url", "") or _sqlite_url(data_dir / "imcore.db"),
            jobs_redis_url=given.pop("jobs_redis_url", redis_url),
            **{name: _PARSERS.get(name, _number)(name, value) for name, value in given.items()},
        )
        _refuse_contradictions(settings)
        return settings

    @property
    def embedded(self) -> bool:
        """Whether Redis is the embedded server of the data directory."""
        return self.redis_url == socket_url(socket_path(self.data_dir))

    @property
    def jobs_variable(self) -> str:
        """The variable that names the server of the jobs."""
        return CHAT_URL if self.jobs_redis_url == self.redis_url else JOBS_URL


def _refuse_contradictions(settings: Settings) -> None:
    if settings.heartbeat_ms >= settings.online_ms:
        raise ConfigurationError(
            f"IM_HEARTBEAT_MS ({settings.heartbeat_ms}) must be less than IM_ONLINE_MS ({settings.online_ms}), "
            "or sessions end between two heartbeats"
        )
    waits_ms = min(settings.block_ms, LONGEST_BLOCK_MS)
    if settings.call_timeout_ms < waits_ms + BLOCK_SLACK_MS:
        raise ConfigurationError(
            f"IM_CALL_TIMEOUT_MS ({settings.call_timeout_ms}) must be at least {waits_ms + BLOCK_SLACK_MS}: "
            f"workers wait up to {waits_ms} ms for an answer (IM_BLOCK_MS)"
        )


def _given(environ: Mapping[str, str], names: Iterable[str], overrides: Mapping[str, str | None]) -> dict[str, str]:
    """Return the texts of the settings that are given and not empty, by name."""
    given = {name: environ.get(f"IM_{name.upper()}") for name in names}
    given.update((name, value) for name, value in overrides.items() if value is not None)
    return {name: value for name, value in given.items() if value}


def socket_path(data_dir: Path) -> Path:
    """Return the embedded server's socket: in the data directory, or in a short folder if that path is too long."""
    path = data_dir / "redis.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return socket_folder(digest) / "redis.sock"


def socket_url(path: Path) -> str:
    return f"unix://{quote(os.fsencode(path))}"


def _data_dir(given: str | None) -> Path:
    """Return the data directory as one absolute path, however it is spelled: the socket's name may depend on it."""
    try:
        path = Path(given or _user_data_dir()).expanduser().resolve()
        str(path).encode()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, no home directory, NUL or not UTF-8
        raise ConfigurationError(f"IM_DATA_DIR {given!r} is not a usable path: {error}") from error
    return path


def _sqlite_url(path: Path) -> str:
    # '?' begins the URL's options; '%' is an escape to SQLAlchemy 2.1 and is none to 2.0.
    if set("?%") & set(str(path)):
        raise ConfigurationError(f"the database's path {path} has a '?' or '%' in it: use another data directory")
    return f"sqlite:///{path}"


def _user_data_dir() -> str:
    import platformdirs  # noqa: PLC0415 (only where no data directory is given)

    return platformdirs.user_data_dir("imcore", appauthor=False)


def _yes_or_no(name: str, value: str) -> bool:
    if value not in {"0", "1"}:
        raise ConfigurationError(f"IM_{name.upper()} must be 0 or 1; it is {value!r}")
    return value == "1"


def _number(name: str, value: str) -> int:
    lowest = 0 if name in _MAY_BE_ZERO else 1
    return whole_number(f"IM_{name.upper()}", value, lowest=lowest, highest=_HIGHEST.get(name, _HIGHEST_OF_ALL))


def whole_number(variable: str, value: str, *, lowest: int = 1, highest: int = _HIGHEST_OF_ALL) -> int:
    """Return the number that a variable holds. Raise ConfigurationError for anything else."""
    if not value.isascii() or not value.isdigit() or len(value) > _MOST_DIGITS or not lowest <= int(value) <= highest:
        raise ConfigurationError(f"{variable} must be a whole number from {lowest} to {highest}; it is {value!r}")
    return int(value)


def _choice(name: str, value: str) -> str:
    if value not in _CHOICES[name]:
        *others, last = _CHOICES[name]
        raise ConfigurationError(f"IM_{name.upper()} must be {', '.join(others)} or {last}; it is {value!r}")
    return value


def _text(_name: str, value: str) -> str:
    return value


_PARSERS: Mapping[str, Callable[[str, str], Any]] = {
    "allow_eviction": _yes_or_no,
    "metrics_host": _text,
    "log_format": _choice,
    "log_level": _choice,
    "durable": _choice,
}
"""How the text of a setting is read; the others are whole numbers."""
