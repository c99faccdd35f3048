"""The longest call of each operation. Meanwhile the server serves nobody else."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

from imcore.admin import retention
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, interleave
from imcore.cli.bench.harness.servers import BenchServers, RunningServers
from imcore.cli.bench.harness.slow_log import slow_log
from imcore.model.values import Draft
from imcore.operations.effects import raised

TEXT = "x" * 1000
MESSAGES = 2000
_ABOVE_US = 100

_Durations = Callable[[Callable[[], object]], list[float]]

_AIM = Aim("<=", 10, of_ratio=False)


def run_blocking(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure the longest call of each operation, in groups of two sizes."""
    servers = servers.using(servers.tables())
    gids = (f"{servers.name}-{number}" for number in count())
    with servers.running("persist", "receipts") as running, slow_log(running.chat, _ABOVE_US) as durations:
        contestants: dict[str, Callable[[], Measured]] = {
            f"{size:,} members": partial(_turn, running, durations, gids, size)
            for size in (10_000, plan.size(100_000, 20_000))
        }
        rounds = interleave(contestants, plan, progress)
    return [
        Figure(bench="blocking", what=what, unit="ms", subject=name, table="longest call", rounds=values, aim=_AIM)
        for name, measured in rounds.items()
        for what, values in measured.items()
    ]


def _turn(running: RunningServers, durations: _Durations, gids: Iterator[str], size: int) -> Measured:
    chat, gid = running.chat, next(gids)

    def longest(action: Callable[[], object]) -> float:
        """Return how long the longest call of an action took the server, in ms."""
        return max(durations(action), default=_ABOVE_US / 1000)

    uids = [f"user-{number:08}" for number in range(size)]
    others = [f"other-{number:08}" for number in range(size // 10)]
    measured = {"create": longest(lambda: chat.create_group(gid, uids))}
    measured["create again"] = longest(lambda: chat.create_group(gid, uids))
    measured["join"] = longest(lambda: chat.add_members(gid, others))
    for _ in range(MESSAGES // 500):
        sent = chat.send_many(gid, [Draft(uids[0], TEXT)] * 500)
    msgid = raised(sent[-1]).msgid
    chat.ack_many(gid, [(uid, msgid) for uid in uids[: size // 2]])
    measured["status of 500"] = longest(lambda: chat.status(gid, limit=500))
    measured["names"] = longest(lambda: chat.message_status(gid, msgid))
    measured["leave"] = longest(lambda: chat.remove_members(gid, others))
    running.wait_until_stored()
    measured["trim"] = longest(lambda: retention.trim(chat.system, keep_messages=0))
    return measured
