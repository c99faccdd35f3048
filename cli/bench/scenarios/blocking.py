"""For how long one call holds the server, which serves nobody else meanwhile: the longest one of each operation.

The figures come from the server's own slow log: the client's time and the way to it are not in them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from imcore.admin import retention
from imcore.chat import Chat
from imcore.cli.bench.harness.figures import Aim, Figure
from imcore.cli.bench.harness.servers import BenchServers, backlog
from imcore.cli.bench.harness.timing import Measured, Progress, RoundPlan, interleave
from imcore.cli.sandbox import Processes
from imcore.model.values import Draft
from imcore.streams.redis_errors import driver_errors

TEXT = "x" * 1000
MESSAGES = 2000
_SETTINGS = {"slowlog-log-slower-than": 100, "slowlog-max-len": 10_000}
_AIM = Aim("<=", 10, of_ratio=False)
_LONGEST_S = 300


def run_blocking(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure the longest call of each operation, in groups of two sizes."""
    servers = servers.using(servers.tables())
    gids = (f"{servers.name}-{number}" for number in count())
    with servers.running_workers("persist", "receipts") as workers, servers.chat() as chat, _slow_log(chat):
        contestants: dict[str, Callable[[], Measured]] = {
            f"{size:,} members": partial(_turn, chat, workers, gids, size)
            for size in (10_000, plan.size(100_000, 20_000))
        }
        rounds = interleave(contestants, plan, progress)
    return [
        Figure(bench="blocking", what=what, unit="ms", subject=name, table="longest call", rounds=each, aim=_AIM)
        for name, measured in rounds.items()
        for what, each in measured.items()
    ]


def _turn(chat: Chat, workers: Processes, gids: Iterator[str], size: int) -> Measured:
    gid = next(gids)
    uids = [f"user-{number:08}" for number in range(size)]
    others = [f"other-{number:08}" for number in range(size // 10)]
    longest = {"create": _longest(chat, lambda: chat.create_group(gid, uids))}
    longest["create again"] = _longest(chat, lambda: chat.create_group(gid, uids))
    longest["join"] = _longest(chat, lambda: chat.add_members(gid, others))
    for _ in range(MESSAGES // 500):
        sent = chat.send_many(gid, [Draft(uids[0], TEXT) for _ in range(500)])
    msgid = str(getattr(sent[-1], "msgid", ""))
    chat.ack_many(gid, [(uid, msgid) for uid in uids[: size // 2]])
    longest["status of 500"] = _longest(chat, lambda: chat.status(gid, limit=500))
    longest["names"] = _longest(chat, lambda: chat.message_status(gid, msgid))
    longest["leave"] = _longest(chat, lambda: chat.remove_members(gid, others))
    workers.wait(lambda: not backlog(chat, "persist", "receipts"), "everything is stored", timeout_s=_LONGEST_S)
    longest["trim"] = _longest(chat, lambda: retention.trim(chat.system, keep_messages=0))
    return longest


def _longest(chat: Chat, action: Callable[[], object]) -> float:
    """Return how long the longest call of an action took the server, in ms."""
    with driver_errors(chat.system.client.address):
        chat.system.client.driver.slowlog_reset()
        action()
        entries: list[dict[str, Any]] = chat.system.client.driver.slowlog_get(_SETTINGS["slowlog-max-len"])
    return max((entry["duration"] / 1000 for entry in entries), default=_SETTINGS["slowlog-log-slower-than"] / 1000)


@contextmanager
def _slow_log(chat: Chat) -> Iterator[None]:
    """Let the server note every call that is not quite short; put its settings back after the `with`."""
    client = chat.system.client.driver
    with driver_errors(chat.system.client.address):
        before = {name: client.config_get(name)[name] for name in _SETTINGS}
        try:
            for name, value in _SETTINGS.items():
                client.config_set(name, value)
            yield
        finally:
            for name, setting in before.items():
                client.config_set(name, str(setting))
