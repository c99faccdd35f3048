"""Single operations: send, ack and tally, one at a time, pipelined, and many in one call.

Pipelined operations have two yardsticks: the raw command over the same fast path of the client, so that only the
server's part differs, and the raw command over the pipeline of redis-py, as programs send it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, Rounds, Yardstick, interleave
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.traffic import TEXT
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls, receipt_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.message_calls import AckTarget, SendResult
from imcore.streams.client import CHUNK, RedisClient
from imcore.streams.cluster import server_of
from imcore.util.batches import batches

SIZES = (200, 10_000, 100_000)
PER_CALL = 100
"""The number of messages, acks or tallies in one call of the operations for many."""

_ACKS_PER_CALL = 500
_SIZE_AIM = Aim("<=", 1.4)

Command = tuple[str | int, ...]


@dataclass(slots=True)
class Fixture:
    """A group. Its first member sends. A turn repeats its operation `single` times, or `many` times pipelined."""

    chat: Chat
    client: RedisClient
    gid: str
    uids: Sequence[str]
    single: int
    many: int
    newest: list[SendResult] = field(default_factory=list)

    def send(self, count: int) -> list[SendResult]:
        """Send messages, and remember them as the newest."""
        call = self.send_call([Draft(self.uids[0], TEXT)] * count)
        self.newest = list(map(raised, self.client.call(call, repeatable=False)))
        return self.newest

    def send_call(self, drafts: Sequence[Draft]) -> Call[list[SendResult | ImError]]:
        return message_calls.send(self.client.space, self.gid, drafts, self.chat.system.settings.idempotency_ms)

    def acks(self, count: int, per_call: int) -> list[AckTarget]:
        """Return `count` acks of new messages, `per_call` in a target. Each moves the offset of its member."""
        readers = self.uids[1:]
        starts = range(0, count, len(readers))
        return [
            AckTarget(msgids.pack(sent.msgid), uids, sent.seq)
            for start, sent in zip(starts, self.send(len(starts)), strict=True)
            for uids in batches(readers[: count - start], per_call)
        ]

    def ack(self, targets: Sequence[AckTarget]) -> None:
        self.client.call_many([message_calls.ack(self.client.space, self.gid, [target]) for target in targets])


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do an operation. `turn` does it on a fixture, and returns the microseconds of each.

    `yardstick` and `driver` name the ways to compare it with; the aim is for both. A way with a `driver` is also
    compared between the group sizes.
    """

    name: str
    turn: Callable[[Fixture], float]
    yardstick: str = ""
    aim: Aim | None = None
    driver: str = ""

    def at(self, size: int) -> str:
        """Return the name of the figure for groups of a size."""
        return f"{self.name}, {size:,} members"

    def figures(self, bench: str, size: int, rounds: Mapping[str, Rounds]) -> Iterator[Figure]:
        """Yield the figure beside its yardstick, and beside redis-py where the way names it."""
        own, is_bar = self.at(size), bool(self.driver) or (not self.yardstick and "pipelined" in self.name)
        beside = Yardstick(self.yardstick, rounds[f"{self.yardstick}, {size:,} members"]) if self.yardstick else None
        figure = Figure(bench=bench, what=own, unit="us", rounds=rounds[own], yardstick=beside, aim=self.aim)
        yield replace(figure, charted=is_bar and size == SIZES[-1])
        if self.driver:
            driver = Yardstick(self.driver, rounds[f"{self.driver}, {size:,} members"])
            yield replace(figure, what=f"{own} beside redis-py", yardstick=driver)

    def size_figure(self, bench: str, rounds: Mapping[str, Rounds]) -> Figure:
        """Return the figure for the largest groups beside the same for the smallest."""
        large, small = self.at(SIZES[-1]), Yardstick(f"with {SIZES[0]}", rounds[self.at(SIZES[0])])
        what = f"{large} beside {SIZES[0]}"
        return Figure(bench=bench, what=what, unit="us", rounds=rounds[large], yardstick=small, aim=_SIZE_AIM)


