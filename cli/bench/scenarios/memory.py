"""Bytes: in Redis per message, member and idle group, in SQL per message and per ack, beside the literal design.

The figures come from the memory that Redis has allocated, before and after: MEMORY USAGE estimates consumer groups
wrongly. The journals are emptied before each look, as `trim` empties them once the workers are done.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice, product

from imcore.cli.bench.baseline.naive_design import NaiveStore
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, Yardstick, interleave
from imcore.cli.bench.harness.servers import BenchServers, RunningServers
from imcore.cli.bench.harness.traffic import TEXT, ack_each, data_memory, send_each
from imcore.streams.calls import creation_calls
from imcore.streams.calls.message_calls import SendResult

SMALL = 200
ACKS_PER_MESSAGE = 10

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
    """Measure all of it, anew in each round."""
    servers = servers.using(servers.tables())
    sizes = (SMALL, plan.size(100_000, 10_000))
    gids = (f"{servers.name}-{number}" for number in count())
    with servers.running("persist") as running:
        contestants: dict[str, Callable[[], Measured]] = {
            "idle groups": partial(_idle_groups, running, gids, plan.size(1000, 200)),
            **{f"groups of {n:,}": partial(_groups, running, gids, n, plan.size(10_000, 2000)) for n in sizes},
            "the literal design": partial(_naive, servers, plan.size(1000, 200)),
        }
        rounds = interleave(contestants, plan, progress)
    figure, naive = partial(Figure, bench="memory", unit="B", charted=True), rounds["the literal design"]
    figures = [figure(what=_IDLE, rounds=rounds["idle groups"][_IDLE])]
    for size, (what, aim) in product(sizes, _AIMS.items()):
        beside = Yardstick("the literal design", naive[what]) if size == SMALL and what in naive else None
        own = rounds[f"groups of {size:,}"][what]
        figures.append(figure(what=f"{what}, {size:,} members", rounds=own, yardstick=beside, aim=aim))
    return figures


def _idle_groups(running: RunningServers, gids: Iterator[str], groups: int) -> Measured:
    """Make groups of two, and nothing else."""
    client, name = running.chat.system.client, next(gids)
    batch = [creation_calls.create(client.space, f"{name}-{n}", ["ann", "bob"]) for n in range(groups)]
    return {_IDLE: _growth(running, lambda: client.call_many(batch)) / groups}


def _groups(running: RunningServers, names: Iterator[str], size: int, messages: int) -> Measured:
    """Make groups of a size, with messages and acks in one of them."""
    servers, chat, uids = running.servers, running.chat, _uids(size)
    bytes_of = partial(servers.maker.bytes_of, servers.settings.database_url)
    gids = list(islice(names, max(1, 10 * SMALL // size)))
    gid, sent = gids[0], list[SendResult]()
    group_bytes = _growth(running, lambda: [chat.create_group(name, uids) for name in gids])
    rows_before = bytes_of("group_msgs")
    message_bytes = _growth(running, lambda: sent.extend(send_each(chat, gid, uids[0], messages)))
    row_bytes = bytes_of("group_msgs") - rows_before
    moves_before = bytes_of("offset_moves")
    _growth(running, lambda: ack_each(chat, gid, uids[1 : ACKS_PER_MESSAGE + 1], sent))
    move_bytes = bytes_of("offset_moves") - moves_before
    return {
        _MEMBER: group_bytes / len(gids) / size,
        _MESSAGE: message_bytes / messages - len(TEXT),
        _ROW: row_bytes / messages - len(TEXT),
        _MOVE: move_bytes / messages / ACKS_PER_MESSAGE,
    }


def _naive(servers: BenchServers, messages: int) -> Measured:
    """Weigh the literal design in a small group, each message acked by ACKS_PER_MESSAGE members."""
    url, uids = servers.maker.new(), _uids(SMALL)
    with NaiveStore(url, "literal") as store:
        store.create(uids)
        before = servers.maker.bytes_of(url)
        sent = [store.send(uids[0], TEXT) for _ in range(messages)]
        after = servers.maker.bytes_of(url)
        for uid in uids[1 : ACKS_PER_MESSAGE + 1]:
            for msgid in sent:
                store.ack(uid, msgid)
        move_bytes = servers.maker.bytes_of(url) - after
    return {_ROW: (after - before) / messages - len(TEXT), _MOVE: move_bytes / messages / ACKS_PER_MESSAGE}


def _growth(running: RunningServers, action: Callable[[], object]) -> int:
    """Return how many bytes Redis holds more after an action, once it is stored and the journals are empty."""
    before = _settled_bytes(running)
    action()
    return _settled_bytes(running) - before


def _settled_bytes(running: RunningServers) -> int:
    running.wait_until_stored()
    client = running.chat.system.client
    for journal in client.space.journals():
        client.execute_once("XTRIM", journal, "MAXLEN", 0)
    return data_memory(running.chat)


def _uids(count: int) -> list[str]:
    return [f"user-{number:08}" for number in range(count)]  # as long as user ids usually are
