"""Single operations: send, ack and tally, one at a time, pipelined, and many in one call.

What is pipelined is held against two yardsticks: the raw command over the same fast path of the link, so that only the
server's part differs, and the raw command as programs send it, by the pipeline of redis-py.
"""

from collections.abc import Callable

from imcore import msgid as msgids
from imcore.cli.bench.figures import Aim, Figure
from imcore.cli.bench.fixture import PER_CALL, TEXT, Fixture, Way, each, measure, timed
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Progress, RoundPlan
from imcore.model.values import Draft
from imcore.streams.calls import message_calls, receipt_calls
from imcore.streams.calls.call import Call
from imcore.streams.client import CHUNK

XADD, XADD_PIPELINED = "raw XADD", "raw XADD, pipelined"
XADD_DRIVER = "raw XADD, pipelined by redis-py itself"
ZCOUNT, ZCOUNT_PIPELINED = "raw ZCOUNT", "raw ZCOUNT, pipelined"
ZCOUNT_DRIVER = "raw ZCOUNT, pipelined by redis-py itself"
EMPTY, EMPTY_PIPELINED = "empty function", "empty function, pipelined"

Command = tuple[str | int, ...]


def run_send(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure sends beside the XADD of the same fields, to a stream that nobody reads."""
    ways = [
        Way("send", _send, XADD),
        Way("send, pipelined", _sends, XADD_PIPELINED, Aim("<=", 2.2), compares_sizes=True, driver=XADD_DRIVER),
        Way("send with client_msgid, pipelined", _sends_with_client_msgid, XADD_PIPELINED),
        Way(
            f"send_many, {PER_CALL} in a call",
            _send_many,
            XADD_PIPELINED,
            Aim("<=", 1.4),
            compares_sizes=True,
            driver=XADD_DRIVER,
        ),
        Way(EMPTY, lambda bed: _one_by_one(bed, _empty_send(bed)), XADD),
        Way(EMPTY_PIPELINED, lambda bed: _pipelined(bed, _empty_send(bed)), XADD_PIPELINED),
        Way(XADD_DRIVER, lambda bed: _pipelined_by_driver(bed, _xadd_message(bed)), XADD_PIPELINED),
        Way(XADD, lambda bed: _one_by_one(bed, _xadd_message(bed))),
        Way(XADD_PIPELINED, lambda bed: _pipelined(bed, _xadd_message(bed))),
    ]
    return measure(stack, "send", ways, plan, progress)


def run_ack(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure acks that move an offset, beside the XADD of an ack: who, and up to where."""
    ways = [
        Way("ack", _ack, XADD),
        Way("ack, pipelined", _acks, XADD_PIPELINED, Aim("<=", 2.0), compares_sizes=True, driver=XADD_DRIVER),
        Way(
            f"ack_many, {PER_CALL} in a call",
            _ack_many,
            XADD_PIPELINED,
            Aim("<=", 1.0),
            compares_sizes=True,
            driver=XADD_DRIVER,
        ),
        Way(EMPTY, lambda bed: _one_by_one(bed, _empty_ack(bed)), XADD),
        Way(EMPTY_PIPELINED, lambda bed: _pipelined(bed, _empty_ack(bed)), XADD_PIPELINED),
        Way(XADD_DRIVER, lambda bed: _pipelined_by_driver(bed, _xadd_ack(bed)), XADD_PIPELINED),
        Way(XADD, lambda bed: _one_by_one(bed, _xadd_ack(bed))),
        Way(XADD_PIPELINED, lambda bed: _pipelined(bed, _xadd_ack(bed))),
    ]
    return measure(stack, "ack", ways, plan, progress)


def run_tally(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure tallies, how many have read a message and how many not, beside one ZCOUNT over the offsets."""
    ways = [
        Way("tally", _tally, ZCOUNT, Aim("<=", 1.5)),
        Way("tally, pipelined", _tallies, ZCOUNT_PIPELINED, Aim("<=", 1.5), compares_sizes=True, driver=ZCOUNT_DRIVER),
        Way(
            f"tallies, {PER_CALL} in a call",
            _tally_many,
            ZCOUNT_PIPELINED,
            Aim("<=", 1.5),
            compares_sizes=True,
            driver=ZCOUNT_DRIVER,
        ),
        Way(EMPTY, lambda bed: _one_by_one(bed, _empty_tally(bed)), ZCOUNT),
        Way(EMPTY_PIPELINED, lambda bed: _pipelined(bed, _empty_tally(bed)), ZCOUNT_PIPELINED),
        Way(ZCOUNT_DRIVER, lambda bed: _pipelined_by_driver(bed, _zcount(bed)), ZCOUNT_PIPELINED),
        Way(ZCOUNT, lambda bed: _one_by_one(bed, _zcount(bed))),
        Way(ZCOUNT_PIPELINED, lambda bed: _pipelined(bed, _zcount(bed))),
    ]
    return measure(stack, "tally", ways, plan, progress)


def _one_by_one(bed: Fixture, command: Command) -> float:
    return each(bed.single, lambda: bed.chat.system.client.execute_once(*command))


def _pipelined(bed: Fixture, command: Command) -> float:
    # query_many is the link's pipeline for plain commands: the same path that calls take.
    return _in_trips(bed, lambda: bed.chat.system.client.query_many([command] * CHUNK))


def _pipelined_by_driver(bed: Fixture, command: Command) -> float:
    def trip() -> None:
        with bed.chat.system.client.driver.pipeline(transaction=False) as pipe:
            for _ in range(CHUNK):
                pipe.execute_command(*command)
            pipe.execute()

    return _in_trips(bed, trip)


def _in_trips(bed: Fixture, trip: Callable[[], object]) -> float:
    trips = bed.many // CHUNK
    return timed(trips * CHUNK, lambda: [trip() for _ in range(trips)])


def _xadd_message(bed: Fixture) -> Command:
    fields = ("seq", 123456, "uid", bed.sender, "span", 0, "cid", "", "sent", "", "caught_up", 1, "text", TEXT)
    return ("XADD", f"{bed.keys.stream}:raw", "*", *fields)


def _xadd_ack(bed: Fixture) -> Command:
    fields = ("uid", bed.uids[-1], "msgid", msgids.pack(bed.newest[-1].msgid), "seq", bed.newest[-1].seq)
    return ("XADD", f"{bed.keys.stream}:raw", "*", *fields)


def _zcount(bed: Fixture) -> Command:
    return "ZCOUNT", bed.keys.acked, msgids.pack(bed.newest[0].msgid), "+inf"


def _empty(call: Call[object]) -> Command:
    """Return a call of a function that does nothing, with the keys and arguments of another one."""
    return "FCALL_RO", "im_version", len(call.keys), *call.keys, *map(str, call.args)


def _empty_send(bed: Fixture) -> Command:
    return _empty(message_calls.send(bed.space, bed.gid, [Draft(bed.sender, TEXT)], 1))


def _empty_ack(bed: Fixture) -> Command:
    return _empty(message_calls.ack(bed.space, bed.gid, bed.acks(1, 1)))


def _empty_tally(bed: Fixture) -> Command:
    return _empty(receipt_calls.tallies(bed.space, bed.gid, [(msgids.pack(bed.newest[0].msgid), "", "")]))


def _send(bed: Fixture) -> float:
    return each(bed.single, lambda: bed.chat.send(bed.gid, TEXT, sender_uid=bed.sender))


def _sends(bed: Fixture) -> float:
    return _run_sends(bed, [Draft(bed.sender, TEXT)] * bed.many, 1)


def _sends_with_client_msgid(bed: Fixture) -> float:
    first = bed.send(1)[0].seq  # makes the ids new in each round
    return _run_sends(bed, [Draft(bed.sender, TEXT, f"{first}-{number}") for number in range(bed.many)], 1)


def _send_many(bed: Fixture) -> float:
    return _run_sends(bed, [Draft(bed.sender, TEXT)] * bed.many, PER_CALL)


def _run_sends(bed: Fixture, drafts: list[Draft], per_call: int) -> float:
    client, space, once_ms = bed.chat.system.client, bed.space, bed.chat.system.settings.idempotency_ms
    parts = [drafts[i : i + per_call] for i in range(0, len(drafts), per_call)]
    return timed(
        len(drafts),
        lambda: client.call_many(
            [message_calls.send(space, bed.gid, part, once_ms) for part in parts], repeatable=False
        ),
    )


def _ack(bed: Fixture) -> float:
    acks = iter(bed.acks(bed.single, 1))
    msgid = bed.newest[-1].msgid
    return each(bed.single, lambda: bed.chat.ack(next(acks).uids[0], bed.gid, msgid))


def _acks(bed: Fixture) -> float:
    return _run_acks(bed, 1)


def _ack_many(bed: Fixture) -> float:
    return _run_acks(bed, PER_CALL)


def _run_acks(bed: Fixture, per_call: int) -> float:
    client, space, acks = bed.chat.system.client, bed.space, bed.acks(bed.many, per_call)
    return timed(bed.many, lambda: client.call_many([message_calls.ack(space, bed.gid, [target]) for target in acks]))


def _tally(bed: Fixture) -> float:
    msgid = bed.send(PER_CALL)[0].msgid
    return each(bed.single, lambda: bed.chat.tally(bed.gid, msgid))


def _tallies(bed: Fixture) -> float:
    return _run_tallies(bed, 1)


def _tally_many(bed: Fixture) -> float:
    return _run_tallies(bed, PER_CALL)


def _run_tallies(bed: Fixture, per_call: int) -> float:
    client, space = bed.chat.system.client, bed.space
    wanted = [(msgids.pack(sent.msgid), "", "") for sent in bed.send(per_call)]
    return timed(
        bed.many,
        lambda: client.call_many([receipt_calls.tallies(space, bed.gid, wanted) for _ in range(bed.many // per_call)]),
    )
