"""What the Redis driver raises, in our words: what is wrong, where, and what to do; and never a password."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    MaxConnectionsError,
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
    TryAgain,
    UnknownGroup,
)
from imcore.settings import CHAT_URL
from imcore.streams.connections import NotRedisError
from imcore.streams.unreachable import no_protocol, unavailable

_DATABASE = re.compile(r"/*[0-9]*/*")

LOST = (RedisConnectionError, RedisTimeoutError, ClusterDownError, SlotNotCoveredError, OSError)
"""No answer came: what was asked may have happened or not."""

_REFUSALS = {
    "LOADING": "is still loading its data: try again in a moment",
    "READONLY": "is a replica by now and takes no writes: connect to the new primary",
    "REDIRECT": "has handed over to another server: connect to the new primary",
    "UNBLOCKED": "has ended a wait, since it became a replica or somebody asked for that: try again in a moment",
    "NOMASTERLINK": "is failing over to another server: try again in a moment",
    "INPROG": "is failing over to another server: try again in a moment",
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


class _Saying(NamedTuple):
    """What the server says, in part; whether it helps to try again, and what is wrong, in our words."""

    part: str
    kind: type[ImError]
    what: str


_SAYINGS = (
    _Saying(
        "max number of clients",
        RedisRefuses,
        "has as many clients as it takes (maxclients): end some of them, or let it take more",
    ),
    _Saying(
        "Function not found",
        RedisRefuses,
        "has lost the functions of imcore: the next call brings them back, try again",
    ),
    *(
        _Saying(
            part,
            ConfigurationError,
            "cannot take the functions of imcore: one of that name already exists, of somebody else (FUNCTION LIST)",
        )
        for part in ("Library 'imcore' already exists", "Function im_")
    ),
    _Saying("FUNCTION KILL", RedisRefuses, "was told to end a function that took long (FUNCTION KILL): try again"),
    _Saying("LDAP service", RedisRefuses, "cannot ask its LDAP service who this user is: try again in a moment"),
    _Saying(
        "running in protected mode",
        ConfigurationError,
        "is in protected mode, and takes nobody from other machines: give its default user a password, or set "
        "protected-mode no there",
    ),
    _Saying(
        "unsupported protocol version",
        ConfigurationError,
        "does not speak that protocol: add ?protocol=2 to the URL",
    ),
    _Saying(
        "DB index is out of range",
        ConfigurationError,
        "has no database of that number: give a lower one in the URL, or let it have more (databases)",
    ),
    _Saying(
        "SELECT is not allowed in cluster mode",
        ConfigurationError,
        "is a node of a cluster, which has no numbers of databases: use redis+cluster:// without one",
    ),
    _Saying(
        "cluster support disabled",
        ConfigurationError,
        "is a single server, no cluster: use redis:// or rediss://",
    ),
    _Saying(
        "invalid bulk length",
        ConfigurationError,
        "does not take a text of that size (proto-max-bulk-len): let it take more, or lower IM_MAX_CONTENT_BYTES",
    ),
)

_NO_PASSWORD = ("Authentication required", "already authenticated")
_NO_RIGHT = ("ACL failure in script: ", "The user executing the script can't ", "NOPERM ")
_DISCARDED = "Transaction discarded because of: "
_IN_PIPELINE = ("Command # ", " of pipeline caused error: ")
"""What the driver writes before and behind a command of a pipeline, before the answer of the server."""


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
    # Of a server, only the number of a database: anything else may be an option without its question mark.
    path = parts.path if scheme == "unix" or _DATABASE.fullmatch(parts.path) else "/..."
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{port}{path}"


@contextmanager
def driver_errors(where: str, gid: str = "", *, variable: str = CHAT_URL) -> Iterator[None]:
    """Translate what the Redis driver raises into an ImError, with the cause kept. A `variable` names the server."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise translated(error, where, gid, variable=variable) from error


def translated(error: Exception, where: str, gid: str = "", *, variable: str = CHAT_URL) -> ImError:
    """Return what an error of the driver means, at this address and, if it is one, about this group.

    `variable` is the one that names the server.
    """
    error = _why_no_node(error)
    where = address(where) if "://" in where else where
    text = _said(error)
    if refusal := _refusal(error, text, where, variable):
        return refusal
    if isinstance(error, MaxConnectionsError):
        return RedisRefuses(
            f"this program has as many connections to {where} as it may: raise max_connections in the URL"
        )
    if isinstance(error, NotRedisError | InvalidResponse):
        return no_protocol(error, where, variable)
    if isinstance(error, (*LOST, RedisClusterException)):
        return unavailable(error, where, variable)
    return _answered(text, where, gid)


def _why_no_node(error: Exception) -> Exception:
    """Return what a node said, where the driver says that it could not ask any, or that one is no part of a cluster."""
    while isinstance(error, RedisClusterException):
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, RedisError | RedisClusterException):
            break
        error = cause
    return error


def _refusal(error: Exception, text: str, where: str, variable: str) -> ImError | None:
    """Return what it means that a server refuses something, None for what is no refusal."""
    if isinstance(error, NoPermissionError | AuthenticationError) or text.startswith(_NO_RIGHT):
        return _no_right(error, text, where, variable)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return RedisFull(f"{where} has no memory left (maxmemory): nothing was stored")
    if isinstance(error, AskError) and "+cluster://" not in where:
        return ConfigurationError(f"{where} is a node of a cluster: use redis+cluster:// or rediss+cluster://")
    if reason := _REFUSALS.get(_first_word(error)):
        return RedisRefuses(f"{where} {reason}")
    if said := next((saying for saying in _SAYINGS if saying.part in text), None):
        return said.kind(f"{where} {said.what}")
    return None


def _first_word(error: Exception) -> str:
    """Return what the server's answer began with."""
    stripped = next((word for kind, word in _STRIPPED.items() if isinstance(error, kind)), None)
    return stripped or _said(error).partition(" ")[0]


def _said(error: Exception) -> str:
    """Return what the server has answered, without what the driver has put before it."""
    text = str(error)
    begin, end = _IN_PIPELINE
    if text.startswith(begin) and end in text:
        text = text.rpartition(end)[2]
    return text.removeprefix(_DISCARDED)


def _no_right(error: Exception, text: str, where: str, variable: str) -> ImError:
    if not isinstance(error, AuthenticationError):
        what = _first_line(text).removeprefix(_NO_RIGHT[0]).removeprefix(_NO_RIGHT[2]).partition(" script:")[0]
        return ConfigurationError(f"{where} refuses this: {what} (`im acl` prints the rights that are needed)")
    if any(words in text for words in _NO_PASSWORD):
        return ConfigurationError(f"{where} wants a password: set {variable} to redis://USER:PASSWORD@HOST")
    return ConfigurationError(
        f"{where} refuses this user or password ({_first_line(text).rstrip('.')}): set {variable}"
    )


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
    about = f" about {gid!r}" if gid else ""
    return ImError(f"{where} answered{about}: {_first_line(text)}")


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "nothing"
