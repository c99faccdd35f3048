"""The commands that a server has run for a user, and the rights that were not used."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import redis

from imcore.admin.acl import Role
from tests.helpers.key_counts import kind_of

ONLY_ON_A_CLUSTER = {"cluster|slots"}
OF_THE_TEST = {"config|resetstat", "acl|log", "hello"}
END = "that-was-all"


class Watch:
    """Sees which commands the server runs, in functions too, and whether it refuses any."""

    def __init__(self, admin: "redis.Redis") -> None:
        self._admin = admin
        self.used: set[str] = set()
        admin.acl_log_reset()

    @contextmanager
    def looking(self) -> Iterator[None]:
        self._admin.config_resetstat()
        yield
        commandstats = self._admin.info("commandstats")
        ran = {name.removeprefix("cmdstat_") for name, each in commandstats.items() if each["calls"]}
        self.used |= ran - OF_THE_TEST
        assert self._admin.acl_log() == []

    @contextmanager
    def listing(self) -> Iterator[set[tuple[str, str]]]:
        """Look closely: gather which commands functions run, and on which kinds of keys."""
        commands: set[tuple[str, str]] = set()
        pool = self._admin.connection_pool
        where = {**pool.connection_kwargs, "socket_timeout": None}
        with redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **where)).monitor() as monitor:
            reader = Thread(target=self._gather, args=(monitor, commands), daemon=True)
            reader.start()
            try:
                yield commands
            finally:
                self._admin.echo(END)
                reader.join(10)

    def _gather(self, monitor: Any, commands: set[tuple[str, str]]) -> None:
        for heard in monitor.listen():
            words = heard["command"].split()
            if words == ["ECHO", END]:
                return
            if heard["client_type"] == "lua":
                name = "|".join(words[:2]) if words[0] == "XGROUP" else words[0]
                keys = [word for word in words[1:4] if word.startswith("im:{")][: 2 if name == "RENAME" else 1]
                commands.update((name.lower(), kind_of(key) or "") for key in keys)

    def unused(self, role: Role) -> set[str]:
        """The rights of a role, without those on keys of rq, that it has not used."""
        rules = " ".join(role.rules).partition(" (~rq:*")[0].replace("(", "").replace(")", "").split()
        allowed = {rule.removeprefix("+") for rule in rules if rule.startswith("+") and not rule.startswith("+@")}
        return allowed - ONLY_ON_A_CLUSTER - self.used
