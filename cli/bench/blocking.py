"""For how long one call holds the server, who serves nobody else meanwhile: the longest one of each operation.

The server's own slow log tells, so the client's time and the way to it are in none of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from imcore.admin import retention
from imcore.chat import Chat
from imcore.cli.bench.figures import Aim, Figure
from imcore.cli.bench.processes import Workers, backlog, running_workers
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Progress, RoundPlan, Rounds, by_figure
from imcore.model.values import Draft
from imcore.streams.redis_errors import driver_errors

TEXT = "x" * 1000
MESSAGES = 2000
_SETTINGS = {"slowlog-log-slower-than": 100, "slowlog-max-len": 10_000}
_AIM = Aim("<=", 10, of_ratio=False)
_LONGEST_S = 300


def run_blocking(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure the longest call of each operation, in groups of two sizes."""
    stack = stack.using(stack.tables())
    figures: list[Figure] = []
    with running_workers(stack, "persist", "receipts") as workers, stack.chat() as chat, _slow_log(chat):
        for size in (10_000, plan.size(100_000, 20_000)):
            turns = []
            for number in range(1, plan.rounds + 1):
                progress(f"{size:,} members, round {number} of {plan.rounds}")
                turns.append(_round(chat, workers, f"{stack.name}-{size}-{number}", size))
            figures += [_figure(what, rounds, size) for what, rounds in by_figure(turns).items()]
    return figures


def _figure(what: str, rounds: Rounds, size: int) -> Figure:
    subject = f"{size:,} members"
    return Figure(
        bench="blocking", what=what, unit="ms", subject=subject, table="longest call", rounds=rounds, aim=_AIM
    )


def _round(chat: Chat, workers: Workers, gid: str, size: int) -> dict[str, float]:
    uids = [f"user-{number:08}" for number in range(size)]
    others = [f"other-{number:08}" for number in range(size // 10)]
    found = {"create": _longest(chat, lambda: chat.create_group(gid, uids))}
    found["create again"] = _longest(chat, lambda: chat.create_group(gid, uids))
    found["join"] = _longest(chat, lambda: chat.add_members(gid, others))
    for _ in range(MESSAGES // 500):
        sent = chat.send_many(gid, [Draft(uids[0], TEXT) for _ in range(500)])
    msgid = str(getattr(sent[-1], "msgid", ""))
    chat.ack_many(gid, [(uid, msgid) for uid in uids[: size // 2]])
    found["status of 500"] = _longest(chat, lambda: chat.status(gid, limit=500))
    found["names"] = _longest(chat, lambda: chat.message_status(gid, msgid))
    found["leave"] = _longest(chat, lambda: chat.remove_members(gid, others))
    workers.wait(lambda: not _backlog(chat), "everything is stored", timeout_s=_LONGEST_S)
    found["trim"] = _longest(chat, lambda: retention.trim(chat.system, keep_messages=0))
    return found


def _backlog(chat: Chat) -> int:
    return backlog(chat, "persist") + backlog(chat, "receipts")


def _longest(chat: Chat, action: Callable[[], object]) -> float:
    """Return how long the longest call of an action took the server, in ms."""
    with driver_errors(chat.system.client.address):
        chat.system.client.driver.slowlog_reset()
        action()
        entries: list[dict[str, Any]] = chat.system.client.driver.slowlog_get(_SETTINGS["slowlog-max-len"])
    return max((entry["duration"] / 1000 for entry in entries), default=_SETTINGS["slowlog-log-slower-than"] / 1000)


@contextmanager
def _slow_log(chat: Chat) -> Iterator[None]:
    """Let the server note every call that takes long; afterwards it notes what it noted before."""
    client = chat.system.client.driver
    with driver_errors(chat.system.client.address):
        before = {name: client.config_get(name)[name] for name in _SETTINGS}
        for name, value in _SETTINGS.items():
            client.config_set(name, value)
    try:
        yield
    finally:
        with driver_errors(chat.system.client.address):
            for name, noted in before.items():
                client.config_set(name, str(noted))
