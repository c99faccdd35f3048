"""Single operations: send, ack and tally, one at a time, pipelined, and many in one call.

What is pipelined is held against two yardsticks: the raw command over the same fast path of the client, so that only
the server's part differs, and the raw command as programs send it, by the pipeline of redis-py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from imcore import msgid as msgids
from imcore.cli.bench.harness.figures import Aim, Figure
from imcore.cli.bench.harness.fixture import PER_CALL, TEXT, Fixture, Way, measure, repeated, timed
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.timing import Progress, RoundPlan
from imcore.model.values import Draft
from imcore.streams.calls import message_calls, receipt_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.message_calls import SendResult
from imcore.streams.client import CHUNK

Command = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Yardsticks:
    """The raw command that an operation is held against, and the call whose function could be empty."""

    name: str
    command: Callable[[Fixture], Command]
    call: Callable[[Fixture], Call[Any]]

    @property
    def pipelined(self) -> str:
        return f"{self.name}, pipelined"

    @property
    def driver(self) -> str:
        return f"{self.name}, pipelined by redis-py itself"

    def empty(self, fixture: Fixture) -> Command:
        """Return a call of a function that does nothing, with the keys and arguments of `call`."""
        call = self.call(fixture)
        return "FCALL_RO", "im_version", len(call.keys), *call.keys, *map(str, call.args)

    def many_way(self, name: str, turn: Callable[[Fixture], float], at_most: float) -> Way:
        """Return a way whose parts travel together, with an aim beside both pipelined yardsticks."""
        return Way(name, turn, self.pipelined, Aim("<=", at_most), compares_sizes=True, driver=self.driver)

    def ways(self) -> list[Way]:
        return [
            Way("empty function", partial(_one_by_one, self.empty), self.name),
            Way("empty function, pipelined", partial(_pipelined, self.empty), self.pipelined),
            Way(self.driver, partial(_pipelined_by_driver, self.command), self.pipelined),
            Way(self.name, partial(_one_by_one, self.command)),
            Way(self.pipelined, partial(_pipelined, self.command)),
        ]


def run_send(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure sends beside the XADD of the same fields, to a stream that nobody reads."""
    raw = _Yardsticks("raw XADD", _xadd_message, lambda fixture: fixture.send_call([Draft(fixture.sender, TEXT)]))
    ways = [
        Way("send", _send, raw.name),
        raw.many_way("send, pipelined", partial(_send_many, 1), 2.2),
        Way("send with client_msgid, pipelined", _send_with_client_msgid, raw.pipelined),
        raw.many_way(f"send_many, {PER_CALL} in a call", partial(_send_many, PER_CALL), 1.4),
        *raw.ways(),
    ]
    return measure(servers, "send", ways, plan, progress)


