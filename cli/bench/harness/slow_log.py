"""The server's slow log: how long it takes for each command, without the time of the client and of the connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imcore.chat import Chat
from imcore.streams.redis_errors import driver_errors

_MOST = 10_000


@contextmanager
def slow_log(chat: Chat, above_us: int) -> Iterator[Callable[[Callable[[], object]], list[float]]]:
    """Make the server log every command that takes as long; restore its settings after the `with`.

    Yield a function that performs an action, and returns how long the commands took meanwhile, in ms.
    """
    server = chat.system.client.driver
    settings = {"slowlog-log-slower-than": above_us, "slowlog-max-len": _MOST}

    def durations_ms(action: Callable[[], object]) -> list[float]:
        server.slowlog_reset()
        action()
        return [entry["duration"] / 1000 for entry in server.slowlog_get(_MOST)]

    with driver_errors(chat.system.client.address):
        before = {name: server.config_get(name)[name] for name in settings}
        try:
            for name, value in settings.items():
                server.config_set(name, value)
            yield durations_ms
        finally:
            for name, setting in before.items():
                server.config_set(name, str(setting))
