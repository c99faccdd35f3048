"""The functions in Redis: which version of them a server holds, and how they are loaded."""

from importlib import resources
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, ResponseError

from imcore.errors import ConfigurationError, RedisRefuses, RedisUnavailable
from imcore.streams.server_info import primaries_of, servers_of

VERSION = 15
"""Raised with every change of the functions; `lua/base.lua` holds the same number."""

_FILES = (
    *("base", "positions", "groups", "idempotency", "messages", "acks", "receipts", "history", "inbox"),
    *("policies", "why"),
    *("sessions", "coalescing", "journals", "repair_streams", "repair_members", "repair_look", "watermarks", "rewrite"),
    *("deletion", "erasure", "erasure_entries"),
)
"""The files of `lua/` that make up the library. Each may use what earlier ones define."""

_MOST_TRIES = 5
_WHAT_TO_DO = "start a worker of this imcore, or run `im db upgrade`"


class Library:
    """The Lua library of one server, or of all primaries of a cluster.

    A caller that only reads never loads it. A caller that writes loads it where there is none at all. An older one
    is replaced only if `upgrades` is set: by a worker, or by an operator who means it.
    """

    def __init__(self, client: redis.Redis | RedisCluster, where: str) -> None:
        self._client = client
        self._where = where
        self.upgrades = False

    def require(self, *, writes: bool) -> None:
        """Make sure that the functions of this program are loaded.

        Raise RedisUnavailable if they are missing or older and may not be loaded, ConfigurationError if newer ones are,
        RedisRefuses if they do not stay.
        """
        for _, node in list(primaries_of(self._client)):
            tries = 0
            while (found := self._version(node)) < VERSION:
                self._check_may_load(found, writes)
                tries += 1
                if tries > _MOST_TRIES:
                    raise RedisRefuses(f"{self._where} loses the functions of imcore as soon as they are loaded")
                self._load(node, replace=found > 0, is_last=tries == _MOST_TRIES)
            if found > VERSION:
                raise ConfigurationError(
                    f"{self._where} holds the functions of a newer imcore (version {found}; this program has "
                    f"{VERSION}): upgrade imcore"
                )

    def _version(self, node: Any) -> int:
        """Return the loaded version, 0 without one."""
        try:
            return int(node.execute_command("FCALL_RO", "im_version", 0))
        except ResponseError as error:
            if is_missing(error):
                return 0
            if stranger := self.stranger(error):
                raise stranger from error
            raise

    def stranger(self, error: Exception) -> ConfigurationError | None:
        """Return what a server is that does not know a command and is not just too old; None for another error."""
        if "unknown command" not in str(error):
            return None
        info = next(servers_of(self._client, asks_config=False))
        if info.is_sentinel:
            return ConfigurationError(f"{self._where} is a Sentinel: set IM_REDIS_URL to the primary that it watches")
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


def is_missing(answer: object) -> bool:
    """Return whether a server answered that it does not have the functions."""
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)
