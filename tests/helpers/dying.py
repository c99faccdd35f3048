"""A Redis client whose user is killed at one of its commands."""

from typing import Any

from imcore.streams.client import RedisClient


class KilledError(Exception):
    """What SIGKILL is here."""


class Dying(RedisClient):
    """A client whose user dies with one of the next commands: the server has run it, but nobody learns of that."""

    left = 10**9

    def call(self, call: Any, *, repeatable: bool = True) -> Any:
        answer = super().call(call, repeatable=repeatable)
        self._count()
        return answer

    def query(self, *command: Any) -> Any:
        answer = super().query(*command)
        self._count()
        return answer

    def _execute(self, commands: Any, *, repeatable: bool) -> list[Any]:
        answers = super()._execute(commands, repeatable=repeatable)
        self._count()
        return answers

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError
