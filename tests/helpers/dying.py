"""A Redis client and a database whose user is killed: at one of the commands, at the first write."""

from typing import Any

from imcore.chat import Chat
from imcore.model.rows import Batch
from imcore.sql.database import Database
from imcore.streams import keys
from imcore.streams.client import RedisClient


class KilledError(Exception):
    """What SIGKILL is here."""


class Dying(RedisClient):
    """A client whose user dies with one of the next commands: the server has run it, but nobody learns of that."""

    left = 10**9

    def query(self, *command: Any) -> Any:
        answer = super().query(*command)
        self._count()
        return answer

    def call_each(self, batch: Any, **options: Any) -> list[Any]:
        answers = super().call_each(batch, **options)
        self._count()
        return answers

    def query_each(self, commands: Any, **options: Any) -> list[Any]:
        answers = super().query_each(commands, **options)
        self._count()
        return answers

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


class DyingDatabase(Database):
    """A database at whose first write its user dies, before or after it is committed."""

    def __init__(self, database: Database, committed: bool) -> None:
        super().__init__(database._backend)
        self._committed = committed

    def write(self, batch: Batch) -> None:
        if self._committed:
            super().write(batch)
        raise KilledError


def bury_the_dead(chat: Chat) -> None:
    """Let all leases and locks be over, as they are after some seconds."""
    client, space = chat.system.client.driver, chat.system.client.space
    for name in client.scan_iter("im:lease:*"):
        client.delete(name)
    for partition in range(space.partitions):
        client.hdel(space.watermarks(partition), keys.SEPARATOR)
        for gid in client.hkeys(space.group_locks(partition)):
            client.hset(space.group_locks(partition), gid, "dead 0")
