"""What the Redis driver raises, in our words: what is wrong, where, and what to do; and never a password."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from imcore.errors import (
    ConfigurationError,
    GroupAbandoned,
    GroupExists,
    GroupUnderWay,
    ImError,
    RedisFull,
    RedisRefuses,
    RedisUnavailable,
    TryAgain,
    UnknownGroup,
)

LOST = (RedisConnectionError, RedisTimeoutError, ClusterDownError, SlotNotCoveredError, OSError)
"""No answer came: what was asked may have happened or not."""

_REFUSALS = {
    "LOADING": "is still loading its data: try again in a moment",
    "READONLY": "is a replica by now and takes no writes: connect to the new primary",
    "NOREPLICAS": "takes no writes while too few replicas follow it (min-replicas-to-write)",
    "MISCONF": "takes no writes while it cannot save to its disk: look into its log",
    "BUSY": "is busy with a script or function: wait, or end it (SCRIPT KILL, FUNCTION KILL)",
    "MASTERDOWN": "is a replica that has lost its primary: wait for it, or for a failover",
    "CLUSTERDOWN": "has slots that no node serves: wait for a failover, or mend the cluster",
    "TRYAGAIN": "is moving a partition to another node: try again in a moment",
}
"""Why a server may refuse for a while, by the word that its answer begins with."""

_STRIPPED = {
    BusyLoadingError: "LOADING",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
    AskError: "TRYAGAIN",  # and MovedError, which is one
}
"""Those whose word the driver takes away: it makes a class of it. A subclass stands before its base."""

_NO_PASSWORD = ("Authentication required", "already authenticated")
_NO_RIGHT = ("ACL failure in script: ", "The user executing the script can't ")


def address(url: str) -> str:
    """Return a URL as it may be shown: without user, password and options, and nothing that may be a part of these."""
    scheme, found, _ = url.partition("://")
    if not found or not scheme.replace("+", "").isalnum():
        return "the given text"
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return f"{scheme}://..."
    # An @ behind the host: the password has a / ? or # in it, and what stands before that is no host.
    is_path = scheme == "unix" and not parts.netloc
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and not is_path:
        return f"{scheme}://..."
    host = parts.hostname or ""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


@contextmanager
def driver_errors(where: str, gid: str = "") -> Iterator[None]:
    """Translate what the Redis driver raises into an ImError, with the cause kept."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise translated(error, where, gid) from error


def translated(error: Exception, where: str, gid: str = "") -> ImError:
    """Return what an error of the driver means, at this address and, if it is one, about this group."""
    if isinstance(error, RedisClusterException) and isinstance(error.__cause__, RedisError | RedisClusterException):
        error = error.__cause__  # why no node could be asked
    text = str(error)
    where = address(where) if "://" in where else where
    if isinstance(error, NoPermissionError) or text.startswith(_NO_RIGHT):
        what = _first_line(text).removeprefix(_NO_RIGHT[0]).partition(" script:")[0]
        return ConfigurationError(f"{where} refuses this: {what} (`im acl` prints the rights that are needed)")
    if isinstance(error, AuthenticationError):
        return _no_entry(text, where)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return RedisFull(f"{where} has no memory left (maxmemory): nothing was stored")
    if reason := _REFUSALS.get(_first_word(error)):
        return _refused(error, reason, where)
    if isinstance(error, (*LOST, RedisClusterException)):
        return _unavailable(error, where)
    return _answered(text, where, gid)


def _first_word(error: Exception) -> str:
    """Return what the server's answer began with."""
    stripped = next((word for kind, word in _STRIPPED.items() if isinstance(error, kind)), None)
    return stripped or str(error).partition(" ")[0]


def _refused(error: Exception, reason: str, where: str) -> ImError:
    if isinstance(error, AskError) and "+cluster://" not in where:
        return ConfigurationError(f"{where} is a node of a cluster: use redis+cluster:// or rediss+cluster://")
    return RedisRefuses(f"{where} {reason}")


def _no_entry(text: str, where: str) -> ImError:
    if any(words in text for words in _NO_PASSWORD):
        return ConfigurationError(f"{where} wants a password: set IM_REDIS_URL to redis://USER:PASSWORD@HOST")
    return ConfigurationError(
        f"{where} refuses this user or password ({_first_line(text).rstrip('.')}): set IM_REDIS_URL"
    )


def _unavailable(error: Exception, where: str) -> ImError:
    if "Cluster mode is not enabled" in str(error):
        return ConfigurationError(f"{where} is a single server, no cluster: use redis:// or rediss://")
    if tls := _tls_error(error):
        return _untrusted(tls, where)
    return RedisUnavailable(f"no answer from Redis at {where}: start it with `im up`, or set IM_REDIS_URL")


_CODES: dict[str, Callable[[str, str], ImError]] = {
    "NOGROUP": lambda _, gid: UnknownGroup(f"there is no group {gid!r}"),
    "EXISTS": lambda _, gid: GroupExists(
        f"group {gid!r} exists already, with other members: use `im group add` or `remove`"
    ),
    "CREATING": lambda _, gid: GroupUnderWay(f"another process creates group {gid!r}: try again in a moment"),
    "ABANDONED": lambda _, gid: GroupAbandoned(
        f"a process has died over the creation of group {gid!r}: create it again"
    ),
    "LOST": lambda _, gid: TryAgain(f"another process mends {gid!r}"),
    "CLOCK": lambda where, _: ConfigurationError(f"the clock of {where} stands before 2020: set it"),
}
"""What our functions answer, by the first word: of an address and a group."""


def _answered(text: str, where: str, gid: str) -> ImError:
    if error := _CODES.get(text.partition(" ")[0]):
        return error(where, gid)
    if text.startswith("unknown command"):  # of ours each is known since then
        return ConfigurationError(f"{where} is too old: imcore needs Redis 7.0 or Valkey 7.2, or newer")
    return ImError(f"{where} answered: {_first_line(text)}")


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the error of TLS that an error of the driver comes from, if it does."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _untrusted(error: ssl.SSLError, where: str) -> ImError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{where} is not trusted ({error.verify_message}): name the file of its authority, ?ssl_ca_certs=FILE"
        )
    return RedisUnavailable(f"no answer from Redis at {where} over TLS ({error.reason or 'it ended too early'})")


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "nothing"
