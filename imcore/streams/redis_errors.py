"""Translates errors of the Redis driver: what is wrong, where, and what to do; and never a password."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from redis import Redis
from redis import exceptions as driver

from imcore.errors import ConfigurationError, ImError, RedisFull, RedisRefuses, RedisUnavailable
from imcore.settings import CHAT_URL
from imcore.streams.calls.call import ERRORS, error_of
from imcore.streams.connections import HungUpError, NotRedisError
from imcore.streams.places import places_of

LOST = (driver.ConnectionError, driver.TimeoutError, driver.ClusterDownError, driver.SlotNotCoveredError, OSError)
"""No answer came: the command may have run or not."""


class LostNodeError(driver.ConnectionError):
    """What was lost was the connection to this node of a cluster; the cause says how."""

    def __init__(self, node: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.node = node
        self.__cause__ = cause


class NoPrimaryError(driver.ConnectionError):
    """No Sentinel says where the primary is; the text says why."""


def with_node(server: Redis, error: Exception) -> Exception:
    """Let the error of a lost connection name the server that a name led to."""
    sentinels = server.connection_pool.connection_kwargs.get("sentinels")
    if sentinels is None or sentinels.primary is None or isinstance(error, LostNodeError | NoPrimaryError):
        return error
    return LostNodeError(str(sentinels.primary), error) if isinstance(error, LOST) else error


DRIVER_ERRORS = (driver.RedisError, driver.RedisClusterException, OSError)

_REFUSED_BY_WORD = {
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
"""Temporary refusals, by the first word of the answer."""

_STRIPPED_WORDS = {
    driver.BusyLoadingError: "LOADING",
    driver.ReadOnlyError: "READONLY",
    driver.MasterDownError: "MASTERDOWN",
    driver.ClusterDownError: "CLUSTERDOWN",
    driver.TryAgainError: "TRYAGAIN",
    driver.AskError: "TRYAGAIN",  # and MovedError, which is one
}
"""First words that the driver removes, since it makes a class of each. A subclass precedes its base."""

_REFUSED_BY_PART = {
    "max number of clients": "has as many clients as it takes (maxclients): end some of them, or let it take more",
    "Function not found": "has lost the functions of imcore: the next call brings them back, try again",
    "FUNCTION KILL": "was told to end a function that took long (FUNCTION KILL): try again",
    "LDAP service": "cannot ask its LDAP service who this user is: try again in a moment",
}
"""Other temporary refusals, by a part of the answer."""

_NAME_TAKEN = "cannot take the functions of imcore: one of that name already exists, of somebody else (FUNCTION LIST)"
_MISCONFIGURED_BY_PART = {
    "Library 'imcore' already exists": _NAME_TAKEN,
    "Function im_": _NAME_TAKEN,
    "running in protected mode": "is in protected mode, and takes nobody from other machines: give its default user a "
    "password, or set protected-mode no there",
    "unsupported protocol version": "does not speak that protocol: add ?protocol=2 to the URL",
    "DB index is out of range": "has no database of that number: give a lower one in the URL, or let it have "
    "more (databases)",
    "SELECT is not allowed in cluster mode": "is a node of a cluster, which has no numbers of databases: use "
    "redis+cluster:// without one",
    "cluster support disabled": "is a single server, no cluster: use redis:// or rediss://",
    "invalid bulk length": "does not take a text of that size (proto-max-bulk-len): let it take more, or lower "
    "IM_MAX_CONTENT_BYTES",
}
"""Permanent refusals, by a part of the answer."""

_NO_PASSWORD = ("Authentication required", "already authenticated")
_NO_RIGHT = ("ACL failure in script: ", "The user executing the script can't ", "NOPERM ")

_NO_FILES = {errno.EMFILE, errno.ENFILE}
_NO_RIGHTS = {errno.EACCES, errno.EPERM}
_NOT_LISTENING = {None, errno.ECONNREFUSED, errno.ENOENT}

_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
"""OpenSSL's reasons for the answer of a server that does not speak TLS."""

