"""The functions in Redis: which version of them a server holds, and how they are loaded."""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from imcore.errors import ConfigurationError, RedisRefuses, RedisUnavailable
from imcore.streams.cluster import Cluster
from imcore.streams.cluster_rounds import VERSION_COMMAND, ask_primaries
from imcore.streams.redis_errors import LOST
from imcore.streams.rounds import OTHERS_S, Client
from imcore.streams.server_info import servers_of
from imcore.streams.transport import perform_step
from imcore.util.steps import perform

VERSION = 17
"""Raised with every change of the functions; `lua/base.lua` holds the same number."""

_FILES = (
    *("base", "terms", "positions", "groups", "idempotency", "messages", "acks", "receipts", "history", "inbox"),
    *("policies", "why"),
    *("sessions", "coalescing", "journals", "repair_streams", "repair_members", "repair_look", "watermarks", "rewrite"),
    *("deletion", "erasure", "erasure_entries"),
)
"""The files of `lua/` that make up the library. Each may use what earlier ones define."""

_CHECK_WRITES = ("FCALL", "im_check_writes", 0)
_MOST_TRIES = 5
_WHAT_TO_DO = "start a worker of this imcore, or run `im db upgrade`"


class Library:
    """The Lua library of one server, or of each node of a cluster before its first call.

    A caller that only reads never loads it. A caller that writes loads it where there is none at all. An older one
    is replaced only if `upgrades` is set: by a worker, or by an operator who means it.
    """

    def __init__(self, client: Client, where: str) -> None:
        self._client = client
        self._where = where
        self.upgrades = False

    def require(self, *, writes: bool) -> None:
        """Make sure that the server holds the functions of this program, and all nodes of a cluster that answer.

        A node that is silent is asked before its first call. Raise RedisUnavailable if they are missing or older and
        may not be loaded, or if no node answers; ConfigurationError if newer ones are; RedisRefuses if they do not
        stay.
        """
        if not isinstance(self._client, Cluster):
            self._require(self._client, self._version(self._client), writes)
            return
        answers = perform(ask_primaries(self._client, VERSION_COMMAND, OTHERS_S), perform_step)
        for name, answer in answers.items():
            if not isinstance(answer, LOST):
                node = self._client.get_node(node_name=name)
                self.prepare(writes, name, self._client.get_redis_connection(node), answer)
        raise_if_all_lost(answers)

    def check_writes(self, *, of_all: bool) -> None:
        """Have the server refuse a write if it takes none, every primary of a cluster; or those that answer."""
        if not isinstance(self._client, Cluster):
            execute: Callable[..., Any] = self._client.execute_command
            execute(*_CHECK_WRITES)
            return
        answers = perform(ask_primaries(self._client, _CHECK_WRITES, None if of_all else OTHERS_S), perform_step)
        raise_if_all_lost(answers)
        for answer in answers.values():
            if isinstance(answer, Exception) and (of_all or not isinstance(answer, LOST)):
                raise answer

    def prepare(self, writes: bool, name: str, node: Any, answer: Any) -> None:
        """Do as `require` does for one node of a cluster, which gave this answer to VERSION_COMMAND."""
        if not isinstance(self._client, Cluster):
            return
        found = self._found(answer) if isinstance(answer, Exception) else int(answer)
        self._require(node, found, writes)
        self._client.prepared.add(name)

    def _require(self, node: Any, found: int, writes: bool) -> None:
        tries = 0
        while found < VERSION:
            self._check_may_load(found, writes)
            tries += 1
            if tries > _MOST_TRIES:
                raise RedisRefuses(f"{self._where} loses the functions of imcore as soon as they are loaded")
            self._load(node, replace=found > 0, is_last=tries == _MOST_TRIES)
            found = self._version(node)
        if found > VERSION:
            raise ConfigurationError(
                f"{self._where} holds the functions of a newer imcore (version {found}; this program has "
                f"{VERSION}): upgrade imcore"
            )

    def _version(self, node: Any) -> int:
        """Return the loaded version, 0 without one."""
        try:
            return int(node.execute_command(*VERSION_COMMAND))
        except ResponseError as error:
            return self._found(error)

    def _found(self, error: Exception) -> int:
        """Return the version 0 if an error says that there is no such function. Else raise it."""
        if is_missing(error):
            return 0
        if stranger := self.stranger(error):
            raise stranger from error
        raise error

    def stranger(self, error: Exception) -> ConfigurationError | None:
        """Return what a server is that does not know a command and is not just too old; None for another error."""
        if "unknown command" not in str(error):
            return None
        info = next(servers_of(self._client, asks_config=False))
        if info.is_sentinel:
            return ConfigurationError(
                f"{self._where} is a Sentinel: set IM_REDIS_URL to the primary that it watches, or to "
                "redis+sentinel://HOST/NAME"
            )
        if info.version and not info.is_too_old:
            command = str(error).partition(",")[0]  # without its arguments
            return ConfigurationError(
                f"{self._where} is {info.server} {info.version}, but has an {command}: "
                "allow that command there (rename-command), or use a server without a proxy before it"
            )
        return None

    def _check_may_load(self, found: int, writes: bool) -> None:
        if self.upgrades or (writes and not found):
            return
        what = f"the functions of an older imcore (version {found}; this program needs {VERSION})"
        raise RedisUnavailable(f"{self._where} has {what if found else 'no functions of imcore'}: {_WHAT_TO_DO}")

    def _load(self, node: Any, *, replace: bool, is_last: bool) -> None:
        folder = resources.files("imcore.streams").joinpath("lua")
        code = "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in _FILES)
        try:
            node.execute_command("FUNCTION LOAD", *["REPLACE"] * replace, code)
        except NoPermissionError as error:
            raise RedisUnavailable(
                f"{self._where} has not the functions of this imcore, and this user may not load them: {_WHAT_TO_DO}"
            ) from error
        except ResponseError as error:
            if "already exists" not in str(error) or is_last:  # another process may have loaded them
                raise


def raise_if_all_lost(answers: Mapping[str, Any]) -> None:
    """Raise the first error of the answers of all nodes of a cluster, if not one of them has answered."""
    if all(isinstance(answer, LOST) for answer in answers.values()):
        for answer in answers.values():
            raise answer


def is_missing(answer: object) -> bool:
    """Return whether a server answered that it does not have the functions."""
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)
