"""The functions in Redis: which version of them a server holds, and how they get there."""

from collections.abc import Iterator
from importlib import resources
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, ResponseError

from imcore.errors import ConfigurationError, RedisRefuses, RedisUnavailable
from imcore.streams.server_info import servers_of

VERSION = 6
"""Raised with every change of the functions; `lua/base.lua` holds the same number."""

NOT_LOADED = "Function not found"

_FILES = (
    *("base", "groups", "messages", "acks", "receipts", "sessions", "storm", "journals"),
    *("restore_streams", "restore_members", "marks"),
)
"""The files of `lua/` that make up the library, in this order: each may use what stands before it."""

_MOST_TRIES = 5
_LOADED_BY_ANOTHER = "already exists"
_WHAT_TO_DO = "start a worker of this imcore, or run `im db upgrade`"


class Library:
    """The functions of one server, or of all nodes of a cluster that take writes.

    Who only reads never loads them. Who writes does where there are none at all. Older ones are replaced only by who
    `upgrades`: a worker, or an operator who means it.
    """

    def __init__(self, client: redis.Redis | RedisCluster, where: str) -> None:
        self._client: Any = client
        self._where = where
        self.upgrades = False

    def require(self, *, writes: bool) -> None:
        """Make sure that the functions of this program are there.

        Raise RedisUnavailable if they are missing or older and may not be loaded, ConfigurationError if newer ones are,
        RedisRefuses if they do not stay.
        """
        for node in list(self._nodes()):
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

    def _nodes(self) -> Iterator[dict[str, Any]]:
        """Yield where a command is to run, as options of the driver."""
        if not isinstance(self._client, RedisCluster):
            yield {}
        else:
            yield from ({"target_nodes": node} for node in self._client.get_primaries())

    def _version(self, node: dict[str, Any]) -> int:
        """Return the version that is loaded, 0 for none."""
        try:
            return int(self._client.execute_command("FCALL_RO", "im_version", 0, **node))
        except ResponseError as error:
            if NOT_LOADED in str(error):
                return 0
            self.refuse_stranger(error)
            raise

    def refuse_stranger(self, error: Exception) -> None:
        """Say what a server is that does not know a command of ours, unless it is just too old.

        Raise ConfigurationError; do nothing for another error.
        """
        if "unknown command" not in str(error):
            return
        info = next(servers_of(self._client, asks_config=False))
        if info.is_sentinel:
            raise ConfigurationError(
                f"{self._where} is a Sentinel: set IM_REDIS_URL to the primary that it watches"
            ) from error
        if info.version and not info.is_too_old:
            raise ConfigurationError(
                f"{self._where} is {info.server} {info.version}, but has an {_first_part(error)}: "
                "allow that command there (rename-command), or use a server without a proxy before it"
            ) from error

    def _check_may_load(self, found: int, writes: bool) -> None:
        if self.upgrades or (writes and not found):
            return
        what = f"the functions of an older imcore (version {found}; this program needs {VERSION})"
        raise RedisUnavailable(f"{self._where} has {what if found else 'no functions of imcore'}: {_WHAT_TO_DO}")

    def _load(self, node: dict[str, Any], *, replace: bool, is_last: bool) -> None:
        folder = resources.files("imcore.streams").joinpath("lua")
        code = "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in _FILES)
        try:
            self._client.execute_command("FUNCTION LOAD", *["REPLACE"] * replace, code, **node)
        except NoPermissionError as error:
            raise RedisUnavailable(
                f"{self._where} has not the functions of this imcore, and this user may not load them: {_WHAT_TO_DO}"
            ) from error
        except ResponseError as error:
            if _LOADED_BY_ANOTHER not in str(error) or is_last:
                raise


def _first_part(error: Exception) -> str:
    """Return which command is not known, without its arguments."""
    return str(error).partition(",")[0]