_CERTIFICATE_REFUSED = {
    *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_UNKNOWN_CA"),
    *("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    *("SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
}
_TLS_ALERT = ("\\x15", "\x15")
"""How an alert of TLS begins, as the driver and as the system show it."""


def address(url: str) -> str:
    """Return a URL as it may be shown: without user, password and options; doubtful text is left out."""
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme.replace("+", "").isalnum():
        return "the given text"
    try:
        parts = urlsplit(url)
        hosts = ",".join(map(str, places_of(parts.netloc)))
    except ValueError:
        return f"{scheme}://..."
    # An @ behind the host: the password has a / ? or # in it, and the "host" is a part of it.
    is_path = scheme == "unix" and not parts.netloc
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and not is_path:
        return f"{scheme}://..."
    return f"{scheme}://{hosts}{_path(scheme, parts.path)}"


def _path(scheme: str, path: str) -> str:
    """Return the path of a socket, the number of a database, or the name of a primary.

    Anything else may be an option without its ?.
    """
    known = r"/[\w.-]{1,100}" if scheme.endswith("+sentinel") else r"/*[0-9]*/*"
    return path if scheme == "unix" or re.fullmatch(known, path) else "/..."


@contextmanager
def driver_errors(where: str, gid: str = "", *, variable: str = CHAT_URL) -> Iterator[None]:
    """Translate what the driver raises into an ImError, as `translated` does, with the cause kept."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translated(error, where, gid, variable=variable) from error


def translated(error: Exception, where: str, gid: str = "", *, variable: str = CHAT_URL) -> ImError:
    """Return the ImError for an error of the driver, at this address and perhaps about this group.

    `variable` is the environment variable that names the server.
    """
    error = _error_of_node(error)
    where = address(where) if "://" in where else where
    if isinstance(error, LostNodeError) and isinstance(error.__cause__, Exception):
        where, error = f"{where.partition('://')[0].replace('+sentinel', '')}://{error.node}", error.__cause__
    if isinstance(error, NoPrimaryError):
        return RedisUnavailable(str(error))
    text = _answer_of(error)
    if refusal := _rights(error, text, where, variable) or _refusal(error, text, where):
        return refusal
    if isinstance(error, driver.MaxConnectionsError):
        return RedisRefuses(
            f"this program has as many connections to {where} as it may: raise max_connections in the URL"
        )
    if isinstance(error, NotRedisError | driver.InvalidResponse):
        return _no_protocol(error, where, variable)
    if isinstance(error, (*LOST, driver.RedisClusterException)):
        return _unavailable(error, where, variable)
    return _answered(text, where, gid)


def _error_of_node(error: Exception) -> Exception:
    """Return the error of a node, if the driver only says that it could not ask any."""
    while isinstance(error, driver.RedisClusterException):
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, driver.RedisError | driver.RedisClusterException):
            break
        error = cause
    return error


def _answer_of(error: Exception) -> str:
    """Return the server's answer without the texts that the driver and MULTI put before it."""
    text = str(error)
    if text.startswith("Command # "):
        text = text.rpartition(" of pipeline caused error: ")[2]
    return text.removeprefix("Transaction discarded because of: ")


def _rights(error: Exception, text: str, where: str, variable: str) -> ImError | None:
    if isinstance(error, driver.AuthenticationError):
        if any(words in text for words in _NO_PASSWORD):
            return ConfigurationError(f"{where} wants a password: set {variable} to redis://USER:PASSWORD@HOST")
        return ConfigurationError(
            f"{where} refuses this user or password ({_first_line(text).rstrip('.')}): set {variable}"
        )
    if isinstance(error, driver.NoPermissionError) or text.startswith(_NO_RIGHT):
        what = _first_line(text).removeprefix(_NO_RIGHT[0]).removeprefix(_NO_RIGHT[2]).partition(" script:")[0]
        return ConfigurationError(f"{where} refuses this: {what} (`im acl` prints the rights that are needed)")
    return None


def _refusal(error: Exception, text: str, where: str) -> ImError | None:
    if isinstance(error, driver.OutOfMemoryError) or text.startswith("OOM"):
        return RedisFull(f"{where} has no memory left (maxmemory): nothing was stored")
    if isinstance(error, driver.AskError) and "+cluster://" not in where:
        return ConfigurationError(f"{where} is a node of a cluster: use redis+cluster:// or rediss+cluster://")
    if reason := _REFUSED_BY_WORD.get(_first_word(error, text)) or _reason_in(text, _REFUSED_BY_PART):
        return RedisRefuses(f"{where} {reason}")
    reason = _reason_in(text, _MISCONFIGURED_BY_PART)
    return ConfigurationError(f"{where} {reason}") if reason else None


def _first_word(error: Exception, text: str) -> str:
    return next((word for kind, word in _STRIPPED_WORDS.items() if isinstance(error, kind)), text.partition(" ")[0])


def _reason_in(text: str, reasons: dict[str, str]) -> str | None:
    return next((reason for part, reason in reasons.items() if part in text), None)


def _answered(text: str, where: str, gid: str) -> ImError:
    if (code := text.partition(" ")[0].encode()) in ERRORS:
        return error_of(code, gid, where=where)
    if text.startswith("unknown command"):  # every server that is new enough knows all of ours
        return ConfigurationError(f"{where} is too old: imcore needs Redis 7.0 or Valkey 7.2, or newer")
    about = f" about {gid!r}" if gid else ""
    return ImError(f"{where} answered{about}: {_first_line(text)}")


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "nothing"


def _no_protocol(error: Exception, where: str, variable: str) -> ImError:
    """Return what is wrong with a server, named by a variable, that does not speak the protocol of Redis."""
    if not isinstance(error, NotRedisError):  # it did when the connection began
        return RedisUnavailable(f"what came from {where} was broken on its way ({_short(error)}): try again")
    if any(begin in str(error) for begin in _TLS_ALERT):
        return ConfigurationError(f"{where} speaks TLS: use rediss://")
    return ConfigurationError(
        f"what answers at {where} is no Redis ({_short(error)}): set {variable} to the port where Redis listens"
    )


def _unavailable(error: Exception, where: str, variable: str) -> ImError:
    """Return why no answer came from the server that a variable names."""
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return _over_tls(cause, where)
    if isinstance(error, driver.TimeoutError) and "connecting" in str(error) and where.startswith("rediss"):
        return RedisUnavailable(f"no answer from Redis at {where} over TLS: if it does not speak that, use redis://")
    if isinstance(error, HungUpError):
        hint = "" if where.startswith(("rediss", "unix")) else "; if it wants TLS, use rediss://"
        return RedisUnavailable(f"no answer from Redis at {where}: it hangs up without a word{hint}")
    return _system_error(causes, where, variable)


def _over_tls(error: ssl.SSLError, where: str) -> ImError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{where} is not trusted ({error.verify_message}): name the file of its authority, ?ssl_ca_certs=FILE"
        )
    if error.reason in _NOT_TLS:
        return ConfigurationError(f"{where} does not speak TLS: use redis:// or redis+cluster://")
    if error.reason in _CERTIFICATE_REFUSED:
        return ConfigurationError(
            f"{where} does not accept our certificate, or the want of one ({error.reason}): "
            "name one that it trusts, ?ssl_certfile=FILE&ssl_keyfile=FILE"
        )
    return RedisUnavailable(f"no answer from Redis at {where} over TLS ({error.reason or 'it ended too early'})")