def run_ack(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure acks that move an offset, beside the XADD of an ack: who, and up to where."""
    raw = _Yardsticks("raw XADD", _xadd_ack, lambda f: message_calls.ack(f.space, f.gid, f.acks(1, 1)))
    ways = [
        Way("ack", _ack, raw.name),
        raw.many_way("ack, pipelined", partial(_ack_many, 1), 2.0),
        raw.many_way(f"ack_many, {PER_CALL} in a call", partial(_ack_many, PER_CALL), 1.0),
        *raw.ways(),
    ]
    return measure(servers, "ack", ways, plan, progress)


def run_tally(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure tallies, how many have read a message and how many not, beside one ZCOUNT over the offsets."""
    raw = _Yardsticks("raw ZCOUNT", _zcount, lambda fixture: _tallies_call(fixture, fixture.newest[:1]))
    ways = [
        Way("tally", _tally, raw.name, Aim("<=", 1.5)),
        raw.many_way("tally, pipelined", partial(_tally_many, 1), 1.5),
        raw.many_way(f"tallies, {PER_CALL} in a call", partial(_tally_many, PER_CALL), 1.5),
        *raw.ways(),
    ]
    return measure(servers, "tally", ways, plan, progress)


def _one_by_one(command_of: Callable[[Fixture], Command], fixture: Fixture) -> float:
    command = command_of(fixture)
    return repeated(fixture.single, lambda: fixture.chat.system.client.execute_once(*command))


def _pipelined(command_of: Callable[[Fixture], Command], fixture: Fixture) -> float:
    # query_many is the client's pipeline for plain commands: the same path that calls take.
    commands = [command_of(fixture)] * CHUNK
    return _in_trips(fixture, lambda: fixture.chat.system.client.query_many(commands))


def _pipelined_by_driver(command_of: Callable[[Fixture], Command], fixture: Fixture) -> float:
    command = command_of(fixture)

    def trip() -> None:
        with fixture.chat.system.client.driver.pipeline(transaction=False) as pipe:
            for _ in range(CHUNK):
                pipe.execute_command(*command)
            pipe.execute()

    return _in_trips(fixture, trip)


def _in_trips(fixture: Fixture, trip: Callable[[], object]) -> float:
    trips = fixture.many // CHUNK
    return timed(trips * CHUNK, lambda: [trip() for _ in range(trips)])


def _xadd_message(fixture: Fixture) -> Command:
    fields = ("seq", 123456, "uid", fixture.sender, "span", 0, "cid", "", "sent", "", "caught_up", 1, "text", TEXT)
    return ("XADD", f"{fixture.space.group(fixture.gid).stream}:raw", "*", *fields)


def _xadd_ack(fixture: Fixture) -> Command:
    newest = fixture.newest[-1]
    fields = ("uid", fixture.uids[-1], "msgid", msgids.pack(newest.msgid), "seq", newest.seq)
    return ("XADD", f"{fixture.space.group(fixture.gid).stream}:raw", "*", *fields)


def _zcount(fixture: Fixture) -> Command:
    return "ZCOUNT", fixture.space.group(fixture.gid).acked, msgids.pack(fixture.newest[0].msgid), "+inf"


def _send(fixture: Fixture) -> float:
    return repeated(fixture.single, lambda: fixture.chat.send(fixture.gid, TEXT, sender_uid=fixture.sender))


def _send_many(per_call: int, fixture: Fixture) -> float:
    return _timed_sends(fixture, [[Draft(fixture.sender, TEXT)] * per_call] * (fixture.many // per_call))


def _send_with_client_msgid(fixture: Fixture) -> float:
    first = fixture.send(1)[0].seq  # makes the ids new in each round
    return _timed_sends(fixture, [[Draft(fixture.sender, TEXT, f"{first}-{n}")] for n in range(fixture.many)])


def _timed_sends(fixture: Fixture, drafts: list[list[Draft]]) -> float:
    client = fixture.chat.system.client
    return timed(fixture.many, lambda: client.call_many([fixture.send_call(part) for part in drafts], repeatable=False))


def _ack(fixture: Fixture) -> float:
    acks = iter(fixture.acks(fixture.single, 1))
    msgid = fixture.newest[-1].msgid
    return repeated(fixture.single, lambda: fixture.chat.ack(next(acks).uids[0], fixture.gid, msgid))


def _ack_many(per_call: int, fixture: Fixture) -> float:
    client, space, targets = fixture.chat.system.client, fixture.space, fixture.acks(fixture.many, per_call)
    return timed(
        fixture.many,
        lambda: client.call_many([message_calls.ack(space, fixture.gid, [target]) for target in targets]),
    )


def _tally(fixture: Fixture) -> float:
    msgid = fixture.send(PER_CALL)[0].msgid
    return repeated(fixture.single, lambda: fixture.chat.tally(fixture.gid, msgid))


def _tally_many(per_call: int, fixture: Fixture) -> float:
    client, sent = fixture.chat.system.client, fixture.send(per_call)
    calls = range(fixture.many // per_call)
    return timed(fixture.many, lambda: client.call_many([_tallies_call(fixture, sent) for _ in calls]))


def _tallies_call(fixture: Fixture, sent: Sequence[SendResult]) -> Call[Any]:
    wanted = [(msgids.pack(each.msgid), "", "") for each in sent]
    return receipt_calls.tallies(fixture.space, fixture.gid, wanted)