def run_send(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure sends beside the XADD of the same fields, to a stream that nobody reads."""
    raw = "raw XADD"
    ways = [
        Way("send", _send, raw),
        _many_way("send, pipelined", partial(_send_many, 1), raw, 2.2),
        Way("send with client_msgid, pipelined", _send_with_client_msgid, f"{raw}, pipelined"),
        _many_way(f"send_many, {PER_CALL} in a call", partial(_send_many, PER_CALL), raw, 1.8),
        *_raw_ways(raw, _xadd_message, lambda fixture: fixture.send_call([Draft(fixture.uids[0], TEXT)])),
    ]
    return _measure(servers, "send", ways, plan, progress)


def run_ack(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure acks that move an offset, beside the XADD of an ack: who, and up to where."""
    raw = "raw XADD"
    ways = [
        Way("ack", _ack, raw),
        _many_way("ack, pipelined", partial(_ack_many, 1), raw, 2.0),
        _many_way(f"ack_many, {PER_CALL} in a call", partial(_ack_many, PER_CALL), raw, 1.2),
        *_raw_ways(raw, _xadd_ack, lambda f: message_calls.ack(f.client.space, f.gid, f.acks(1, 1))),
    ]
    return _measure(servers, "ack", ways, plan, progress)


def run_tally(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure tallies, how many have read a message and how many not, beside one ZCOUNT over the offsets."""
    raw = "raw ZCOUNT"
    ways = [
        Way("tally", _tally, raw, Aim("<=", 1.5)),
        _many_way("tally, pipelined", partial(_tally_many, 1), raw, 1.5),
        _many_way(f"tallies, {PER_CALL} in a call", partial(_tally_many, PER_CALL), raw, 1.5),
        *_raw_ways(raw, _zcount, lambda fixture: _tallies_call(fixture, fixture.newest[:1])),
    ]
    return _measure(servers, "tally", ways, plan, progress)


def _many_way(name: str, turn: Callable[[Fixture], float], raw: str, at_most: float) -> Way:
    """Return a way that sends many at once, with an aim beside both pipelined yardsticks."""
    return Way(name, turn, f"{raw}, pipelined", Aim("<=", at_most), f"{raw}, pipelined by redis-py itself")


def _raw_ways(raw: str, command: Callable[[Fixture], Command], call: Callable[[Fixture], Call[Any]]) -> list[Way]:
    """Return the ways of a raw command, and of an empty function with the keys and arguments of a call."""
    pipelined, empty = f"{raw}, pipelined", partial(_empty_function, call)
    return [
        Way("empty function", partial(_one_by_one, empty), raw),
        Way("empty function, pipelined", partial(_pipelined, empty), pipelined),
        Way(f"{pipelined} by redis-py itself", partial(_pipelined_by_driver, command), pipelined),
        Way(raw, partial(_one_by_one, command)),
        Way(pipelined, partial(_pipelined, command)),
    ]


def _empty_function(call_of: Callable[[Fixture], Call[Any]], fixture: Fixture) -> Command:
    call = call_of(fixture)
    return "FCALL_RO", "im_version", len(call.keys), *call.keys, *map(str, call.args)


def _measure(
    servers: BenchServers, bench: str, ways: Sequence[Way], plan: RoundPlan, progress: Progress
) -> list[Figure]:
    """Measure every way at every size, all of them in each round."""
    contestants: dict[str, Callable[[], Measured]] = {}
    with ExitStack() as things:
        for size in SIZES:
            progress(f"a group of {size:,}")
            fixture = things.enter_context(_open_fixture(servers, f"{servers.name}-{bench}-{size}", size, plan))
            contestants |= {way.at(size): partial(_turn, way, fixture) for way in ways}
        measured = interleave(contestants, plan, progress)
    rounds = {name: figures["us"] for name, figures in measured.items()}
    figures = [figure for size in SIZES for way in ways for figure in way.figures(bench, size, rounds)]
    return [*figures, *(way.size_figure(bench, rounds) for way in ways if way.driver)]


def _turn(way: Way, fixture: Fixture) -> Measured:
    return {"us": way.turn(fixture)}


@contextmanager
def _open_fixture(servers: BenchServers, gid: str, size: int, plan: RoundPlan) -> Iterator[Fixture]:
    """Make a group of which a fifth have acked its newest message."""
    with servers.chat() as chat:
        uids = [f"{servers.name}-{number}" for number in range(size)]
        chat.create_group(gid, uids)
        fixture = Fixture(chat, chat.system.client, gid, uids, plan.size(300, 100), plan.size(2000, 1000))
        fixture.send(PER_CALL)
        fixture.ack(fixture.acks(size // 5, _ACKS_PER_CALL))
        yield fixture


def _timed(count: int, action: Callable[[], object]) -> float:
    """Return the microseconds that an action takes for each of its `count` parts."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e6 / count


def _repeated(count: int, action: Callable[[], object]) -> float:
    """Return the microseconds of one action, done `count` times one after the other."""
    return _timed(count, lambda: [action() for _ in range(count)])


def _one_by_one(command_of: Callable[[Fixture], Command], fixture: Fixture) -> float:
    command = command_of(fixture)
    return _repeated(fixture.single, lambda: fixture.client.execute_once(*command))


def _pipelined(command_of: Callable[[Fixture], Command], fixture: Fixture) -> float:
    # query_many is the client's pipeline for plain commands: the same path that calls take.
    commands = [command_of(fixture)] * CHUNK
    return _in_trips(fixture, lambda: fixture.client.query_many(commands))


def _pipelined_by_driver(command_of: Callable[[Fixture], Command], fixture: Fixture) -> float:
    command = command_of(fixture)
    server = server_of(fixture.client.driver, str(command[1]))

    def trip() -> None:
        with server.pipeline(transaction=False) as pipe:
            for _ in range(CHUNK):
                pipe.execute_command(*command)
            pipe.execute()

    return _in_trips(fixture, trip)


def _in_trips(fixture: Fixture, trip: Callable[[], object]) -> float:
    return _repeated(fixture.many // CHUNK, trip) / CHUNK


def _xadd_message(fixture: Fixture) -> Command:
    fields = ("seq", 123456, "uid", fixture.uids[0], "span", 0, "cid", "", "sent", "", "caught_up", 1, "text", TEXT)
    return ("XADD", f"{fixture.client.space.group(fixture.gid).stream}:raw", "*", *fields)


def _xadd_ack(fixture: Fixture) -> Command:
    newest = fixture.newest[-1]
    fields = ("uid", fixture.uids[-1], "msgid", msgids.pack(newest.msgid), "seq", newest.seq)
    return ("XADD", f"{fixture.client.space.group(fixture.gid).stream}:raw", "*", *fields)


def _zcount(fixture: Fixture) -> Command:
    return "ZCOUNT", fixture.client.space.group(fixture.gid).acked, msgids.pack(fixture.newest[0].msgid), "+inf"


def _send(fixture: Fixture) -> float:
    return _repeated(fixture.single, lambda: fixture.chat.send(fixture.gid, TEXT, sender_uid=fixture.uids[0]))


def _send_many(per_call: int, fixture: Fixture) -> float:
    return _timed_sends(fixture, [[Draft(fixture.uids[0], TEXT)] * per_call] * (fixture.many // per_call))


def _send_with_client_msgid(fixture: Fixture) -> float:
    first = fixture.send(1)[0].seq  # makes the ids new in each round
    return _timed_sends(fixture, [[Draft(fixture.uids[0], TEXT, f"{first}-{n}")] for n in range(fixture.many)])


def _timed_sends(fixture: Fixture, drafts: list[list[Draft]]) -> float:
    return _timed(
        fixture.many,
        lambda: fixture.client.call_many([fixture.send_call(part) for part in drafts], repeatable=False),
    )


def _ack(fixture: Fixture) -> float:
    acks = iter(fixture.acks(fixture.single, 1))
    msgid = fixture.newest[-1].msgid
    return _repeated(fixture.single, lambda: fixture.chat.ack(next(acks).uids[0], fixture.gid, msgid))


def _ack_many(per_call: int, fixture: Fixture) -> float:
    targets = fixture.acks(fixture.many, per_call)
    return _timed(fixture.many, lambda: fixture.ack(targets))


def _tally(fixture: Fixture) -> float:
    msgid = fixture.send(PER_CALL)[0].msgid
    return _repeated(fixture.single, lambda: fixture.chat.tally(fixture.gid, msgid))


def _tally_many(per_call: int, fixture: Fixture) -> float:
    sent, calls = fixture.send(per_call), range(fixture.many // per_call)
    return _timed(fixture.many, lambda: fixture.client.call_many([_tallies_call(fixture, sent) for _ in calls]))


def _tallies_call(fixture: Fixture, sent: Sequence[SendResult]) -> Call[Any]:
    wanted = [(msgids.pack(each.msgid), "", "") for each in sent]
    return receipt_calls.tallies(fixture.client.space, fixture.gid, wanted)