def _system_error(causes: list[BaseException], where: str, variable: str) -> ImError:
    error = _first_system_error(causes)
    if "path too long" in str(error):  # it has no errno
        return ConfigurationError(f"the path of the socket in {where} is too long for this system: use a shorter one")
    if isinstance(error, socket.gaierror):
        return RedisUnavailable(f"the name of the host in {where} cannot be resolved ({error.strerror})")
    if error.errno in _NO_FILES:
        return RedisUnavailable(
            f"no connection to {where}: this process has as many files open as it may (raise ulimit -n)"
        )
    if error.errno in _NO_RIGHTS and where.startswith("unix"):
        return ConfigurationError(f"this user has no right to use the socket of {where}: {error.strerror}")
    reason = "" if error.errno in _NOT_LISTENING else f" ({error.strerror})"
    is_ours = variable == CHAT_URL and where.startswith("unix")  # as the embedded server, which has no port
    start = "start it with `im up`" if is_ours else "start it"
    return RedisUnavailable(f"no answer from Redis at {where}{reason}: {start}, or set {variable}")


def _first_system_error(causes: list[BaseException]) -> OSError:
    """Return the first error with a number, else the first one, else one that says nothing."""
    errors = [cause for cause in causes if isinstance(cause, OSError)]
    return next((error for error in errors if error.errno), errors[0] if errors else OSError())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: Exception) -> str:
    return str(error)[:100].strip() or type(error).__name__
