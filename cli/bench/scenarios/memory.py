"""Bytes: in Redis per message, member and idle group, in SQL per message and per ack, beside the literal design.

Redis is asked for the memory it has allocated, before and after; MEMORY USAGE would estimate consumer groups wrongly.
The journals are emptied before each look, as `trim` empties them once the workers are done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.baseline.naive_store import NaiveStore
from imcore.cli.bench.harness import counters
from imcore.cli.bench.harness.figures import Aim, Figure, Yardstick
from imcore.cli.bench.harness.fixture import TEXT, chunks
from imcore.cli.bench.harness.servers import BenchServers, backlog
from imcore.cli.bench.harness.timing import Progress, RoundPlan, Rounds
from imcore.cli.sandbox import Processes
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import group_calls, message_calls
from imcore.streams.calls.message_calls import AckTarget

SMALL = 200
ACKS_PER_MESSAGE = 10
_AT_ONCE = 500
_LONGEST_S = 120

_IDLE = "Redis, per idle group of two"
_MEMBER = "Redis, per member"
_MESSAGE = "Redis, per message of 100 bytes, beyond its text"
_ROW = "SQL, per message of 100 bytes, beyond its text"
_MOVE = "SQL, per ack that moved an offset"
_NAIVE_ROW, _NAIVE_MOVE = "literal message", "literal ack"

_AIMS = {
    _MEMBER: Aim("<=", 450, of_ratio=False),
    _MESSAGE: Aim("<=", 150, of_ratio=False),
    _ROW: Aim("<=", 250, of_ratio=False),
    _MOVE: None,
}
_YARDSTICKS = {_ROW: _NAIVE_ROW, _MOVE: _NAIVE_MOVE}
"""What was weighed of the literal design, too: in a small group."""

Found = dict[str, list[float]]
"""By name of the figure what each round has found."""


def run_memory(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Weigh everything, anew in each round."""
    servers = servers.using(servers.tables())
    sizes = (SMALL, plan.size(100_000, 10_000))
    found: Found = {}
    with servers.running_workers("persist") as workers, servers.chat() as chat:
        for number in range(1, plan.rounds + 1):
            scales = _Scales(servers, chat, workers, f"{servers.name}-{number}", found)
            progress(f"idle groups, round {number} of {plan.rounds}")
            scales.weigh_idle_groups(plan.size(1000, 200))
            for size in sizes:
                progress(f"groups of {size:,}, round {number} of {plan.rounds}")
                scales.weigh_group(size, plan.size(10_000, 2000))
            progress(f"the literal design, round {number} of {plan.rounds}")
            scales.weigh_naive(plan.size(1000, 200))
    return [_figure(_IDLE, found), *(_figure(what, found, size) for size in sizes for what in _AIMS)]


def _figure(what: str, found: Found, size: int | None = None) -> Figure:
    name = _at(what, size) if size else what
    beside = _YARDSTICKS.get(what) if size == SMALL else None
    return Figure(
        bench="memory",
        what=name,
        unit="B",
        rounds=Rounds(tuple(found[name])),
        yardstick=Yardstick("the literal design", Rounds(tuple(found[beside]))) if beside else None,
        aim=_AIMS.get(what),
        charted=True,
    )


def _at(what: str, size: int) -> str:
    return f"{what}, {size:,} members"


@dataclass(frozen=True, slots=True)
class _Scales:
    """Weighs what one round makes, and notes it in `found`."""

    servers: BenchServers
    chat: Chat
    workers: Processes
    name: str
    found: Found

    def weigh_idle_groups(self, count: int) -> None:
        """Make groups of two, and nothing else."""
        client = self.chat.system.client
        gids = [f"{self.name}-idle-{number}" for number in range(count)]
        batch = [group_calls.create_group(client.space, gid, ["ann", "bob"]) for gid in gids]
        self._note(_IDLE, self._growth(lambda: client.call_many(batch)) / count)

    def weigh_group(self, size: int, messages: int) -> None:
        """Make groups of a size, with messages and acks in one of them."""
        uids = _uids(size)
        gids = [f"{self.name}-of-{size}-{number}" for number in range(max(1, 10 * SMALL // size))]
        grown = self._growth(lambda: [self.chat.create_group(gid, uids) for gid in gids])
        self._note(_at(_MEMBER, size), grown / size / len(gids))
        before = self._bytes_of("group_msgs")
        grown = self._growth(lambda: self._send(gids[0], uids[0], messages))
        self._note(_at(_MESSAGE, size), grown / messages - len(TEXT))
        self._note(_at(_ROW, size), (self._bytes_of("group_msgs") - before) / messages - len(TEXT))
        before = self._bytes_of("offset_moves")
        self._growth(lambda: self._ack(gids[0], uids[1 : ACKS_PER_MESSAGE + 1]))
        self._note(_at(_MOVE, size), (self._bytes_of("offset_moves") - before) / messages / ACKS_PER_MESSAGE)

    def weigh_naive(self, messages: int) -> None:
        """Weigh the literal design in a small group, each message acked by some."""
        maker, uids = self.servers.maker, _uids(SMALL)
        url = maker.new()
        with NaiveStore(url, f"{self.servers.name}-literal") as store:
            store.create(uids)
            before = maker.bytes_of(url)
            sent = [store.send(uids[0], TEXT) for _ in range(messages)]
            after = maker.bytes_of(url)
            for uid in uids[1 : ACKS_PER_MESSAGE + 1]:
                for msgid in sent:
                    store.ack(uid, msgid)
            self._note(_NAIVE_ROW, (after - before) / messages - len(TEXT))
            self._note(_NAIVE_MOVE, (maker.bytes_of(url) - after) / messages / ACKS_PER_MESSAGE)

    def _note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def _send(self, gid: str, sender: str, messages: int) -> None:
        call = message_calls.send(self.chat.system.client.space, gid, [Draft(sender, TEXT)], 1)
        self.chat.system.client.call_many([call] * messages, repeatable=False)

    def _ack(self, gid: str, uids: Sequence[str]) -> None:
        """Ack each message by each of these members."""
        client = self.chat.system.client
        entries = client.query("XRANGE", client.space.group(gid).stream, "-", "+")
        targets = [
            AckTarget(msgids.pack_id(entry_id), part, seq)
            for seq, (entry_id, _) in enumerate(entries, 1)
            for part in chunks(uids, _AT_ONCE)
        ]
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
