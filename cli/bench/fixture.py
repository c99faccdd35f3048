"""Groups of a given size, and how single operations on them are timed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.figures import Aim, Figure, Yardstick
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Measured, Progress, RoundPlan, Rounds, interleave
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget, SendResult
from imcore.streams.keys import GroupKeys, Keyspace

SIZES = (200, 10_000, 100_000)
PER_CALL = 100
"""How many messages, acks or tallies travel in one call of the operations for many."""

TEXT = "x" * 100
_AT_ONCE = 500
_SIZE_AIM = Aim("<=", 1.2)


@dataclass(slots=True)
class Fixture:
    """A group with so many members, its first member as the sender."""

    chat: Chat
    gid: str
    uids: Sequence[str]
    single: int
    many: int
    newest: list[SendResult] = field(default_factory=list)

    @property
    def space(self) -> Keyspace:
        """The names of the data."""
        return self.chat.system.client.space

    @property
    def keys(self) -> GroupKeys:
        """The keys of the group."""
        return self.space.group(self.gid)

    @property
    def sender(self) -> str:
        """Who sends."""
        return self.uids[0]

    def send(self, count: int) -> list[SendResult]:
        """Send messages, and remember them as the newest."""
        drafts = [Draft(self.sender, TEXT)] * count
        call = message_calls.send(self.space, self.gid, drafts, self.chat.system.settings.idempotency_ms)
        self.newest = [raised(sent) for sent in self.chat.system.client.call(call, repeatable=False)]
        return self.newest

    def acks(self, count: int, per_call: int) -> list[AckTarget]:
        """Return so many acks that each move an offset, of new messages, as a gateway makes them: many in one call."""
        readers = self.uids[1:]
        sent = self.send(-(-count // len(readers)))
        whole = (AckTarget(msgids.pack(one.msgid), some, one.seq) for one in sent for some in chunks(readers, per_call))
        found, rest = [], count
        for target in whole:
            found.append(target._replace(uids=target.uids[:rest]))
            rest -= per_call
            if rest <= 0:
                break
        return found


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do an operation. `turn` does it on a bed and returns microseconds for each.

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
        """Whether it belongs among the bars: what has an aim, and what it is held against."""
        return self.compares_sizes or (not self.yardstick and "pipelined" in self.name)


@contextmanager
def make_fixture(stack: Stack, gid: str, size: int, plan: RoundPlan) -> Iterator[Fixture]:
    """Make a group of `size`, a fifth of whom have acked its newest message."""
    with stack.chat() as chat:
        uids = [f"{stack.name}-{number}" for number in range(size)]
        chat.create_group(gid, uids)
        bed = Fixture(chat, gid, uids, plan.size(300, 100), plan.size(2000, 1000))
        bed.send(PER_CALL)
        chat.system.client.call_many(
            [message_calls.ack(bed.space, gid, [target]) for target in bed.acks(size // 5, _AT_ONCE)]
        )
        yield bed


def measure(stack: Stack, bench: str, ways: Sequence[Way], plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure every way at every size, all of them in each round."""
    contestants: dict[str, Callable[[], Measured]] = {}
    with ExitStack() as beds:
        for size in SIZES:
            progress(f"a group of {size:,}")
            bed = beds.enter_context(make_fixture(stack, f"{stack.name}-{bench}-{size}", size, plan))
            contestants |= {_name(way, size): _turn(way, bed) for way in ways}
        measured = interleave(contestants, plan, progress)
    return list(_figures(bench, ways, {name: rounds["us"] for name, rounds in measured.items()}))


def timed(count: int, action: Callable[[], object]) -> float:
    """Return the microseconds that an action takes for each of its `count` parts."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e6 / count


def each(count: int, action: Callable[[], object]) -> float:
    """Return the microseconds of one action, done so many times one after the other."""

    def repeat() -> None:
        for _ in range(count):
            action()

    return timed(count, repeat)


def chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    """Return the items in parts."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _turn(way: Way, bed: Fixture) -> Callable[[], Measured]:
    return lambda: {"us": way.turn(bed)}


def _name(way: Way, size: int) -> str:
    return f"{way.name}, {size:,} members"


def _figures(bench: str, ways: Sequence[Way], found: Mapping[str, Rounds]) -> Iterator[Figure]:
    by_name = {way.name: way for way in ways}
    for size in SIZES:
        for way in ways:
            name = _name(way, size)
            for yardstick in (way.yardstick, way.driver) if way.driver else (way.yardstick,):
                yield Figure(
                    bench=bench,
                    what=f"{name} beside redis-py" if yardstick and yardstick == way.driver else name,
                    unit="us",
                    charted=way.charted and size == SIZES[-1] and yardstick == way.yardstick,
                    rounds=found[name],
                    yardstick=Yardstick(yardstick, found[_name(by_name[yardstick], size)]) if yardstick else None,
                    aim=way.aim,
                )
    for way in ways:
        if way.compares_sizes:
            small, large = _name(way, SIZES[0]), _name(way, SIZES[-1])
            yield Figure(
                bench=bench,
                what=f"{large} beside {SIZES[0]}",
                unit="us",
                rounds=found[large],
                yardstick=Yardstick(f"with {SIZES[0]}", found[small]),
                aim=_SIZE_AIM,
            )
