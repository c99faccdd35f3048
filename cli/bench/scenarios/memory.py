"""Bytes: in Redis per message, member and idle group, in SQL per message and per ack, beside the literal design.

Redis is asked for the memory it has allocated, before and after; MEMORY USAGE would estimate consumer groups wrongly.
The journals are emptied before each look, as `trim` empties them once the workers are done.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.baseline.naive_store import NaiveStore
from imcore.cli.bench.harness import counters
from imcore.cli.bench.harness.figures import Aim, Figure, Yardstick
from imcore.cli.bench.harness.fixture import TEXT
from imcore.cli.bench.harness.servers import BenchServers, backlog
from imcore.cli.bench.harness.timing import Measured, Progress, RoundPlan, Rounds, interleave
from imcore.cli.sandbox import Processes
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import group_calls, message_calls
from imcore.streams.calls.message_calls import AckTarget

SMALL = 200
ACKS_PER_MESSAGE = 10
_LONGEST_S = 120

_IDLE = "Redis, per idle group of two"
_MEMBER = "Redis, per member"
_MESSAGE = "Redis, per message of 100 bytes, beyond its text"
_ROW = "SQL, per message of 100 bytes, beyond its text"
_MOVE = "SQL, per ack that moved an offset"

_AIMS = {
    _MEMBER: Aim("<=", 450, of_ratio=False),
    _MESSAGE: Aim("<=", 150, of_ratio=False),
    _ROW: Aim("<=", 250, of_ratio=False),
    _MOVE: None,
}


def run_memory(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Weigh everything, anew in each round."""
    servers = servers.using(servers.tables())
    sizes = (SMALL, plan.size(100_000, 10_000))
    gids = (f"{servers.name}-{number}" for number in count())
    with servers.running_workers("persist") as workers, servers.chat() as chat:
        scales = _Scales(servers, chat, workers)
        contestants: dict[str, Callable[[], Measured]] = {
            "idle groups": lambda: scales.idle_groups(next(gids), plan.size(1000, 200)),
            **{f"groups of {n:,}": partial(scales.group, gids, n, plan.size(10_000, 2000)) for n in sizes},
            "the literal design": lambda: scales.naive(plan.size(1000, 200)),
        }
        rounds = interleave(contestants, plan, progress)
    figures = [_figure(_IDLE, rounds["idle groups"][_IDLE])]
    for size in sizes:
        for what in _AIMS:
            beside = rounds["the literal design"].get(what) if size == SMALL else None
            figures.append(_figure(what, rounds[f"groups of {size:,}"][what], beside, f", {size:,} members"))
    return figures


def _figure(what: str, rounds: Rounds, beside: Rounds | None = None, suffix: str = "") -> Figure:
    return Figure(
        bench="memory",
        what=what + suffix,
        unit="B",
        rounds=rounds,
        yardstick=Yardstick("the literal design", beside) if beside else None,
        aim=_AIMS.get(what),
        charted=True,
    )


@dataclass(frozen=True, slots=True)
class _Scales:
    """Makes things, and weighs what they take."""

    servers: BenchServers
    chat: Chat
    workers: Processes

    def idle_groups(self, name: str, groups: int) -> Measured:
        """Make groups of two, and nothing else."""
        client = self.chat.system.client
        batch = [group_calls.create_group(client.space, f"{name}-{n}", ["ann", "bob"]) for n in range(groups)]
        return {_IDLE: self._growth(lambda: client.call_many(batch)) / groups}

    def group(self, names: Iterator[str], size: int, messages: int) -> Measured:
        """Make groups of a size, with messages and acks in one of them."""
        uids = _uids(size)
        gids = list(islice(names, max(1, 10 * SMALL // size)))
        per_group = self._growth(lambda: [self.chat.create_group(gid, uids) for gid in gids]) / len(gids)
        bytes_before = self._bytes_of("group_msgs")
        redis_bytes = self._growth(lambda: self._send(gids[0], uids[0], messages))
        row_bytes = self._bytes_of("group_msgs") - bytes_before
        bytes_before = self._bytes_of("offset_moves")
        self._growth(lambda: self._ack(gids[0], uids[1 : ACKS_PER_MESSAGE + 1]))
        move_bytes = self._bytes_of("offset_moves") - bytes_before
        return {
            _MEMBER: per_group / size,
            _MESSAGE: redis_bytes / messages - len(TEXT),
            _ROW: row_bytes / messages - len(TEXT),
            _MOVE: move_bytes / messages / ACKS_PER_MESSAGE,
        }

    def naive(self, messages: int) -> Measured:
        """Weigh the literal design in a small group, each message acked by some."""
        maker, uids = self.servers.maker, _uids(SMALL)
        url = maker.new()
        with NaiveStore(url, "literal") as store:
            store.create(uids)
            before = maker.bytes_of(url)
            sent = [store.send(uids[0], TEXT) for _ in range(messages)]
            after = maker.bytes_of(url)
            for uid in uids[1 : ACKS_PER_MESSAGE + 1]:
                for msgid in sent:
                    store.ack(uid, msgid)
            move_bytes = maker.bytes_of(url) - after
        return {
            _ROW: (after - before) / messages - len(TEXT),
            _MOVE: move_bytes / messages / ACKS_PER_MESSAGE,
        }

    def _send(self, gid: str, sender: str, messages: int) -> None:
        call = message_calls.send(self.chat.system.client.space, gid, [Draft(sender, TEXT)], 1)
        self.chat.system.client.call_many([call] * messages, repeatable=False)

    def _ack(self, gid: str, uids: Sequence[str]) -> None:
        """Ack each message by each of these members."""
        client = self.chat.system.client
        entries = client.query("XRANGE", client.space.group(gid).stream, "-", "+")
        targets = [AckTarget(msgids.pack_id(entry_id), uids, seq) for seq, (entry_id, _) in enumerate(entries, 1)]
        for results in client.call_many([message_calls.ack(client.space, gid, [target]) for target in targets]):
            for result in results:
                raised(result.target)

    def _growth(self, action: Callable[[], object]) -> int:
        """Return how many bytes Redis holds more after an action, once it is stored and the journals are empty."""
        self._settle()
        before = counters.data_memory(self.chat)
        action()
        self._settle()
        return counters.data_memory(self.chat) - before

    def _settle(self) -> None:
        self.workers.wait(lambda: not backlog(self.chat, "persist"), "everything is stored", timeout_s=_LONGEST_S)
        for journal in self.chat.system.client.space.journals():
            self.chat.system.client.execute_once("XTRIM", journal, "MAXLEN", 0)

    def _bytes_of(self, table: str) -> int:
        return self.servers.maker.bytes_of(self.servers.settings.database_url, table)


def _uids(count: int) -> list[str]:
    return [f"user-{number:08}" for number in range(count)]  # as long as user ids usually are
