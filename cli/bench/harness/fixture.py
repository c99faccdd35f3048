"""Groups of a given size, and how single operations on them are timed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.harness.figures import Aim, Figure, Yardstick
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.timing import Measured, Progress, RoundPlan, Rounds, interleave
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.message_calls import AckTarget, SendResult
from imcore.streams.keys import Keyspace

SIZES = (200, 10_000, 100_000)
PER_CALL = 100
"""How many messages, acks or tallies travel in one call of the operations for many."""

TEXT = "x" * 100
"""What every message says: the length of a usual chat message."""

_AT_ONCE = 500
_SIZE_AIM = Aim("<=", 1.2)


@dataclass(slots=True)
class Fixture:
    """A group. Its first member sends; `single` and `many` are how often a turn does what it measures."""

    chat: Chat
    gid: str
    uids: Sequence[str]
    single: int
    many: int
    newest: list[SendResult] = field(default_factory=list)

    @property
    def space(self) -> Keyspace:
        return self.chat.system.client.space

    @property
    def sender(self) -> str:
        return self.uids[0]

    def send(self, count: int) -> list[SendResult]:
        """Send messages, and remember them as the newest."""
        [results] = self.chat.system.client.call_many(
            [self.send_call([Draft(self.sender, TEXT)] * count)], repeatable=False
        )
        self.newest = list(map(raised, results))
        return self.newest

    def send_call(self, drafts: Sequence[Draft]) -> Call[list[SendResult | ImError]]:
        return message_calls.send(self.space, self.gid, drafts, self.chat.system.settings.idempotency_ms)

    def acks(self, count: int, per_call: int) -> list[AckTarget]:
        """Return `count` acks of new messages, each by a member whose offset it moves, `per_call` in a target."""
        readers = self.uids[1:]
        targets, rest = [], count
        for sent in self.send(-(-count // len(readers))):
            for i in range(0, min(rest, len(readers)), per_call):
                uids = readers[i : min(i + per_call, rest)]
                targets.append(AckTarget(msgids.pack(sent.msgid), uids, sent.seq))
            rest -= len(readers)
        return targets


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do an operation. `turn` does it on a fixture, and returns microseconds for each.

    `yardstick` and `driver` name the ways that it is held against; the aim is for both.
    """

    name: str
    turn: Callable[[Fixture], float]
    yardstick: str = ""
    aim: Aim | None = None
    compares_sizes: bool = False
    driver: str = ""

    @property
    def charted(self) -> bool:
        """Whether it is one of the bars: what has an aim, and the pipelined yardsticks."""
        return self.compares_sizes or (not self.yardstick and "pipelined" in self.name)

    def at(self, size: int) -> str:
        """Return the name of the figure for groups of a size."""
        return f"{self.name}, {size:,} members"


def measure(
    servers: BenchServers, bench: str, ways: Sequence[Way], plan: RoundPlan, progress: Progress
) -> list[Figure]:
    """Measure every way at every size, all of them in each round."""
    contestants: dict[str, Callable[[], Measured]] = {}
    with ExitStack() as things:
        for size in SIZES:
            progress(f"a group of {size:,}")
            fixture = things.enter_context(_open_fixture(servers, f"{servers.name}-{bench}-{size}", size, plan))
            contestants |= {way.at(size): _turn(way, fixture) for way in ways}
        measured = interleave(contestants, plan, progress)
    rounds = {name: figures["us"] for name, figures in measured.items()}
    beside_yardsticks = (_figures(bench, way, size, rounds) for size in SIZES for way in ways)
    return [
        *(figure for figures in beside_yardsticks for figure in figures),
        *(_size_figure(bench, way, rounds) for way in ways if way.compares_sizes),
    ]


def timed(count: int, action: Callable[[], object]) -> float:
    """Return the microseconds that an action takes for each of its `count` parts."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e6 / count


def repeated(count: int, action: Callable[[], object]) -> float:
    """Return the microseconds of one action, done `count` times one after the other."""
    began = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - began) * 1e6 / count


@contextmanager
def _open_fixture(servers: BenchServers, gid: str, size: int, plan: RoundPlan) -> Iterator[Fixture]:
    """Make a group of which a fifth have acked its newest message."""
    with servers.chat() as chat:
        uids = [f"{servers.name}-{number}" for number in range(size)]
        chat.create_group(gid, uids)
        fixture = Fixture(chat, gid, uids, plan.size(300, 100), plan.size(2000, 1000))
        fixture.send(PER_CALL)
        acks = fixture.acks(size // 5, _AT_ONCE)
        chat.system.client.call_many([message_calls.ack(fixture.space, gid, [target]) for target in acks])
        yield fixture


def _turn(way: Way, fixture: Fixture) -> Callable[[], Measured]:
    return lambda: {"us": way.turn(fixture)}


def _figures(bench: str, way: Way, size: int, rounds: Mapping[str, Rounds]) -> Iterator[Figure]:
    """Yield the figure beside its yardstick, and beside redis-py where the way names it."""

    def figure(beside: str, suffix: str = "") -> Figure:
        yardstick = Yardstick(beside, rounds[f"{beside}, {size:,} members"]) if beside else None
        return Figure(bench=bench, what=own + suffix, unit="us", rounds=rounds[own], yardstick=yardstick, aim=way.aim)

    own = way.at(size)
    yield replace(figure(way.yardstick), charted=way.charted and size == SIZES[-1])
    if way.driver:
        yield figure(way.driver, " beside redis-py")


def _size_figure(bench: str, way: Way, rounds: Mapping[str, Rounds]) -> Figure:
    small, large = way.at(SIZES[0]), way.at(SIZES[-1])
    yardstick = Yardstick(f"with {SIZES[0]}", rounds[small])
    what = f"{large} beside {SIZES[0]}"
    return Figure(bench=bench, what=what, unit="us", rounds=rounds[large], yardstick=yardstick, aim=_SIZE_AIM)
