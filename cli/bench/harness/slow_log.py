"""The slow logs of the servers: how long each command takes there, without client and connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imcore.chat import Chat
from imcore.cli.bench.harness.nodes import nodes_of
from imcore.streams.redis_errors import driver_errors

_MOST = 10_000


@contextmanager
def slow_log(chat: Chat, above_us: int) -> Iterator[Callable[[Callable[[], object]], list[float]]]:
    """Make each server log every command that takes as long; restore its settings after the `with`.

    Yield a function that performs an action, and returns how long the commands took meanwhile, in ms.
    """
    servers = nodes_of(chat.system.client.driver)
    settings = {"slowlog-log-slower-than": above_us, "slowlog-max-len": _MOST}

    def durations_ms(action: Callable[[], object]) -> list[float]:
        for server in servers:
            server.slowlog_reset()
        action()
        return [entry["duration"] / 1000 for server in servers for entry in server.slowlog_get(_MOST)]

    with driver_errors(chat.system.client.address):
        before = [(server, name, str(server.config_get(name)[name])) for server in servers for name in settings]
        try:
            for server, name, _ in before:
                server.config_set(name, settings[name])
            yield durations_ms
        finally:
            for server, name, setting in before:
                server.config_set(name, setting)
